"""The sums of squares in penalties, without weights and roots, and their derivatives."""

from equirelax.relaxation.terms.jacobian import directional_derivative, jacobian_terms
from equirelax.relaxation.terms.linear import linear_terms

__all__ = ["directional_derivative", "jacobian_terms", "linear_terms"]
