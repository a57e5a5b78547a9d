"""The regulariser of CR (section 4): Lie derivative and norm of every residual, on the inputs of the step."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from equirelax.errors import PenaltyError
from equirelax.files import did_you_mean
from equirelax.penalties.terms import TermBatch
from equirelax.relaxation import Relaxation, Residual
from equirelax.relaxation.columns import Columns

SCALINGS = ("root-sum", "mean")


class Regularizer:
    """`lie_weight * sqrt(LD) + norm_weight * sqrt(N)`, with LD and N summed over residuals,
    samples, generators (CR section 4).

        LD = sum || drho_out(A) f(x) - D f(x)[drho_in(A) x] ||^2        N = sum || f(x) ||^2

    Inputs are those of every training-mode call with gradients since the last call of the penalty; they are
    detached, so it trains the residuals alone. It is computed outside autocast, in float32 or better whatever the model's
    dtype. Over the ranks of a process group the sums are added before the root, and gradients are such that averaging
    them over ranks (as DDP does) gives the gradient of the global penalty.

    Args:
        relaxation: whose residuals to penalise.
        lie_weight, norm_weight: lambda_reg of the paper, which has one for both (0.01 on N-body).
        rows: estimate the sums from this many randomly chosen rows per residual (None: all, exact).
            The sums are unbiased; their roots, by Jensen's inequality, slightly low.
        scaling: "root-sum", as printed, is the default, so that the papers' lambda_reg keep their meaning;
            its size grows with the square root of the batch's rows. "mean" takes means before the root, so that its
            size does not depend on the batch: the sums of the residuals that read rows are divided by these; the terms
            of convolutions are means already; and residuals of both sorts count alike in the mean of all.
        every: k >= 1. The regulariser is computed at the first of every k steps, times k, and is 0 at the others, which
            keep no inputs. At fixed weights its mean over k steps is the exact one. That is an approximation for
            optimizers with moments, such as Adam: they see k times the gradient once and none k - 1 times, which
            raises the second moment by k. Published settings use 1.
        generator: for the choice of rows; on the inputs' device.
        finite_difference: approximate Jacobian-vector products of residuals that are not linear.

    Attributes:
        terms: key -> {"lie", "norm"}: the sums (over the rows of all ranks) when they were last computed, detached.
        steps: how many were taken: calls of `advance`, which methods make after every step.

    Raises:
        PenaltyError: at construction for an unknown scaling or weights below 0;
            at a call when nothing was kept.
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
        *,
        every: int = 1,
    ) -> None:
        if scaling not in SCALINGS:
            raise PenaltyError(
                f"scaling is {scaling!r}; expected one of "
                f"{', '.join(SCALINGS)}.{did_you_mean(scaling, SCALINGS)}"
            )
        if lie_weight < 0 or norm_weight < 0:
            raise PenaltyError(
                f"weights must not be below 0: lie_weight is {lie_weight}, norm_weight {norm_weight}"
            )
        if rows is not None and rows < 1:
            raise PenaltyError(f"rows is {rows}; expected at least 1, or None for all")
        if every < 1:
            raise PenaltyError(
                f"every is {every}; expected at least 1: the regulariser is computed every so many steps"
            )
        self.relaxation = relaxation
        self.lie_weight, self.norm_weight = lie_weight, norm_weight
        self.rows, self.scaling, self.generator = rows, scaling, generator
        self.finite_difference = finite_difference
        self.every, self.steps = every, 0
        self.terms: dict[str, dict[str, Tensor]] = {}
        self._keep()

    @property
    def due(self) -> bool:
        """Whether it is computed in the step that comes next."""
        return self.steps % self.every == 0

    def advance(self) -> None:
        """Go on to the next step, after the optimizer's."""
        self.steps += 1
        self._keep()

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, and the generator's state where there is one."""
        generator = None if self.generator is None else self.generator.get_state()
        return {"steps": self.steps, "generator": generator}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.steps = int(state["steps"])
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"].cpu())
        self._keep()

    def _keep(self) -> None:
        """Have inputs kept in the steps that need them, and in no other."""
        for _, residual in self.relaxation:
            residual.keep_inputs = self.due

    def __call__(self) -> Tensor:
        """The penalty, a 0-dimensional tensor to add to the loss. Reads what was kept, and forgets it."""
        if not self.due:
            self.forget()
            like = self.relaxation.gammas()
            return like.new_zeros((), dtype=torch.promote_types(like.dtype, torch.float32))
        kept = {
            key: inputs
            for key, residual in self.relaxation
            if (inputs := residual.take_inputs()) or _needs_no_inputs(residual)
        }
        others = any(residual.site.convolution is None for _, residual in self.relaxation)
        if not kept or (others and not any(kept.values())):
            raise PenaltyError(
                "no inputs were kept since the last penalty: call it once after a forward of the relaxed "
                "model in training mode (model.train()), with gradients, outside `relaxation.strict()`. "
                "Reentrant gradient checkpointing hides the forward: use "
                "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            )
        device = self.relaxation[next(iter(kept))].gamma.device
        with torch.autocast(device_type=device.type, enabled=False):
            return self.every * self._value(kept)

    def _value(self, kept: dict[str, list[Columns]]) -> Tensor:
        """The penalty of what was kept, a 0-dimensional tensor."""
        lie, norm = self._sums(kept)
        return self.lie_weight * safe_root(lie) + self.norm_weight * safe_root(norm)

    def _sums(self, kept: dict[str, list[Columns]]) -> tuple[Tensor, Tensor]:
        """(Lie sum, norm sum) over all residuals and ranks, scaled; notes each one's terms."""
        batch = TermBatch(self.rows, self.generator, self.finite_difference)
        for key, inputs in kept.items():
            batch.add(key, self.relaxation[key], inputs)
        keys, terms = batch.keys, torch.stack(batch.terms())  # (2, residuals)
        rows = torch.tensor(batch.rows_of).to(terms)
        if _ranks() > 1:
            # every rank has the same kernels: each gives its share, so that the sum over ranks counts them once
            share = torch.tensor([1.0 if inputs else 1 / _ranks() for inputs in kept.values()]).to(terms)
            # a residual that read nothing here may have read something elsewhere: ranks exchange those of all
            all_keys = list(self.relaxation.residuals)
            places = torch.tensor([all_keys.index(key) for key in keys], device=terms.device)
            here = torch.cat([share * terms, rows[None]])
            there = _over_ranks(terms.new_zeros(3, len(all_keys)).index_copy(1, places, here))
            keys, terms, rows = all_keys, there[:2], there[2].detach()
        for key, lie, norm in zip(keys, *terms.detach(), strict=True):
            self.terms[key] = {"lie": lie, "norm": norm}
        lie, norm = terms.sum(1) if self.scaling == "root-sum" else self._means(keys, terms, rows)
        return lie, norm

    def _means(self, keys: list[str], terms: Tensor, rows: Tensor) -> Tensor:
        """Means over rows, and over the residuals that have read any and the convolutions: (2,) of terms (2, residuals)."""
        convolution = torch.tensor([self.relaxation[key].site.convolution is not None for key in keys])
        convolution = convolution.to(terms.device)
        of_kernels = (terms * convolution).sum(1)
        of_rows = (terms * ~convolution).sum(1) / rows.sum().clamp(min=1)
        readers, kernels = (rows > 0).sum(), convolution.sum()
        count = (readers + kernels).clamp(min=1)
        return (readers / count) * of_rows + of_kernels / count

    def forget(self) -> None:
        """Drop inputs that were kept and will not be used."""
        for _, residual in self.relaxation:
            residual.take_inputs()


def _needs_no_inputs(residual: Residual) -> bool:
    """Whether the penalty is of a kernel alone, and the residual is not switched off."""
    return residual.site.convolution is not None and residual.active


def safe_root(total: Tensor) -> Tensor:
    """sqrt(total), with gradient 0 where total is 0: the plain root's is infinite there,
    where zero-initialised residuals start.
    """
    positive = total > 0
    return torch.where(
        positive, torch.where(positive, total, torch.ones_like(total)).sqrt(), torch.zeros_like(total)
    )


def _over_ranks(local: Tensor) -> Tensor:
    """Sum over the ranks of the default process group; the gradient is multiplied by their
    number, which DDP's averaging undoes.
    """
    if _ranks() == 1:
        return local
    total = local.detach().clone()
    dist.all_reduce(total)
    return total + _ranks() * (local - local.detach())


def _ranks() -> int:
    """Size of the default process group, 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
