"""The regulariser of CR (section 4): Lie derivative and norm of every residual, on the inputs of the step."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from equirelax.errors import PenaltyError
from equirelax.files import did_you_mean
from equirelax.penalties.jacobian import jacobian_terms
from equirelax.penalties.quadratic import linear_terms
from equirelax.relaxation import Relaxation, Residual

SCALINGS = ("root-sum", "mean")


class Penalty:
    """`lie_weight * sqrt(LD) + norm_weight * sqrt(N)`, with LD and N summed over residuals, samples, generators (CR section 4).

        LD = sum || drho_out(A) f(x) - D f(x)[drho_in(A) x] ||^2        N = sum || f(x) ||^2

    Inputs are those of every training-mode call with gradients since the last call of the penalty; they are detached, so it trains the
    residuals alone. It is computed outside autocast, in float32 or better. Over the ranks of a process group the sums are added
    before the root, and gradients are such that averaging them over ranks (as DDP does) gives the gradient of the global penalty.

    Args:
        relaxation: whose residuals to penalise.
        lie_weight, norm_weight: lambda_reg of the paper, which has one for both (0.01 on N-body).
        rows: estimate the sums from this many randomly chosen rows per residual (None: all, exact). The sums are unbiased; their roots, by
            Jensen's inequality, slightly low.
        scaling: "root-sum", as printed, is the default, so that the papers' lambda_reg keep their meaning; its size grows with the
            square root of the batch's rows. "mean" divides the sums by the rows before the root: its size does not depend on the batch.
        generator: for the choice of rows; on the inputs' device.
        finite_difference: approximate Jacobian-vector products of residuals that are not linear.

    Attributes:
        terms: key -> {"lie", "norm"}: the sums (over local rows) of the last call, detached.

    Raises:
        PenaltyError: at construction for an unknown scaling or weights below 0; at a call when nothing was kept.
    """

    def __init__(
        self,
        relaxation: Relaxation,
        lie_weight: float = 0.01,
        norm_weight: float = 0.01,
        rows: int | None = None,
        scaling: str = "root-sum",
        generator: torch.Generator | None = None,
        finite_difference: bool = False,
    ) -> None:
        if scaling not in SCALINGS:
            raise PenaltyError(f"scaling is {scaling!r}; expected one of {', '.join(SCALINGS)}.{did_you_mean(scaling, SCALINGS)}")
        if lie_weight < 0 or norm_weight < 0:
            raise PenaltyError(f"weights must not be below 0: lie_weight is {lie_weight}, norm_weight {norm_weight}")
        if rows is not None and rows < 1:
            raise PenaltyError(f"rows is {rows}; expected at least 1, or None for all")
        self.relaxation = relaxation
        self.lie_weight, self.norm_weight = lie_weight, norm_weight
        self.rows, self.scaling, self.generator = rows, scaling, generator
        self.finite_difference = finite_difference
        self.terms: dict[str, dict[str, Tensor]] = {}
        for _, residual in relaxation:
            residual.keep_inputs = True

    def __call__(self) -> Tensor:
        """The penalty, a 0-dimensional tensor to add to the loss. Reads what was kept, and forgets it."""
        kept = {key: residual.take_inputs() for key, residual in self.relaxation}
        if not any(kept.values()):
            raise PenaltyError(
                "no inputs were kept since the last penalty: call it once after a forward of the relaxed model in training mode "
                "(model.train()), with gradients, outside `relaxation.strict()`. Reentrant gradient checkpointing hides the forward: use "
                "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            )
        sums = []
        with torch.autocast(device_type=next(x.device.type for inputs in kept.values() for x in inputs), enabled=False):
            for key, residual in self.relaxation:
                if not kept[key]:
                    continue
                lie, norm, count = residual_terms(residual, kept[key], self.rows, self.generator, self.finite_difference)
                self.terms[key] = {"lie": lie.detach(), "norm": norm.detach()}
                sums.append(torch.stack([lie, norm, torch.full_like(lie, count)]))
            lie, norm, count = _over_ranks(torch.stack(sums).sum(0)).unbind()
            if self.scaling == "mean":
                lie, norm = lie / count, norm / count
            return self.lie_weight * safe_root(lie) + self.norm_weight * safe_root(norm)

    def forget(self) -> None:
        """Drop inputs that were kept and will not be used."""
        for _, residual in self.relaxation:
            residual.take_inputs()


def residual_terms(
    residual: Residual,
    inputs: list[Tensor],
    rows: int | None = None,
    generator: torch.Generator | None = None,
    finite_difference: bool = False,
) -> tuple[Tensor, Tensor, int]:
    """(Lie sum, norm sum, number of rows) of `f_neq` of one residual, its gamma left out.

    Args:
        inputs: from `Residual.take_inputs`, at least one.
        rows: use this many random rows, drawn without replacement, and scale the sums up.
    """
    axis = residual.feature_axis
    count = sum(x.numel() // x.shape[axis] for x in inputs)
    parameter = next(residual.map.parameters())
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    factor = 1.0
    if rows is not None and rows < count:
        inputs, factor = [_choose_rows(inputs, axis, rows, generator)], count / rows
    in_rep, out_rep = residual.in_rep, residual.out_rep
    if residual.is_linear and in_rep.linear:
        weight, bias = residual.map.effective_weight(), residual.map.effective_bias()  # type: ignore[operator]
        bias = None if bias is None else bias.to(dtype)
        lie, norm = linear_terms(weight.to(dtype), bias, inputs, axis, in_rep, out_rep)
    else:
        points = [x.to(parameter.dtype) for x in inputs]
        lie, norm = jacobian_terms(residual.map, points, axis, in_rep, out_rep, finite_difference)
    return factor * lie, factor * norm, count


def _choose_rows(inputs: list[Tensor], axis: int, rows: int, generator: torch.Generator | None) -> Tensor:
    """A random choice of rows over all inputs, in the layout of the inputs: (rows, dim) or (rows, dim, 1)."""
    moved = [x if axis == -1 else x.transpose(-1, -2) for x in inputs]
    flat = [x.reshape(-1, x.shape[-1]) if x.is_contiguous() else None for x in moved]
    counts = [x.numel() // x.shape[-1] for x in moved]
    total = sum(counts)
    device = inputs[0].device
    chosen = torch.randperm(total, device=device, generator=generator)[:rows]
    parts, start = [], 0
    for x, view, count in zip(moved, flat, counts, strict=True):
        here = chosen[(chosen >= start) & (chosen < start + count)] - start if len(moved) > 1 else chosen
        if view is not None:
            parts.append(view[here])
        else:
            parts.append(x[torch.unravel_index(here, x.shape[:-1])])
        start += count
    picked = parts[0] if len(parts) == 1 else torch.cat(parts)
    return picked if axis == -1 else picked.unsqueeze(-1)


def safe_root(total: Tensor) -> Tensor:
    """sqrt(total), with gradient 0 where total is 0: the plain root's is infinite there, where zero-initialised residuals start."""
    positive = total > 0
    return torch.where(positive, torch.where(positive, total, torch.ones_like(total)).sqrt(), torch.zeros_like(total))


def _over_ranks(local: Tensor) -> Tensor:
    """Sum over the ranks of the default process group; the gradient is multiplied by their number, which DDP's averaging undoes."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return local
    total = local.detach().clone()
    dist.all_reduce(total)
    return total + dist.get_world_size() * (local - local.detach())
