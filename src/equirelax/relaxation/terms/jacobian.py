"""The Lie derivative of a residual that is not linear, by Jacobian-vector products.

    (L_A f)(x) = drho_out(A) f(x) - D f(x) [ drho_in(A) x ]

and, for one element g of every component of a disconnected or finite group,
`rho_out(g) f(x) - f(rho_in(g) x)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from equirelax.symmetry import Representation

Map = Callable[[Tensor], Tensor]

# The errors of autograd if an operation has no forward-mode rule or cannot be transformed. It raises ValueError if a value
# depends on the direction although it should not.
_NO_RULE = (NotImplementedError, RuntimeError, ValueError)


def directional_derivative(
    f: Map, x: Tensor, direction: Tensor, finite_difference: bool = False
) -> tuple[Tensor, Tensor]:
    """(f(x), D f(x)[direction]), differentiable with respect to what f closes over.

    Args:
        finite_difference: Whether to use a central difference, whose step is the cube root of machine precision, instead
            of forward-mode differentiation (relative error about 1e-10 in float64). It is always used if an
            operation of f has no forward-mode rule.
    """
    if not finite_difference:
        try:
            value, moved = torch.func.jvp(f, (x,), (direction,))[:2]
            return value, moved
        except _NO_RULE:
            pass
    # The differences nearly cancel: a step relative to the sizes of x and of the direction
    # keeps both errors near eps^(2/3).
    size = direction.abs().amax().clamp(min=torch.finfo(x.dtype).tiny)
    step = torch.finfo(x.dtype).eps ** (1 / 3) * (x.abs().amax() / size).clamp(min=1e-3, max=1e3)
    return f(x), (f(x + step * direction) - f(x - step * direction)) / (2 * step)


def directional_derivatives(
    f: Map, x: Tensor, directions: Tensor, finite_difference: bool = False
) -> tuple[Tensor, Tensor]:
    """(f(x), D f(x)[directions]) along several directions (k, *x.shape), at the cost of one f(x) and k derivatives.

    Args:
        finite_difference: As for `directional_derivative`, which is called per direction if f cannot be vectorised.
    """
    if len(directions) and not finite_difference:
        try:
            vmap: Any = torch.func.vmap  # its stub allows neither None among out_dims nor two outputs
            value, moved = vmap(lambda d: torch.func.jvp(f, (x,), (d,)), out_dims=(None, 0))(directions)
            return value, moved
        except _NO_RULE:
            pass
    single = [directional_derivative(f, x, d, finite_difference)[1] for d in directions]
    value = f(x)
    return value, torch.stack(single) if single else value.new_empty(0, *value.shape)


def jacobian_terms(
    f: Map,
    inputs: list[Tensor],
    feature_axis: int,
    in_rep: Representation,
    out_rep: Representation,
    finite_difference: bool = False,
) -> tuple[Tensor, Tensor]:
    """(Lie sum, norm sum) of any map over all inputs, differentiable with respect to the map's parameters.

    Args:
        f: acts on features at `feature_axis` of its argument, row by row.
        inputs: detached tensors, at least one. Those without rows contribute nothing.
    """
    lie, norm = inputs[0].new_zeros(()), inputs[0].new_zeros(())
    for x in inputs:
        if not x.numel():
            continue
        y, moved = directional_derivatives(f, x, in_rep.derivative(x, axis=feature_axis), finite_difference)
        norm = norm + y.square().sum()
        lie = lie + (out_rep.derivative(y, axis=feature_axis) - moved).square().sum()
        for g in in_rep.group.discrete(x.dtype, x.device):
            lie = (
                lie
                + (out_rep.apply(g, y, axis=feature_axis) - f(in_rep.apply(g, x, axis=feature_axis)))
                .square()
                .sum()
            )
    return lie, norm
