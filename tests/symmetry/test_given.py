"""Representations in every form in which people have them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from equirelax.errors import RepresentationError
from equirelax.symmetry import (
    SO,
    Cyclic,
    E,
    GridField,
    O,
    On,
    as_representation,
    from_irreps,
    regular,
    vector,
)


def test_ours_are_returned_as_they_are() -> None:
    for value in (vector(SO(3)), On(vector(SO(3)), -2), GridField(regular(Cyclic(4)))):
        assert as_representation(value) is value
        assert as_representation(value, O(3)) is value


def test_text() -> None:
    """N12: text stands for the irreps of O(3), or of the group that is given."""
    assert as_representation("2x0e + 1x1o") == from_irreps("2x0e+1x1o")
    assert as_representation("2x0e+1x1o").group == O(3)
    assert as_representation("1x1o", E(3)).group == E(3)
    assert as_representation("0e+3x1y+2x2y").label() == "1x0e+3x1o+2x2e"
    assert as_representation("").dim == 0
    assert On("4x1o", -2) == On(from_irreps("4x1o"), -2)  # type: ignore[arg-type]


def test_text_agrees_with_e3nn() -> None:
    o3 = pytest.importorskip("e3nn.o3")
    for text in ("2x0e+1x1o", "1o", "0x1e+2x0o", "3x1y + 2x2y", "16x0e+4x3o"):
        given = o3.Irreps(text)
        assert as_representation(given) == as_representation(text)
        assert as_representation(text).dim == given.dim
    g = O(3).sample(3, generator=torch.Generator().manual_seed(0))
    found = as_representation(o3.Irreps("0o+1o+2e")).matrix(g)
    expected = o3.Irreps("0o+1o+2e").D_from_matrix(g.float()).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_text_up_to_degree_one_needs_no_e3nn() -> None:
    code = (
        "import sys; sys.modules['e3nn'] = None; import importlib.util as u; import torch;"
        "from equirelax.symmetry import O, as_representation;"
        "rep = as_representation('2x0e+1x0o+1x1o+1x1e'); g = O(3).sample(4);"
        "assert torch.allclose(rep.apply(g, torch.ones(4, 9).double())[:, 3:6], g.sum(-1));"
        "assert rep.generators().shape == (3, 9, 9); assert sys.modules['e3nn'] is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_higher_degrees_say_that_e3nn_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equirelax.symmetry.irreps.find_spec", lambda name: None)
    assert as_representation("2x1o+0x2e").dim == 6
    with pytest.raises(RepresentationError, match="e3nn"):
        as_representation("1x2e")


@pytest.mark.parametrize("value", [3, None, ["1x1o"], torch.ones(3), O(3)])
def test_anything_else_is_refused_with_what_is_accepted(value: object) -> None:
    with pytest.raises(RepresentationError, match=r"GridField\(representation\)"):
        as_representation(value)
    with pytest.raises(RepresentationError, match="FieldType"):
        On(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["2x0e+", "1x1", "vector", "2x1q", "-1x0e", "1.5x0e"])
def test_misspelt_text(text: str) -> None:
    with pytest.raises(RepresentationError, match="32x0e"):
        as_representation(text)
