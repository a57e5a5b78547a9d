"""Depth-wise products against e3nn's, the form that they come from, and the other maps of steerable features."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from e3nn import o3
from e3nn_twins import E3nnDepthwise
from equirelax_lab.models.fast import set_enabled
from equirelax_lab.models.fast.depthwise import A, DepthwiseProduct, G, R, X, partial
from equirelax_lab.models.fast.join import join
from equirelax_lab.models.fast.linear import SteerableLinear
from equirelax_lab.models.norms import EquivariantLayerNorm, NormActivation
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from equirelax.errors import RepresentationError

PRODUCTS = [
    ("3x0e+2x1o", 1, "0e+1o"),
    ("3x0e+2x1o+1x2e", 2, "0e+1o+2e"),
    ("2x0e+2x1o+3x1e+1x2e", 2, "0e+1e+1o+2o"),
    ("4x0e", 2, "0e+1o+2e"),
    ("2x3o+1x1o", 3, "0e+3o"),
    ("2x0e+1x0o", 1, "1o"),  # nothing that 0o leads to is wanted
]


def inputs(product: DepthwiseProduct, rows: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    x, y = torch.randn(rows, product.irreps_in.dim), torch.randn(rows, product.harmonics.dim)
    return x, y, torch.randn(product.weight_numel, rows)


def make(irreps: str, l_max: int, wanted: str) -> DepthwiseProduct:
    return DepthwiseProduct(o3.Irreps(irreps), o3.Irreps.spherical_harmonics(l_max), o3.Irreps(wanted))


@pytest.mark.parametrize("settings", PRODUCTS)
def test_equals_e3nn(settings: tuple[str, int, str]) -> None:
    product = make(*settings)
    x, y, weights = inputs(product)
    twin = E3nnDepthwise(product)
    expected = twin(x, y, weights)
    assert expected.shape[1] == product.irreps_out.dim
    couplings = product.couplings(y.t())
    torch.testing.assert_close(product(x, couplings, weights), expected)
    ones = torch.ones_like(weights)
    torch.testing.assert_close(product(x, couplings), twin(x, y, ones))


@pytest.mark.parametrize("settings", PRODUCTS)
def test_the_form_in_ordinary_operations_is_the_same(settings: tuple[str, int, str]) -> None:
    product = make(*settings)
    x, y, weights = inputs(product)
    couplings = product.couplings(y.t())
    expected = [product(x, couplings, weights), product(x, couplings)]
    with set_enabled(False):
        torch.testing.assert_close([product(x, couplings, weights), product(x, couplings)], expected)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("settings", [("1x0e+2x1o+1x2e", 1, "0e+1o+2e"), ("2x0e+1x1o+1x1e", 1, "0e+1e+1o")])
def test_derivatives_of_every_order(settings: tuple[str, int, str], weighted: bool) -> None:
    product = make(*settings)
    x, y, weights = (t.requires_grad_() for t in inputs(product, 1))

    def of(x: Tensor, y: Tensor, *r: Tensor) -> Tensor:
        return product(x, product.couplings(y.t()), *r)

    arguments = (x, y, weights) if weighted else (x, y)
    assert gradcheck(of, arguments, check_forward_ad=True)
    assert gradgradcheck(of, arguments)

    def slope(
        x: Tensor, y: Tensor, *r: Tensor
    ) -> Tensor:  # its second derivative is the third of the product
        return torch.autograd.grad(of(x, y, *r).square().sum(), x, create_graph=True)[0]

    assert gradgradcheck(slope, arguments)


@pytest.mark.parametrize("which", [X, A, R, G])
def test_partials_are_derivatives_of_the_form(which: int) -> None:
    product = make(*PRODUCTS[2])
    x, y, weights = inputs(product, 3)
    g = torch.randn(product.form.rows[G], 3)
    arguments = [x.t(), product.couplings(y.t()), weights, g]
    arguments[which].requires_grad_()
    couplings = torch.zeros(())
    for slot in product.form.slots:  # the form itself, path by path
        xs = arguments[X][slot.x].unflatten(0, (slot.mul, -1))
        a = arguments[A][slot.a].unflatten(0, (slot.d_in, -1))
        for path in slot.paths:
            part = arguments[G][path.out].unflatten(0, (slot.mul, -1))
            of = (xs, a[:, path.columns], arguments[R][path.weights], part)
            couplings = couplings + torch.einsum("ume,mke,ue,uke->", *of)
    (expected,) = torch.autograd.grad(couplings, arguments[which])
    given = [None if i == which else t.detach() for i, t in enumerate(arguments)]
    torch.testing.assert_close(partial(which, product.form, *given), expected)


def test_refusals_and_copies() -> None:
    product = make(*PRODUCTS[1])
    x, y, weights = inputs(product)
    couplings = product.couplings(y.t())
    for wrong in ((x[:, 1:], couplings, weights), (x, couplings[1:], weights), (x, couplings, weights[1:])):
        with pytest.raises(RepresentationError, match="DepthwiseProduct: expected"):
            product(*wrong)
    with pytest.raises(RepresentationError, match="simplify"):
        make("2x0e+1x1o+3x0e", 1, "0e")
    with pytest.raises(RepresentationError, match="no path"):
        make("2x0e", 1, "2e")
    for copied in (copy.deepcopy(product), pickle.loads(pickle.dumps(product))):
        assert torch.equal(copied(x, copied.couplings(y.t()), weights), product(x, couplings, weights))
    with pytest.raises(ValueError, match="missing"):
        partial(G, product.form, None, couplings, None, None)


LINEAR = [
    ("3x0e+2x1o+1x2e", "2x0e+4x1o+2x2e"),
    ("3x1o+2x0e", "2x0e+4x1o"),
    ("2x0e+3x0e+1x1o", "2x0e+1x1o"),  # one irrep in two slots: e3nn's own way
    ("3x0e", "2x0e+1x1o"),  # an output that nothing reaches
    ("3x0e+1x2e", "4x0e"),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("irreps", LINEAR)
def test_linear_equals_e3nn(irreps: tuple[str, str], bias: bool) -> None:
    ours, theirs = SteerableLinear(*irreps, bias=bias), o3.Linear(*irreps, biases=bias)
    with torch.no_grad():
        ours.bias.normal_()
    theirs.load_state_dict(ours.state_dict())
    assert isinstance(ours, o3.Linear)
    x = torch.randn(7, ours.irreps_in.dim)
    for form in (x, x.t().contiguous().t()):
        torch.testing.assert_close(ours(form), theirs(x))
    # what e3nn takes too: more dimensions, weights from outside, no rows
    weight = torch.randn(ours.weight_numel)
    torch.testing.assert_close(ours(x, weight), theirs(x, weight))
    torch.testing.assert_close(ours(x[None]), theirs(x[None]))
    assert ours(x[:0]).shape == (0, ours.irreps_out.dim)
    assert gradcheck(ours, x.requires_grad_())
    assert gradgradcheck(ours, x)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_join_is_concatenation(sizes: list[int], rows: int) -> None:
    parts = [torch.randn(size, rows, dtype=torch.float64, requires_grad=True) for size in sizes]
    assert torch.equal(join(parts), torch.cat(parts))
    ours, theirs = (torch.autograd.grad(c.pow(3).sum(), parts) for c in (join(parts), torch.cat(parts)))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert gradgradcheck(lambda *ps: join(ps), parts)


def test_norm_is_its_formula() -> None:
    norm = EquivariantLayerNorm("3x0e+2x1o", eps=1e-3)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = torch.randn(5, 9)
    for row, out in zip(x, norm(x), strict=True):
        s, v = row[:3] - row[:3].mean(), row[3:].view(2, 3)
        of_s = s / (s.square().mean() + 1e-3).sqrt() * norm.weight[:3] + norm.bias
        of_v = v / (v.square().mean() + 1e-3).sqrt() * norm.weight[3:, None]
        torch.testing.assert_close(out, torch.cat([of_s, of_v.flatten()]))


@pytest.mark.parametrize("layer", [EquivariantLayerNorm, NormActivation])
def test_norms_are_equivariant_and_smooth_at_zero(layer: type) -> None:
    irreps = o3.Irreps("3x0e+2x1o+2x1e+1x2e")
    module = layer(irreps)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    x = torch.randn(4, irreps.dim)
    d = irreps.D_from_matrix(-o3.rand_matrix())
    torch.testing.assert_close(module(x @ d.T), module(x) @ d.T)
    zero = torch.zeros(1, irreps.dim, requires_grad=True)
    (slope,) = torch.autograd.grad(module(zero).square().sum(), zero, create_graph=True)
    slope.square().sum().backward()
    assert zero.grad is not None
    assert bool(torch.isfinite(zero.grad).all())
    small = (0.1 * torch.randn(2, irreps.dim)).requires_grad_()
    assert gradcheck(module, small)
    assert gradgradcheck(module, small)
