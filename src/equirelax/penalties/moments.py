"""Second moments of residuals' inputs, C = sum_n x_n x_n^T, in the form that is cheapest to multiply with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from equirelax.relaxation.columns import Columns, SharedColumns, dense

# The parts that samples share are kept as rows while there are so many times fewer of them than features.
_FEWER = 4


@dataclass(frozen=True)
class Moment:
    """C = [[leading, 0], [0, 0]] + rows^T rows.

    With features that all points of a sample share, `leading` is the scatter of the others around each sample's
    mean, and there is one row per sample; else `leading` is all of C.

    Args:
        leading: (d, d), symmetric, d <= dim.
        rows: (r, dim), or None.
    """

    leading: Tensor
    rows: Tensor | None = None

    def times(self, matrix: Tensor, out: Tensor) -> None:
        """Write matrix C to out, both (m, dim)."""
        if self.rows is None:
            torch.mm(matrix, self.leading, out=out)
            return
        d = len(self.leading)
        torch.mm(matrix @ self.rows.T, self.rows, out=out)
        out[:, :d].addmm_(matrix[:, :d], self.leading)

    def dense(self) -> Tensor:
        """C written out, (dim, dim)."""
        if self.rows is None:
            return self.leading
        full = self.rows.T @ self.rows
        d = len(self.leading)
        full[:d, :d] += self.leading
        return full


def moment_of(inputs: list[Columns], feature_axis: int, dtype: torch.dtype) -> Moment:
    """Sum over all inputs of x x^T; inputs that do not share their features alike are written out.

    Args:
        inputs: features on `feature_axis`, at least one.
    """
    shared = [x for x in inputs if isinstance(x, SharedColumns)]
    if len(shared) == len(inputs) and len({x.own.shape[1] for x in shared}) == 1:
        samples, dim = sum(len(x.own) for x in shared), shared[0].shape[1]
        if samples * _FEWER <= dim:
            return _shared_moment([x.to(dtype) for x in shared])
    return Moment(gram_matrix([dense(x) for x in inputs], feature_axis, dtype))


def _shared_moment(inputs: list[SharedColumns]) -> Moment:
    leading, rows = [], []
    for x in inputs:
        mean = x.own.mean(2)  # (batch, d)
        centred = x.own - mean[..., None]
        leading.append(torch.bmm(centred, centred.mT).sum(0))
        rows.append(x.own.shape[2] ** 0.5 * torch.cat([mean, x.common], dim=1))
    return Moment(torch.stack(leading).sum(0), torch.cat(rows))


def gram_matrix(inputs: list[Tensor], feature_axis: int, dtype: torch.dtype) -> Tensor:
    """Sum over all inputs of x x^T, of shape (dim, dim); columns (batch, dim, points) are not transposed."""
    total: Tensor | None = None
    for x in inputs:
        x = x.to(dtype)
        if feature_axis == -1:
            flat = x.reshape(-1, x.shape[-1])
            part = flat.T @ flat
        else:
            flat = x.reshape(-1, *x.shape[-2:])
            part = torch.bmm(flat, flat.transpose(1, 2)).sum(0)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("gram_matrix needs at least one input")
    return total
