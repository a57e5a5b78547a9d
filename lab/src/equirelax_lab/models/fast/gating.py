"""Gates: SiLU on scalars, and every higher irrep multiplied by the sigmoid of its own scalar."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equirelax_lab.models.exact import Exact
from equirelax_lab.models.fast.by_hand import ByHand

# E[f(z)^2]^(-1/2), z ~ N(0, 1), as e3nn's `normalize2mom` estimates it in float64 from a million samples
SILU_CONSTANT = 1.6791767923989418
SIGMOID_CONSTANT = 1.8467055342154763


class Gating(ByHand):
    """The gate of transposed features (scalars + gates + gated, rows) -> (scalars + gated, rows).

        scalars' = 1.679177 silu(scalars),   gated' = 1.846706 sigmoid(gates) gated

    Args:
        scalars: Number of scalars.
        gated: (multiplicity, 2l + 1) of every gated irrep; each channel has a gate.
    """

    def __init__(self, scalars: int, gated: tuple[tuple[int, int], ...]) -> None:
        self.scalars, self.gated = scalars, gated
        constants = [SILU_CONSTANT] * scalars + [SIGMOID_CONSTANT] * sum(self.muls)
        self.constants = Exact(torch.tensor(constants, dtype=torch.float64)[:, None])
        self.inverse_constants = Exact(1 / self.constants.value)

    @property
    def muls(self) -> list[int]:
        """Channels of every gated irrep."""
        return [mul for mul, _ in self.gated]

    @property
    def sizes(self) -> list[int]:
        """Rows of every gated irrep."""
        return [mul * dim for mul, dim in self.gated]

    def formula(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        s, gates, *vectors = x.split([self.scalars, sum(self.muls), *self.sizes])
        parts = [nn.functional.silu(s) * SILU_CONSTANT]
        strengths = (torch.sigmoid(gates) * SIGMOID_CONSTANT).split(self.muls)
        for strength, vector, (_, dim) in zip(strengths, vectors, self.gated, strict=True):
            parts.append((vector.unflatten(0, (-1, dim)) * strength[:, None]).flatten(0, 1))
        return torch.cat(parts)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        (x,) = inputs
        features = x.contiguous()
        out, factors = gate_forward(features, self)
        return out, (features, factors)

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor], saved: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        features, factors = saved
        return (gate_backward(grad.contiguous(), features, factors, self),)


def gate_forward(x: Tensor, gate: Gating) -> tuple[Tensor, Tensor]:
    """Compute the gate, and its factors, constants times sigmoids (scalars + gates, rows)."""
    columns, muls, sizes = x.shape[1], gate.muls, gate.sizes
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


def gate_backward(grad: Tensor, x: Tensor, factors: Tensor, gate: Gating) -> Tensor:
    """Compute the gradient of x from that of the output and the factors of `gate_forward`."""
    columns, muls, sizes = x.shape[1], gate.muls, gate.sizes
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
