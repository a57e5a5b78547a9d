"""Popular networks by the names of their classes: what to relax in them, one short file each."""

from equirelax.relaxation.networks import allegro, segnn, vector_neurons  # noqa: F401  (each registers its networks)
from equirelax.relaxation.networks.network import Network, Recognised, recognised, register_network

__all__ = ["Network", "Recognised", "recognised", "register_network"]
