"""How far a relaxed network can be from its projection, and from equivariance, at most (ACE section 4).

For L layers ``f_i^eq + gamma_i f_i^neq`` one after the other, with orthogonal representations and no biases
(f(0) = 0), m and b Lipschitz constants of every f_i^eq and f_i^neq, and g = max |gamma_i|:

    || f_gamma(x) - f_0(x) ||                      <= [ (m + g b)^L - m^L ] ||x||
    || rho_Y(h) f_gamma(x) - f_gamma(rho_X(h) x) || <= 2 g b L (m + g b)^(L-1) ||x||

Both follow by induction over the layers. Layers without a global Lipschitz constant (messages that multiply
features, attention, batch norm) have no such bound.
"""

from __future__ import annotations

import torch

from equirelax.errors import AuditError
from equirelax.relaxation import Relaxation
from equirelax.relaxation.maps import DenseMap


def projection_bound(strict: float, residual: float, gamma: float, layers: int) -> float:
    """``(m + g b)^L - m^L``: the distance to the projected network over ``||x||``, at most.

    Args:
        strict: m, Lipschitz constant of every strict layer, at least 0; residual: b, of every residual, at
            least 0.
        gamma: the largest strength; its sign does not matter.
        layers: L, at least 1.

    Raises:
        AuditError: an argument is out of range.
    """
    _check(strict, residual, layers)
    return (strict + abs(gamma) * residual) ** layers - strict**layers


def equivariance_bound(strict: float, residual: float, gamma: float, layers: int) -> float:
    """``2 g b L (m + g b)^(L-1)``: the equivariance error over ``||x||``, at most.

    Arguments and errors as for :func:`projection_bound`.
    """
    _check(strict, residual, layers)
    g = abs(gamma)
    return 2 * g * residual * layers * (strict + g * residual) ** (layers - 1)


def residual_lipschitz(relaxation: Relaxation) -> dict[str, float | None]:
    """Key -> Lipschitz constant of every residual's map: the largest singular value of a dense one, ``None``
    ("n/a") for others.
    """
    found: dict[str, float | None] = {}
    for key, residual in relaxation:
        if isinstance(residual.map, DenseMap):
            weight = residual.map.effective_weight().detach().double()
            found[key] = float(torch.linalg.matrix_norm(weight, 2)) if weight.numel() else 0.0
        else:
            found[key] = None
    return found


def _check(strict: float, residual: float, layers: int) -> None:
    if strict < 0 or residual < 0 or layers < 1:
        raise AuditError(
            f"a bound needs Lipschitz constants of at least 0 and at least one layer, got strict={strict}, "
            f"residual={residual}, layers={layers}"
        )
