"""The interface of a data set for training: a length, a device, and copies on other devices or of some samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor


class Samples(Protocol):
    """N samples in memory as whole tensors."""

    def __len__(self) -> int:
        """Number of samples."""

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""

    def to(self, device: torch.device | str | None = None) -> Self:
        """The set on another device."""

    def subset(self, indices: Tensor | Sequence[int] | slice) -> Self:
        """Only the samples `indices`, in that order."""
