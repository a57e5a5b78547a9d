"""Optimisers for equivariant networks."""

from equirelax.optim.matrices import matrices_of

__all__ = ["matrices_of"]
