"""The Lie and norm sums of single residuals, alike ones computed together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equirelax.penalties.grouped import GroupedInputs, grouped_terms
from equirelax.penalties.jacobian import jacobian_terms
from equirelax.penalties.kernels import kernel_terms
from equirelax.penalties.low_rank import low_rank_terms
from equirelax.penalties.moments import Moment
from equirelax.penalties.precision import penalty_dtype, promoted
from equirelax.penalties.quadratic import second_moment, stacked_terms
from equirelax.penalties.streams import stream_terms
from equirelax.relaxation import Residual, StreamResidual
from equirelax.relaxation.columns import Columns, SharedColumns, dense, identity
from equirelax.relaxation.grouped import GroupedMap
from equirelax.relaxation.maps import LowRankMap
from equirelax.symmetry import Representation


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
