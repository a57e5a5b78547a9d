"""Penalties of residual convolutions: beside their definition, and beside CR's term for white inputs."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch
from equirelax_lab.models import GroupConv2d
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import PenaltyError, PlacementError, RepresentationError
from equirelax.relaxation import (
    BasisBlock,
    BasisKernels,
    Convolution,
    Dense,
    GridKernels,
    Layers,
    Linear,
)
from equirelax.relaxation.regularizers import LieDerivative, residual_terms
from equirelax.symmetry import (
    SO,
    Cyclic,
    Dihedral,
    GridField,
    Group,
    Representation,
    custom,
    regular,
    sign,
    trivial,
    vector,
)

torch.set_num_threads(1)
GROUPS = (Cyclic(1), Cyclic(2), Cyclic(4), Dihedral(1), Dihedral(2), Dihedral(4))
F64 = torch.float64


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=F64)


def slow_act(in_rep: Representation, out_rep: Representation, g: Tensor, weight: Tensor) -> Tensor:
    """rho_out(g) W(g^-1 d) rho_in(g)^-1, offset by offset."""
    size = weight.shape[-1]
    half, back, out = (size - 1) / 2, torch.linalg.inv(g), torch.empty_like(weight)
    left, right = out_rep.matrix(g), torch.linalg.inv(in_rep.matrix(g))
    for row, column in itertools.product(range(size), range(size)):
        x, y = (back @ torch.tensor([column - half, half - row], dtype=F64)).tolist()
        out[:, :, row, column] = left @ weight[:, :, round(half - y), round(x + half)] @ right
    return out


def turned(group: Group) -> Representation:
    """The regular representation in another orthonormal basis, where it is no permutation."""
    turn, _ = torch.linalg.qr(draw(group.order, group.order))
    return custom(group, discrete=turn @ regular(group).discrete() @ turn.T)


def reps(group: Group) -> list[tuple[Representation, Representation]]:
    pairs = [(vector(group) + regular(group), sign(group) + 2 * regular(group) + trivial(group))]
    if group.order == 1:  # a custom representation is made of its generators' matrices, of which C1 has none
        return pairs
    return [*pairs, (turned(group) + vector(group), trivial(group) + turned(group))]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_group_difference_and_projection_are_what_they_say(group: Group, size: int) -> None:
    for in_rep, out_rep in reps(group):
        symmetry = GridKernels(in_rep, out_rep, size)
        weight = draw(out_rep.dim, in_rep.dim, size, size)
        moved = [slow_act(in_rep, out_rep, g, weight) for g in group.discrete()]
        expected = sum(((one - weight).square().sum() for one in moved), torch.zeros((), dtype=F64))
        torch.testing.assert_close(symmetry.lie(weight), expected)
        everywhere = torch.stack([slow_act(in_rep, out_rep, g, weight) for g in group.elements()])
        nearest = symmetry.project(weight)
        torch.testing.assert_close(nearest, everywhere.mean(0))
        torch.testing.assert_close(symmetry.project(nearest), nearest)
        assert float(symmetry.lie(nearest)) < 1e-25 * float(weight.square().sum())


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_every_kernel_of_the_layer_has_no_penalty(group: Group) -> None:
    in_rep = 2 * vector(group) + regular(group) + sign(group)
    conv = GroupConv2d(in_rep, trivial(group) + 2 * regular(group) + vector(group), 3).double()
    kernel = conv.kernel().detach()
    symmetry = GridKernels(conv.in_rep, conv.out_rep, 3)
    # vectors turn by matrices that hold cos(90 degrees) = 6e-17
    assert float(symmetry.lie(kernel)) <= 1e-30 * float(kernel.square().sum())
    torch.testing.assert_close(symmetry.project(kernel), kernel, rtol=0, atol=1e-15)


def test_a_layers_own_basis_gives_the_same_projection() -> None:
    """The span of GroupConv2d's kernels, as a basis: dependent, not orthogonal, not normalised."""
    group = Dihedral(4)
    kinds = [(vector(group), 1), (regular(group), 2)]
    in_rep, out_rep = vector(group) + 2 * regular(group), 2 * regular(group) + vector(group)
    blocks = []
    for (a, copies), (b, fields) in itertools.product(kinds, kinds):
        conv = GroupConv2d(a, b, 3, bias=False).double()
        with torch.no_grad():
            basis = []
            for _ in range(conv.weight.numel() + 3):
                conv.weight.copy_(3 * torch.randn_like(conv.weight))
                basis.append(conv.kernel().clone())
        columns = (0 if a == vector(group) else 2) + torch.arange(copies * a.dim).view(copies, -1)
        rows = (16 if b == vector(group) else 0) + torch.arange(fields * b.dim).view(fields, -1)
        blocks.append(BasisBlock(rows, columns, torch.stack(basis)))
    span, grid = BasisKernels.from_spans(blocks), GridKernels(in_rep, out_rep, 3)
    weight = draw(18, 18, 3, 3)
    torch.testing.assert_close(span.project(weight), grid.project(weight))
    torch.testing.assert_close(span.lie(weight), (weight - grid.project(weight)).square().sum())
    assert float(span.lie(span.project(weight))) < 1e-25


