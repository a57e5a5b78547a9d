"""Chemical elements as one-hot features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax_lab.models.exact import Exact
from equirelax_lab.models.readable import values_are_readable

LARGEST_ELEMENT = 118


class Elements:
    """The elements that a model supports.

    Args:
        numbers: different atomic numbers, 1 to 118.
        name: The model's name, for messages.

    Raises:
        RepresentationError: a number is not that of an element, or is repeated.
    """

    def __init__(self, numbers: Sequence[int], name: str) -> None:
        self.numbers, self.name = tuple(numbers), name
        known = self.numbers
        if not known or len(set(known)) < len(known) or not 1 <= min(known) <= max(known) <= LARGEST_ELEMENT:
            raise RepresentationError(
                f"{name}: elements must be different atomic numbers from 1 to {LARGEST_ELEMENT}, got {known}"
            )
        table = torch.zeros(LARGEST_ELEMENT + 1, len(known), dtype=torch.float64)
        table[list(known), range(len(known))] = 1
        self.table = Exact(table)

    def __len__(self) -> int:
        return len(self.numbers)

    def one_hot(self, numbers: Tensor, like: Tensor) -> Tensor:
        """Encode (n,) long as (n, elements) in the dtype of `like`.

        Raises:
            RepresentationError: an element is not among `numbers`.
        """
        features = self.table.like(like).index_select(0, numbers.clamp(0, LARGEST_ELEMENT))
        if values_are_readable() and not bool(features.any(dim=1).all()):
            unknown = sorted(set(numbers.tolist()) - set(self.numbers))
            raise RepresentationError(
                f"{self.name}: the elements {unknown} are not among the model's {list(self.numbers)}; "
                "name them in `elements`"
            )
        return features
