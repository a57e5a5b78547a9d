"""Gated non-linearity: SiLU on scalars, every higher irrep multiplied by the sigmoid of a scalar of its own."""

from __future__ import annotations

from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from equirelax.models.coupling import gradients
from equirelax.models.mode import by_hand

# E[f(z)^2]^(-1/2), z ~ N(0, 1), as e3nn's `normalize2mom` estimates it in float64 from a million samples
SILU_CONSTANT = 1.6791767923989418
SIGMOID_CONSTANT = 1.8467055342154763

Blocks = tuple[tuple[int, int], ...]


class Gate(nn.Module):
    """``e3nn.nn.Gate`` for 0e scalars, its constants included.

    From irreps_in = scalars, one 0e for each gated irrep, gated irreps, to irreps_out = scalars, gated irreps:

        scalars' = 1.679177 silu(scalars),   gated' = 1.846706 sigmoid(gates) gated
    """

    def __init__(self, irreps_out: str | o3.Irreps) -> None:
        super().__init__()
        self.irreps_out = o3.Irreps(irreps_out)
        self.scalars = sum(mul for mul, ir in self.irreps_out if ir.l == 0)
        self.gated: Blocks = tuple((mul, ir.dim) for mul, ir in self.irreps_out if ir.l > 0)
        gates = sum(mul for mul, _ in self.gated)
        self.irreps_in = o3.Irreps([(self.scalars + gates, "0e"), *(m for m in self.irreps_out if m.ir.l > 0)])

    def forward(self, x: Tensor) -> Tensor:
        """(rows, irreps_in.dim) -> (rows, irreps_out.dim)."""
        return self.transposed(x.t()).t()

    def transposed(self, x: Tensor) -> Tensor:
        """(irreps_in.dim, rows) -> (irreps_out.dim, rows)."""
        if by_hand(self, x):
            return _GateByHand.apply(x, self.scalars, self.gated)
        return gate(x, self.scalars, self.gated)


def gate(x: Tensor, scalars: int, gated: Blocks) -> Tensor:
    """(scalars + gates + gated dims, rows) -> (scalars + gated dims, rows)."""
    muls = [mul for mul, _ in gated]
    s, gates, *vectors = x.split([scalars, sum(muls), *(mul * dim for mul, dim in gated)])
    parts = [nn.functional.silu(s) * SILU_CONSTANT]
    strengths = (torch.sigmoid(gates) * SIGMOID_CONSTANT).split(muls)
    for strength, vector, (_, dim) in zip(strengths, vectors, gated, strict=True):
        parts.append((vector.unflatten(0, (-1, dim)) * strength[:, None]).flatten(0, 1))
    return torch.cat(parts)


class _GateByHand(torch.autograd.Function):
    """`gate` with its derivative written out; higher derivatives are taken from `gate`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scalars: int, gated: Blocks) -> Tensor:
        x = x.contiguous()
        gates = sum(mul for mul, _ in gated)
        sigmoids = torch.sigmoid(x[: scalars + gates])
        out = x.new_empty(x.shape[0] - gates, x.shape[1])
        torch.mul(x[:scalars], sigmoids[:scalars], out=out[:scalars]).mul_(SILU_CONSTANT)
        strengths = sigmoids[scalars:] * SIGMOID_CONSTANT
        for strength, vector, into in _vectors(strengths, x[scalars + gates :], out[scalars:], gated):
            torch.mul(vector, strength[:, None], out=into)
        ctx.save_for_backward(x, sigmoids)
        ctx.scalars, ctx.gated = scalars, gated
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, sigmoids = ctx.saved_tensors
        scalars, gated = ctx.scalars, ctx.gated
        if torch.is_grad_enabled():
            found = gradients(lambda x: gate(x, scalars, gated), (x,), ctx.needs_input_grad, grad)
            return *found, None, None
        grad = grad.contiguous()
        gates = sum(mul for mul, _ in gated)
        end = scalars + gates
        grad_x = torch.empty_like(x)
        slopes = torch.addcmul(sigmoids, sigmoids, sigmoids, value=-1)  # of the sigmoids
        # d silu(x) = sigmoid(x) + x sigmoid'(x)
        torch.addcmul(sigmoids[:scalars], x[:scalars], slopes[:scalars], out=grad_x[:scalars])
        grad_x[:scalars].mul_(grad[:scalars]).mul_(SILU_CONSTANT)
        strengths = sigmoids[scalars:] * SIGMOID_CONSTANT
        for strength, vector_grad, into in _vectors(strengths, grad[scalars:], grad_x[end:], gated):
            torch.mul(vector_grad, strength[:, None], out=into)
        for into, vector_grad, vector in _vectors(grad_x[scalars:end], grad[scalars:], x[end:], gated):
            torch.mul(vector_grad[:, 0], vector[:, 0], out=into)
            for i in range(1, vector.shape[1]):
                into.addcmul_(vector_grad[:, i], vector[:, i])
        grad_x[scalars:end].mul_(slopes[scalars:]).mul_(SIGMOID_CONSTANT)
        return grad_x, None, None


def _vectors(channels: Tensor, first: Tensor, second: Tensor, gated: Blocks) -> list[tuple[Tensor, ...]]:
    """For each block (mul, dim): (mul, rows) of the channels, (mul, dim, rows) of the two others."""
    muls = [mul for mul, _ in gated]
    sizes = [mul * dim for mul, dim in gated]
    views = []
    parts = (channels.split(muls), first.split(sizes), second.split(sizes))
    for (mul, dim), c, f, s in zip(gated, *parts, strict=True):
        views.append((c, f.view(mul, dim, f.shape[1]), s.view(mul, dim, s.shape[1])))
    return views
