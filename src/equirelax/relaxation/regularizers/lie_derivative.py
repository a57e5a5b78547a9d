"""The Lie derivative and the norm of every residual, on the inputs of the step: the regularizer of CR (section 4).

Similar residuals are computed together. Linear ones are computed exactly in weight space, without another pass through the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equirelax.errors import PenaltyError
from equirelax.files import did_you_mean
from equirelax.ranks import ranks
from equirelax.relaxation.columns import Columns, SharedColumns
from equirelax.relaxation.kinds.kind import Penalised, Rule, Terms
from equirelax.relaxation.regularizers.regularizer import Regularizer, over_ranks, register, safe_root
from equirelax.relaxation.relaxation import Relaxation
from equirelax.relaxation.residual import Residual
from equirelax.relaxation.terms.precision import penalty_dtype
from equirelax.settings import COUNT, NOT_NEGATIVE, check

SCALINGS = ("root-sum", "mean")


@register("lie-derivative")
class LieDerivative(Regularizer):
    """`lie_weight * sqrt(LD) + norm_weight * sqrt(N)`, summed over residuals, samples and generators (CR section 4).

        LD = sum || drho_out(A) f(x) - D f(x)[drho_in(A) x] ||^2 + sum || rho_out(g) f(x) - f(rho_in(g) x) ||^2
        N = sum || f(x) ||^2

    A are the generators of the Lie algebra, and g the discrete ones, such as the inversion of O(3).

    The inputs are those of all training-mode calls with gradients since the last call of the penalty. The sums are added over
    the ranks of a process group before the root is taken. Averaging the gradients over ranks, as DDP does, gives the
    gradient of the global penalty.

    Args:
        relaxation: The residuals to penalise.
        lie_weight, norm_weight: lambda_reg of the paper, which has one for both (0.01 on N-body).
        rows: Number of randomly chosen rows per residual from which the sums are estimated (None: all, exact).
            The sums are unbiased; their roots are slightly low, by Jensen's inequality.
        scaling: "root-sum", as in the paper, is the default, so that the papers' values of lambda_reg keep their meaning.
            It grows with the square root of the number of rows in the batch. "mean" takes means before the root, so that it
            does not depend on the batch size: the sums of residuals that read rows are divided by their number, the terms of
            convolutions are already means, and residuals of both kinds count equally in the mean over all.
        generator: Random number generator for the choice of rows, on the inputs' device.
        finite_difference: Whether to approximate Jacobian-vector products of residuals that are not linear.
        every: See `Regularizer`.

    Attributes:
        terms: key -> {"lie", "norm"}: the sums (over the rows of all ranks) when they were last computed, detached.

    Raises:
        PenaltyError: The scaling is unknown, a weight is below 0, or `rows` is below 1; see also `Regularizer`.
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
        check(lie_weight, NOT_NEGATIVE, "lie_weight", PenaltyError)
        check(norm_weight, NOT_NEGATIVE, "norm_weight", PenaltyError)
        check(rows, COUNT, "rows", PenaltyError)
        super().__init__(relaxation, generator=generator, every=every)
        self.lie_weight, self.norm_weight = lie_weight, norm_weight
        self.rows, self.scaling = rows, scaling
        self.finite_difference = finite_difference

    def capture_obstacle(self) -> str:
        """See `Regularizer`."""
        if self.rows is not None:
            return "the penalty draws its rows"
        if self.scaling == "mean":
            return "scaling is 'mean', which copies the numbers of rows to the device"
        return super().capture_obstacle()

    def stack_obstacle(self) -> str:
        """See `Regularizer`."""
        return "" if self.rows is None else "the penalty draws its rows (leave rows out)"

    def _value(self, kept: dict[str, list[Columns]]) -> Tensor:
        """The penalty on the kept inputs, a 0-dimensional tensor."""
        lie, norm = self._sums(kept)
        return self.lie_weight * safe_root(lie) + self.norm_weight * safe_root(norm)

    def _sums(self, kept: dict[str, list[Columns]]) -> tuple[Tensor, Tensor]:
        """(Lie sum, norm sum) over all residuals and ranks, scaled. Records the terms of each residual."""
        keys = list(kept)
        members = [(self.relaxation[key], inputs) for key, inputs in kept.items()]
        terms, counts = term_sums(members, self.rows, self.generator, self.finite_difference)
        # a copy to the device would end a CUDA graph's capture
        counted = self.scaling == "mean" or ranks() > 1
        rows = torch.tensor(counts).to(terms) if counted else terms.new_empty(0)
        if ranks() > 1:
            # every rank has the same kernels: each contributes a share, so that the sum over ranks counts them once
            share = torch.tensor([1.0 if inputs else 1 / ranks() for inputs in kept.values()]).to(terms)
            # a residual without inputs here may have some on another rank, so ranks exchange the terms of all
            all_keys = list(self.relaxation.residuals)
            places = torch.tensor([all_keys.index(key) for key in keys], device=terms.device)
            here = torch.cat([share * terms, rows[None]])
            there = over_ranks(terms.new_zeros(3, len(all_keys)).index_copy(1, places, here))
            keys, terms, rows = all_keys, there[:2], there[2].detach()
        for key, lie, norm in zip(keys, *terms.detach(), strict=True):
            self.terms[key] = {"lie": lie, "norm": norm}
        lie, norm = terms.sum(1) if self.scaling == "root-sum" else self._means(keys, terms, rows)
        return lie, norm

    def _means(self, keys: list[str], terms: Tensor, rows: Tensor) -> Tensor:
        """Means (2,) of terms (2, residuals) over rows, and over convolutions and residuals that have read rows."""
        without_rows = [not self.relaxation[key].map.reads_inputs for key in keys]
        convolution = torch.tensor(without_rows, device=terms.device)
        of_kernels = (terms * convolution).sum(1)
        of_rows = (terms * ~convolution).sum(1) / rows.sum().clamp(min=1)
        readers, kernels = (rows > 0).sum(), convolution.sum()
        count = (readers + kernels).clamp(min=1)
        return (readers / count) * of_rows + of_kernels / count


