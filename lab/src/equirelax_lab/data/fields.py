"""Vector fields on a grid over time, cut into windows of frames to read and frames to forecast."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from equirelax.errors import DataError


@dataclass
class FieldSet:
    """N windows of R runs. Row 0 of a field is the top; components are (x, y), x to the right, y up.

    Attributes:
        frames: (R, T, 2, H, W) velocities.
        windows: (N, 2) long: the run, and the first frame that is read.
        domain: (N,) bool: whether the window belongs to the test split Domain.
        side: (R,) long: side of the inflow or, in the scale set, number of the scale.
        inputs: Frames that are read. outputs: frames that are forecast after them.
    """

    frames: Tensor
    windows: Tensor
    domain: Tensor
    side: Tensor
    inputs: int
    outputs: int

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.frames.device

    def to(self, device: torch.device | str | None = None) -> Self:
        """The set on another device."""
        return dataclasses.replace(
            self,
            frames=self.frames.to(device),
            windows=self.windows.to(device),
            domain=self.domain.to(device),
            side=self.side.to(device),
        )

    def subset(self, indices: Tensor | Sequence[int] | slice) -> Self:
        """Only the windows `indices`, in that order; the runs are shared."""
        chosen = indices if isinstance(indices, slice) else torch.as_tensor(indices, device=self.device)
        return dataclasses.replace(self, windows=self.windows[chosen], domain=self.domain[chosen])

    def batch(self, indices: Tensor | Sequence[int] | range) -> dict[str, Tensor]:
        """input (b, inputs, 2, H, W), target (b, outputs, 2, H, W), domain (b,), side (b,), run (b,)."""
        rows = torch.as_tensor(indices, device=self.device)
        run, start = self.windows[rows].unbind(1)
        steps = torch.arange(self.inputs + self.outputs, device=self.device)
        found = self.frames[run[:, None], start[:, None] + steps]
        return {
            "input": found[:, : self.inputs],
            "target": found[:, self.inputs :],
            "domain": self.domain[rows],
            "side": self.side[run],
            "run": run,
        }

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Join the windows of several sets whose fields and windows have equal shapes.

        Raises:
            DataError: There are no sets, or their shapes differ.
        """
        shapes = {(tuple(p.frames.shape[1:]), p.inputs, p.outputs) for p in parts}
        if len(shapes) != 1:
            raise DataError(
                f"Sets of fields can be joined only if their runs and windows have one shape; got {sorted(shapes)}."
            )
        first, offset, windows = parts[0], 0, []
        for part in parts:
            windows.append(part.windows + torch.tensor([offset, 0], device=part.device))
            offset += len(part.frames)
        return cls(
            torch.cat([p.frames for p in parts]),
            torch.cat(windows),
            torch.cat([p.domain for p in parts]),
            torch.cat([p.side for p in parts]),
            first.inputs,
            first.outputs,
        )


def windows(runs: int, first: int, last: int, length: int, every: int) -> Tensor:
    """List the windows of `length` frames inside frames first..last-1 of every run, `every` frames apart: (N, 2) long.

    Raises:
        DataError: No window fits, or `every` is below 1.
    """
    if every < 1:
        raise DataError(f"Windows start every 1 frame or more; got {every}.")
    starts = torch.arange(first, last - length + 1, every) if last - first >= length else torch.empty(0)
    if not len(starts):
        raise DataError(
            f"A window of {length} frames does not fit into the frames {first} to {last - 1}: make longer runs (--steps), "
            "or ask for fewer frames (--inputs, --outputs, --horizon)."
        )
    return torch.cartesian_prod(torch.arange(runs), starts.long())
