"""Constants that stay exact: kept in float64 (or as integers) and cast where they are used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Exact:
    """A constant tensor, cast once for every dtype and device. A buffer would be rounded by `.float()` for good."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._casts: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, x: Tensor) -> Tensor:
        """The constant on the device of x; floating-point constants in its dtype too."""
        key = (x.dtype, x.device)
        if key not in self._casts:
            dtype = x.dtype if self.value.is_floating_point() else self.value.dtype
            # made outside inference mode, so that it may be saved for a backward pass later
            with torch.inference_mode(False):
                self._casts[key] = self.value.to(device=x.device, dtype=dtype)
        return self._casts[key]

    def __getstate__(self) -> dict[str, Any]:
        return {"value": self.value, "_casts": {}}


class WeightLayout:
    """A flat weight in another order and with factors: what a product needs as few whole matrices, made by one gather.

    Args:
        order: (numel,) long, which weight stands at each place of the arranged one.
        factors: (numel,) float64, what it is multiplied by there.
    """

    def __init__(self, order: Tensor, factors: Tensor) -> None:
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel())
        self._order, self._factors = Exact(order), Exact(factors)
        self._inverse, self._inverse_factors = Exact(inverse), Exact(factors[inverse])

    def arrange(self, weight: Tensor) -> Tensor:
        """The arranged weight (numel,)."""
        return weight.index_select(0, self._order.like(weight)).mul_(self._factors.like(weight))

    def restore(self, gradient: Tensor) -> Tensor:
        """From the gradient of the arranged weight to that of the weight."""
        return gradient.index_select(0, self._inverse.like(gradient)).mul_(
            self._inverse_factors.like(gradient)
        )
