"""SchNet: PyTorch Geometric's model, with a neighbour search that needs no compiled extension.

Schütt et al.: "SchNet: a continuous-filter convolutional neural network for modeling quantum interactions", NeurIPS 2017
(arXiv 1706.08566). Needs the extra `pyg`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from equirelax.errors import RepresentationError
from equirelax_lab.models.radius import RadiusGraph

if TYPE_CHECKING:
    from torch_geometric.nn import SchNet


def pyg_schnet(
    hidden: int = 64,
    layers: int = 6,
    cutoff: float = 10.0,
    gaussians: int = 50,
    filters: int | None = None,
    readout: str = "add",
) -> SchNet:
    """Build a `torch_geometric.nn.SchNet`, unmodified: forward(z (n,) long, pos (n, 3), batch (n,) long) -> (graphs, 1).

    It is E(3)-invariant, since it reads distances only. The defaults are ACE's sizes on QM9 (64 channels, 6 blocks,
    10 Angstrom; the number of filters is not stated there).

    Args:
        hidden: width of the atoms' features, at least 2.
        layers: number of interaction blocks.
        cutoff: largest distance of an interaction, in the unit of the positions.
        gaussians: number of radial basis functions, at least 2.
        filters: width of the convolutions; None takes `hidden`.
        readout: how atoms are reduced, "add" or "mean".

    Raises:
        RepresentationError: a size is invalid, or the readout is unknown.
        ImportError: PyTorch Geometric is not installed.
    """
    filters = hidden if filters is None else filters
    if min(hidden, gaussians) < 2 or min(layers, filters) < 1 or not cutoff > 0:
        raise RepresentationError(
            f"SchNet: hidden and gaussians must be at least 2, layers and filters at least 1, the cutoff above 0; got "
            f"hidden {hidden}, gaussians {gaussians}, layers {layers}, filters {filters}, cutoff {cutoff}"
        )
    if readout not in ("add", "mean"):
        raise RepresentationError(f"SchNet: the readout is {readout!r}; choose 'add' or 'mean'")
    from torch_geometric.nn import SchNet

    return SchNet(hidden, filters, layers, gaussians, cutoff, RadiusGraph(cutoff), readout=readout)
