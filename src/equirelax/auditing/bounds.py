"""ACE's upper bounds (section 4) on the distance of a relaxed network from its projection and from equivariance.

For a chain of layers f_i^eq + gamma_i f_i^neq with Lipschitz constants m_i and b_i, f(0) = 0 and orthogonal actions:

    || f_gamma(x) - f_0(x) ||                      <= [ prod_i (m_i + |gamma_i| b_i) - prod_i m_i ] ||x||
    || rho_Y(h) f_gamma(x) - f_gamma(rho_X(h) x) || <= sum_i 2 |gamma_i| b_i prod_{j != i} (m_j + |gamma_j| b_j) ||x||

With the same m, b and gamma in all L layers these are the paper's (m + g b)^L - m^L and 2 g b L (m + g b)^(L-1). An
equivariant map with constant c between layers is a layer with m = c and b = 0. A module that is called twice is two layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from equirelax.auditing.state import measuring
from equirelax.relaxation import Relaxation, Residual, relaxation_of
from equirelax.relaxation.kinds.kind import spectral_norm
from equirelax.symmetry import Representation

SLOPES = dict.fromkeys(("Identity", "Dropout", "ReLU", "Tanh", "Softsign"), 1.0) | {
    "GELU": 1.129,
    "SiLU": 1.1,
}


@dataclasses.dataclass(frozen=True)
class NetworkBounds:
    """Both bounds, per ``||x||`` of a row.

    Attributes:
        reason: Why there are no bounds, else empty.
        layers: (m_i, |gamma_i| b_i) of every layer.
    """

    reason: str
    layers: tuple[tuple[float, float], ...] = ()

    @property
    def projection(self) -> float | None:
        """Upper bound on the distance from the projected network; None if there is none."""
        whole, strict = (math.prod(m + k * b for m, b in self.layers) for k in (1, 0))
        return None if self.reason else whole - strict

    @property
    def equivariance(self) -> float | None:
        """Upper bound on the equivariance error; None if there is none."""
        if self.reason:
            return None
        others = (self.layers[:i] + self.layers[i + 1 :] for i in range(len(self.layers)))
        return sum(
            2 * b * math.prod(map(sum, rest)) for (_, b), rest in zip(self.layers, others, strict=True)
        )


class _NoBound(Exception):
    """An assumption does not hold."""


def equivariance_bounds(
    model: nn.Module | Relaxation, constants: Mapping[str, float] | None = None
) -> NetworkBounds:
    """Compute ACE's bounds for a relaxed, possibly nested ``nn.Sequential`` of linear layers and equivariant maps.

    Args:
        model: The relaxed model, with its current strengths.
        constants: Lipschitz constants of the maps between the layers, by class name: ``{"NormGate": 1.0}``.

    Returns:
        The bounds, or the reason why there are none.
    """
    relaxation = model if isinstance(model, Relaxation) else relaxation_of(model)
    with measuring(relaxation.model, torch.float64), relaxation.strict(), torch.no_grad():
        try:
            return NetworkBounds("", tuple(_layers(relaxation, {**SLOPES, **(constants or {})})))
        except _NoBound as reason:
            return NetworkBounds(str(reason))


def _layers(relaxation: Relaxation, constants: Mapping[str, float]) -> list[tuple[float, float]]:
    relaxed: dict[nn.Module, list[Residual]] = {}
    for key, residual in relaxation:
        relaxed.setdefault(relaxation.module(key), []).append(residual)
    calls = list(_calls(relaxation.model, "the model", relaxed))
    if relaxed.keys() - {module for _, module in calls}:
        raise _NoBound(f"{type(relaxation.model).__name__} is not a chain of layers (nn.Sequential)")
    found: list[tuple[float, float]] = []
    rep = next(relaxed[module][0].in_rep for _, module in calls if module in relaxed)
    for path, module in calls:
        name = f"{path} ({type(module).__name__})"
        if module in relaxed:
            found.append(_layer(name, module, relaxed[module], rep))
            rep = relaxed[module][0].out_rep
        elif type(module).__name__ in constants:
            _check(name, module, rep, rep)
            found.append((constants[type(module).__name__], 0.0))
        else:
            raise _NoBound(f"{name}: no Lipschitz constant is known of it; give it in constants")
    return found


def _calls(
    module: nn.Module, path: str, relaxed: Mapping[nn.Module, object]
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that a chain calls, in order and with repetitions. A relaxed module is never split."""
    if module in relaxed or type(module).forward is not nn.Sequential.forward:
        yield path, module
    else:
        for name, child in module._modules.items():
            if child is not None:
                yield from _calls(child, name if path == "the model" else f"{path}.{name}", relaxed)


def _layer(
    name: str, module: nn.Module, residuals: list[Residual], rep: Representation
) -> tuple[float, float]:
    loose = 0.0
    for residual in residuals:
        site, slope = residual.site, residual.slope()
        if not site.by_rows or not (site.in_rep.linear and site.out_rep.linear):
            raise _NoBound(f"{name}: its residual does not map features to features, row by row")
        if slope.constant is None or slope.reason:
            raise _NoBound(f"the residual of {name}: {slope.reason}")
        loose += slope.constant * abs(float(residual.gamma.detach())) * residual.enabled
    matrix = module(torch.eye(rep.dim, dtype=torch.float64)).T if rep.dim == residuals[0].in_rep.dim else None
    x = torch.randn(8, rep.dim, dtype=torch.float64)
    if matrix is None or not _near(module(x), x @ matrix.T):
        raise _NoBound(f"{name} is not linear, has a bias, or does not read what comes before it")
    _check(name, module, rep, residuals[0].out_rep)
    return spectral_norm(matrix), loose


def _check(name: str, module: nn.Module, in_rep: Representation, out_rep: Representation) -> None:
    """Raise unless f(0) = 0 and f is equivariant between orthogonal actions, tested on random rows and elements."""
    x = torch.randn(8, in_rep.dim, dtype=torch.float64)
    if module(x).shape != (8, out_rep.dim) or bool(module(torch.zeros_like(x)).any()):
        raise _NoBound(f"{name} changes the number of features, or f(0) is not 0")
    group, y = in_rep.group, module(x)
    for g in torch.cat((group.sample(6, dtype=x.dtype), group.discrete(dtype=x.dtype))):
        pairs = ((in_rep.apply(g, x), x), (out_rep.apply(g, y), y))
        if not all(_near(moved.norm(dim=1), rows.norm(dim=1)) for moved, rows in pairs):
            raise _NoBound(f"{name}: {in_rep!r} or {out_rep!r} is not orthogonal")
        if not _near(module(in_rep.apply(g, x)), out_rep.apply(g, y)):
            raise _NoBound(f"{name} is not equivariant between {in_rep!r} and {out_rep!r}")


def _near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).norm()) <= 1e-5 * max(float(a.norm()), float(b.norm()), 1e-12)
