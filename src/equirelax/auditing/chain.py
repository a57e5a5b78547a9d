"""Reading a relaxed network as a chain of layers that meets the assumptions of ACE's bounds, or saying why not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from equirelax.auditing.lipschitz import Lipschitz, lipschitz, spectral_norm
from equirelax.errors import AuditError
from equirelax.files import did_you_mean
from equirelax.relaxation import Relaxation, Residual
from equirelax.relaxation.site import AddToOutput, FirstInput
from equirelax.symmetry import Group, Representation

ROWS, ELEMENTS = 16, 6  # random features and group elements that an assumption is checked on
ROUNDED = 1e-5  # relative; constants of a model that was built in float32 are rounded there


@dataclasses.dataclass
class Link:
    """One relaxed layer of a chain, with the maps around it.

    Attributes:
        path: of the relaxed module.
        residuals: its residuals.
        strict: spectral norm of the strict layer.
        around: product of the Lipschitz constants of the maps between this layer and the next (and, for the
            first layer, before it).
    """

    path: str
    residuals: list[Residual]
    strict: float
    around: float = 1.0


class _NoChain(Exception):
    """An assumption that does not hold, in words."""


def read_chain(relaxation: Relaxation, constants: dict[str, float]) -> list[Link] | str:
    """The layers in order; or the reason why the model is no chain of the kind that the bounds are about.

    The model must be in float64 and evaluation mode (``audit.state.measuring``).

    Args:
        relaxation: of the model.
        constants: Lipschitz constants by class name or path; see ``network_bounds``.

    Raises:
        AuditError: a constant is negative or not finite, or names no module.
    """
    _check_constants(relaxation.model, constants)
    try:
        with relaxation.strict(), torch.no_grad():
            return _links(relaxation, constants)
    except _NoChain as reason:
        return str(reason)


def _links(relaxation: Relaxation, constants: dict[str, float]) -> list[Link]:
    residuals: dict[int, list[Residual]] = {}
    for key, residual in relaxation:
        residuals.setdefault(id(relaxation.module(key)), []).append(residual)
    items = list(_flat(relaxation.model, "", residuals))
    missing = set(residuals) - {id(module) for _, module in items}
    if missing:
        paths = [relaxation.path(key) for key, _ in relaxation if id(relaxation.module(key)) in missing]
        raise _NoChain(f"{paths[0]} is inside a module that is not a chain of layers (nn.Sequential)")
    links: list[Link] = []
    before = 1.0
    rep = next(residuals[id(module)][0].in_rep for _, module in items if id(module) in residuals)
    for path, module in items:
        if id(module) in residuals:
            links.append(_link(path, module, residuals[id(module)], rep))
            rep = links[-1].residuals[0].out_rep
            continue
        constant = _between(path, module, rep, constants)
        if links:
            links[-1].around *= constant
        else:
            before *= constant
    links[0].around *= before
    return links


def _flat(
    module: nn.Module, path: str, relaxed: dict[int, list[Residual]]
) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a chain calls one after the other; a relaxed one is never taken apart."""
    if id(module) in relaxed or (path and not _is_chain(module)):
        yield path, module
        return
    if not _is_chain(module):
        raise _NoChain(
            f"{type(module).__name__} is not a chain of layers (nn.Sequential) with known Lipschitz constants"
        )
    for name, child in module.named_children():
        yield from _flat(child, f"{path}.{name}" if path else name, relaxed)


