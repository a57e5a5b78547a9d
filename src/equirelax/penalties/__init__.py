"""Penalties on residuals: Lie derivative, group differences, norm."""

from equirelax.penalties.finite import FiniteRotation
from equirelax.penalties.jacobian import directional_derivative, jacobian_terms
from equirelax.penalties.quadratic import linear_terms
from equirelax.penalties.regularizer import Regularizer, safe_root
from equirelax.penalties.terms import residual_terms

__all__ = [
    "FiniteRotation",
    "Regularizer",
    "directional_derivative",
    "jacobian_terms",
    "linear_terms",
    "residual_terms",
    "safe_root",
]
