"""The Lie derivative of a whole model along every generator of the group."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.functional import jvp as double_backward_jvp

from equirelax.auditing.elements import describe_generator
from equirelax.auditing.error import coordinates, scale_of, with_translations
from equirelax.auditing.norms import largest, largest_entry, norm, root_of_squares
from equirelax.auditing.samples import Case, Leaf, call, leaves, map_tree
from equirelax.symmetry import TensorAction

FORWARD = "JVP (forward mode)"
DOUBLE = "JVP (double backward)"
DIFFERENCES = "central finite differences"

Function = Callable[..., tuple[Tensor, ...]]


@dataclasses.dataclass(frozen=True)
class GeneratorRow:
    """``||L_A f(x)||`` for one generator A.

    The absolute value is the Frobenius norm over all outputs. The relative one, relative to ``||f(x)||``, is the largest over the
    outputs. The denominator of positions is the norm of their distances from their mean.
    """

    name: str
    absolute: float
    relative: float


@dataclasses.dataclass(frozen=True)
class LieReport:
    """Lie derivatives ``(L_A f)(x) = drho_out(A) f(x) - D f(x)[drho_in(A) x]`` at the sample, for every generator A.

    Attributes:
        method: How the directional derivative was computed.
        reason: Why a faster method was not used; empty if it was.
        generators: One row per generator.
    """

    method: str
    reason: str
    generators: tuple[GeneratorRow, ...]

    @property
    def absolute(self) -> float:
        """The root of the sum of squares over the generators."""
        return root_of_squares(row.absolute for row in self.generators)

    @property
    def relative(self) -> float:
        """The largest relative value over the generators."""
        return largest(row.relative for row in self.generators)


def lie_derivative(case: Case, reach: float = 1.0, vanishing: Collection[str] = ()) -> LieReport | None:
    """Measure the Lie derivative of a model at a sample.

    Double backward is tried first, then forward mode (which imports PyTorch's compiler on its first use), then central
    differences, since some operations have no derivative rule. A derivative from autograd is compared once with a finite
    difference. A model that detaches tensors or disables gradients hides part of its derivative. Then the differences are used.

    Args:
        case: The model and its sample.
        reach: Length of the generators of translations.
        vanishing: Paths of outputs that are 0, which are left out.

    Returns:
        The report; ``None`` for a group without a Lie algebra, or if there is no output to differentiate.
    """
    group, dtype, in_rep, out_rep = case.group, case.dtype, case.in_rep, case.out_rep
    algebra = with_translations(group, group.algebra(), reach)
    if len(algebra) == 0:
        return None
    base = case.moved()
    inputs = [leaf for leaf in leaves(base, in_rep, "input") if leaf.action is not None]
    points = tuple(_real(leaf.value.detach()) for leaf in inputs)
    tangents = [
        _derivative(leaf.value.detach(), leaf.action, algebra) for leaf in inputs if leaf.action is not None
    ]
    function = _function(case.model, base, in_rep, out_rep, vanishing)

    output = call(case.model, case.moved())
    reference = [
        dataclasses.replace(leaf, value=_dense(leaf.value.detach()))
        for leaf in leaves(output, out_rep, "output")
        if differentiable(leaf.value) and leaf.path not in vanishing
    ]
    if not reference:
        return None
    actions = [
        None if leaf.action is None else _derivative(leaf.value, leaf.action, algebra) for leaf in reference
    ]
    spread = coordinates(case.sample, in_rep).spread
    sizes = [scale_of((leaf.value,), leaf.action, spread) or norm(leaf.value) for leaf in reference]
    size = root_of_squares(norm(leaf.value) for leaf in reference)

    kinds = {dtype, *(_real(leaf.value).dtype for leaf in reference)}
    unit = max(
        torch.finfo(kind).eps for kind in kinds
    )  # a model that casts internally rounds to the dtype that it returns
    derive, method, reason = _choose(function, points, tangents, dtype, size, unit)
    rows = []
    for i, generator in enumerate(algebra):
        moved = derive(function, points, tuple(t[i].to(dtype) for t in tangents))
        gaps = [
            d.double() if action is None else action[i] - d.double()
            for action, d in zip(actions, moved, strict=True)
        ]
        errors = [norm(gap) for gap in gaps]
        relative = largest(
            error / own if own > 0 else error for error, own in zip(errors, sizes, strict=True)
        )
        rows.append(GeneratorRow(describe_generator(group, generator, i), root_of_squares(errors), relative))
    return LieReport(method, reason, tuple(rows))


def _derivative(value: Tensor, action: TensorAction, algebra: Tensor) -> Tensor:
    """Compute ``drho(A_i) x`` for every A_i of ``algebra`` (k, n, n): (k, *x.shape), float64.

    The representation's group may be larger than the audit's. The derivative is linear in the algebra, so A_i is written in the
    basis of the larger one.
    """
    if value.is_complex():
        return torch.stack([_derivative(part, action, algebra) for part in (value.real, value.imag)], dim=-1)
    moved = action.derivative(value.double())
    basis = action.group.algebra()
    coefficients = algebra.flatten(1) @ torch.linalg.pinv(basis.flatten(1))
    return torch.tensordot(coefficients.to(moved), moved, dims=1)


def _function(
    model: Callable[..., Any], base: Any, in_rep: Any, out_rep: Any, vanishing: Collection[str] = ()
) -> Function:
    """Turn the model into a function from its transforming inputs to its differentiable outputs, except vanishing ones."""

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        queue = list(values)

        def put(leaf: Leaf) -> Tensor:
            if leaf.action is None:
                return leaf.value.clone()
            value = queue.pop(0)
            if leaf.value.requires_grad and not value.requires_grad:
                value = (
                    value.requires_grad_()
                )  # as in the sample, for a model that expects this from its caller
            return torch.view_as_complex(value) if leaf.value.is_complex() else value

        output = call(model, map_tree(base, in_rep, put, "input"))
        return tuple(
            _real(leaf.value)
            for leaf in leaves(output, out_rep, "output")
            if differentiable(leaf.value) and leaf.path not in vanishing
        )

    return function


def differentiable(value: Tensor) -> bool:
    """Whether a tensor can change continuously with the input."""
    return (value.is_floating_point() or value.is_complex()) and not value.is_nested and value.numel() > 0


def _real(value: Tensor) -> Tensor:
    """Put the real and imaginary parts of a complex tensor on a new last axis, and return a real tensor unchanged."""
    return torch.view_as_real(_dense(value)) if value.is_complex() else _dense(value)


def _dense(value: Tensor) -> Tensor:
    return value if value.layout == torch.strided else value.to_dense()


def forward_mode(
    function: Function, points: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The directional derivative by forward-mode automatic differentiation, for models that cannot be differentiated twice."""
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x.clone(), t) for x, t in zip(points, tangents, strict=True)]
        found = []
        for value in function(*duals):
            primal, tangent = forward_ad.unpack_dual(value)
            found.append(torch.zeros_like(primal) if tangent is None else tangent.detach())
        return tuple(found)


