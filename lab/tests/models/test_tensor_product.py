"""The own tensor product against e3nn's, its fast form against its general one, and its derivatives."""

from __future__ import annotations

import copy
import pickle
from math import sqrt

import pytest
import torch
from e3nn import o3
from e3nn_twins import E3nnProduct
from equirelax_lab.models.tensor_product import TensorProduct
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from equirelax.errors import RepresentationError

IRREPS = [
    ("3x0e+2x1o", "1x0e+1x1o", "4x0e+2x1o"),
    ("3x0e+2x1o+2x0e+4x1o+1x0e", "1x0e+1x1o", "2x0e+3x1o"),
    ("2x1o+1x0e", "1x0e+1x1o", "3x1o"),
    ("2x1o", "1x0e+1x1o", "3x0e"),
    ("2x0e", "1x0e+1x1o", "3x0e+2x1o"),
    ("2x0e+3x1o+2x2e", "1x0e+1x1o+1x2e", "5x0e+2x1o+3x2e"),
    ("2x0e+3x1o+1x1e", "2x0e+3x1o", "2x1e+2x0o+1x0e+3x1o"),
]
FAST = IRREPS[:5]


def dense_bias(product: TensorProduct) -> Tensor:
    """The bias on all outputs."""
    scalars = torch.cat([torch.full((mul * ir.dim,), ir == o3.Irrep("0e")) for mul, ir in product.irreps_out])
    return torch.zeros(product.irreps_out.dim).masked_scatter(scalars, product.bias.detach())


def inputs(product: TensorProduct, rows: int = 7) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, product.irreps_in1.dim), torch.randn(rows, product.irreps_in2.dim)


