"""e3nn's linear maps and tensor products, recognised by their attributes, so that modules with the same attributes work too.

Linear maps have `irreps_in`, `irreps_out` and `instructions`; tensor products have `irreps_in1`, `irreps_in2`,
`irreps_out` and `instructions`. A tensor product is relaxed with respect to its first input: `out += gamma W x_1` with a
dense W.

Many networks wrap a tensor product, to scale its output or to add a bias, and repeat its irreps as attributes. Such a
wrapper is relaxed instead of its product if its output is the product's up to such constants: it holds exactly one
product, of the same irreps, and no other module (a gate, a norm), and its forward takes the inputs as two tensors. Other
wrappers do not belong to this family, so that the product inside them is found.

Folding: a linear map from u copies of an irrep of dimension d = 2l+1 to w copies of the same irrep is
`p w_uw (x) 1_d` with the path weight p. The orthogonal projection of a dense block B onto these is the
mean of its diagonals, `w_uw += tr(B_wu) / (d p)`. A tensor product whose second input has a constant 0e
channel c contains the same maps in its paths (l, 0e, l), with the factor c times the
Wigner symbol `delta / sqrt(d)`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import UnfoldableError
from equirelax.relaxation.layers.family import Fold, LayerFamily, Skip, no_bias, register
from equirelax.relaxation.matrices import Matrices, without_vectors
from equirelax.relaxation.products import ProductSite, second_input
from equirelax.relaxation.residual import Residual
from equirelax.relaxation.sites import RowSite, Site, first_parameter, parameters_of
from equirelax.symmetry import from_irreps

_LOOK = 'project with mode="drop" or unfoldable="drop" to leave it out'


def _is_irreps(value: Any) -> bool:
    """Whether a value is an e3nn `Irreps`, without importing e3nn."""
    return any(cls.__name__ == "Irreps" and cls.__module__.startswith("e3nn") for cls in type(value).__mro__)


def has_irreps(module: nn.Module, *names: str) -> bool:
    """Whether a module has e3nn irreps under all of these names."""
    return all(_is_irreps(getattr(module, name, None)) for name in names)


def _is_e3nn(module: nn.Module, *names: str) -> bool:
    """Whether a module is of one of these e3nn classes, without importing e3nn."""
    return any(cls.__name__ in names and cls.__module__.startswith("e3nn") for cls in type(module).__mro__)


def is_product(module: nn.Module) -> bool:
    """Whether a module is itself a tensor product, by its irreps, instructions and weight count, without a nonlinearity."""
    return (
        has_irreps(module, "irreps_in1", "irreps_in2", "irreps_out")
        and hasattr(module, "instructions")
        and hasattr(module, "weight_numel")
        and not any(
            _is_e3nn(m, "Gate", "Activation", "NormActivation", "BatchNorm") for m in module.modules()
        )
    )


def product_of(module: nn.Module) -> nn.Module | None:
    """The tensor product whose output, up to constant factors and a bias, a module returns.

    This is the module itself, or the one product that it wraps; None if the module returns something else.
    """
    if not has_irreps(module, "irreps_in1", "irreps_in2", "irreps_out"):
        return None
    if hasattr(module, "instructions"):
        return module if is_product(module) else None
    wrapped: Any = module  # known by its attributes, of no class in particular
    residuals = {m for child in module.modules() if isinstance(child, Residual) for m in child.modules()}
    parts = [m for m in module.modules() if m is not module and m not in residuals]
    inner: list[Any] = [m for m in parts if is_product(m)]
    if len(inner) != 1 or not _takes_two_tensors(module):
        return None
    product = inner[0]
    within = set(product.modules())
    harmless = (nn.ParameterList, nn.ParameterDict, nn.Identity)
    others = [
        m for m in parts if m not in within and product not in m.modules() and not isinstance(m, harmless)
    ]
    same = wrapped.irreps_in1 == product.irreps_in1 and wrapped.irreps_out == product.irreps_out
    return product if same and not others else None


def _takes_two_tensors(module: nn.Module) -> bool:
    """Whether a forward has at least two arguments, and neither the first nor its result is annotated as a mapping."""
    found = parameters_of(module)
    positional = [p for p in found if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(positional) < 2:
        return False
    annotations = (positional[0].annotation, getattr(module.forward, "__annotations__", {}).get("return"))
    return not any(word in str(each).lower() for each in annotations for word in ("dict", "mapping"))


def broken_group(*irreps: Any) -> str:
    """O(3), or SO(3) if no irrep has odd parity: the inversion then acts trivially, and no map can break it."""
    return "O(3)" if any(ir.p == -1 for each in irreps for _, ir in each) else "SO(3)"


def _weight(module: nn.Module, site: Site) -> Tensor:
    """The module's own flat weight, or an error that says why nothing can be folded into it."""
    weight = getattr(module, "weight", None)
    own = getattr(module, "internal_weights", True) and getattr(module, "shared_weights", True)
    if not own or not isinstance(weight, nn.Parameter) or weight.dim() != 1:
        raise UnfoldableError(
            f"{site.path} ({type(module).__name__}) gets its weights from outside, so nothing can be folded "
            f"into them; {_LOOK}"
        )
    return weight


