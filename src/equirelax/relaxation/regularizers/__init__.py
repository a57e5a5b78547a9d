"""Regularizers, which are penalties on the residuals of a relaxed model; one file each, registered by name."""

from equirelax.relaxation.regularizers.finite_rotation import FiniteRotation
from equirelax.relaxation.regularizers.lie_derivative import LieDerivative, residual_terms
from equirelax.relaxation.regularizers.projection import ProjectionNorms
from equirelax.relaxation.regularizers.regularizer import (
    Regularizer,
    get,
    names,
    register,
    safe_root,
)
from equirelax.relaxation.terms import directional_derivative, jacobian_terms, linear_terms

__all__ = [
    "FiniteRotation",
    "LieDerivative",
    "ProjectionNorms",
    "Regularizer",
    "directional_derivative",
    "get",
    "jacobian_terms",
    "linear_terms",
    "names",
    "register",
    "residual_terms",
    "safe_root",
]
