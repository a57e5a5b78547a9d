"""Constants that stay exact: stored in float64 (or as integers) and cast where they are used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from equirelax_lab.models.fast.switch import transforms_active


class Exact:
    """A constant tensor, cast once for every dtype and device. A buffer would be rounded permanently by `.float()`."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._casts: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, x: Tensor) -> Tensor:
        """The constant on the device of x; floating-point constants also in its dtype."""
        key = (x.dtype, x.device)
        if key in self._casts:
            return self._casts[key]
        dtype = x.dtype if self.value.is_floating_point() else self.value.dtype
        # made outside inference mode, so that it may be saved for a backward pass later
        with torch.inference_mode(False):
            cast = self.value.to(device=x.device, dtype=dtype)
        # A tensor of a transform must not outlive the transform; a compiler cannot check a tensor for that.
        owned = transforms_active() if torch.compiler.is_compiling() else is_functorch_wrapped_tensor(cast)
        if not owned:
            self._casts[key] = cast
        return cast

    def __getstate__(self) -> dict[str, Any]:
        return {"value": self.value, "_casts": {}}
