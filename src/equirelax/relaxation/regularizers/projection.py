"""Norms of the equivariant and the other part of every residual, without data (Berndt and Stuehmer, ICML 2026)."""

from __future__ import annotations

import torch
from torch import Tensor

from equirelax.errors import PenaltyError
from equirelax.relaxation.columns import Columns
from equirelax.relaxation.regularizers.regularizer import Regularizer, register, safe_root
from equirelax.relaxation.relaxation import Relaxation
from equirelax.relaxation.terms.precision import promoted
from equirelax.settings import NOT_NEGATIVE, check


@register("projection")
class ProjectionNorms(Regularizer):
    """`sum_i lambda_G || P_i W_i ||_F + lambda_perp || (1 - P_i) W_i ||_F` over the residuals i.

    P_i is the orthogonal projection onto the equivariant maps (Berndt and Stuehmer, ICML 2026, arXiv 2601.05028). W_i is the
    matrix of the residual's map without gamma, with any bias as its last column, or the kernel of a convolution. A large
    lambda_perp keeps residuals near the equivariant maps, as the Lie derivative does, but independently of the data, and in
    the same way for discrete groups; lambda_G sets the cost of equivariant maps. No inputs are kept, and no forward pass is
    needed.

    If a part is 0, as in residuals that start from zeros, its gradient is taken as 0. All ranks of a process group compute
    the same value.

    Args:
        relaxation: The residuals to penalise, which are linear and between representations that act linearly.
        equivariant_weight: lambda_G, at least 0.
        rest_weight: lambda_perp, at least 0.
        every: See `Regularizer`.

    Attributes:
        terms: key -> {"equivariant", "rest"}: the two norms when they were last computed, detached.

    Raises:
        PenaltyError: A weight is below 0, or a residual is not linear or reads or adds to positions; see also `Regularizer`.
    """

    reads_inputs = False

    def __init__(
        self,
        relaxation: Relaxation,
        equivariant_weight: float = 0.0,
        rest_weight: float = 0.01,
        *,
        every: int = 1,
    ) -> None:
        check(equivariant_weight, NOT_NEGATIVE, "equivariant_weight", PenaltyError)
        check(rest_weight, NOT_NEGATIVE, "rest_weight", PenaltyError)
        for key, residual in relaxation:
            if not (residual.is_linear and residual.in_rep.linear and residual.out_rep.linear):
                raise PenaltyError(
                    f"{key or 'the model'}: no orthogonal projection onto equivariant maps is known of its residual "
                    f"({type(residual.map).__name__} from {residual.in_rep!r} to {residual.out_rep!r}): use LieDerivative, "
                    f"or residuals of another kind"
                )
        super().__init__(relaxation, every=every)
        self.equivariant_weight, self.rest_weight = equivariant_weight, rest_weight

    def _value(self, kept: dict[str, list[Columns]]) -> Tensor:
        total = []
        for key in kept:
            residual = self.relaxation[key]
            map_ = promoted(residual.linear_map)
            whole = (map_.effective_weight(), map_.effective_bias())
            inside = map_.projected(residual.in_rep, residual.out_rep)
            pairs = [(w, p) for w, p in zip(whole, inside, strict=True) if w is not None and p is not None]
            parts = [p.square().sum() for _, p in pairs], [(w - p).square().sum() for w, p in pairs]
            equivariant, rest = (safe_root(torch.stack(each).sum()) for each in parts)
            self.terms[key] = {"equivariant": equivariant.detach(), "rest": rest.detach()}
            total.append(self.equivariant_weight * equivariant + self.rest_weight * rest)
        return torch.stack([each.to(total[0]) for each in total]).sum()
