"""What the benchmarks on the plane share."""

from __future__ import annotations

from equirelax.benchmarks.settings import ResidualSettings
from equirelax.benchmarks.task import NO_PLACEMENT


def plane_residual(placement: str, method: str, init: str = "zeros") -> ResidualSettings:
    """Dense convolutions on every group convolution; the control's are equivariant themselves."""
    if placement != NO_PLACEMENT and method == "equivariant-control":
        return ResidualSettings(placement, "equivariant-dense", "normal", 1e-4)
    return ResidualSettings(placement, "dense", init)  # type: ignore[arg-type]
