"""Muon: momentum whose matrices are orthogonalised before the step (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

For the gradient G of a matrix and the momentum M <- m M + (1 - m) G, the step is

    W <- (1 - lr wd) W - rms lr sqrt(max(rows, columns)) NS((1 - m) G + m M)

where NS, five Newton-Schulz steps, brings all singular values near 1, so that rms is about the root mean square of a
step's entries over lr: what Adam's have decides whether its learning rates carry over. Adam's entries are at lr at the
first step (its moments are one gradient's) and shrink as gradients disagree: Liu et al. (2025, arXiv 2502.16982, section 2.2)
take 0.2 for language models. The default here is 1, Adam's first step; lab/results/nbody-muon-rms has others. What is no matrix
(biases, scalars, vectors, norms, strengths) is moved by Adam with the same learning rate and decoupled weight decay.

For parameters that are plain matrices the step with rms 0.2 is that of `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, which
computes NS in bfloat16 and matrix by matrix; here it is in the parameter's own precision, float32 at least, and all
matrices of a size at once. The matrices' steps commute with orthogonal changes of basis of the channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam

from equirelax.errors import ConfigError
from equirelax.relaxation.layers.matrices import Matrices, by_shape

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of X, (X X^T) X and (X X^T)^2 X in a Newton-Schulz step; Jordan's, steepest at 0."""
STEPS = 5
LEAST_NORM = 1e-7


class _Move(NamedTuple):
    """A parameter, its gradient, and the matrices in both."""

    parameter: Tensor
    gradient: Tensor
    matrices: list[Matrices]


class Muon(torch.optim.Optimizer):
    """Muon on matrices, Adam on everything else; see the module's docstring.

    Args:
        params: Parameters, or groups of them, as for any optimiser.
        lr: Learning rate, as for Adam.
        matrices: Which matrices a parameter holds, as `matrices_of(model)` tells; for parameters that are not in it their
            shape says it.
        momentum: m above, in [0, 1). rms: As above, more than 0.
        weight_decay: Decoupled, of everything.
        betas, eps: Of Adam.

    Raises:
        ConfigError: a number out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        matrices: Mapping[Any, Sequence[Matrices]] | None = None,
        *,
        momentum: float = 0.95,
        rms: float = 1.0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not lr >= 0 or not weight_decay >= 0:
            raise ConfigError(
                f"Muon: lr and weight_decay must be 0 or more, and are {lr} and {weight_decay}."
            )
        if not 0 <= momentum < 1 or not rms > 0:
            raise ConfigError(
                f"Muon: momentum must be in [0, 1) and rms more than 0, and they are {momentum} and {rms}."
            )
        told = {} if matrices is None else matrices
        listed = list(params)
        groups = (
            [dict(group) for group in listed]
            if listed and isinstance(listed[0], dict)
            else [{"params": listed}]
        )
        for group in groups:
            group["params"] = (
                [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
            )
            # plain tuples: a state dict is read with weights_only=True
            group["matrices"] = [
                [tuple(each) for each in (told[p] if p in told else by_shape(p))] for p in group["params"]
            ]
        super().__init__(
            groups,
            {
                "lr": lr,
                "momentum": momentum,
                "rms": rms,
                "weight_decay": weight_decay,
                "betas": betas,
                "eps": eps,
            },
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As for any optimiser; a group without "matrices" has those that shapes tell."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault("matrices", [[tuple(each) for each in by_shape(p)] for p in group["params"]])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Move all parameters that have a gradient; `closure`, if any, computes them and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moves = [
                _Move(p, p.grad, [Matrices(*each) for each in matrices])
                for p, matrices in zip(group["params"], group["matrices"], strict=True)
                if p.grad is not None
            ]
            if group["weight_decay"]:
                for p, _, _ in moves:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
            self._adam(group, moves)
            self._muon(group, [move for move in moves if move.matrices])
        return loss

    def _muon(self, group: dict[str, Any], moves: Sequence[_Move]) -> None:
        """Muon on the matrices, all of one size at once."""
        steps: list[Tensor] = []
        sized: dict[tuple[Any, ...], list[Tensor]] = {}
        for p, gradient, matrices in moves:
            state, grad = self.state[p], gradient.reshape(-1)
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(grad)
            momentum: Tensor = state["momentum_buffer"]
            momentum.lerp_(grad, 1 - group["momentum"])
            averaged = grad.lerp(momentum, group["momentum"])
            step = torch.zeros_like(averaged)
            for each in matrices:
                source, target = each.view(averaged), each.view(step)
                if each.size[0] > each.size[1]:
                    source, target = source.mT, target.mT
                target.copy_(source)
                sized.setdefault((*target.shape[-2:], target.dtype, target.device), []).append(target)
            steps.append(step)
        for (_, larger, *_), targets in sized.items():
            stacked = torch.cat([target.reshape(-1, *target.shape[-2:]) for target in targets])
            stacked = orthogonalised(stacked) * (group["rms"] * math.sqrt(larger))
            counts = [math.prod(target.shape[:-2]) for target in targets]
            for target, part in zip(targets, stacked.split(counts), strict=True):
                target.copy_(part.view(target.shape))
        for (p, _, _), step in zip(moves, steps, strict=True):
            p.add_(step.view(p.shape), alpha=-group["lr"])

    def _adam(self, group: dict[str, Any], moves: Sequence[_Move]) -> None:
        """Adam on the entries that belong to no matrix."""
        owners: list[tuple[Tensor, list[slice]]] = []
        values, grads, first, second, steps = [], [], [], [], []
        for p, gradient, matrices in moves:
            slices = _others(p, matrices)
            if not slices:
                continue
            state, value = self.state[p], _take(p, slices)
            if "step" not in state:
                state["step"] = torch.zeros(())
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(value), torch.zeros_like(value)
            owners.append((p, slices))
            values.append(value)
            grads.append(_take(gradient, slices))
            first.append(state["exp_avg"])
            second.append(state["exp_avg_sq"])
            steps.append(state["step"])
        beta1, beta2 = group["betas"]
        adam(
            values, grads, first, second, [], steps, amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"],
            weight_decay=0.0, eps=group["eps"], maximize=False,
        )  # fmt: skip
        for (p, slices), value in zip(owners, values, strict=True):
            if value is not p:
                flat = p.reshape(-1)
                for where, part in zip(slices, value.split([w.stop - w.start for w in slices]), strict=True):
                    flat[where] = part
                p.copy_(flat.view(p.shape))


def orthogonalised(matrices: Tensor) -> Tensor:
    """Newton-Schulz: (n, rows, columns), rows <= columns, to matrices with the same singular vectors and singular values
    of about 0.7 to 1.2; a matrix of zeros stays what it is.
    """
    a, b, c = COEFFICIENTS
    x = matrices if matrices.dtype == torch.float64 else matrices.float()
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=LEAST_NORM)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _others(p: Tensor, matrices: Sequence[Matrices]) -> list[slice]:
    """The entries of a flat parameter that belong to no matrix."""
    ends = [0, *(end for each in sorted(matrices) for end in (each.start, each.stop)), p.numel()]
    return [slice(a, b) for a, b in list(pairwise(ends))[::2] if a < b]


def _take(p: Tensor, slices: Sequence[slice]) -> Tensor:
    """Those entries: the parameter itself where they are all of it."""
    if list(slices) == [slice(0, p.numel())]:
        return p
    flat = p.reshape(-1)
    return torch.cat([flat[where] for where in slices])
