"""Which relative error counts as equivariant."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import nn

# A model built in float32 has its constants rounded there (e3nn's reach 1e-7), which casting to float64 does
# not undo.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_REAL = {torch.complex128: torch.float64, torch.complex64: torch.float32, torch.complex32: torch.float16}


@dataclasses.dataclass(frozen=True)
class Precision:
    """The floating dtypes of a model's parameters and buffers, as its author keeps them."""

    parameters: frozenset[torch.dtype]
    buffers: frozenset[torch.dtype]

    @classmethod
    def of(cls, model: nn.Module) -> Precision:
        """Those of a model that is not being measured."""
        return cls(
            frozenset(p.dtype for p in model.parameters() if p.is_floating_point()),
            frozenset(b.dtype for b in model.buffers() if b.is_floating_point()),
        )


def tolerance_of(
    precision: Precision, dtype: torch.dtype, returned: Iterable[torch.dtype]
) -> tuple[float, list[str]]:
    """The tolerance for a model measured in ``dtype``, and what a reader should know about it.

    It is that of the coarsest of: the dtype of the run; those of the parameters; those of what the model returned. Half
    precision counts among the parameters only where all are of it, and not at all among buffers: a single coarse tensor
    says nothing of the precision in which the others were made, and would let errors of 1e-2 pass.

    Args:
        returned: dtypes of the outputs that are floating or complex.
    """
    parameters, buffers = precision.parameters, precision.buffers
    all_half = bool(parameters) and all(map(_is_half, parameters))
    own = parameters if all_half else frozenset(kind for kind in parameters if not _is_half(kind))
    constants = {torch.float32 if _is_half(kind) else kind for kind in buffers | (parameters - own)}
    outputs = {_REAL.get(kind, kind) for kind in returned}
    tolerance = max(TOLERANCES.get(kind, 1e-5) for kind in {dtype} | own | constants | outputs)
    notes = []
    coarse = sorted(str(k).removeprefix("torch.") for k in (buffers | parameters) - own if _is_half(k))
    if coarse:
        notes.append(
            f"some of the model's tensors are {' and '.join(coarse)}, which the tolerance leaves out of account: give "
            "tolerance= if the rounding of constants in them is to be allowed"
        )
    casts = sorted(
        str(kind).removeprefix("torch.") for kind in outputs if _tolerance(kind) > _tolerance(dtype)
    )
    if casts:
        notes.append(
            f"the model returns {' and '.join(casts)} when it runs in {str(dtype).removeprefix('torch.')}: it casts "
            "inside, so errors as large as that rounding are allowed"
        )
    return tolerance, notes


def _is_half(kind: torch.dtype) -> bool:
    return torch.finfo(kind).bits <= 16


def _tolerance(kind: torch.dtype) -> float:
    return TOLERANCES.get(kind, 1e-5)
