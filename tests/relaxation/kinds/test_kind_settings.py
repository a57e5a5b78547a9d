"""Kinds are registered by name, and refuse settings that make no sense when they are made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import equirelax as er
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


def test_numbers_of_numpy_become_python_s() -> None:
    kind = kinds.MLP(layers=np.int64(2), hidden=(np.int32(3),), std=np.float32(0.5), scale=np.float64(2.0))
    assert kind == kinds.MLP(layers=2, hidden=(3,), std=0.5, scale=2.0)
    types = [type(kind.layers), type(kind.hidden[0]), type(kind.std), type(kind.scale)]  # type: ignore[index]
    assert types == [int, int, float, float]


def test_a_model_relaxed_with_a_number_of_numpy_is_saved_and_loaded(tmp_path: Path) -> None:
    declared = (er.Linear("0", "1x0e+1x1o"),)
    model, other = (nn.Sequential(nn.Linear(4, 4, bias=False)) for _ in range(2))
    er.relax(model, er.Layers(declare=declared, residual=er.Dense("normal", std=np.float64(0.1))))
    er.save(model, tmp_path / "model.pt")
    er.load(other, tmp_path / "model.pt")
    assert other.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("wrong", [np.bool_(True), np.float32(2.0), np.array([1, 2])], ids=str)
def test_what_numpy_has_beside_whole_numbers_is_none(wrong: Any) -> None:
    with pytest.raises(PlacementError, match="rank"):
        er.LowRank(rank=wrong)
    with pytest.raises(PlacementError, match="init"):
        er.LowRank(init=wrong)


@pytest.mark.parametrize("wrong", ["dense", er.Dense], ids=str)
def test_a_name_or_a_class_is_no_kind(wrong: Any) -> None:
    with pytest.raises(PlacementError, match=r"^0: the residual is"):
        er.relax(
            nn.Sequential(nn.Linear(4, 4)),
            er.Layers(declare=(er.Linear("0", "1x0e+1x1o"),), residual=wrong),
        )