def term_sums(
    members: Sequence[tuple[Residual, list[Columns]]],
    rows: int | None = None,
    generator: torch.Generator | None = None,
    finite_difference: bool = False,
) -> tuple[Tensor, list[int]]:
    """The Lie and norm sums of residuals without gamma, of shape (2, residuals), and the number of rows of each one's inputs.

    Every residual determines the rule by which its terms are computed, and those with the same rule are computed together.

    Args:
        members: Residuals with the inputs from `Residual.take_inputs`: at least one tensor, or none for a map that needs no
            inputs (a convolution, whose number of rows is 0).
        rows: Number of random rows to use for every residual, drawn without replacement; the sums are scaled up (None: all
            rows). Residual streams always use all of them.
        generator: Random number generator for the choice of rows, on the inputs' device.
        finite_difference: Whether to approximate Jacobian-vector products of residuals that are not linear.
    """
    calls: dict[Rule, list[tuple[int, Penalised]]] = {}
    counts, factors = [], []
    for index, (residual, inputs) in enumerate(members):
        axis = residual.feature_axis
        count = sum(x.numel() // x.shape[axis] for x in inputs) if residual.map.reads_inputs else 0
        factor = 1.0
        if rows is not None and rows < count and residual.map.takes_rows:
            inputs, factor = [choose_rows(inputs, axis, rows, generator)], count / rows
        counts.append(count)
        factors.append(factor)
        calls.setdefault(residual.penalty_rule, []).append(
            (index, residual.penalised(inputs, finite_difference))
        )
    found: dict[int, Terms] = {}
    for rule, numbered in calls.items():
        terms = rule([call for _, call in numbered])
        found.update((index, of_one) for (index, _), of_one in zip(numbered, terms, strict=True))
    device, dtype = found[0][0].device, penalty_dtype(found[0][0].dtype)
    together = [
        torch.stack([found[i][which].to(device=device, dtype=dtype) for i in range(len(members))])
        for which in (0, 1)
    ]
    terms_of_all = torch.stack(together)
    if rows is not None:
        terms_of_all = torch.tensor(factors, dtype=dtype, device=device) * terms_of_all
    return terms_of_all, counts


def residual_terms(
    residual: Residual,
    inputs: list[Columns],
    rows: int | None = None,
    generator: torch.Generator | None = None,
    finite_difference: bool = False,
) -> Terms:
    """(Lie sum, norm sum) of one residual, without gamma; see `term_sums`."""
    (lie, norm), _ = term_sums([(residual, inputs)], rows, generator, finite_difference)
    return lie[0], norm[0]


def choose_rows(inputs: list[Columns], axis: int, rows: int, generator: torch.Generator | None) -> Tensor:
    """A random choice of rows over all inputs, in the layout of the inputs: (rows, dim) or (rows, dim, 1)."""
    counts = [x.numel() // x.shape[axis] for x in inputs]
    chosen = torch.randperm(sum(counts), device=inputs[0].device, generator=generator)[:rows]
    parts, start = [], 0
    for x, count in zip(inputs, counts, strict=True):
        here = chosen[(chosen >= start) & (chosen < start + count)] - start if len(inputs) > 1 else chosen
        if isinstance(x, SharedColumns):
            parts.append(x.rows(here))
        else:
            moved = x if axis == -1 else x.transpose(-1, -2)
            # plain indexing copies only the chosen rows, whatever the strides
            parts.append(
                moved[here] if moved.dim() == 2 else moved[torch.unravel_index(here, moved.shape[:-1])]
            )
        start += count
    picked = parts[0] if len(parts) == 1 else torch.cat(parts)
    return picked if axis == -1 else picked.unsqueeze(-1)
