"""The regulariser of CR (section 4): Lie derivative and norm of every residual, on the inputs of the step."""

from __future__ import annotations

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
    detached, so it trains the residuals alone. It is computed outside autocast, in float32 or better. Over
    the ranks of a process group the sums are added before the root, and gradients are such that averaging
    them over ranks (as DDP does) gives the gradient of the global penalty.

    Args:
        relaxation: whose residuals to penalise.
        lie_weight, norm_weight: lambda_reg of the paper, which has one for both (0.01 on N-body).
        rows: estimate the sums from this many randomly chosen rows per residual (None: all, exact).
            The sums are unbiased; their roots, by Jensen's inequality, slightly low.
        scaling: "root-sum", as printed, is the default, so that the papers' lambda_reg keep their meaning;
            its size grows with the square root of the batch's rows. "mean" divides the sums by the rows
            before the root: its size does not depend on the batch.
        generator: for the choice of rows; on the inputs' device.
        finite_difference: approximate Jacobian-vector products of residuals that are not linear.

    Attributes:
        terms: key -> {"lie", "norm"}: the sums (over the rows of all ranks) of the last call, detached.

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
        self.relaxation = relaxation
        self.lie_weight, self.norm_weight = lie_weight, norm_weight
        self.rows, self.scaling, self.generator = rows, scaling, generator
        self.finite_difference = finite_difference
        self.terms: dict[str, dict[str, Tensor]] = {}
        for _, residual in relaxation:
            residual.keep_inputs = True

    def __call__(self) -> Tensor:
        """The penalty, a 0-dimensional tensor to add to the loss. Reads what was kept, and forgets it."""
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
            lie, norm, count = self._sums(kept)
            if self.scaling == "mean":
                lie, norm = lie / count, norm / count
            return self.lie_weight * safe_root(lie) + self.norm_weight * safe_root(norm)

    def _sums(self, kept: dict[str, list[Columns]]) -> tuple[Tensor, Tensor, Tensor]:
        """(Lie sum, norm sum, rows) over all residuals and ranks; notes each one's terms."""
        batch = TermBatch(self.rows, self.generator, self.finite_difference)
        for key, inputs in kept.items():
            batch.add(key, self.relaxation[key], inputs)
        keys, terms = batch.keys, torch.stack(batch.terms())  # (2, residuals)
        count = torch.full_like(terms[0, 0], batch.count)
        if _ranks() > 1:
            # every rank has the same kernels: each gives its share, so that the sum over ranks counts them once
            share = torch.tensor([1.0 if inputs else 1 / _ranks() for inputs in kept.values()]).to(terms)
            count = count - len(share) + share.sum()
            # a residual that read nothing here may have read something elsewhere: ranks exchange those of all
            every = list(self.relaxation.residuals)
            places = torch.tensor([every.index(key) for key in keys], device=terms.device)
            terms = terms.new_zeros(2, len(every)).index_copy(1, places, share * terms)
            total = _over_ranks(torch.cat([terms.flatten(), count[None]]))
            keys, terms, count = every, total[:-1].view(2, -1), total[-1]
        for key, lie, norm in zip(keys, *terms.detach(), strict=True):
            self.terms[key] = {"lie": lie, "norm": norm}
        lie, norm = terms.sum(1)
        return lie, norm, count

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
