"""Known networks, recognised by the names of their classes, and the sites of their residuals; one short file each."""

from equirelax.relaxation.networks import (  # noqa: F401  (each registers its networks)
    allegro,
    dimenet,
    egnn,
    egnn_pytorch,
    gated_equivariant,
    gotennet,
    gvp,
    lgatr,
    painn,
    schnet,
    segnn,
    tensornet,
    torchmd_et,
    vector_neurons,
    visnet,
    vn_transformer,
)
from equirelax.relaxation.networks.network import Network, Recognised, recognised, register_network

__all__ = ["Network", "Recognised", "recognised", "register_network"]
