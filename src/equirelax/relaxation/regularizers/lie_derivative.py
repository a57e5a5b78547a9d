"""The Lie derivative and the norm of every residual, on the inputs of the step: the regularizer of CR (section 4).

Alike residuals are computed together, and linear ones in weight space: exact, without another pass through the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equirelax.errors import PenaltyError
from equirelax.files import did_you_mean
from equirelax.relaxation.columns import Columns, SharedColumns, dense, identity
from equirelax.relaxation.grouped import GroupedMap
from equirelax.relaxation.maps import LowRankMap
from equirelax.relaxation.regularizers.regularizer import Regularizer, over_ranks, ranks, register, safe_root
from equirelax.relaxation.relaxation import Relaxation
from equirelax.relaxation.residual import Residual
from equirelax.relaxation.streams import StreamResidual
from equirelax.relaxation.terms.grouped import GroupedInputs, grouped_terms
from equirelax.relaxation.terms.jacobian import jacobian_terms
from equirelax.relaxation.terms.kernels import kernel_terms
from equirelax.relaxation.terms.linear import Moment, second_moment, stacked_terms
from equirelax.relaxation.terms.low_rank import low_rank_terms
from equirelax.relaxation.terms.precision import penalty_dtype, promoted
from equirelax.relaxation.terms.streams import stream_terms
from equirelax.symmetry import Representation

SCALINGS = ("root-sum", "mean")


@register("lie-derivative")
class LieDerivative(Regularizer):
    """`lie_weight * sqrt(LD) + norm_weight * sqrt(N)`, with LD and N summed over residuals,
    samples, generators (CR section 4).

        LD = sum || drho_out(A) f(x) - D f(x)[drho_in(A) x] ||^2        N = sum || f(x) ||^2

    Inputs are those of every training-mode call with gradients since the last call of the penalty. Over the ranks of a
    process group the sums are added before the root, and gradients are such that averaging them over ranks (as DDP does)
    gives the gradient of the global penalty.

    Args:
        relaxation: The residuals to penalise.
        lie_weight, norm_weight: lambda_reg of the paper, which has one for both (0.01 on N-body).
        rows: Estimate the sums from this many randomly chosen rows per residual (None: all, exact).
            The sums are unbiased; their roots, by Jensen's inequality, slightly low.
        scaling: "root-sum", as printed, is the default, so that the papers' lambda_reg keep their meaning;
            its size grows with the square root of the batch's rows. "mean" takes means before the root, so that its
            size does not depend on the batch: the sums of the residuals that read rows are divided by these; the terms
            of convolutions are means already; and residuals of both sorts count alike in the mean of all.
        generator: For the choice of rows; on the inputs' device.
        finite_difference: Approximate Jacobian-vector products of residuals that are not linear.
        every: See `Regularizer`.

    Attributes:
        terms: key -> {"lie", "norm"}: the sums (over the rows of all ranks) when they were last computed, detached.

    Raises:
        PenaltyError: An unknown scaling, weights below 0, or rows below 1; see also `Regularizer`.
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
        super().__init__(relaxation, generator=generator, every=every)
        self.lie_weight, self.norm_weight = lie_weight, norm_weight
        self.rows, self.scaling = rows, scaling
        self.finite_difference = finite_difference

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
        if ranks() > 1:
            # every rank has the same kernels: each gives its share, so that the sum over ranks counts them once
            share = torch.tensor([1.0 if inputs else 1 / ranks() for inputs in kept.values()]).to(terms)
            # a residual that read nothing here may have read something elsewhere: ranks exchange those of all
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
        """Means over rows, and over the residuals that have read any and the convolutions: (2,) of terms (2, residuals)."""
        convolution = torch.tensor([self.relaxation[key].site.convolution is not None for key in keys])
        convolution = convolution.to(terms.device)
        of_kernels = (terms * convolution).sum(1)
        of_rows = (terms * ~convolution).sum(1) / rows.sum().clamp(min=1)
        readers, kernels = (rows > 0).sum(), convolution.sum()
        count = (readers + kernels).clamp(min=1)
        return (readers / count) * of_rows + of_kernels / count


@dataclass(frozen=True)
class _Group:
    """What linear residuals must share to be computed in one stack."""

    in_rep: Representation
    out_rep: Representation
    bias: bool
    rows: int | None
    dtype: torch.dtype
    device: torch.device


