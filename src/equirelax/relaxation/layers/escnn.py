"""escnn's steerable convolutions and linear maps (Weiler and Cesa, arXiv 1911.08251; Cesa, Lang and Weiler 2022).

They are recognised by their field types and kernel basis, without importing escnn. The residual of a convolution is a dense
one of the same size, stride, padding and dilation. It reads and adds to the `tensor` of a GeometricTensor.

A layer's kernel is `sum_b w_b K_b` over a sampled basis that is neither orthogonal nor, on small grids, independent, and
that spans only some of the equivariant kernels (escnn limits angular frequencies by radius). Every pair of fields with
the same two representations has the same basis. Folding projects each such block onto the span of its basis, and adds
the minimum-norm coefficients of the result to `weights`.

The penalty is the exact group difference for groups that map the grid onto itself. For all others (C8, SO(2), O(2), all groups
in space) it is the squared distance to the layer's own basis. Linear maps have the penalties of any linear map between two
representations.

Some properties of escnn matter here:

- Bases are sampled in float32 whatever the default dtype is, which leaves an equivariance error of 1e-7 even in float64.
  `exact_bases(model)` makes them exact.
- Layers with equal bases share one module, in all models of the process, so `model.double()` also changes other models.
  Build with `recompute=True` if that matters.
- In evaluation mode a layer keeps its expanded `filter` and `expanded_bias` (a linear map: `matrix`) as buffers. In
  training mode it has none, so the keys of its state dict change. `save`, `load` and `load_strict` leave them out and
  expand them again. `eval()` outside `torch.no_grad()` leaves a graph on them, which deepcopy rejects.
- If the fields of one representation are not next to each other, a layer's tables of channels are buffers that
  torch's `load_state_dict` refuses to write. `save`, `load` and `load_strict` leave these out too.
- Field types hold local functions and therefore cannot be pickled.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError, RepresentationError, UnfoldableError
from equirelax.relaxation.kernels import BasisBlock, BasisKernels, GridKernels, KernelSymmetry
from equirelax.relaxation.kinds.convolution import Convolution
from equirelax.relaxation.layers.family import Fold, LayerFamily, Skip, no_bias, register
from equirelax.relaxation.matrices import Matrices, without_vectors
from equirelax.relaxation.sites import GridSite, Site, argument, misfit
from equirelax.symmetry import Dihedral, Group, Representation
from equirelax.symmetry.escnn import from_field_type, from_gspace, from_representation, is_escnn
from equirelax.symmetry.kernels import check_planar, offset_permutation

# Bases are sampled in float32: singular values below this fraction of the largest are rounding.
_RANK_TOLERANCE = 1e-5
_TABLES = ("_basisexpansion.in_indices_", "_basisexpansion.out_indices_")


@dataclass(frozen=True)
class GeometricSite(Site):
    """The tensor (batch, channels, ...) of the GeometricTensors that a module receives and returns."""

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return the tensor of the first argument.

        Raises:
            PlacementError: It is not a GeometricTensor.
        """
        value = argument(args, kwargs, 0, "input")
        if not is_escnn(value, "GeometricTensor"):
            raise PlacementError(
                f"{self.path}: an escnn layer is called with a GeometricTensor, got a {type(value).__name__}; wrap it: "
                "GeometricTensor(x, layer.in_type)"
            )
        tensor: Tensor = value.tensor
        return tensor

    def add(self, output: Any, delta: Tensor) -> Any:
        """Return a GeometricTensor of the same type and coordinates, with `delta` added."""
        return type(output)(output.tensor + delta.to(output.tensor.dtype), output.type, output.coords)

    def misfit(self, output: Any, delta: Tensor) -> str:
        """Say why `delta` cannot be added; see `Site.misfit`."""
        if not is_escnn(output, "GeometricTensor"):
            return f"the module returned a {type(output).__name__}, not a GeometricTensor"
        return misfit(output.tensor, delta)


