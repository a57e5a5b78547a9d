"""The forecasters of vector fields on the plane by name: Wang, Walters, Yu (arXiv 2201.11969) compare the same ones.

All take (batch, frames, 2, H, W) and give the next frame (batch, 2, H, W). The paper's sizes: 92 hidden, 5 layers, kernel 3 for
turns; 64 hidden, 5 layers, kernel 5 for scale.
"""

from __future__ import annotations

from typing import Literal

from equirelax.errors import RepresentationError
from equirelax_lab.models.plane_blocks import PlaneForecaster
from equirelax_lab.models.plane_networks import PlaneConv, PlaneE2CNN, PlaneMLP
from equirelax_lab.models.plane_relaxed import PlaneLift, PlaneRPP, PlaneRSteer

__all__ = [
    "MODELS",
    "RELAXABLE",
    "PlaneConv",
    "PlaneE2CNN",
    "PlaneForecaster",
    "PlaneLift",
    "PlaneMLP",
    "PlaneRPP",
    "PlaneRSteer",
    "build",
]

MODELS = {
    "e2cnn": "steerable convolutions, regular features: exactly equivariant (scale: on a ladder of scales)",
    "conv": "plain convolutions: translations alone",
    "mlp": "linear layers on all pixels: no symmetry",
    "rpp": "residual pathway priors: steerable plus plain convolutions",
    "lift": "lift expansion: steerable convolutions joined by fields of a plain encoder",
    "rsteer": "relaxed steerable convolutions: weights that vary over the kernel",
}
"""What each forecaster is."""

RELAXABLE = ("e2cnn", "rpp", "lift", "rsteer")
"""Those that have equivariant layers."""


def build(
    name: str,
    symmetry: Literal["rotation", "scale"] = "rotation",
    frames: int = 10,
    hidden: int = 92,
    layers: int = 5,
    kernel: int = 3,
    group: str = "C4",
    size: int = 64,
    norm: bool = True,
    varied: bool = False,
) -> PlaneForecaster:
    """The forecaster of that name, for a symmetry.

    Args:
        name: one of `MODELS`.
        symmetry: "rotation" takes the turns and flips of `group`; "scale" a ladder of scales.
        frames, hidden, layers, kernel, group, norm: as for `PlaneE2CNN`.
        varied: of "rsteer", see `PlaneRSteer`.
        size: H = W of the grid; for "mlp" and "lift", which fit one grid alone.

    Raises:
        RepresentationError: an unknown name, or sizes that make no network.
    """
    of = "scale" if symmetry == "scale" else group
    if name == "e2cnn":
        return PlaneE2CNN(frames, hidden, layers, kernel, of, norm)
    if name == "conv":
        return PlaneConv(frames, hidden, layers, kernel, norm)
    if name == "mlp":
        return PlaneMLP(frames, hidden, layers, size, norm)
    if name == "rpp":
        return PlaneRPP(frames, hidden, layers, kernel, of, norm)
    if name == "lift":
        return PlaneLift(frames, hidden, layers, kernel, of, size, norm=norm)
    if name == "rsteer":
        alpha = 1e-6 if symmetry == "scale" else 1e-5
        return PlaneRSteer(frames, hidden, layers, kernel, of, norm, alpha=alpha, varied=varied)
    raise RepresentationError(f"planes.build: unknown forecaster {name!r}; choose one of {', '.join(MODELS)}")