def double_backward(
    function: Function, points: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The directional derivative by differentiating the vector-Jacobian product with respect to the vector."""
    if not points:
        return tuple(torch.zeros_like(value) for value in function())
    _, moved = double_backward_jvp(lambda *xs: function(*(x.clone() for x in xs)), points, tangents)
    return tuple(value.detach() for value in moved)


def finite_differences(
    function: Function, points: tuple[Tensor, ...], tangents: tuple[Tensor, ...], unit: float
) -> tuple[Tensor, ...]:
    """Compute ``(f(x + h t) - f(x - h t)) / 2h``, where h t is the cube root of the rounding unit of f times the size of x."""
    if not points:
        return tuple(torch.zeros_like(value) for value in function())
    sizes = [(largest_entry(x), largest_entry(t)) for x, t in zip(points, tangents, strict=True)]
    step = unit ** (1 / 3) * min((x / t if x > 0 else 1 / t for x, t in sizes if t > 0), default=1.0)
    ahead = function(*(x + step * t for x, t in zip(points, tangents, strict=True)))
    behind = function(*(x - step * t for x, t in zip(points, tangents, strict=True)))
    return tuple((a.detach() - b.detach()) / (2 * step) for a, b in zip(ahead, behind, strict=True))


def _choose(
    function: Function,
    points: tuple[Tensor, ...],
    tangents: list[Tensor],
    dtype: torch.dtype,
    size: float,
    unit: float,
) -> tuple[Callable[..., tuple[Tensor, ...]], str, str]:
    """Choose the first method that runs and agrees with finite differences along one mixed direction."""
    mixed = tuple(torch.stack([(-0.7) ** i * t[i] for i in range(len(t))]).sum(0).to(dtype) for t in tangents)
    differences = functools.partial(finite_differences, unit=unit)
    measured = differences(function, points, mixed)
    scale = max([norm(m) for m in measured] + [size])
    limit = 1e-4 if unit <= torch.finfo(torch.float64).eps else 5e-2
    reason = ""
    for derive, name in ((double_backward, DOUBLE), (forward_mode, FORWARD)):
        try:
            found = derive(function, points, mixed)
        # no derivative rule, gradients disabled inside, or a model that allows none
        except Exception as error:
            reason = (
                f"{name} failed: {str(error).strip().splitlines()[0][:100]}"
                if str(error).strip()
                else f"{name} failed"
            )
            continue
        gap = largest(norm(a - b) for a, b in zip(found, measured, strict=True))
        if gap <= limit * scale:
            return derive, name, reason
        reason = f"{name} differs from finite differences by {gap / scale:.1e}: detached, or not smooth here"
    return differences, DIFFERENCES, reason
