"""Feature fields on a square grid: the action is exact, and what it cannot do is refused."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry import (
    SE,
    SO,
    Cyclic,
    Dihedral,
    GridField,
    Group,
    Lorentz,
    MatrixGroup,
    O,
    On,
    Representation,
    Scaling,
    Symmetric,
    custom,
    fields,
    regular,
    sign,
    trivial,
    vector,
)

torch.set_num_threads(1)
EXACT: list[Group] = [Cyclic(1), Cyclic(2), Cyclic(4), Dihedral(1), Dihedral(2), Dihedral(4)]
TURN, FLIP = Cyclic(4).elements()[1], Dihedral(1).elements()[1]


def mixed(group: Group) -> Representation:
    return 2 * trivial(group) + vector(group) + regular(group) + sign(group) + 2 * vector(group)


def slow(representation: Representation, g: Tensor, x: Tensor) -> Tensor:
    """(g f)(p) = rho(g) f(g^-1 p), pixel by pixel, by the coordinates themselves."""
    height, width = x.shape[-2:]
    out = torch.empty_like(x)
    inverse, rho = torch.linalg.inv(g), representation.matrix(g).to(x)
    for row in range(height):
        for column in range(width):
            p = torch.tensor([column - (width - 1) / 2, (height - 1) / 2 - row], dtype=torch.float64)
            q = inverse @ p
            source = x[..., round(float((height - 1) / 2 - q[1])), round(float(q[0] + (width - 1) / 2))]
            out[..., row, column] = source @ rho.T
    return out


@settings(max_examples=40, deadline=None)
@given(
    group=st.sampled_from(EXACT),
    size=st.integers(1, 5),
    leading=st.lists(st.integers(1, 3), max_size=2),
    data=st.data(),
)
def test_the_action_is_what_its_formula_says(
    group: Group, size: int, leading: list[int], data: st.DataObject
) -> None:
    field = GridField(mixed(group))
    g = data.draw(st.sampled_from(list(group.elements())))
    x = torch.randn(*leading, field.dim, size, size, dtype=torch.float64)
    torch.testing.assert_close(field.apply(g, x), slow(field.representation, g, x), rtol=0, atol=1e-14)


@pytest.mark.parametrize("group", [Cyclic(2), Dihedral(1), Dihedral(2)], ids=repr)
def test_grids_that_are_not_square(group: Group) -> None:
    field = GridField(mixed(group))
    x = torch.randn(2, field.dim, 3, 4, dtype=torch.float64)
    for g in group.elements():
        torch.testing.assert_close(field.apply(g, x), slow(field.representation, g, x), rtol=0, atol=1e-14)


def test_conventions() -> None:
    x = torch.randn(3, 1, 6, 6)
    assert torch.equal(GridField(trivial(Cyclic(4))).apply(TURN, x), torch.rot90(x, 1, (-2, -1)))
    assert torch.equal(GridField(trivial(Dihedral(1))).apply(FLIP, x), x.flip(-2))
    right = torch.zeros(2, 3, 3)
    right[0, 1, 2] = 1.0  # at the right edge, pointing to the right
    turned = GridField(vector(Cyclic(4))).apply(TURN, right)
    assert turned[1, 0, 1] == 1.0  # at the top edge, pointing up
    assert turned.abs().sum() == 1.0


@pytest.mark.parametrize("group", EXACT, ids=repr)
def test_homomorphism(group: Group) -> None:
    field = GridField(mixed(group))
    x = torch.randn(2, field.dim, 5, 5, dtype=torch.float64)
    elements = group.elements()
    assert torch.equal(field.apply(elements[0], x), x)
    for g in elements:
        for h in elements:
            assert torch.equal(field.apply(g @ h, x), field.apply(g, field.apply(h, x)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_keep_every_number(dtype: torch.dtype) -> None:
    field = GridField(mixed(Dihedral(4)))
    x = torch.randn(2, field.dim, 4, 4).to(dtype)
    for g in Dihedral(4).elements():
        moved = field.apply(g.to(dtype), x)
        assert moved.dtype == dtype
        assert torch.equal(moved.double(), field.apply(g, x.double()))


def test_whole_numbers() -> None:
    labels = torch.arange(18).reshape(2, 1, 3, 3)
    turned = GridField(trivial(Cyclic(4))).apply(TURN, labels)
    assert torch.equal(turned, labels.rot90(1, (-2, -1)))
    with pytest.raises(RepresentationError, match="turns signs"):
        GridField(vector(Cyclic(4))).apply(TURN, torch.zeros(2, 3, 3, dtype=torch.uint8))


@pytest.mark.parametrize("batch", [(), (6,), (1,), (6, 3), (6, 1), (1, 3)])
def test_batches_of_elements(batch: tuple[int, ...]) -> None:
    group = Dihedral(4)
    field = GridField(mixed(group))
    x = torch.randn(6, 3, field.dim, 4, 4, dtype=torch.float64)
    drawn = torch.randint(8, batch, generator=torch.Generator().manual_seed(0))
    g = group.elements()[drawn]
    moved = field.apply(g, x)
    every = g.reshape(*batch, *[1] * (2 - len(batch)), 2, 2).expand(6, 3, 2, 2)
    for i in range(6):
        for j in range(3):
            assert torch.equal(moved[i, j], field.apply(every[i, j], x[i, j]))


def test_a_batch_keeps_the_frames_of_a_sample_together() -> None:
    field = GridField(vector(Cyclic(4)))
    x = torch.randn(5, 10, 2, 8, 8)
    g = Cyclic(4).elements()[torch.tensor([0, 1, 2, 3, 1])]
    moved = field.apply(g.float(), x)
    assert torch.equal(moved[4], field.apply(TURN, x[4]))
    assert torch.equal(field.apply(g[:0], x[:0]), x[:0])


def test_derivatives_pass_through() -> None:
    field = GridField(mixed(Cyclic(4)))
    x = torch.randn(2, field.dim, 2, 2, dtype=torch.float64, requires_grad=True)
    g = Cyclic(4).elements()[1:3]
    assert torch.autograd.gradcheck(lambda x: field.apply(g, x), x)
    assert torch.autograd.gradgradcheck(lambda x: field.apply(g, x), x)


def test_the_sample_is_never_written_to() -> None:
    field = GridField(trivial(Cyclic(4)))
    x = torch.randn(1, 4, 4)
    for g in Cyclic(4).elements():
        moved = field.apply(g, x)
        before = x.clone()
        moved.add_(1.0)
        assert torch.equal(x, before)


def test_other_bases() -> None:
    """A representation that mixes channels, and no signed permutation, acts by its matrices."""
    group = Cyclic(4)
    skew = torch.tensor([[1.0, 0.4], [0.0, 2.0]], dtype=torch.float64)
    rep = custom(group, discrete=(skew @ TURN @ torch.linalg.inv(skew)).unsqueeze(0), name="skew")
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    for g in group.elements():
        torch.testing.assert_close(GridField(rep).apply(g, x), slow(rep, g, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("group", [Cyclic(8), SO(2), O(2), Dihedral(8)], ids=repr)
def test_larger_groups_turn_by_90_degrees(group: Group) -> None:
    rep = vector(group) + (regular(group) if group.order else trivial(group))
    x = torch.randn(2, rep.dim, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(GridField(rep).apply(TURN, x), slow(rep, TURN, x), rtol=0, atol=1e-14)
    half = Cyclic(8).elements()[1]
    with pytest.raises(RepresentationError, match=r"does not map a grid.*group=Cyclic\(4\)"):
        GridField(rep).apply(half, x)
    with pytest.raises(RepresentationError, match="does not map a grid"):
        GridField(rep).apply(torch.stack([TURN, half]), x)


@pytest.mark.parametrize(
    ("representation", "why"),
    [
        (trivial(Scaling()), "no GridField for Scaling"),
        (vector(SE(2)), "translations"),
        (vector(SO(3)), "plane"),
        (vector(Lorentz()), "plane"),
        (trivial(Symmetric(3)), "plane"),
        (vector(MatrixGroup([[[1.0, 0.0], [0.0, 1.0]]], name="stretch")), "moves no grid of pixels"),
    ],
    ids=repr,
)
def test_groups_that_have_no_fields(representation: Representation, why: str) -> None:
    with pytest.raises(RepresentationError, match=why):
        GridField(representation)


def test_what_does_not_fit_is_refused() -> None:
    field = GridField(vector(Cyclic(4)))
    with pytest.raises(RepresentationError, match="3 x 4 pixels is not square"):
        field.apply(TURN, torch.zeros(2, 3, 4))
    with pytest.raises(RepresentationError, match=r"\(\.\.\., 2, H, W\)"):
        field.apply(TURN, torch.zeros(3, 4, 4))
    with pytest.raises(RepresentationError, match=r"\(\.\.\., 2, H, W\)"):
        field.apply(TURN, torch.zeros(2, 4))
    with pytest.raises(RepresentationError, match="not one of C4"):
        field.apply(FLIP, torch.zeros(2, 4, 4))
    with pytest.raises(RepresentationError, match="batch of elements"):
        field.apply(Cyclic(4).elements(), torch.zeros(3, 2, 4, 4))
    with pytest.raises(RepresentationError, match="batch of elements"):
        field.apply(Cyclic(4).elements(), torch.zeros(2, 4, 4))
    with pytest.raises(RepresentationError):
        field.apply(torch.eye(3), torch.zeros(2, 4, 4))
    with pytest.raises(RepresentationError, match="does not map"):
        field.apply(torch.full((2, 2), float("nan")), torch.zeros(2, 4, 4))


def test_a_finite_group_has_no_derivative() -> None:
    x = torch.zeros(5, 2, 3, 3)
    assert GridField(vector(Dihedral(4))).derivative(x).shape == (0, 5, 2, 3, 3)
    with pytest.raises(RepresentationError, match="no Lie derivative"):
        GridField(vector(SO(2))).derivative(x)


def test_equality_copies_and_specs() -> None:
    field = GridField(mixed(Dihedral(4)))
    for twin in (
        copy.deepcopy(field),
        pickle.loads(pickle.dumps(field)),
        GridField.from_spec(json.loads(json.dumps(field.spec()))),
    ):
        assert twin == field
        assert hash(twin) == hash(field)
    assert field != GridField(mixed(Cyclic(4)))
    assert field != On(mixed(Dihedral(4)))
    assert "vector" in repr(field)
    with pytest.raises(RepresentationError, match="spec"):
        GridField.from_spec({"rep": {}})
    with pytest.raises(AttributeError):
        field.representation = mixed(Cyclic(4))  # type: ignore[misc]


def test_axis_is_a_tensor_action_too() -> None:
    axis = On(vector(SO(3)), -2)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    g = SO(3).sample(1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[0]
    assert torch.equal(axis.apply(g, x), axis.representation.apply(g, x, axis=-2))
    assert axis.derivative(x).shape == (3, 4, 3, 5)
    assert axis.mismatch((4, 3, 5)) == ""
    assert "axis -2" in axis.mismatch((4, 5, 3))
    assert "axis -2" in axis.mismatch((3,))
    assert [axis.moves(k, 3) for k in range(3)] == [False, True, False]


def test_batches_cost_one_pass_per_element(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def counted(element: fields.Entries, x: Tensor) -> Tensor:
        passes.append(len(x))
        return move_grid(element, x)

    move_grid = fields.move_grid
    monkeypatch.setattr(fields, "move_grid", counted)
    g = Cyclic(4).sample(64, generator=torch.Generator().manual_seed(0))
    GridField(vector(Cyclic(4))).apply(g, torch.randn(64, 2, 4, 4))
    assert len(passes) == 4
    assert sum(passes) == 64
