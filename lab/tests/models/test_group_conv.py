"""Group convolutions beside their definition written out: the action, the kernels' span, and bad input."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from equirelax_lab.models import FieldBatchNorm, GroupConv2d, GroupPool
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax.symmetry import (
    Cyclic,
    Dihedral,
    Group,
    Representation,
    Symmetric,
    pseudovector,
    regular,
    sign,
    trivial,
    vector,
)
from equirelax.symmetry.kernels import kernel_orbits, offset_permutation

torch.set_num_threads(1)
GROUPS = (Cyclic(1), Cyclic(2), Cyclic(4), Dihedral(1), Dihedral(2), Dihedral(4))
F64 = torch.float64


def rotated(rep: Representation, g: Tensor, x: Tensor) -> Tensor:
    """(g f)(p) = rho(g) f(g^-1 p), pixel by pixel; x (batch, channels, n, n)."""
    n, matrix, back = x.shape[-1], rep.matrix(g), torch.linalg.inv(g)
    half, out = (n - 1) / 2, torch.empty_like(x)
    for row, column in itertools.product(range(n), range(n)):
        x_old, y_old = (back @ torch.tensor([column - half, half - row], dtype=F64)).tolist()
        out[:, :, row, column] = x[:, :, round(half - y_old), round(x_old + half)] @ matrix.T
    return out


def error(module: nn.Module, in_rep: Representation, out_rep: Representation, x: Tensor) -> float:
    """Largest relative equivariance error over all elements."""
    y = module(x)
    moved = [(module(rotated(in_rep, g, x)), rotated(out_rep, g, y)) for g in in_rep.group.elements()]
    return max(float((a - b).detach().abs().max() / y.detach().abs().max()) for a, b in moved)


def mixed(group: Group) -> Representation:
    return 2 * trivial(group) + sign(group) + 2 * vector(group) + 2 * regular(group)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=F64)


def brute_force_kernels(in_rep: Representation, out_rep: Representation, size: int) -> Tensor:
    """Basis (b, out in k k) of the null space of W(g d) rho_in(g) - rho_out(g) W(d), for every element."""
    entries = out_rep.dim * in_rep.dim * size * size
    eye = torch.eye(entries, dtype=F64).view(entries, out_rep.dim, in_rep.dim, size, size)
    equations = []
    for g in in_rep.group.elements():
        turned = rotated(trivial(in_rep.group), g, eye.reshape(-1, 1, size, size)).view(eye.shape)
        moved = torch.einsum("ab,nbcij,dc->nadij", out_rep.matrix(g), turned, in_rep.matrix(g))
        equations.append((moved - eye).flatten(1).T)
    _, values, vh = torch.linalg.svd(torch.cat(equations))
    return vh[int((values > 1e-9).sum()) :]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_kernels_are_all_the_equivariant_ones(group: Group, size: int) -> None:
    in_rep, out_rep = vector(group) + trivial(group), regular(group) + sign(group) + vector(group)
    conv = GroupConv2d(in_rep, out_rep, size, padding=0).double()
    basis = brute_force_kernels(in_rep, out_rep, size)
    assert conv.weight.numel() == len(basis)
    kernel = conv.kernel().detach()
    rest = kernel.flatten() - (basis @ kernel.flatten()) @ basis
    assert float(rest.norm()) < 1e-12 * float(kernel.norm())
    assert float(kernel.norm()) > 0.1


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
@pytest.mark.parametrize(
    ("size", "stride", "mode"), [(3, 1, "zeros"), (5, 2, "circular"), (3, 2, "reflect"), (1, 1, "zeros")]
)
def test_equivariant_on_odd_sizes(group: Group, size: int, stride: int, mode: str) -> None:
    in_rep, out_rep = mixed(group), regular(group) + vector(group) + sign(group) + trivial(group)
    conv = GroupConv2d(in_rep, out_rep, size, stride, padding_mode=mode).double()
    assert error(conv, in_rep, out_rep, draw(2, in_rep.dim, 7, 7)) < 1e-12


def test_stride_on_an_even_size_is_not_equivariant() -> None:
    """What the audit must find: the samples of a stride of 2 lie asymmetrically."""
    rep = regular(Cyclic(4))
    conv = GroupConv2d(rep, rep, 3, stride=2).double()
    assert error(conv, rep, rep, draw(2, 4, 8, 8)) > 1e-2
    assert error(conv, rep, rep, draw(2, 4, 7, 7)) < 1e-12


@settings(max_examples=20, deadline=None)
@given(
    group=st.sampled_from(GROUPS),
    copies=st.lists(st.integers(0, 2), min_size=8, max_size=8),
    size=st.integers(1, 4),
    batch=st.integers(0, 2),
)
def test_shapes_and_coefficients(group: Group, copies: list[int], size: int, batch: int) -> None:
    kinds = (trivial(group), sign(group), vector(group), regular(group))
    in_rep = sum((m * kind for m, kind in zip(copies[:4], kinds, strict=True)), trivial(group))
    out_rep = sum((m * kind for m, kind in zip(copies[4:], kinds, strict=True)), trivial(group))
    conv = GroupConv2d(in_rep, out_rep, size, padding=1).double()
    y = conv(draw(batch, in_rep.dim, 5, 5))
    assert y.shape == (batch, out_rep.dim, 8 - size, 8 - size)
    kernel = conv.kernel()
    assert kernel.shape == (out_rep.dim, in_rep.dim, size, size)
    torch.testing.assert_close(conv.coefficients(kernel), conv.weight)
    constants = conv.constants()
    assert constants is not None
    torch.testing.assert_close(conv.constant_coefficients(constants), conv.bias)


def test_coefficients_are_the_nearest_kernel() -> None:
    group = Dihedral(4)
    in_rep, out_rep = mixed(group), vector(group) + regular(group)
    conv = GroupConv2d(in_rep, out_rep, 3).double()
    dense = draw(out_rep.dim, in_rep.dim, 3, 3)
    with torch.no_grad():
        conv.weight.copy_(conv.coefficients(dense))
    nearest = conv.kernel().detach()
    means = [
        torch.einsum("ab,bcij,dc->adij", out_rep.matrix(g), turned, in_rep.matrix(g))
        for g in group.elements()
        for turned in [rotated(trivial(group), g, dense.reshape(-1, 1, 3, 3)).view(dense.shape)]
    ]
    torch.testing.assert_close(nearest, torch.stack(means).mean(0))


def test_bias_only_where_the_group_leaves_it_alone() -> None:
    group = Cyclic(4)
    conv = GroupConv2d(trivial(group), 3 * regular(group) + vector(group) + trivial(group, 2), 3)
    assert conv.bias is not None
    assert conv.bias.numel() == 5
    assert GroupConv2d(trivial(group), vector(group), 3).bias is None
    assert GroupConv2d(trivial(group), regular(group), 3, bias=False).bias is None


def test_gradients_in_double_precision() -> None:
    group = Dihedral(2)
    conv = GroupConv2d(vector(group), regular(group), 3).double()
    x = draw(1, 2, 3, 3).requires_grad_()

    def of(weight: Tensor, x: Tensor) -> Tensor:
        return torch.func.functional_call(conv, {"weight": weight}, (x,))

    weight = conv.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(of, (weight, x))
    assert torch.autograd.gradgradcheck(of, (weight, x))


def test_state_moves_and_copies() -> None:
    """The index tensors are no state, but move with the module."""
    rep = regular(Cyclic(4))
    conv = GroupConv2d(rep, rep, 3).float()
    assert set(conv.state_dict()) == {"weight", "bias"}
    x = draw(1, 4, 5, 5)
    twin = copy.deepcopy(conv).double()
    torch.testing.assert_close(twin(x), conv(x.float()).double(), rtol=1e-4, atol=1e-5)
    assert conv.to("meta")(x.float().to("meta")).shape == (1, 4, 5, 5)


@pytest.mark.slow
def test_compiles_without_a_break() -> None:
    rep = regular(Dihedral(4))
    net = (
        nn.Sequential(GroupConv2d(rep, 2 * rep, 3), FieldBatchNorm(2 * rep), nn.ReLU(), GroupPool(2 * rep))
        .float()
        .eval()
    )
    x = draw(2, 8, 7, 7).float()
    torch.testing.assert_close(torch.compile(net, fullgraph=True)(x), net(x), rtol=1e-5, atol=1e-5)


# Batch norm and pooling


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_batch_norm_is_equivariant(group: Group, training: bool) -> None:
    rep = 2 * regular(group) + 3 * trivial(group)
    norm = FieldBatchNorm(rep).double()
    for one in norm.norms:
        nn.init.normal_(one.weight, generator=torch.Generator().manual_seed(2))
        nn.init.normal_(one.bias, generator=torch.Generator().manual_seed(3))
    norm(draw(4, rep.dim, 5, 5))
    norm.train(training)
    assert error(norm, rep, rep, draw(4, rep.dim, 5, 5)) < 1e-12


def test_batch_norm_shares_its_numbers_among_a_fields_components() -> None:
    rep = 2 * regular(Cyclic(4)) + trivial(Cyclic(4))
    norm = FieldBatchNorm(rep).double().train()
    x = draw(3, 9, 5, 5) * torch.arange(1, 10, dtype=F64)[:, None, None]
    y = norm(x)
    for where in (slice(0, 4), slice(4, 8), slice(8, 9)):
        field = x[:, where]
        expected = (field - field.mean()) / (field.var(correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(y[:, where], expected)


def test_pooling_is_invariant_to_where_the_largest_stands() -> None:
    group = Dihedral(4)
    rep = trivial(group) + 3 * regular(group)
    pool = GroupPool(rep)
    assert pool.out_rep == trivial(group, 4)
    x = draw(2, rep.dim, 5, 5)
    assert error(pool, rep, pool.out_rep, x) == 0
    slow = torch.stack([x[:, 0], *(x[:, 1 + 8 * i : 9 + 8 * i].max(dim=1).values for i in range(3))], dim=1)
    assert torch.equal(pool(x), slow)


@pytest.mark.parametrize("layer", [FieldBatchNorm, GroupPool])
def test_signed_fields_have_no_norm_and_no_maximum(layer: type[nn.Module]) -> None:
    for rep in (vector(Cyclic(4)), sign(Dihedral(4)) + regular(Dihedral(4))):
        with pytest.raises(RepresentationError, match="trivial and regular"):
            layer(rep)


# Bad input


def test_other_groups_and_blocks_are_refused() -> None:
    for group in (Cyclic(3), Cyclic(8), Dihedral(8), Symmetric(3)):
        with pytest.raises(RepresentationError, match="square grid"):
            GroupConv2d(trivial(group), trivial(group), 3)
    four = Cyclic(4)
    with pytest.raises(RepresentationError, match="one group"):
        GroupConv2d(trivial(four), trivial(Dihedral(4)), 3)
    with pytest.raises(RepresentationError, match="R\\^3"):
        GroupConv2d(trivial(four), pseudovector(four), 3)
    with pytest.raises(RepresentationError, match="square grid"):
        offset_permutation(Cyclic(8).elements()[1], 3)
    with pytest.raises(RepresentationError, match="one group"):
        kernel_orbits(trivial(four).blocks[0][1], trivial(Cyclic(2)).blocks[0][1], 3)


def test_turned_bases_are_refused() -> None:
    """Orthogonal, but no signed permutation: a regular representation in another basis."""
    from equirelax.symmetry import custom

    group = Cyclic(4)
    turn, _ = torch.linalg.qr(draw(4, 4))
    matrix = turn @ regular(group).matrix(group.elements()[1]) @ turn.T
    rep = custom(group, discrete=matrix[None])
    with pytest.raises(RepresentationError, match="up to sign"):
        GroupConv2d(rep, trivial(group), 3)


def test_impossible_settings_are_refused() -> None:
    rep = trivial(Cyclic(4))
    with pytest.raises(RepresentationError, match="even size"):
        GroupConv2d(rep, rep, 4)
    with pytest.raises(RepresentationError, match="padding_mode"):
        GroupConv2d(rep, rep, 3, padding_mode="mirror")
    for size, stride, padding in ((0, 1, 0), (3, 0, 1), (3, 1, -1)):
        with pytest.raises(RepresentationError, match="at least"):
            GroupConv2d(rep, rep, size, stride, padding)
    with pytest.raises(RepresentationError, match="no channels"):
        GroupConv2d(rep, 0 * rep, 3)


@pytest.mark.parametrize(
    "settings",
    [{"kernel_size": (3, 3)}, {"kernel_size": 3.0}, {"stride": (2, 2)}, {"padding": "same"}],
    ids=str,
)
def test_settings_of_other_types_are_refused(settings: dict[str, Any]) -> None:
    rep = trivial(Cyclic(4))
    with pytest.raises(RepresentationError, match="whole numbers"):
        GroupConv2d(**{"in_rep": rep, "out_rep": rep, "kernel_size": 3, **settings})
    with pytest.raises(RepresentationError, match="in_rep is a int; expected a Representation"):
        GroupConv2d(2, rep, 3)  # type: ignore[arg-type]


def test_wrong_inputs_are_refused() -> None:
    conv = GroupConv2d(vector(Cyclic(4)), trivial(Cyclic(4)), 3)
    for x in (torch.zeros(2, 3, 5, 5), torch.zeros(2, 5, 5)):
        with pytest.raises(RepresentationError, match=r"expected \(batch, 2, H, W\)"):
            conv(x)