class TermBatch:
    """Collects residuals with their inputs; linear ones between the same
    representations are computed in one stack.

    Args:
        rows: use this many random rows of every residual, drawn without replacement,
            and scale the sums up (None: all rows). Residual streams always count all of them. Convolutions need no
            inputs: their terms are those of one row of white inputs (see `kernel_terms`).
        generator: for the choice of rows; on the inputs' device.
        finite_difference: approximate Jacobian-vector products of residuals that are not linear.

    Attributes:
        keys: of the residuals, in the order of `terms`.
        rows_of: rows of each one's inputs, sampled or not; 0 for a convolution, which needs none.
    """

    def __init__(
        self,
        rows: int | None = None,
        generator: torch.Generator | None = None,
        finite_difference: bool = False,
    ) -> None:
        self.rows, self.generator, self.finite_difference = rows, generator, finite_difference
        self.keys: list[str] = []
        self.rows_of: list[int] = []
        self._factors: list[float] = []
        self._groups: dict[_Group, list[tuple[int, Residual, Moment | Tensor]]] = {}
        self._moments: dict[tuple[Any, ...], Moment | Tensor] = {}
        self._others: list[tuple[int, Residual, list[Tensor]]] = []
        self._low_rank: list[tuple[int, Residual, LowRankMap, list[Columns]]] = []
        self._grouped: list[tuple[int, GroupedInputs]] = []
        self._streams: list[tuple[int, StreamResidual, list[Tensor]]] = []
        self._kernels: list[tuple[int, Residual]] = []

    def add(self, key: str, residual: Residual, inputs: list[Columns]) -> None:
        """One residual and what `Residual.take_inputs` gave, at least one tensor (of a convolution none)."""
        if residual.site.convolution is not None:
            self._kernels.append((len(self.keys), residual))
            self.keys.append(key)
            self.rows_of.append(0)
            self._factors.append(1.0)
            return
        axis = residual.feature_axis
        count = sum(x.numel() // x.shape[axis] for x in inputs)
        index, factor = len(self.keys), 1.0
        self.keys.append(key)
        self.rows_of.append(count)
        if isinstance(residual, StreamResidual):  # exact at less than the cost of choosing rows
            self._factors.append(factor)
            self._streams.append((index, residual, [dense(x) for x in inputs]))
            return
        if self.rows is not None and self.rows < count:
            inputs, factor = [choose_rows(inputs, axis, self.rows, self.generator)], count / self.rows
        self._factors.append(factor)
        if not (residual.is_linear and residual.in_rep.linear):
            self._others.append((index, residual, [dense(x) for x in inputs]))
            return
        map_ = promoted(residual.linear_map)
        if isinstance(map_, LowRankMap):
            self._low_rank.append((index, residual, map_, inputs))
            return
        if isinstance(map_, GroupedMap):
            self._grouped.append((index, GroupedInputs(map_, inputs, residual.in_rep)))
            return
        weight, bias = next(map_.parameters()), map_.effective_bias() is not None
        dtype = penalty_dtype(weight.dtype)
        # maps that read the same tensors (a block's feature and direction map) share their moment
        same = (axis, dtype, bias, *(identity(x) for x in inputs))
        if same not in self._moments:
            self._moments[same] = second_moment(inputs, axis, dtype, residual.in_rep.dim, bias)
        data = self._moments[same]
        rows = None if isinstance(data, Moment) else len(data)
        group = _Group(residual.in_rep, residual.out_rep, bias, rows, dtype, weight.device)
        self._groups.setdefault(group, []).append((index, residual, data))

    def terms(self) -> tuple[Tensor, Tensor]:
        """(Lie sums, norm sums), each (residuals,) in the order of `keys`, their gamma left out."""
        lie: list[Tensor] = [torch.empty(0)] * len(self.keys)
        norm = list(lie)
        for group, members in self._groups.items():
            for (index, _, _), one_lie, one_norm in zip(members, *_linear(members, group.dtype), strict=True):
                lie[index], norm[index] = one_lie, one_norm
        for index, residual, map_, inputs in self._low_rank:
            dtype = penalty_dtype(map_.up.dtype)
            lie[index], norm[index] = low_rank_terms(
                map_.up.to(dtype),
                map_.down.to(dtype),
                inputs,
                residual.feature_axis,
                residual.in_rep,
                residual.out_rep,
            )
        parts = grouped_terms([member for _, member in self._grouped])
        for (index, _), (one_lie, one_norm) in zip(self._grouped, parts, strict=True):
            lie[index], norm[index] = one_lie, one_norm
        found = stream_terms([(residual, inputs) for _, residual, inputs in self._streams])
        for (index, _, _), (one_lie, one_norm) in zip(self._streams, found, strict=True):
            lie[index], norm[index] = one_lie, one_norm
        for index, residual in self._kernels:
            lie[index], norm[index] = kernel_terms(residual)
        for index, residual, points in self._others:
            dtype = penalty_dtype(next(residual.map.parameters()).dtype)
            lie[index], norm[index] = jacobian_terms(
                promoted(residual.map),
                [x.to(dtype) for x in points],
                residual.feature_axis,
                residual.in_rep,
                residual.out_rep,
                self.finite_difference,
            )
        device, dtype = lie[0].device, penalty_dtype(lie[0].dtype)
        factors = torch.tensor(self._factors, dtype=dtype, device=device)
        together = [
            torch.stack([term.to(device=device, dtype=dtype) for term in terms]) for terms in (lie, norm)
        ]
        return factors * together[0], factors * together[1]


def _linear(
    members: list[tuple[int, Residual, Moment | Tensor]], dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Terms of linear residuals between the same representations."""
    first = members[0][1]
    maps = [promoted(residual.linear_map) for _, residual, _ in members]
    weights = [map_.effective_weight().to(dtype) for map_ in maps]
    # all of them have a bias, or none has: see `_Group`
    biases = [bias.to(dtype) for map_ in maps if (bias := map_.effective_bias()) is not None] or None
    data = [d for _, _, d in members]
    lie, norm = stacked_terms(weights, biases, data, first.in_rep, first.out_rep)
    return list(lie.unbind()), list(norm.unbind())


def residual_terms(
    residual: Residual,
    inputs: list[Columns],
    rows: int | None = None,
    generator: torch.Generator | None = None,
    finite_difference: bool = False,
) -> tuple[Tensor, Tensor]:
    """(Lie sum, norm sum) of `f_neq` of one residual; see `TermBatch`."""
    batch = TermBatch(rows, generator, finite_difference)
    batch.add("", residual, inputs)
    lie, norm = batch.terms()
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
            # plain indexing copies the chosen rows alone, whatever the strides
            parts.append(
                moved[here] if moved.dim() == 2 else moved[torch.unravel_index(here, moved.shape[:-1])]
            )
        start += count
    picked = parts[0] if len(parts) == 1 else torch.cat(parts)
    return picked if axis == -1 else picked.unsqueeze(-1)
