"""Convolutions whose equivariant kernels are sums of given ones, such as scale-steerable ones, whose group has no exact grid.

A module of this family, recognised by its attributes, has

- `rows` (out fields, d_out) and `columns` (in fields, d_in), long: the channels of its fields;
- `span` (n, d_out, d_in, k, k): the kernels of which every equivariant kernel between two fields is a sum;
- `kernel_size` and `padding`, numbers; stride 1;
- parameters `weight` and perhaps `bias`, with `coefficients(kernel)` and `constant_coefficients(constants)`: their values for the
  equivariant kernel and constants nearest to dense ones.

Input and output are (batch, channels, H, W). The residual is a dense convolution of the same size and padding, its penalty the
squared distance to the span. The representations are those of the group of one element, because an action that is only
approximate on such features is no reference for an audit.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from equirelax.errors import UnfoldableError
from equirelax.relaxation.kernels import BasisBlock, BasisKernels
from equirelax.relaxation.kinds.convolution import Convolution
from equirelax.relaxation.layers.family import Fold, LayerFamily, Skip, no_bias, register
from equirelax.relaxation.sites import GridSite, Site, first_parameter
from equirelax.symmetry import Cyclic, trivial

ATTRIBUTES = ("rows", "columns", "span", "coefficients", "constant_coefficients", "kernel_size", "padding")


@register
class SpannedConvolution(LayerFamily):
    """Convolutions whose kernels are sums of given ones."""

    name = "spanned-convolution"

    def matches(self, module: nn.Module) -> bool:
        """By its attributes."""
        return all(hasattr(module, name) for name in ATTRIBUTES)

    def site(self, path: str, module: nn.Module) -> Site | Skip:
        """A site that maps all channels at all offsets to all channels."""
        layer: Any = module  # recognised by its attributes, whatever its class
        size = int(layer.kernel_size)
        rows, columns = layer.rows, layer.columns
        kernels = BasisKernels.from_spans([BasisBlock(rows, columns, layer.span)])
        return GridSite(
            path,
            trivial(Cyclic(1), columns.numel()),
            trivial(Cyclic(1), rows.numel()),
            family=self.name,
            name=first_parameter(module),
            relaxes=str(getattr(layer, "symmetry", "its basis")),
            convolution=Convolution(
                (size, size), kernels, stride=(1, 1), padding=(int(layer.padding),) * 2, dilation=(1, 1)
            ),
        )

    def fold(self, module: nn.Module, site: Site, weight: Tensor, bias: Tensor | None) -> Fold:
        """The projection onto the span, as values of the module's own parameters."""
        layer: Any = module
        if not isinstance(site, GridSite) or not isinstance(getattr(module, "weight", None), nn.Parameter):
            raise UnfoldableError(
                f'{site.path} ({type(module).__name__}) has no parameter "weight" of coefficients to fold into; project '
                'with mode="drop" or unfoldable="drop"'
            )
        fold = Fold(site.convolution.symmetry.project(weight))
        fold.writes.append((layer.weight, layer.coefficients(fold.weight)))
        if bias is not None and bool(bias.any()):
            numbers = layer.constant_coefficients(bias)
            if not isinstance(layer.bias, nn.Parameter):
                raise no_bias(module, site)
            fold.bias = bias.new_zeros(bias.shape)
            rows = layer.rows.to(bias.device)
            fold.bias[rows] = numbers[:, None].expand(rows.shape)
            fold.writes.append((layer.bias, numbers))
        return fold