@pytest.mark.parametrize("irreps", IRREPS)
@pytest.mark.parametrize("training", [True, False])
def test_equals_e3nn(irreps: tuple[str, str, str], training: bool) -> None:
    product = TensorProduct(*irreps).train(training)
    x, a = inputs(product)
    expected = E3nnProduct(product)(x, a).detach()
    torch.testing.assert_close(product(x, a), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(product.general(x.t(), a.t()).t(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("irreps", IRREPS)
def test_instructions_are_those_of_e3nn(irreps: tuple[str, str, str]) -> None:
    product, reference = TensorProduct(*irreps), o3.FullyConnectedTensorProduct(*irreps)
    for own, theirs in zip(product.instructions, reference.instructions, strict=True):
        assert own[:5] == theirs[:5]
        assert own.path_shape == tuple(theirs.path_shape)
        # e3nn divides by the root of the slot's fan-in; the papers multiply it back
        assert own.path_weight == pytest.approx(
            theirs.path_weight * sqrt(product.fan_in(own.i_out)), abs=1e-12
        )
    assert product.weight_numel == reference.weight_numel


@settings(deadline=None, max_examples=25)
@given(
    slots=st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["0e", "1o"])), min_size=1, max_size=5),
    out=st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(any),
    rows=st.integers(0, 6),
)
def test_fast_equals_general(slots: list[tuple[int, str]], out: tuple[int, int], rows: int) -> None:
    irreps_out = "+".join(f"{mul}x{ir}" for mul, ir in zip(out, ("0e", "1o"), strict=True) if mul)
    product = TensorProduct(o3.Irreps(slots), "1x0e+1x1o", irreps_out)
    assert product.coupling is not None
    x, a = (t.t().clone().requires_grad_() for t in inputs(product, rows))
    weights = [product.weight, product.bias]
    by_hand = product.coupling(product, x, a.detach(), *weights)
    general = product.general(x, a)
    plain = product.coupling.formula(x, a, *weights)
    torch.testing.assert_close(by_hand, general, rtol=0, atol=1e-12)
    torch.testing.assert_close(plain, general, rtol=0, atol=1e-12)
    grad = torch.randn_like(general)
    expected = torch.autograd.grad(general, [x, *weights], grad, allow_unused=True, materialize_grads=True)
    for result in (by_hand, plain):
        for own, theirs in zip(torch.autograd.grad(result, [x, *weights], grad), expected, strict=True):
            torch.testing.assert_close(own, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("irreps", [IRREPS[1], IRREPS[2], IRREPS[4]])
def test_all_derivatives_of_the_fast_form(irreps: tuple[str, str, str]) -> None:
    product = TensorProduct(*irreps)
    assert product.coupling is not None
    coupling = product.coupling
    x, a = (t.requires_grad_() for t in inputs(product, rows=2))

    def run(x: Tensor, a: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return coupling(product, x.t(), a.t(), weight, bias).t()

    tensors = (x, a, product.weight.detach().requires_grad_(), product.bias.detach().requires_grad_())
    assert gradcheck(run, tensors)
    assert gradgradcheck(run, tensors)
    # the derivative that is written out does without that of the attributes
    assert gradcheck(lambda x, w, b: run(x, a.detach(), w, b), (x, *tensors[2:]))


@pytest.mark.parametrize("irreps", IRREPS)
def test_linear_matrix(irreps: tuple[str, str, str]) -> None:
    product = TensorProduct(*irreps)
    x, a = inputs(product, rows=1)
    matrix = product.linear_matrix(a[0])
    assert matrix.shape == (product.irreps_out.dim, product.irreps_in1.dim)
    torch.testing.assert_close(product(x, a)[0], matrix @ x[0] + dense_bias(product), rtol=0, atol=1e-12)


@pytest.mark.parametrize("irreps", IRREPS)
@pytest.mark.parametrize("parity", [1, -1])
def test_equivariance(irreps: tuple[str, str, str], parity: int) -> None:
    product = TensorProduct(*irreps)
    x, a = inputs(product)
    g = parity * o3.rand_matrix()
    d1, d2, d_out = (i.D_from_matrix(g) for i in (product.irreps_in1, product.irreps_in2, product.irreps_out))
    torch.testing.assert_close(product(x @ d1.T, a @ d2.T), product(x, a) @ d_out.T, rtol=0, atol=1e-12)


def test_constants_survive_a_cast() -> None:
    product = TensorProduct("2x0e+3x1o+2x2e", "1x0e+1x1o+1x2e", "5x0e+2x1o+3x2e")
    exact = product.symbols.clone()
    assert torch.equal(product.float().double().symbols, exact)
    fast = TensorProduct(*FAST[0])
    x, a = inputs(fast)
    fast.weight.data = fast.weight.data.float().double()
    fast.bias.data = fast.bias.data.float().double()
    expected = fast(x, a)
    fast.float()(x.float(), a.float())
    assert torch.equal(fast.double()(x, a), expected)


def test_initial_weights() -> None:
    product = TensorProduct("32x0e+32x1o", "1x0e+1x1o", "64x0e+32x1o")
    assert product.fan_in(0) == product.fan_in(1) == 64
    assert product.weight.abs().max() <= 1 / 8
    assert product.weight.std().item() == pytest.approx(1 / 8 / sqrt(3), rel=0.05)
    assert 0 < product.bias.abs().max() <= 1 / 8
    again = TensorProduct("32x0e+32x1o", "1x0e+1x1o", "64x0e+32x1o")
    for p in (product, again):
        p.reset_parameters(torch.Generator().manual_seed(3))
    assert torch.equal(product.weight, again.weight)


def test_state_has_only_weight_and_bias() -> None:
    assert list(TensorProduct(*FAST[0]).state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("irreps", [IRREPS[0], IRREPS[5]])
def test_copies(clone: object, irreps: tuple[str, str, str]) -> None:
    product = TensorProduct(*irreps)
    x, a = inputs(product)
    expected = product(x, a)
    other = clone(product)  # type: ignore[operator]
    assert torch.equal(other(x, a), expected)
    other.weight.data.zero_()
    assert torch.equal(product(x, a), expected)


def test_row_major_and_transposed_inputs_agree() -> None:
    product = TensorProduct(*FAST[1])
    x, a = inputs(product)
    assert torch.equal(product(x, a), product(x.t().contiguous().t(), a.t().contiguous().t()))


def test_errors() -> None:
    with pytest.raises(RepresentationError, match=r"slot 1 of 1x0e\+1x1e"):
        TensorProduct("1x0e", "1x0e+1x1o", "1x0e+1x1e")
    product = TensorProduct(*FAST[0])
    x, a = inputs(product)
    with pytest.raises(RepresentationError, match=r"expected \(rows, 9\)"):
        product(x[:, 1:], a)
    with pytest.raises(RepresentationError, match="attributes"):
        product(x, a[1:])
