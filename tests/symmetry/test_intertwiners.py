"""Equivariant maps, against the null space of the whole constraint matrix."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equirelax.errors import RepresentationError
from equirelax.symmetry import (
    SE,
    SO,
    Cyclic,
    Dihedral,
    E,
    Group,
    Lorentz,
    MatrixGroup,
    O,
    Representation,
    Scaling,
    Symmetric,
    equivariant_projection,
    from_irreps,
    hom_basis,
    positions,
    pseudovector,
    regular,
    sign,
    trivial,
    vector,
)

SL2 = MatrixGroup(
    [[[1.0, 0.0], [0.0, -1.0]], [[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]], name="SL(2)"
)
GROUPS: list[Group] = [
    SO(2), O(2), SO(3), O(3), SE(2), SE(3), E(3), Scaling(), Lorentz(), SL2,
    Cyclic(1), Cyclic(3), Dihedral(4), Symmetric(3),
]  # fmt: skip


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force_projector(in_rep: Representation, out_rep: Representation) -> torch.Tensor:
    """Orthogonal projector onto the null space of all constraints on the whole matrix, (size, size).

    Column-major vec, written with dense matrices only: vec(A W B) = (B^T (x) A) vec(W).
    """
    eye_in, eye_out = (torch.eye(rep.dim, dtype=torch.float64) for rep in (in_rep, out_rep))
    rows = [torch.zeros(1, in_rep.dim * out_rep.dim, dtype=torch.float64)]
    for of in ("generators", "discrete"):
        for a, b in zip(getattr(in_rep, of)(), getattr(out_rep, of)(), strict=True):
            rows.append(torch.kron(eye_in, b) - torch.kron(a.T.contiguous(), eye_out))
    constraints = torch.cat(rows)
    return torch.eye(constraints.shape[1], dtype=torch.float64) - torch.linalg.pinv(constraints) @ constraints


def project_by_brute_force(
    weight: torch.Tensor, in_rep: Representation, out_rep: Representation
) -> torch.Tensor:
    flat = brute_force_projector(in_rep, out_rep) @ weight.T.reshape(-1)
    return flat.reshape(weight.shape[1], weight.shape[0]).T


@st.composite
def representations(draw: st.DrawFn, group: Group) -> Representation:
    """A small random direct sum, with equal blocks apart from each other and tensor products among them."""
    pool = [trivial(group), vector(group), sign(group)]
    if group.linear_dim == 2:
        pool.append(vector(group).tensor(vector(group)))
    if group.linear_dim == 3:
        pool.append(pseudovector(group))
    picks = draw(st.lists(st.tuples(st.integers(1, 2), st.sampled_from(pool)), min_size=1, max_size=3))
    return sum((m * rep for m, rep in picks), start=trivial(group, 0))


@pytest.mark.parametrize("group", GROUPS, ids=str)
@given(data=st.data())
@settings(deadline=None, max_examples=8)
def test_projection_equals_the_brute_force_one(group: Group, data: st.DataObject) -> None:
    in_rep, out_rep = data.draw(representations(group)), data.draw(representations(group))
    weight = randn(out_rep.dim, in_rep.dim)
    projected = equivariant_projection(weight, in_rep, out_rep)
    expected = project_by_brute_force(weight, in_rep, out_rep)
    torch.testing.assert_close(projected, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        equivariant_projection(projected, in_rep, out_rep), projected, rtol=0, atol=1e-12
    )
    residual = weight - projected
    assert (
        residual * equivariant_projection(randn(*weight.shape, seed=3), in_rep, out_rep)
    ).sum().abs() < 1e-10
    for g in group.sample(3, generator=torch.Generator().manual_seed(1)):
        difference = out_rep.matrix(g) @ projected - projected @ in_rep.matrix(g)
        assert difference.abs().max() < 1e-10


@pytest.mark.parametrize(
    ("in_rep", "out_rep"),
    [
        (from_irreps("2x0e+1o+1e"), from_irreps("0e+0o+2x1o")),
        (from_irreps("1o+2e+0o", SO(3)), from_irreps("1e+2e+0e", SO(3))),
        (from_irreps("1o+1x2e"), vector(O(3)).tensor(vector(O(3))) + vector(O(3)) + pseudovector(O(3))),
        (regular(Dihedral(3)) + vector(Dihedral(3)), regular(Dihedral(3))),
        (regular(Cyclic(4)) + 2 * vector(Cyclic(4)), regular(Cyclic(4))),
        (vector(Lorentz()).tensor(vector(Lorentz())), trivial(Lorentz(), 2) + vector(Lorentz())),
        (vector(Scaling()).tensor(vector(Scaling())) + vector(Scaling()), 2 * vector(Scaling())),
        (vector(Symmetric(4)) + trivial(Symmetric(4)), vector(Symmetric(4)) + sign(Symmetric(4))),
    ],
    ids=lambda rep: repr(rep),
)
def test_projection_of_special_representations(in_rep: Representation, out_rep: Representation) -> None:
    weight = randn(out_rep.dim, in_rep.dim)
    expected = project_by_brute_force(weight, in_rep, out_rep)
    torch.testing.assert_close(equivariant_projection(weight, in_rep, out_rep), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("in_rep", "out_rep", "count"),
    [
        (vector(SO(2)), vector(SO(2)), 2),
        (vector(O(2)), vector(O(2)), 1),
        (vector(SO(3)), vector(SO(3)), 1),
        (vector(O(3)), pseudovector(O(3)), 0),
        (vector(SO(3)), pseudovector(SO(3)), 1),
        (trivial(O(3)), sign(O(3)), 0),
        (trivial(SO(3)), vector(SO(3)), 0),
        (vector(Lorentz()), vector(Lorentz()), 1),
        (vector(SL2), vector(SL2), 1),
        (vector(Scaling()), trivial(Scaling()), 0),
        (vector(Symmetric(4)), vector(Symmetric(4)), 2),
        (vector(Cyclic(1)), vector(Cyclic(1)), 4),
        (regular(Dihedral(3)), regular(Dihedral(3)), 6),
        (regular(Cyclic(5)), trivial(Cyclic(5)), 1),
        (from_irreps("2e"), from_irreps("2e"), 1),
        (from_irreps("1o"), from_irreps("1e"), 0),
        (from_irreps("1o", SO(3)), from_irreps("1e", SO(3)), 1),
        (from_irreps("1o"), vector(O(3)), 1),
        (vector(SO(3)).tensor(vector(SO(3))), vector(SO(3)).tensor(vector(SO(3))), 3),
    ],
    ids=lambda value: repr(value),
)
def test_how_many_equivariant_maps_there_are(
    in_rep: Representation, out_rep: Representation, count: int
) -> None:
    basis = hom_basis(in_rep.blocks[0][1], out_rep.blocks[0][1])
    assert basis.shape == (count, out_rep.dim, in_rep.dim)
    gram = torch.einsum("aoi,boi->ab", basis, basis)
    torch.testing.assert_close(gram, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-12)
    group = in_rep.group
    for g in group.sample(4, generator=torch.Generator().manual_seed(2)):
        for m in basis:
            torch.testing.assert_close(out_rep.matrix(g) @ m, m @ in_rep.matrix(g), rtol=0, atol=1e-11)


def test_lorentz_projection_is_not_the_group_average() -> None:
    """The nearest multiple of 1 to W is tr(W) / 4, whatever the (indefinite) metric."""
    weight = randn(4, 4)
    expected = torch.eye(4, dtype=torch.float64) * weight.trace() / 4
    rep = vector(Lorentz())
    torch.testing.assert_close(equivariant_projection(weight, rep, rep), expected)


def test_irreps_projection_is_the_block_trace() -> None:
    rep = from_irreps("3x1o")
    weight = randn(9, 9)
    traces = weight.reshape(3, 3, 3, 3).diagonal(dim1=1, dim2=3).sum(dim=-1) / 3
    expected = torch.kron(traces, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(equivariant_projection(weight, rep, rep), expected)


def test_the_basis_handed_out_can_be_written_into() -> None:
    block = vector(SO(3)).blocks[0][1]
    hom_basis(block, block).zero_()
    assert hom_basis(block, block).abs().sum() > 0


def test_projection_keeps_dtype_and_has_gradients() -> None:
    rep = from_irreps("2x0e+2x1o")
    weight = randn(8, 8).float().requires_grad_()
    with torch.inference_mode():
        equivariant_projection(weight, rep, rep)
    projected = equivariant_projection(weight, rep, rep)
    assert projected.dtype == torch.float32
    (gradient,) = torch.autograd.grad(projected.square().sum() / 2, weight)
    torch.testing.assert_close(gradient, projected)  # an orthogonal projection P: P^T P W = P W


def test_wide_representations_cost_milliseconds() -> None:
    """Block by block: the constraints of the whole (256, 160) matrix would be a (163840, 40960) system."""
    in_rep, out_rep = from_irreps("40x0e+40x1o"), from_irreps("64x0e+64x1o")
    weight = randn(256, 160)
    equivariant_projection(weight, in_rep, out_rep)
    start = time.perf_counter()
    for _ in range(10):
        equivariant_projection(weight, in_rep, out_rep)
    assert (time.perf_counter() - start) / 10 < 0.1


def test_empty_representations() -> None:
    nothing, some = trivial(O(3), 0), from_irreps("2x1o")
    assert equivariant_projection(torch.zeros(6, 0), nothing, some).shape == (6, 0)
    assert equivariant_projection(torch.zeros(0, 6), some, nothing).shape == (0, 6)


def test_errors_name_what_was_expected() -> None:
    rep = vector(E(3))
    with pytest.raises(RepresentationError, match=r"has shape \(3, 3\), got \(3, 4\)"):
        equivariant_projection(torch.zeros(3, 4), rep, rep)
    with pytest.raises(RepresentationError, match="of one group"):
        equivariant_projection(torch.zeros(3, 3), rep, vector(SO(3)))
    with pytest.raises(RepresentationError, match="two groups"):
        hom_basis(rep.blocks[0][1], vector(SO(3)).blocks[0][1])
    with pytest.raises(RepresentationError, match=r"linear_part\(\)"):
        equivariant_projection(torch.zeros(3, 3), positions(E(3)), rep)
