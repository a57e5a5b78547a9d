"""Penalties of residual convolutions: of their kernel alone, no inputs are needed."""

from __future__ import annotations

from torch import Tensor

from equirelax.errors import PenaltyError
from equirelax.relaxation import Residual
from equirelax.relaxation.terms.precision import promoted
from equirelax.symmetry import Representation


def kernel_terms(residual: Residual) -> tuple[Tensor, Tensor]:
    """(Lie term, norm term) of a residual convolution with kernel W and bias b, both differentiable twice.

        lie = site.convolution.symmetry.lie(W) + sum_A ||drho_out(A) b||^2 + sum_j ||rho_out(g_j) b - b||^2
        norm = ||W||^2 + ||b||^2

    They are the means of CR's terms (section 4) over the pixels of the output, for white inputs: entries of mean 0
    and variance 1, independent of each other, and no padding.

    Raises:
        PenaltyError: the residual is no convolution.
    """
    convolution = residual.site.convolution
    if convolution is None:
        raise PenaltyError(f"{residual.site.key or 'the model'}: its residual is no convolution")
    map_ = promoted(residual.linear_map)
    weight, bias = map_.effective_weight(), map_.effective_bias()
    lie, norm = convolution.symmetry.lie(weight), weight.square().sum()
    if bias is not None:
        lie = lie + _moved(bias, residual.out_rep)
        norm = norm + bias.square().sum()
    return lie, norm


def _moved(bias: Tensor, out_rep: Representation) -> Tensor:
    """How far constants (out,) are from invariant."""
    column = bias[:, None]
    return out_rep.left(column).square().sum() + (out_rep.discrete_left(column) - column).square().sum()
