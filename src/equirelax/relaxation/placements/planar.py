"""Declaring convolutions of feature fields that no family recognises."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from equirelax.errors import PlacementError
from equirelax.relaxation.layers import Skip
from equirelax.relaxation.layers.planar import planar_site
from equirelax.relaxation.placements.layers import Declaration
from equirelax.relaxation.site import Site
from equirelax.relaxation.spec import spec
from equirelax.symmetry import Representation


@spec("planar-convolution")
@dataclass(frozen=True)
class PlanarConvolution(Declaration):
    """Declares convolutions (batch, in, H, W) -> (batch, out, H', W') between two feature fields of one group, which
    maps the square grid onto itself.

    The module must tell its `kernel_size`, and `stride`, `padding`, `dilation`, `padding_mode` where they are not 1, 0,
    1 and "zeros", as `torch.nn.Conv2d` does. Folding needs `coefficients` (see `layers.planar`) or a parameter `weight`
    that is the dense kernel (out, in, k, k).

    Args:
        target: a path pattern, or the name of a class.
        in_rep, out_rep: of the channels.
    """

    target: str
    in_rep: Representation
    out_rep: Representation

    def site(self, path: str, module: nn.Module) -> Site:
        """A dense residual convolution on the first input."""
        name = f"{path} ({type(module).__name__})"
        if self.in_rep.group != self.out_rep.group:
            raise PlacementError(
                f"{name}: PlanarConvolution is between {self.in_rep.group.name} and {self.out_rep.group.name}; expected "
                "one group"
            )
        for attribute, rep in (("in_channels", self.in_rep), ("out_channels", self.out_rep)):
            if getattr(module, attribute, rep.dim) != rep.dim:
                raise PlacementError(
                    f"{name}: its {attribute} is {getattr(module, attribute)}, the declared {rep!r} has {rep.dim}"
                )
        if not hasattr(module, "kernel_size"):
            raise PlacementError(
                f"{name} does not tell its kernel_size, which PlanarConvolution needs: give it such an attribute, or "
                "exclude it"
            )
        site = planar_site(path, module, self.in_rep, self.out_rep)
        if isinstance(site, Skip):
            raise PlacementError(f"{name} cannot be relaxed as declared: {site.reason}")
        return site
