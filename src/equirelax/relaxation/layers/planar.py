"""Group convolutions on the square grid, recognised by their attributes.

A module of this family has

- `in_rep`, `out_rep`: representations of one group out of C1, C2, C4, D1, D2, D4, of input and output channels;
- `kernel_size`, `stride`, `padding` (and `dilation`), each a number or a pair, `kernel_size` square; `padding_mode`;
- `coefficients(kernel)`: the values of its parameter `weight` for the equivariant kernel nearest to a dense one;
- if it has a parameter `bias`, `constant_coefficients(constants)`: the same for constants (out,).

Input and output are (batch, channels, H, W). The residual is a dense convolution of the same size, stride and padding.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from equirelax.errors import UnfoldableError
from equirelax.relaxation.kernels import GridKernels
from equirelax.relaxation.kinds.convolution import Convolution
from equirelax.relaxation.layers.family import Fold, LayerFamily, Skip, no_bias, register
from equirelax.relaxation.sites import GridSite, Site, first_parameter
from equirelax.symmetry import Representation, equivariant_projection, trivial


@register
class PlanarFamily(LayerFamily):
    """Convolutions of feature fields on the square grid."""

    name = "planar-convolution"

    def matches(self, module: nn.Module) -> bool:
        """Recognise the attributes in_rep, out_rep, kernel_size and coefficients."""
        reps = (getattr(module, "in_rep", None), getattr(module, "out_rep", None))
        return (
            all(isinstance(rep, Representation) for rep in reps)
            and callable(getattr(module, "coefficients", None))
            and hasattr(module, "kernel_size")
        )

    def site(self, path: str, module: nn.Module) -> Site | Skip:
        """Relax the map from all channels at all offsets to all channels."""
        layer: Any = module  # known by its attributes, of no class in particular
        return planar_site(path, module, layer.in_rep, layer.out_rep)

    def fold(self, module: nn.Module, site: Site, weight: Tensor, bias: Tensor | None) -> Fold:
        """Fold the mean over the group, computed as means over the orbits of the kernel's entries."""
        layer: Any = module
        own = getattr(module, "weight", None)
        by_orbits = callable(getattr(module, "coefficients", None))
        dense = isinstance(own, nn.Parameter) and own.shape == weight.shape
        if not isinstance(site, GridSite) or not isinstance(own, nn.Parameter) or not (by_orbits or dense):
            raise UnfoldableError(
                f'{site.path} ({type(module).__name__}) has no parameter "weight" to fold into, with coefficients() or of '
                f'shape {tuple(weight.shape)}; project with mode="drop" or unfoldable="drop"'
            )
        fold = Fold(site.convolution.symmetry.project(weight))
        fold.writes.append((own, layer.coefficients(fold.weight) if by_orbits else fold.weight))
        if bias is not None and bool(bias.any()):
            fold.bias = equivariant_projection(bias[:, None], trivial(site.out_rep.group), site.out_rep)[:, 0]
            constants = getattr(module, "bias", None)
            if isinstance(constants, nn.Parameter):
                amount = layer.constant_coefficients(fold.bias) if by_orbits else fold.bias
                fold.writes.append((constants, amount))
            elif bool(fold.bias.any()):
                raise no_bias(module, site)
        return fold


def planar_site(path: str, module: nn.Module, in_rep: Representation, out_rep: Representation) -> Site | Skip:
    """Make the site of a convolution between two feature fields, whose attributes give its size, stride and padding."""
    layer: Any = module
    if getattr(layer, "transposed", False):
        return Skip("it is a transposed convolution, whose kernel is that of the opposite direction")
    if not isinstance(layer.kernel_size, int) and len(layer.kernel_size) != 2:
        return Skip(f"its kernel_size is {tuple(layer.kernel_size)}, and fields on the plane have two axes")
    size, padding = _pair(layer.kernel_size), getattr(layer, "padding", 0)
    if size[0] != size[1]:
        return Skip(f"its kernel of {size[0]} x {size[1]} is not square")
    if getattr(layer, "groups", 1) != 1:
        return Skip("it is a grouped convolution")
    if isinstance(padding, str):
        return Skip(f"its padding is {padding!r}, not a number of pixels")
    return GridSite(
        path,
        in_rep,
        out_rep,
        family=PlanarFamily.name,
        name=first_parameter(module),
        relaxes=in_rep.group.name,
        convolution=Convolution(
            size,
            GridKernels(in_rep, out_rep, size[0]),
            stride=_pair(getattr(layer, "stride", 1)),
            padding=_pair(padding),
            dilation=_pair(getattr(layer, "dilation", 1)),
            padding_mode=str(getattr(layer, "padding_mode", "zeros")),
        ),
    )


def _pair(value: Any) -> tuple[int, int]:
    """Turn a number for both axes, or one for each, into a pair."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))