def test_an_empty_basis_forbids_everything() -> None:
    empty = BasisBlock(torch.arange(2)[:, None], torch.arange(3)[:, None], torch.zeros(0, 1, 1, 3, 3))
    weight = draw(2, 3, 3, 3)
    for symmetry in (BasisKernels.from_spans([empty]), BasisKernels(())):
        assert not bool(symmetry.project(weight).any())
        torch.testing.assert_close(symmetry.lie(weight), weight.square().sum())


@pytest.mark.parametrize("which", ["moves", "products", "basis"])
def test_twice_differentiable(which: str) -> None:
    group = Dihedral(1)
    in_rep, out_rep = (
        (turned(group), vector(group)) if which == "products" else (vector(group), regular(group))
    )
    grid = GridKernels(in_rep, out_rep, 2)
    block = BasisBlock(torch.tensor([[1, 0]]), torch.tensor([[0, 1]]), draw(3, 2, 2, 2, 2))
    symmetry = BasisKernels.from_spans([block]) if which == "basis" else grid
    weight = draw(2, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(symmetry.lie, (weight,))
    assert torch.autograd.gradgradcheck(lambda w: symmetry.lie(w).sqrt(), (weight,))
    assert torch.autograd.gradcheck(symmetry.project, (weight,))
    assert torch.autograd.gradgradcheck(lambda w: symmetry.project(w).square(), (weight,))


def test_transposed_convolutions_are_those_of_the_swapped_representations() -> None:
    group = Cyclic(4)
    in_rep, out_rep = regular(group), vector(group) + trivial(group)
    symmetry = GridKernels(out_rep, in_rep, 3)
    convolution = Convolution((3, 3), symmetry, (2, 2), (1, 1), (1, 1), transposed=True)
    assert convolution.weight_shape(4, 3) == (4, 3, 3, 3)
    weight, x = symmetry.project(draw(4, 3, 3, 3)), draw(2, 4, 5, 5)
    for g in group.elements():
        moved = GridField(out_rep).apply(g, convolution(x, weight))
        torch.testing.assert_close(convolution(GridField(in_rep).apply(g, x), weight), moved)


# Beside CR's terms


def test_terms_are_crs_for_white_inputs() -> None:
    """All unit impulses on a torus are white: the sums over them, for one pixel, are the kernel's terms."""
    group, n = Dihedral(4), 5
    in_rep, out_rep = vector(group) + sign(group), regular(group)
    convolution = Convolution(
        (3, 3), GridKernels(in_rep, out_rep, 3), (1, 1), (1, 1), (1, 1), padding_mode="circular"
    )
    weight, impulses = draw(8, 3, 3, 3), torch.eye(3 * n * n, dtype=F64).view(-1, 3, n, n)
    y = convolution(impulses, weight)
    torch.testing.assert_close(y.square().sum() / n**2, weight.square().sum())
    lie = torch.zeros((), dtype=F64)
    for g in group.discrete():
        difference = GridField(out_rep).apply(g, y) - convolution(
            GridField(in_rep).apply(g, impulses), weight
        )
        lie = lie + difference.square().sum() / n**2
    torch.testing.assert_close(lie, convolution.symmetry.lie(weight))


def relaxed(bias: bool = False, gamma: float = 0.5) -> tuple[nn.Module, er.relaxation.Relaxation]:
    group = Cyclic(4)
    model = nn.Sequential(
        GroupConv2d(vector(group), 2 * regular(group), 3), GroupConv2d(2 * regular(group), vector(group), 3)
    ).double()
    relaxation = er.relax(model, Layers(residual=Dense("normal", std=0.1, bias=bias)))
    relaxation.set_gamma(gamma)
    return model, relaxation


def test_no_inputs_are_needed_nor_kept() -> None:
    model, relaxation = relaxed()
    penalty = LieDerivative(relaxation, lie_weight=0.3, norm_weight=0.2)
    before = penalty()
    model(draw(4, 2, 7, 7))
    assert all(residual.take_inputs() == [] for _, residual in relaxation)
    terms = [residual_terms(residual, []) for _, residual in relaxation]
    lie, norm = (sum(float(term[i]) for term in terms) for i in (0, 1))
    for value in (before, penalty(), penalty()):
        torch.testing.assert_close(float(value), 0.3 * math.sqrt(lie) + 0.2 * math.sqrt(norm))
    assert float(penalty.terms["1"]["norm"]) == pytest.approx(float(terms[1][1]))
    mean = LieDerivative(relaxation, 0.3, 0.2, scaling="mean")()  # two kernels, each as one row
    torch.testing.assert_close(float(mean), 0.3 * math.sqrt(lie / 2) + 0.2 * math.sqrt(norm / 2))


def test_the_bias_is_penalised_where_it_moves() -> None:
    _, relaxation = relaxed(bias=True)
    residual = relaxation["1"]  # to vectors, none of which is invariant
    with torch.no_grad():
        residual.map.weight.zero_()
        residual.map.bias.copy_(torch.tensor([1.0, 0.0]))
    lie, norm = residual_terms(residual, [])
    assert (float(lie), float(norm)) == pytest.approx((2.0, 1.0))  # (1, 0) goes to (0, 1)
    first = relaxation["0"]  # to regular fields: equal entries are invariant
    with torch.no_grad():
        first.map.weight.zero_()
        first.map.bias.copy_(torch.tensor([1.0, 1, 1, 1, 2, 2, 2, 2]))
    assert float(residual_terms(first, [])[0]) == 0
    with torch.no_grad():
        first.map.bias[0] = 0
    assert float(residual_terms(first, [])[0]) == pytest.approx(2.0)


def test_what_is_switched_off_does_not_count() -> None:
    _, relaxation = relaxed()
    penalty = LieDerivative(relaxation)
    with relaxation.strict(), pytest.raises(PenaltyError, match="no inputs were kept"):
        penalty()
    relaxation["0"].enabled = False
    penalty()
    assert list(penalty.terms) == ["1"]


class Pooled(nn.Module):
    """A convolution, then a linear map of invariants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = GroupConv2d(vector(Cyclic(4)), regular(Cyclic(4)), 3)
        self.linear = nn.Linear(1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).sum(dim=(1, 2, 3))[:, None])


def mixed() -> tuple[nn.Module, er.relaxation.Relaxation]:
    model, group = Pooled().double(), Cyclic(4)
    declared = Linear("linear", sign(group), trivial(group, 2))
    return model, er.relax(model, Layers(declare=(declared,), residual=Dense("normal", std=0.1)))


def test_residuals_with_and_without_inputs_together() -> None:
    model, relaxation = mixed()
    penalty = LieDerivative(relaxation, 1.0, 1.0)
    with pytest.raises(PenaltyError, match="no inputs were kept"):
        penalty()  # the linear map has not been called
    x = draw(3, 2, 5, 5)
    model(x)
    read = model.conv(x).sum(dim=(1, 2, 3))[:, None].detach()
    relaxation["linear"].take_inputs()
    model(x)
    value = penalty()
    lie, norm = residual_terms(relaxation["conv"], [])
    norm = norm + (read @ relaxation["linear"].map.weight.T).square().sum()
    torch.testing.assert_close(value.detach(), (lie.sqrt() + norm.sqrt()).detach())


def test_every_rank_gives_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks with the same kernels: their sum is the value and the gradient of one."""
    _, relaxation = relaxed()
    penalty = LieDerivative(relaxation)
    alone = penalty()
    (expected,) = torch.autograd.grad(alone, relaxation["0"].map.weight)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.mul_(2))
    together = penalty()
    (found,) = torch.autograd.grad(together, relaxation["0"].map.weight)
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(found, expected)  # DDP averages equal gradients
    assert float(penalty.terms["0"]["norm"]) == pytest.approx(float(residual_terms(relaxation["0"], [])[1]))