@dataclass(frozen=True)
class GeometricGridSite(GeometricSite, GridSite):
    """The fields on a grid of an escnn convolution."""


class _EscnnLayer(LayerFamily):
    """The common part of both families: bases, folding, and the buffers that evaluation mode keeps."""

    expanded: str

    def matrices(self, module: nn.Module) -> dict[str, tuple[Matrices, ...]]:
        """The coefficients of every pair of representations, (output fields, input fields x basis), as for a kernel."""
        layer: Any = module  # known by its attributes, of no class in particular
        bases = getattr(layer, "basisexpansion", None) or getattr(layer, "basissampler", None)
        if bases is None:
            return {}
        found = []
        for (_, after), (start, stop) in bases._weights_ranges.items():
            rows = bases._out_count[after]
            found.append(Matrices(start, (rows, (stop - start) // rows), (0, 1)))
        return {"weights": without_vectors(found)}

    def derived(self, module: nn.Module) -> tuple[str, ...]:
        """Buffers that are computed from the weights, and the basis' tables of channels.

        The tables are constants, kept as buffers that share memory with themselves, which torch refuses to load into.
        """
        tables = [name for name, _ in module.named_buffers() if name.startswith(_TABLES)]
        return (self.expanded, "expanded_bias", *tables)

    def refresh(self, module: nn.Module) -> None:
        """Expand the kernel and the bias again, if evaluation mode keeps them."""
        layer: Any = module  # known by its attributes, of no class in particular
        if module.training:
            return
        with torch.no_grad():
            kernel, bias = layer.expand_parameters()
        module.register_buffer(self.expanded, kernel)
        if bias is not None:
            module.register_buffer("expanded_bias", bias)
        else:
            layer.expanded_bias = None

    def fold(self, module: nn.Module, site: Site, weight: Tensor, bias: Tensor | None) -> Fold:
        """Project each block onto the span of its basis, and a bias onto the layer's trivial irreps."""
        layer: Any = module
        own = _parameter(layer, "weights", site)
        transposed = isinstance(site, GridSite) and site.convolution.transposed
        kernel = (weight.transpose(0, 1) if transposed else weight).reshape(*_dims(site), -1)
        amount, folded = (
            torch.zeros_like(own, dtype=weight.dtype),
            torch.zeros_like(kernel),
        )
        for block in basis_blocks(layer):
            where = (block.rows[:, None, :, None], block.columns[None, :, None, :])
            tile = kernel[where]  # (fields_out, fields_in, d_out, d_in, points)
            coefficients = tile.flatten(2) @ _pseudo_inverse(block.basis).to(weight)
            folded[where] = (coefficients @ block.basis.flatten(1).to(weight)).view(tile.shape)
            amount[block.start : block.start + coefficients.numel()] = coefficients.flatten()
        folded = folded.transpose(0, 1) if transposed else folded
        made = Fold(folded.reshape(weight.shape), None, [(own, amount)])
        made.after = functools.partial(self.refresh, module)
        return _with_bias(layer, site, made, bias)


def _parameter(layer: Any, name: str, site: Site) -> nn.Parameter:
    """A parameter of the layer.

    Raises:
        UnfoldableError: A parametrization computes it, so that an addition to it would be lost.
    """
    own = getattr(layer, name)
    if not isinstance(own, nn.Parameter):
        raise UnfoldableError(
            f"{site.path} ({type(layer).__name__}) has no parameter {name!r} to fold into, because it is computed from others: "
            f'remove its parametrization, or project with mode="drop" or unfoldable="drop"'
        )
    return own


def _dims(site: Site) -> tuple[int, int]:
    return site.out_rep.dim, site.in_rep.dim


def _with_bias(layer: Any, site: Site, fold: Fold, bias: Tensor | None) -> Fold:
    """Add the part of a bias that lies in the trivial irreps to a fold."""
    if bias is None or not bool(bias.any()):
        return fold
    if layer.bias is None:
        raise no_bias(layer, site)
    own = _parameter(layer, "bias", site)
    expansion = layer.bias_expansion.to(bias)  # (channels, trivial irreps)
    coefficients = torch.linalg.pinv(expansion) @ bias
    fold.bias = expansion @ coefficients
    fold.writes.append((own, coefficients))
    return fold


@dataclass(frozen=True, eq=False)
class FieldBlock:
    """A layer's basis for all fields of one representation to all fields of another.

    Args:
        rows: (fields_out, d_out), channels of every output field.
        columns: (fields_in, d_in), channels of every input field.
        basis: (n, d_out, d_in, points), as the layer holds it.
        start: The entry of the layer's `weights` at which the block's coefficients (fields_out, fields_in, n) begin.
        in_repr, out_repr: escnn's representations.
    """

    rows: Tensor
    columns: Tensor
    basis: Tensor
    start: int
    in_repr: Any
    out_repr: Any


def basis_blocks(layer: Any) -> Iterator[FieldBlock]:
    """Yield the blocks of an escnn layer's kernel basis, except pairs of representations without a basis."""
    expansion = layer.basisexpansion
    device = layer.weights.device
    ins, outs = _fields(expansion._in_reprs, device), _fields(expansion._out_reprs, device)
    for pair in expansion._representations_pairs:
        (in_repr, columns), (out_repr, rows) = ins[pair[0]], outs[pair[1]]
        basis = getattr(expansion, f"block_expansion_{expansion._escape_pair(pair)}").sampled_basis
        yield FieldBlock(rows, columns, basis.detach(), expansion._weights_ranges[pair][0], in_repr, out_repr)


def _fields(representations: Any, device: torch.device) -> dict[str, tuple[Any, Tensor]]:
    """Map the name of every representation to the representation and the channels (fields, d) of its fields."""
    found: dict[str, tuple[Any, list[list[int]]]] = {}
    start = 0
    for representation in representations:
        fields = found.setdefault(representation.name, (representation, []))[1]
        fields.append(list(range(start, start + representation.size)))
        start += representation.size
    return {name: (rep, torch.tensor(channels, device=device)) for name, (rep, channels) in found.items()}


def _pseudo_inverse(basis: Tensor) -> Tensor:
    """The matrix (d_out d_in points, n) that gives the minimum-norm coefficients of the nearest kernel in the span."""
    return torch.linalg.pinv(basis.flatten(1).double(), rtol=_RANK_TOLERANCE)


@register
class EscnnConvolution(_EscnnLayer):
    """`R2Conv`, `R3Conv`, their transposed and icosahedral forms, and other classes derived from their bases."""

    name = "escnn-convolution"
    expanded = "filter"

    def matches(self, module: nn.Module) -> bool:
        """Recognise the layer by the names of its classes."""
        return any(is_escnn(module, name) for name in ("_RdConv", "_RdConvTransposed", "_RdPointConv"))

    def site(self, path: str, module: nn.Module) -> Site | Skip:
        """Relax the map from all channels of in_type to all channels of out_type, by a dense convolution."""
        layer: Any = module
        if is_escnn(module, "_RdPointConv"):
            return Skip("samples its kernel at the points of every call: no dense kernel has its shape")
        if layer.groups != 1:
            return Skip(
                f"has {layer.groups} groups; dense residuals of grouped convolutions are not supported"
            )
        try:
            in_rep, out_rep = from_field_type(layer.in_type), from_field_type(layer.out_type)
        except RepresentationError as error:
            return Skip(str(error))
        transposed = is_escnn(module, "_RdConvTransposed")
        axes = int(layer.d)
        convolution = Convolution(
            (int(layer.kernel_size),) * axes,
            _symmetry(layer, in_rep, out_rep, transposed),
            stride=_per_axis(layer.stride, axes),
            padding=_per_axis(layer.padding, axes),
            dilation=_per_axis(layer.dilation, axes),
            padding_mode="zeros" if transposed else layer.padding_mode,
            transposed=transposed,
            output_padding=_per_axis(layer.output_padding, axes) if transposed else (),
        )
        return GeometricGridSite(
            path,
            in_rep,
            out_rep,
            family=self.name,
            relaxes=in_rep.group.name,
            convolution=convolution,
        )


def _symmetry(
    layer: Any, in_rep: Representation, out_rep: Representation, transposed: bool
) -> KernelSymmetry:
    """The exact group difference if the group maps the grid onto itself, else the distance to the layer's basis."""
    if layer.d == 2:
        try:
            check_planar(in_rep.group, "the kernels")
            # A transposed convolution is the adjoint of one from its output to its input.
            ends = (out_rep, in_rep) if transposed else (in_rep, out_rep)
            return GridKernels(*ends, int(layer.kernel_size))
        except RepresentationError:
            pass  # then the layer's own basis defines what is equivariant
    size = (int(layer.kernel_size),) * int(layer.d)
    blocks = []
    for block in basis_blocks(layer):
        basis = block.basis.unflatten(-1, size)
        if transposed:
            blocks.append(BasisBlock(block.columns, block.rows, basis.transpose(1, 2)))
        else:
            blocks.append(BasisBlock(block.rows, block.columns, basis))
    return BasisKernels.from_spans(blocks, _RANK_TOLERANCE)


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else (int(value),) * axes


@register
class EscnnLinear(_EscnnLayer):
    """`escnn.nn.Linear`: fields without a base space."""

    name = "escnn-linear"
    expanded = "matrix"

    def matches(self, module: nn.Module) -> bool:
        """Recognise the layer by the name of its class."""
        return is_escnn(module, "Linear")

    def site(self, path: str, module: nn.Module) -> Site | Skip:
        """Relax the map from all channels of in_type to all channels of out_type."""
        layer: Any = module
        try:
            in_rep, out_rep = from_field_type(layer.in_type), from_field_type(layer.out_type)
        except RepresentationError as error:
            return Skip(str(error))
        return GeometricSite(path, in_rep, out_rep, family=self.name, relaxes=in_rep.group.name)


def exact_bases(model: nn.Module) -> float:
    """Make the bases of a model's planar escnn convolutions exact in their current dtype, in place.

    escnn samples them in float32. Every basis kernel is replaced by its mean over the elements of the layer's group
    that map the grid onto itself (all of C4 and D4; the rotations by 90 degrees of C8 and SO(2)). This changes no entry by
    more than about 1e-6. Call the function after `model.double()`. Layers with equal bases share them, even with other
    models in the same process.

    Returns:
        The largest change of any entry.
    """
    change = 0.0
    family = EscnnConvolution()
    for module in model.modules():
        layer: Any = module
        if not family.matches(module) or layer.d != 2:
            continue
        elements = _on_the_grid(from_gspace(layer.space))
        moved = [offset_permutation(g, int(layer.kernel_size)) for g in elements]
        for block in basis_blocks(layer):
            left = from_representation(layer.space, block.out_repr).matrix(elements)
            right = from_representation(layer.space, block.in_repr).matrix(elements.mT)
            basis, mean = block.basis, torch.zeros_like(block.basis, dtype=torch.float64)
            for rho, inverse, to in zip(left, right, moved, strict=True):
                turned = torch.einsum("ab,nbcp,cd->nadp", rho, basis.double().cpu(), inverse).to(mean)
                mean[..., to] += turned / len(elements)
            change = max(change, float((mean - basis).abs().max()))
            basis.copy_(mean)
        family.refresh(module)
    return change


def _on_the_grid(group: Group) -> Tensor:
    """The elements (count, 2, 2) of a group of the plane that map the square grid onto itself."""
    all_of_them = Dihedral(4).elements().round()
    return all_of_them[group.contains(all_of_them, atol=1e-6)]