def _is_chain(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _link(path: str, module: nn.Module, residuals: list[Residual], rep: Representation) -> Link:
    name = f"{path or 'the model'} ({type(module).__name__})"
    for residual in residuals:
        site = residual.site
        if site.convolution is not None:
            raise _NoChain(
                f"{name} is a convolution: bounds of a chain are for maps of single feature vectors"
            )
        if (
            site.feature_axis != -1
            or type(site.reader) is not FirstInput
            or type(site.writer) is not AddToOutput
        ):
            raise _NoChain(f"{name}: its residual does not map the layer's input to its output, row by row")
        _check_orthogonal(name, site.in_rep)
        _check_orthogonal(name, site.out_rep)
    first = residuals[0]
    if not _same_action(first.in_rep, rep):
        raise _NoChain(f"{name} reads {first.in_rep!r}, but what comes before it gives {rep!r}")
    matrix = module(torch.eye(first.in_rep.dim, dtype=torch.float64, device=_device(module))).T  # (out, in)
    x = _rows(first.in_rep, matrix.device)
    if not _near(module(x), x @ matrix.T):
        raise _NoChain(f"{name} is not linear, or has a bias")
    _check_equivariant(name, module, first.in_rep, first.out_rep, x)
    return Link(path, residuals, spectral_norm(matrix))


def _between(path: str, module: nn.Module, rep: Representation, constants: dict[str, float]) -> float:
    """Lipschitz constant of a map between layers, checked to be equivariant on `rep`, with f(0) = 0."""
    name = f"{path} ({type(module).__name__})"
    declared = constants.get(path, constants.get(type(module).__name__))
    found = lipschitz(module) if declared is None else Lipschitz(declared)
    if found.constant is None or found.reason:
        raise _NoChain(f"{name}: {found.reason}")
    x = _rows(rep, _device(module))
    y = module(x)
    if y.shape != x.shape:
        raise _NoChain(
            f"{name} changes the number of features and is not relaxed: how its output transforms is unknown"
        )
    if float(module(torch.zeros_like(x)).abs().max()) > ROUNDED:
        raise _NoChain(f"{name}: f(0) is not 0")
    _check_equivariant(name, module, rep, rep, x)
    return found.constant


def _check_equivariant(
    name: str, module: nn.Module, in_rep: Representation, out_rep: Representation, x: Tensor
) -> None:
    y = module(x)
    if y.shape[-1] != out_rep.dim:
        raise _NoChain(f"{name} gives {y.shape[-1]} features where {out_rep!r} has {out_rep.dim}")
    for g in _elements(in_rep.group).to(x.device):
        if not _near(module(in_rep.apply(g, x)), out_rep.apply(g, y)):
            raise _NoChain(f"{name} is not equivariant between {in_rep!r} and {out_rep!r}")


def _check_orthogonal(name: str, rep: Representation) -> None:
    if not rep.linear:
        raise _NoChain(f"{name}: {rep!r} moves positions, which is not a linear action")
    if not orthogonal(rep):
        raise _NoChain(f"{name}: {rep!r} is not orthogonal")


def orthogonal(rep: Representation) -> bool:
    """Whether every element keeps lengths, on a few drawn ones; never for positions, which translations move."""
    if not rep.linear:
        return False
    matrices = rep.matrix(_elements(rep.group))
    product = matrices.transpose(-1, -2) @ matrices
    return bool((product - torch.eye(rep.dim, dtype=product.dtype)).abs().max() < 1e-6) if rep.dim else True


def _same_action(a: Representation, b: Representation) -> bool:
    if a.group != b.group or a.dim != b.dim:
        return False
    elements = _elements(a.group)
    return bool(torch.allclose(a.matrix(elements), b.matrix(elements), atol=1e-9))


def _elements(group: Group) -> Tensor:
    drawn = group.sample(ELEMENTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat((drawn, group.discrete(dtype=torch.float64)))


def _rows(rep: Representation, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, rep.dim, generator=generator, dtype=torch.float64).to(device)


def _near(a: Tensor, b: Tensor) -> bool:
    return float((a - b).norm()) <= ROUNDED * max(float(a.norm()), float(b.norm()), 1e-12)


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _check_constants(model: nn.Module, constants: dict[str, float]) -> None:
    known = {name for path, module in model.named_modules() for name in (path, type(module).__name__) if name}
    for name, value in constants.items():
        if name not in known:
            raise AuditError(
                f"constants: the model has no module {name!r}.{did_you_mean(name, sorted(known))}"
            )
        if not (0 <= value < math.inf):
            raise AuditError(f"constants: {name!r} is {value}; a Lipschitz constant is a finite number >= 0")
