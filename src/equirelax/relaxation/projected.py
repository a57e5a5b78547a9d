"""Reports about residuals that were removed from a model."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from equirelax.relaxation.layers import Fold
from equirelax.relaxation.residual import Residual
from equirelax.relaxation.terms.precision import penalty_dtype, promoted, whole


@dataclass(frozen=True)
class Projected:
    """The record of one removed residual.

    Args:
        key: Key of the residual.
        gamma: Its strength before the projection.
        size: Frobenius norm of `gamma W` (nan for a residual that is not linear).
        folded: Frobenius norm of the part that went into the layer's own weights.
        error: projection error, the norm of the lost part over `size` (0 for a residual of size 0; nan if not linear).
        note: why it was not folded, if folding was requested.
    """

    key: str
    gamma: float
    size: float
    folded: float
    error: float
    note: str = ""


@dataclass(frozen=True)
class ProjectionReport:
    """The report of `project` or `Relaxation.prune`, with one entry per residual. `str()` is a table.

    Args:
        mode: "drop" or "fold".
        residuals: the records of the removed residuals.
    """

    mode: str
    residuals: tuple[Projected, ...]

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                r.key or "(model)",
                f"{r.gamma:.3g}",
                "n/a" if math.isnan(r.size) else f"{r.size:.3g}",
                f"{r.folded:.3g}",
                "n/a" if math.isnan(r.error) else f"{100 * r.error:.0f} %",
                r.note,
            )
            for r in self.residuals
        ]

    def __str__(self) -> str:
        lines = [HEADER, *self._cells()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if 0 < i < 5 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADER)
        rows = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in self._cells()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


HEADER = ("module", "gamma", "|gamma W|", "folded", "lost", "note")


def scaled(residual: Residual) -> tuple[Tensor, Tensor | None]:
    """gamma W and gamma b of a linear residual, detached, in float32 or better: lower precisions overflow when squared."""
    with torch.no_grad():
        map_ = residual.linear_map
        gamma: Tensor = residual.gamma
        dtype = next(map_.parameters()).dtype
        if dtype != penalty_dtype(dtype):  # only if needed: a promoted tensor is no longer sharded
            map_, gamma = promoted(map_), whole(gamma).to(penalty_dtype(dtype))
        weight, bias = map_.effective_weight(), map_.effective_bias()
        return gamma * weight, None if bias is None else gamma * bias


def record(key: str, residual: Residual, fold: Fold | None = None, note: str = "") -> Projected:
    """The record of a residual that is folded by `fold`, or dropped (None)."""
    gamma = float(residual.gamma.detach())
    if not residual.is_linear:
        return Projected(key, gamma, float("nan"), 0.0, float("nan") if gamma else 0.0, note)
    weight, bias = scaled(residual)
    rest = weight if fold is None else weight - fold.weight
    size, lost = weight.square().sum(), rest.square().sum()
    if bias is not None:
        kept = torch.zeros_like(bias) if fold is None or fold.bias is None else fold.bias
        size, lost = size + bias.square().sum(), lost + (bias - kept).square().sum()
    folded = 0.0 if fold is None else float((size - lost).clamp(min=0).sqrt())
    return Projected(
        key, gamma, float(size.sqrt()), folded, float((lost / size).sqrt()) if size > 0 else 0.0, note
    )
