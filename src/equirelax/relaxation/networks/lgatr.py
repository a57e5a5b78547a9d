"""L-GATr (Spinner et al., arXiv 2405.14806; Brehmer et al., arXiv 2411.00446): every `EquiLinear` between multivectors.

Multivectors (..., channels, 16) are the exterior algebra of space-time: a scalar, a vector, the six planes tx, ty, tz, xy, xz,
yz, the four volumes txy, txz, tyz, xyz, and a pseudoscalar. A layer maps them by five matrices over channels, one for every
grade, or by ten if it is equivariant only to the connected group. The residual is dense. It reads only multivectors and adds
to them, and leaves the layer's scalars unchanged. It cannot be folded.

The residual relaxes the proper orthochronous Lorentz group SO+(1, 3).
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.relaxation.layers.channels import AxisSite, Layout
from equirelax.relaxation.networks.network import Network, register_network
from equirelax.relaxation.sites import Site, first_parameter
from equirelax.symmetry import Lorentz, Representation, custom, trivial, vector

LAYER = "EquiLinear"
GRADES = (1, 4, 6, 4, 1)


@register_network
class LGATr(Network):
    """One layer, in any network."""

    name = "L-GATr"
    classes = (LAYER,)

    def matches(self, module: nn.Module) -> bool:
        """Whether its weight holds the five or ten matrices over channels of multivectors."""
        weight = getattr(module, "weight", None)
        return (
            isinstance(weight, nn.Parameter)
            and weight.dim() == 3
            and weight.numel() > 0
            and weight.shape[1] == getattr(module, "_in_mv_channels", None)
            and weight.shape[2] in (5, 10)
        )

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """The site from multivectors to multivectors."""
        weight: Any = module.weight
        ends = [(count, multivectors(count)) for count in (weight.shape[1], weight.shape[0])]
        layouts = [Layout(count, -2, (-1,), GRADES, sum(GRADES)) for count, _ in ends]
        return (
            MultivectorSite(
                path,
                ends[0][1],
                ends[1][1],
                relaxes=ends[0][1].group.name,
                in_layout=layouts[0],
                out_layout=layouts[1],
                name=first_parameter(module),
            ),
        )


@dataclass(frozen=True)
class MultivectorSite(AxisSite):
    """The site of a layer that returns multivectors and, after them, scalars."""

    def add(self, output: Any, delta: Tensor) -> Any:
        """Return the output with `delta` added to its multivectors."""
        first, *others = output
        return super().add(first, delta), *others

    def misfit(self, output: Any, delta: Tensor) -> str:
        """Say why `delta` cannot be added; see `Site.misfit`."""
        if not isinstance(output, tuple) or not output:
            return (
                f"the module returned a {type(output).__name__}; expected a tuple of multivectors and scalars"
            )
        return super().misfit(output[0], delta)


def multivectors(count: int) -> Representation:
    """Build `count` multivectors, grade by grade."""
    grades = [block for rep in _grades() for _, block in rep.blocks]
    return Representation(Lorentz(), [(count, block) for block in grades])


@functools.cache
def _grades() -> tuple[Representation, ...]:
    """The representation of every grade."""
    group = Lorentz()
    planes, volumes = (
        custom(
            group,
            torch.stack([_derivative(a, size) for a in group.algebra()]),
            matrix_fn=function,
            name=f"grade {size}",
        )
        for size, function in ((2, bivectors), (3, trivectors))
    )
    return trivial(group), vector(group), planes, volumes, trivial(group)


def bivectors(g: Tensor) -> Tensor:
    """The action of g (..., 4, 4) on planes: its minors of size 2, (..., 6, 6)."""
    return _minors(g, 2)


def trivectors(g: Tensor) -> Tensor:
    """The action of g (..., 4, 4) on volumes: its minors of size 3, (..., 4, 4)."""
    return _minors(g, 3)


def _minors(g: Tensor, size: int) -> Tensor:
    """The determinants of all choices of rows and columns, in lexicographic order."""
    chosen = torch.tensor(list(itertools.combinations(range(4), size)), device=g.device)
    return torch.linalg.det(g[..., chosen[:, None, :, None], chosen[None, :, None, :]])


def _derivative(a: Tensor, size: int) -> Tensor:
    """d/dt of the minors of exp(t a) at t = 0: a sum in which a column of a replaces one of the identity's."""
    chosen = list(itertools.combinations(range(4), size))
    out = a.new_zeros(len(chosen), len(chosen))
    one = torch.eye(4, dtype=a.dtype)
    for (i, rows), (j, columns) in itertools.product(enumerate(chosen), enumerate(chosen)):
        for column in columns:
            moved = one.clone()
            moved[:, column] = a[:, column]
            out[i, j] += torch.linalg.det(moved[list(rows)][:, list(columns)])
    return out