def _weight_slices(module: nn.Module, instructions: Any) -> list[slice | None]:
    """The slice of the flat weight that holds each instruction's weights (None: it has none)."""
    slices: list[slice | None] = []
    start = 0
    for instruction in instructions:
        if getattr(instruction, "has_weight", True):
            size = math.prod(instruction.path_shape)
            slices.append(slice(start, start + size))
            start += size
        else:
            slices.append(None)
    return slices


def _path_matrices(module: nn.Module) -> dict[str, tuple[Matrices, ...]]:
    """The matrices (copies of the input, copies of the output) of the paths that mix channels, by parameter.

    There is one for each channel of a second input. These are the paths of a linear map, and those of a tensor product with the
    modes uvw, uuw and u<vw; the other modes weight every channel separately.
    """
    weight, instructions = getattr(module, "weight", None), getattr(module, "instructions", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or instructions is None:
        return {}
    found = []
    for instruction, where in zip(instructions, _weight_slices(module, instructions), strict=True):
        mixes = getattr(instruction, "connection_mode", "uvw").endswith("w")
        if where is None or where.stop > weight.numel() or not mixes:  # biases come after the weights
            continue
        shape = tuple(instruction.path_shape)
        if len(shape) in (2, 3):
            found.append(Matrices(where.start, shape, (1, 0, 2) if len(shape) == 3 else (0, 1)))
    return {"weight": without_vectors(found)}


def _block_trace(weight: Tensor, out_slice: slice, in_slice: slice, dim: int) -> Tensor:
    """The mean of the diagonals of the (dim, dim) blocks of `weight[out, in]`: shape (mul_out, mul_in)."""
    block = weight[out_slice, in_slice]
    block = block.reshape(block.shape[0] // dim, dim, block.shape[1] // dim, dim)
    return block.diagonal(dim1=1, dim2=3).mean(-1)


def _spread(folded: Tensor, coefficients: Tensor, out_slice: slice, in_slice: slice, dim: int) -> None:
    """Write `coefficients (x) 1_dim` into the dense matrix."""
    folded[out_slice, in_slice] = torch.kron(coefficients, torch.eye(dim).to(coefficients))


def _with_bias(layer: Any, site: Site, fold: Fold, bias: Tensor | None) -> Fold:
    """Add the scalar part of a bias to a fold. It goes into the layer's own bias of 0e outputs."""
    if bias is None or not bool(bias.any()):
        return fold
    own = getattr(layer, "bias", None)
    slices = layer.irreps_out.slices()
    scalars = [s for (_, ir), s in zip(layer.irreps_out, slices, strict=True) if ir.l == 0 and ir.p == 1]
    size = sum(s.stop - s.start for s in scalars)
    if not isinstance(own, nn.Parameter) or own.numel() != size:
        raise UnfoldableError(
            f"{site.path} ({type(layer).__name__}) has no bias on its {size} scalar outputs to fold the "
            f"residual's bias into; use a residual without bias, or {_LOOK}"
        )
    fold.bias = torch.zeros_like(bias)
    for s in scalars:
        fold.bias[s] = bias[s]
    fold.writes.append((own, torch.cat([bias[s] for s in scalars])))
    return fold


@register
class E3nnLinear(LayerFamily):
    """`e3nn.o3.Linear`, and other modules with irreps_in, irreps_out, instructions and a weight count."""

    name = "e3nn-linear"

    def matches(self, module: nn.Module) -> bool:
        """Recognise the attributes irreps_in, irreps_out, instructions and weight_numel."""
        return (
            has_irreps(module, "irreps_in", "irreps_out")
            and hasattr(module, "instructions")
            and hasattr(module, "weight_numel")
            and not hasattr(module, "irreps_in1")  # o3.TensorSquare has both
        )

    def site(self, path: str, module: nn.Module) -> Site | Skip:
        """Relax the map from all of irreps_in to all of irreps_out."""
        layer: Any = module  # known by its attributes, of no class in particular
        if not layer.weight_numel:
            return Skip("has no weights of its own")
        weight = getattr(layer, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.dim() > 1:
            return Skip(
                f"maps channels of irreps (f_in, f_out): its weight has shape {tuple(weight.shape)}; only one flat weight is "
                "supported"
            )
        return RowSite(
            path,
            from_irreps(layer.irreps_in),
            from_irreps(layer.irreps_out),
            family=self.name,
            name=first_parameter(module),
            relaxes=broken_group(layer.irreps_in, layer.irreps_out),
        )

    def matrices(self, module: nn.Module) -> dict[str, tuple[Matrices, ...]]:
        """The matrix of every path; see `_path_matrices`."""
        return _path_matrices(module)

    def fold(self, module: nn.Module, site: Site, weight: Tensor, bias: Tensor | None) -> Fold:
        """Fold the mean diagonal of each block between equal irreps, for existing instructions."""
        layer: Any = module  # known by its attributes, of no class in particular
        own = _weight(module, site)
        amount, folded = torch.zeros_like(own, dtype=weight.dtype), torch.zeros_like(weight)
        ins, outs = layer.irreps_in.slices(), layer.irreps_out.slices()
        done = set()
        for instruction, where in zip(
            layer.instructions, _weight_slices(module, layer.instructions), strict=True
        ):
            pair = (instruction.i_in, instruction.i_out)
            # e3nn keeps biases among the instructions, with i_in = -1;
            # two paths between the same slots span one space.
            if instruction.i_in < 0 or where is None or pair in done or not instruction.path_weight:
                continue
            done.add(pair)
            dim = layer.irreps_in[instruction.i_in].ir.dim
            mean = _block_trace(weight, outs[instruction.i_out], ins[instruction.i_in], dim)
            amount[where] = (mean.T / instruction.path_weight).reshape(-1)
            _spread(folded, mean, outs[instruction.i_out], ins[instruction.i_in], dim)
        return _with_bias(layer, site, Fold(folded, None, [(own, amount)]), bias)


@register
class E3nnTensorProduct(LayerFamily):
    """e3nn's tensor products with weights, as maps of their first input, and wrappers of one without a nonlinearity."""

    name = "e3nn-tensor-product"

    def matches(self, module: nn.Module) -> bool:
        """Recognise the attributes irreps_in1, irreps_in2 and irreps_out; see `product_of`."""
        return product_of(module) is not None

    def site(self, path: str, module: nn.Module) -> Site | Skip:
        """Relax the map from all of irreps_in1 to all of irreps_out."""
        layer: Any = module  # known by its attributes, of no class in particular
        product: Any = product_of(module)
        if not product.weight_numel:
            return Skip("has no weights")
        if _is_e3nn(product, "TensorSquare"):
            return Skip("is quadratic in its input, and not linear")
        return ProductSite(
            path,
            from_irreps(layer.irreps_in1),
            from_irreps(layer.irreps_out),
            family=self.name,
            name=first_parameter(module),
            relaxes=broken_group(layer.irreps_in1, layer.irreps_out),
            second=second_input(module),
        )

    def matrices(self, module: nn.Module) -> dict[str, tuple[Matrices, ...]]:
        """The matrix of every path; see `_path_matrices`."""
        return _path_matrices(module)

    def fold(self, module: nn.Module, site: Site, weight: Tensor, bias: Tensor | None) -> Fold:
        """Fold into the paths (l, 0e, l) of type "uvw" whose second input is a declared constant."""
        constants = site.constants if isinstance(site, ProductSite) else ()
        if not constants:
            raise UnfoldableError(
                f"{site.path} ({type(module).__name__}): a map of its first input alone folds only if a "
                f"0e channel of the second input is constant, and none is declared; declare it with "
                f"Constant(pattern, channel, value) in the placement, or {_LOOK}"
            )
        product = product_of(module)
        if product is None:
            raise UnfoldableError(
                f"{site.path} ({type(module).__name__}) is not a tensor product, and wraps none to fold into; {_LOOK}"
            )
        if product is not module:
            return self._fold_inside(module, product, site, weight, bias)
        layer: Any = module  # known by its attributes, of no class in particular
        own = _weight(module, site)
        instructions = layer.instructions
        amount, folded = torch.zeros_like(own, dtype=weight.dtype), torch.zeros_like(weight)
        ins, seconds, outs = (i.slices() for i in (layer.irreps_in1, layer.irreps_in2, layer.irreps_out))
        done = set()
        for instruction, where in zip(instructions, _weight_slices(module, instructions), strict=True):
            channel = _constant_channel(module, constants, seconds, instruction)
            pair = (instruction.i_in1, instruction.i_out)
            if channel is None or where is None or pair in done or not instruction.path_weight:
                continue
            v, value = channel
            dim = layer.irreps_in1[instruction.i_in1].ir.dim
            mean = _block_trace(weight, outs[instruction.i_out], ins[instruction.i_in1], dim)
            view = amount[where].view(instruction.path_shape)
            view[:, v, :] = mean.T * math.sqrt(dim) / (instruction.path_weight * value)
            _spread(folded, mean, outs[instruction.i_out], ins[instruction.i_in1], dim)
            done.add(pair)
        return _with_bias(layer, site, Fold(folded, None, [(own, amount)]), bias)

    def _fold_inside(
        self, module: nn.Module, product: nn.Module, site: Site, weight: Tensor, bias: Tensor | None
    ) -> Fold:
        """Fold into the product that a module wraps, whose output it multiplies by constants."""
        factors = _factors(module, product, site).to(weight)[:, None]
        if bias is not None and bool(bias.any()):
            raise no_bias(module, site)
        inner = self.fold(product, site, weight / factors, None)
        return dataclasses.replace(inner, weight=inner.weight * factors)


def _factors(module: nn.Module, product: Any, site: Site, rows: int = 8) -> Tensor:
    """The constants (dim,) by which a wrapper multiplies its product's output, found by calling both.

    Raises:
        UnfoldableError: the wrapper does something else.
    """
    own = _weight(product, site)
    generator = torch.Generator().manual_seed(0)
    sizes = (product.irreps_in1.dim, product.irreps_in2.dim)
    x, y = (torch.randn(rows, size, generator=generator).to(own) for size in sizes)
    with torch.no_grad():
        # differences, so that biases do not count
        inner = product.forward(x, y) - product.forward(0 * x, y)
        outer = module.forward(x, y) - module.forward(0 * x, y)
        factors = (inner * outer).sum(0) / inner.square().sum(0).clamp(min=torch.finfo(own.dtype).tiny)
        error = (outer - factors * inner).abs().max()
        bad = not bool(error <= 1e3 * torch.finfo(own.dtype).eps * outer.abs().max()) or not bool(
            factors.all()
        )
    if bad:
        raise UnfoldableError(
            f"{site.path} ({type(module).__name__}) does more than multiply the output of its {type(product).__name__} by "
            f"constants; {_LOOK}"
        )
    return factors


def _constant_channel(
    module: Any, constants: tuple[tuple[int, float], ...], seconds: list[slice], instruction: Any
) -> tuple[int, float] | None:
    """(index in the second slot, value) of a declared constant 0e channel that the instruction reads, or None."""
    ir2 = module.irreps_in2[instruction.i_in2].ir
    if instruction.connection_mode != "uvw" or ir2.l != 0 or ir2.p != 1:
        return None
    where = seconds[instruction.i_in2]
    for channel, value in constants:
        if where.start <= channel < where.stop and value != 0:
            return channel - where.start, value
    return None
