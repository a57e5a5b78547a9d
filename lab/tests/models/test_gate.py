"""The gate against e3nn's, and its derivatives."""

from __future__ import annotations

import pytest
import torch
from e3nn.math import normalize2mom
from e3nn.nn import Gate as E3nnGate
from equirelax_lab.models.fast.gating import SIGMOID_CONSTANT, SILU_CONSTANT
from equirelax_lab.models.gate import Gate
from torch.autograd import gradcheck, gradgradcheck

from equirelax.errors import RepresentationError

IRREPS = ["4x0e+3x1o", "4x0e", "2x0e+3x1o+2x2e"]


def test_constants_are_those_of_e3nn() -> None:
    assert normalize2mom(torch.nn.functional.silu, dtype=torch.float64).cst == pytest.approx(
        SILU_CONSTANT, abs=1e-12
    )
    assert normalize2mom(torch.sigmoid, dtype=torch.float64).cst == pytest.approx(SIGMOID_CONSTANT, abs=1e-12)


@pytest.mark.parametrize("irreps", IRREPS)
@pytest.mark.parametrize("training", [True, False])
def test_equals_e3nn(irreps: str, training: bool) -> None:
    gate = Gate(irreps).train(training)
    x = torch.randn(5, gate.irreps_in.dim)
    if irreps == "4x0e":  # which e3nn's gate does not take
        torch.testing.assert_close(gate(x), SILU_CONSTANT * torch.nn.functional.silu(x), rtol=0, atol=1e-12)
        return
    gated = [m for m in gate.irreps_out if m.ir.l > 0]
    gates = sum(mul for mul, _ in gated)
    reference = E3nnGate(
        f"{gate.scalars}x0e", [torch.nn.functional.silu], f"{gates}x0e", [torch.sigmoid], gated
    )
    assert reference.irreps_in.dim == gate.irreps_in.dim
    torch.testing.assert_close(gate(x), reference(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("irreps", IRREPS)
def test_derivatives(irreps: str) -> None:
    gate = Gate(irreps)
    x = torch.randn(gate.irreps_in.dim, 3, requires_grad=True)
    assert gradcheck(lambda x: gate.gating(gate, x), (x,))
    assert gradgradcheck(lambda x: gate.gating(gate, x), (x,))
    grad = torch.randn(gate.irreps_out.dim, 3)
    (own,) = torch.autograd.grad(gate.gating(gate, x), x, grad)
    (expected,) = torch.autograd.grad(gate.gating.formula(x), x, grad)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("irreps", ["3x1o+2x0e", "2x0e+1x0o+3x1o", "2x1o"])
def test_refuses_other_orders(irreps: str) -> None:
    with pytest.raises(RepresentationError, match="0e followed by"):
        Gate(irreps)
