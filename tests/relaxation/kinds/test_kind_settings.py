"""Kinds are registered by name, and refuse settings that make no sense when they are made."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from equirelax.errors import PlacementError
from equirelax.relaxation import kinds
from equirelax.relaxation.spec import decode, encode

BAD: dict[str, list[dict[str, Any]]] = {
    "dense": [{"init": "zero"}, {"std": -1.0}, {"std": float("nan")}, {"bias": 1}],
    "equivariant-dense": [{"init": "zero"}, {"std": -1.0}],
    "low-rank": [{"rank": 0}, {"rank": 2.5}, {"init": "zero"}, {"std": -1.0}],
    "mlp": [{"layers": 0}, {"hidden": 0}, {"hidden": (4, 0)}, {"init": "zero"}, {"scale": float("inf")}],
    "normed-perceptron": [{"hidden": 0}, {"iterations": 0}],
    "stream-step": [{"iterations": 0}],
}


def test_every_kind_is_registered_under_its_name() -> None:
    assert set(kinds.names()) >= set(BAD)
    for name in BAD:
        assert kinds.get(name).name == name
    with pytest.raises(PlacementError, match="low-rank"):
        kinds.get("lowrank")


@pytest.mark.parametrize("name", BAD)
def test_settings_survive_plain_data(name: str) -> None:
    kind = kinds.get(name)()
    assert decode(encode(kind)) == kind
    assert dataclasses.replace(kind) == kind
    assert hash(kind) == hash(dataclasses.replace(kind))


@pytest.mark.parametrize(("name", "bad"), [(name, bad) for name, several in BAD.items() for bad in several])
def test_bad_settings_are_refused(name: str, bad: dict[str, Any]) -> None:
    with pytest.raises(PlacementError, match=next(iter(bad))):
        kinds.get(name)(**bad)


def test_widths_in_a_list_are_a_tuple() -> None:
    assert kinds.MLP(hidden=[8, 4]) == kinds.MLP(hidden=(8, 4))  # type: ignore[arg-type]
