"""Gated non-linearity: SiLU on scalars, every higher irrep multiplied by the sigmoid of a scalar of its own."""

from __future__ import annotations

from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.exact import Exact
from equirelax_lab.models.mode import by_hand, gradients

# E[f(z)^2]^(-1/2), z ~ N(0, 1), as e3nn's `normalize2mom` estimates it in float64 from a million samples
SILU_CONSTANT = 1.6791767923989418
SIGMOID_CONSTANT = 1.8467055342154763


class Gate(nn.Module):
    """``e3nn.nn.Gate`` for 0e scalars, its constants included.

    From irreps_in = scalars, one 0e for each gated irrep, gated irreps, to irreps_out = scalars, gated irreps:

        scalars' = 1.679177 silu(scalars),   gated' = 1.846706 sigmoid(gates) gated

    Raises:
        RepresentationError: if irreps_out is not 0e followed by irreps of l > 0.
    """

    def __init__(self, irreps_out: str | o3.Irreps) -> None:
        super().__init__()
        self.irreps_out = o3.Irreps(irreps_out)
        kinds = [ir == o3.Irrep("0e") for _, ir in self.irreps_out]
        if (
            not any(kinds)
            or kinds != sorted(kinds, reverse=True)
            or any(m.ir == o3.Irrep("0o") for m in self.irreps_out)
        ):
            raise RepresentationError(
                f"Gate: expected 0e followed by irreps of l > 0, got {self.irreps_out}; sort them, and leave out 0o"
            )
        self.scalars = self.irreps_out.count("0e")
        self.gated = tuple((mul, ir.dim) for mul, ir in self.irreps_out if ir.l > 0)
        gates = sum(mul for mul, _ in self.gated)
        self.irreps_in = o3.Irreps(
            [(self.scalars + gates, "0e"), *(m for m in self.irreps_out if m.ir.l > 0)]
        )
        constants = [SILU_CONSTANT] * self.scalars + [SIGMOID_CONSTANT] * gates
        self.constants = Exact(torch.tensor(constants, dtype=torch.float64)[:, None])
        self.inverse_constants = Exact(1 / self.constants.value)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, irreps_in.dim) -> (rows, irreps_out.dim)."""
        if by_hand(self, x):
            return GateByHand.apply(x.t(), self).t()
        return self.transposed(x.t()).t()

    def transposed(self, x: Tensor) -> Tensor:
        """(irreps_in.dim, rows) -> (irreps_out.dim, rows), in ordinary operations."""
        muls = [mul for mul, _ in self.gated]
        s, gates, *vectors = x.split([self.scalars, sum(muls), *(mul * dim for mul, dim in self.gated)])
        parts = [nn.functional.silu(s) * SILU_CONSTANT]
        strengths = (torch.sigmoid(gates) * SIGMOID_CONSTANT).split(muls)
        for strength, vector, (_, dim) in zip(strengths, vectors, self.gated, strict=True):
            parts.append((vector.unflatten(0, (-1, dim)) * strength[:, None]).flatten(0, 1))
        return torch.cat(parts)


def gate_forward(x: Tensor, gate: Gate) -> tuple[Tensor, Tensor]:
    """(`Gate.transposed`, the constants times sigmoids (scalars + gates, rows) that it multiplies by)."""
    columns, muls = x.shape[1], [mul for mul, _ in gate.gated]
    sizes = [mul * dim for mul, dim in gate.gated]
    heads, *vectors = x.split_with_sizes([gate.scalars + sum(muls), *sizes])
    factors = torch.sigmoid(heads).mul_(gate.constants.like(x))
    out = x.new_empty(gate.scalars + sum(sizes), columns)
    s, *outs = out.split_with_sizes([gate.scalars, *sizes])
    f, *strengths = factors.split_with_sizes([gate.scalars, *muls])
    torch.mul(heads[: gate.scalars], f, out=s)
    for vector, into, strength, (mul, dim) in zip(vectors, outs, strengths, gate.gated, strict=True):
        shape = (mul, dim, columns)
        torch.mul(vector.view(shape), strength[:, None], out=into.view(shape))
    return out, factors


def gate_backward(grad: Tensor, x: Tensor, factors: Tensor, gate: Gate) -> Tensor:
    """Gradient of x, from that of the output and the factors of `gate_forward`."""
    columns, muls = x.shape[1], [mul for mul, _ in gate.gated]
    sizes = [mul * dim for mul, dim in gate.gated]
    # c sigmoid' = f - f sigmoid, and c d silu = f + x c sigmoid'
    slopes = factors * gate.inverse_constants.like(x)
    torch.addcmul(factors, factors, slopes, value=-1, out=slopes)
    grad_x = torch.empty_like(x)
    blocks = [gate.scalars, *muls]
    s, *vectors = x.split_with_sizes([gate.scalars + sum(muls), *sizes])
    grad_s, *grad_vectors = grad.split_with_sizes([gate.scalars, *sizes])
    into_s, *into = grad_x.split_with_sizes([*blocks, *sizes])
    into_gates, into_vectors = into[: len(muls)], into[len(muls) :]
    f, *strengths = factors.split_with_sizes(blocks)
    slope, *gate_slopes = slopes.split_with_sizes(blocks)
    torch.addcmul(f, s[: gate.scalars], slope, out=into_s).mul_(grad_s)
    for i, (mul, dim) in enumerate(gate.gated):
        shape = (mul, dim, columns)
        grad_vector, vector = grad_vectors[i].view(shape), vectors[i].view(shape)
        torch.mul(grad_vector, strengths[i][:, None], out=into_vectors[i].view(shape))
        torch.mul(grad_vector[:, 0], vector[:, 0], out=into_gates[i])
        for j in range(1, dim):
            into_gates[i].addcmul_(grad_vector[:, j], vector[:, j])
        into_gates[i].mul_(gate_slopes[i])
    return grad_x


class GateByHand(torch.autograd.Function):
    """`Gate.transposed` with its derivative written out; higher derivatives are taken from there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Gate) -> Tensor:
        features = x.contiguous()
        out, factors = gate_forward(features, gate)
        ctx.save_for_backward(x, features, factors)
        ctx.gate = gate
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, features, factors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *gradients(ctx.gate.transposed, (x,), ctx.needs_input_grad, grad), None
        return gate_backward(grad.contiguous(), features, factors, ctx.gate), None
