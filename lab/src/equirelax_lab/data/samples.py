"""What training needs of a data set: a number of samples that can be moved, cut and told their device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor


class Samples(Protocol):
    """N samples held in memory as whole tensors; how they become a batch is the benchmark's or their own affair."""

    def __len__(self) -> int:
        """Number of samples."""

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""

    def to(self, device: torch.device | str | None = None) -> Self:
        """The set on another device."""

    def subset(self, indices: Tensor | Sequence[int] | slice) -> Self:
        """The samples `indices` alone, in that order."""
