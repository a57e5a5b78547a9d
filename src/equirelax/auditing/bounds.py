"""How far a relaxed network can be from its projection, and from equivariance, at most (ACE section 4).

For L layers ``f_i^eq + gamma_i f_i^neq`` one after the other, with orthogonal representations and no biases
(f(0) = 0), m and b Lipschitz constants of every f_i^eq and f_i^neq, and g = max |gamma_i|:

    || f_gamma(x) - f_0(x) ||                      <= [ (m + g b)^L - m^L ] ||x||
    || rho_Y(h) f_gamma(x) - f_gamma(rho_X(h) x) || <= 2 g b L (m + g b)^(L-1) ||x||

Both follow by induction over the layers, which with constants of their own for every layer gives the sharper

    || f_gamma(x) - f_0(x) ||                      <= [ prod_i (m_i + |gamma_i| b_i) - prod_i m_i ] ||x||
    || rho_Y(h) f_gamma(x) - f_gamma(rho_X(h) x) || <= sum_i 2 |gamma_i| b_i prod_{j != i} (m_j + |gamma_j| b_j) ||x||

An equivariant map with Lipschitz constant c and f(0) = 0 after a layer multiplies its m_i and b_i by c. Layers
without a global Lipschitz constant (messages that multiply features, attention, batch norm) have no such bound.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch

from equirelax.auditing.chain import Link, read_chain
from equirelax.auditing.lipschitz import residual_slope
from equirelax.auditing.state import measuring
from equirelax.errors import AuditError
from equirelax.relaxation import Relaxation


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
    """Key -> Lipschitz constant of every residual's map where ACE's bounds can use it: the largest singular value
    of a dense one, the product over the layers of a perceptron; ``None`` ("n/a") for one with a bias (f(0) != 0),
    with batch norm, or of unknown kind.
    """
    found = {key: residual_slope(residual) for key, residual in relaxation}
    return {key: None if one.reason else one.constant for key, one in found.items()}


@dataclasses.dataclass(frozen=True)
class LayerConstants:
    """One layer of a chain: its residual's key, m_i and b_i (with the maps after it up to the next layer), and
    gamma_i.
    """

    key: str
    strict: float
    residual: float
    gamma: float

    @property
    def total(self) -> float:
        """``m_i + |gamma_i| b_i``, the Lipschitz constant of the relaxed layer."""
        return self.strict + abs(self.gamma) * self.residual


@dataclasses.dataclass(frozen=True)
class NetworkBounds:
    """ACE's bounds of one network, each over ``||x||`` of a row; or why it has none.

    Attributes:
        reason: why there is no bound ("n/a"); empty where there is one.
        layers: the constants of every layer, in order; empty without bounds.
    """

    reason: str
    layers: tuple[LayerConstants, ...] = ()

    @property
    def projection(self) -> float | None:
        """The paper's bound on the distance to the projected network: largest m, b and abs(gamma) for every layer."""
        return projection_bound(*self._worst()) if self.layers else None

    @property
    def equivariance(self) -> float | None:
        """The paper's bound on the equivariance error."""
        return equivariance_bound(*self._worst()) if self.layers else None

    @property
    def sharp_projection(self) -> float | None:
        """The first bound with every layer's own constants."""
        if not self.layers:
            return None
        return math.prod(one.total for one in self.layers) - math.prod(one.strict for one in self.layers)

    @property
    def sharp_equivariance(self) -> float | None:
        """The second bound with every layer's own constants."""
        return sum(map(self.contribution, range(len(self.layers)))) if self.layers else None

    def contribution(self, index: int) -> float:
        """Layer `index`'s term in :attr:`sharp_equivariance`: what it can add to the network's error, at most."""
        one = self.layers[index]
        others = math.prod(other.total for i, other in enumerate(self.layers) if i != index)
        return 2 * abs(one.gamma) * one.residual * others

    def to_dict(self) -> dict[str, object]:
        """Plain python: all four bounds (``None``: n/a), the reason, the constants."""
        return {
            "reason": self.reason,
            "projection": self.projection,
            "equivariance": self.equivariance,
            "sharp_projection": self.sharp_projection,
            "sharp_equivariance": self.sharp_equivariance,
            "layers": [dataclasses.asdict(one) for one in self.layers],
        }

    def __str__(self) -> str:
        if self.reason:
            return f"bounds (ACE section 4): n/a: {self.reason}"
        return (
            f"bounds (ACE section 4), over ||x||: distance to the projected network {self.projection:.3g} "
            f"(layer by layer {self.sharp_projection:.3g}), equivariance error {self.equivariance:.3g} "
            f"(layer by layer {self.sharp_equivariance:.3g})"
        )

    def _worst(self) -> tuple[float, float, float, int]:
        return (
            max(one.strict for one in self.layers),
            max(one.residual for one in self.layers),
            max(abs(one.gamma) for one in self.layers),
            len(self.layers),
        )


def network_bounds(relaxation: Relaxation, constants: Mapping[str, float] | None = None) -> NetworkBounds:
    """ACE's bounds of a relaxed network from spectral norms, or the reason why it has none.

    The assumptions are checked, not taken for granted: the model is an ``nn.Sequential`` (nested ones too) of
    relaxed linear layers, each equivariant, and of equivariant maps between them with a known Lipschitz constant;
    nothing has a bias; the representations are orthogonal.

    Args:
        relaxation: of the model; its present strengths count.
        constants: Lipschitz constants of maps that :func:`~equirelax.auditing.lipschitz.lipschitz` does not know, by
            class name or path: ``{"NormGate": 1.0}``. They must have f(0) = 0, which is checked.

    Raises:
        AuditError: a constant is negative, or names nothing in the model.
    """
    with measuring(relaxation.model, torch.float64):
        chain = read_chain(relaxation, dict(constants or {}))
        if isinstance(chain, str):
            return NetworkBounds(chain)
        layers: list[LayerConstants] = []
        for link in chain:
            found = _constants(link)
            if isinstance(found, str):
                return NetworkBounds(found)
            layers.append(found)
    return NetworkBounds("", tuple(layers))


def _constants(link: Link) -> LayerConstants | str:
    """m, b and gamma of one layer; or why its residual has no b."""
    total, largest = 0.0, 0.0
    for residual in link.residuals:
        found = residual_slope(residual)
        if found.constant is None or found.reason:
            return f"the residual of {residual.site.key or 'the model'}: {found.reason}"
        total += found.constant
        largest = max(largest, abs(float(residual.gamma.detach())) if residual.active else 0.0)
    return LayerConstants(link.path, link.strict * link.around, total * link.around, largest)


def _check(strict: float, residual: float, layers: int) -> None:
    if strict < 0 or residual < 0 or layers < 1:
        raise AuditError(
            f"a bound needs Lipschitz constants of at least 0 and at least one layer, got strict={strict}, "
            f"residual={residual}, layers={layers}"
        )