def test_in_float32_outside_autocast() -> None:
    model, relaxation = relaxed()
    model.bfloat16()
    penalty = LieDerivative(relaxation)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = penalty()
    assert value.dtype == torch.float32
    value.backward()


# Copies and bad input


def test_symmetries_are_copied_pickled_and_compared() -> None:
    group = Cyclic(4)
    grid = GridKernels(vector(group), regular(group), 3)
    weight = draw(4, 2, 3, 3)
    expected = grid.project(weight)
    for twin in (copy.deepcopy(grid), pickle.loads(pickle.dumps(grid))):
        assert twin == grid
        assert hash(twin) == hash(grid)
        assert twin._cache == {}
        assert torch.equal(twin.project(weight), expected)
    block = BasisBlock(torch.arange(4)[None], torch.arange(2)[None], draw(2, 4, 2, 3, 3))
    basis = BasisKernels.from_spans([block])
    for twin in (copy.deepcopy(basis), pickle.loads(pickle.dumps(basis))):
        assert torch.equal(twin.project(weight), basis.project(weight))


def test_what_has_no_group_difference_is_refused() -> None:
    four = Cyclic(4)
    for group in (Cyclic(8), SO(2), Dihedral(3)):
        with pytest.raises(RepresentationError, match="square grid"):
            GridKernels(trivial(group), trivial(group), 3)
    with pytest.raises(RepresentationError, match="one group"):
        GridKernels(trivial(four), trivial(Dihedral(4)), 3)
    stretch = torch.diag(torch.tensor([1.0, 2.0], dtype=F64))
    skewed = custom(four, discrete=stretch @ vector(four).discrete() @ stretch.inverse())
    with pytest.raises(RepresentationError, match="not orthogonal"):
        GridKernels(skewed, trivial(four), 3)


def test_settings_that_do_not_fit_are_refused() -> None:
    symmetry = BasisKernels(())
    with pytest.raises(PlacementError, match="for each"):
        Convolution((3, 3), symmetry, (1,), (1, 1), (1, 1))
    with pytest.raises(PlacementError, match="1 to 3 axes"):
        Convolution((), symmetry, (), (), ())
    with pytest.raises(PlacementError, match="pads with zeros"):
        Convolution((3, 3), symmetry, (1, 1), (1, 1), (1, 1), "reflect", transposed=True)


def test_one_and_three_axes() -> None:
    for axes in (1, 3):
        one = (1,) * axes
        convolution = Convolution((3,) * axes, BasisKernels(()), one, one, one, padding_mode="replicate")
        y = convolution(draw(2, 3, *(4,) * axes), draw(5, *convolution.weight_shape(3, 5)[1:]))
        assert y.shape == (2, 5, *(4,) * axes)
        assert convolution.pixels == 3**axes
