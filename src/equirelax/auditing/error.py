"""Equivariance errors: the distance of ``f(g x)`` from ``rho(g) f(x)``, the scale it is relative to, and what counts as zero."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equirelax.auditing.elements import component, describe
from equirelax.auditing.norms import largest, largest_entry, norm, relative_error
from equirelax.auditing.rounding import floors
from equirelax.auditing.samples import Case, Leaf, act, call, leaves, map_tree
from equirelax.errors import AuditError, NonFiniteError, RepresentationError
from equirelax.symmetry import Group, On, TensorAction

FAR = 100.0
"""Points farther from the origin than this many times their spread count as far away."""


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """The positions of a sample.

    Attributes:
        largest: Largest |coordinate|; 0 if nothing is a position.
        spread: Largest |coordinate| after the mean of the points is subtracted.
    """

    largest: float
    spread: float


def coordinates(sample: Any, in_rep: Any) -> Coordinates:
    """Measure the positions of a sample, over all of its tensors."""
    points = [p for leaf in leaves(sample, in_rep, "input") for p in _positions(leaf.value, leaf.action)]
    return Coordinates(
        max((largest_entry(p) for p in points), default=0.0),
        max((largest_entry(p - p.mean(dim=0)) for p in points), default=0.0),
    )


def with_translations(group: Group, elements: Tensor, scale: float) -> Tensor:
    """Scale the translations of elements (..., n+1, n+1) of SE(n) or E(n). Elements of other groups are returned unchanged."""
    n = group.linear_dim
    if group.dim == n or scale in (0.0, 1.0):
        return elements
    scaled = elements.clone()
    scaled[..., :n, n] *= scale
    return scaled


def size_of_positions(value: Tensor, action: TensorAction | None) -> float | None:
    """Frobenius norm of a tensor after the mean of its positions is subtracted; None if it holds no positions."""
    points = list(_positions(value, action))
    if not points or not isinstance(action, On) or not isinstance(action.axis, int):
        return None
    rest = value.detach().double().movedim(action.axis, -1).clone()
    rep = action.representation
    for (copies, block), part in zip(rep.blocks, rep.slices(), strict=True):
        if not block.linear:
            split = rest[..., part].unflatten(-1, (copies, block.dim))
            mean = split.reshape(-1, block.dim).mean(dim=0)
            rest[..., part] = (split - mean).flatten(-2)
    size = largest_entry(rest)
    return size * float((rest / size).norm()) if size else 0.0


def far_away(sample: Any, in_rep: Any) -> list[tuple[str, float, float]]:
    """List (path, distance of the mean from the origin, spread) for transforming tensors that lie far from the origin."""
    found = []
    for leaf in leaves(sample, in_rep, "input"):
        for points in _points(leaf):
            middle = points.mean(dim=0)
            away, spread = largest_entry(middle), largest_entry(points - middle)
            if len(points) > 1 and away > FAR * spread > 0:
                found.append((leaf.path, away, spread))
    return found


def _points(leaf: Leaf) -> Iterator[Tensor]:
    """Yield the rows (N, d) of every block that may hold points: positions and vectors."""
    action = leaf.action
    if not leaf.measurable or not isinstance(action, On) or not isinstance(action.axis, int):
        return
    rows = leaf.value.detach().double().movedim(action.axis, -1)
    rep = action.representation
    for (copies, block), part in zip(rep.blocks, rep.slices(), strict=True):
        if block.dim == action.group.linear_dim and not block.trivial:
            yield rows[..., part].reshape(-1, copies, block.dim).flatten(0, 1)


def _positions(value: Tensor, action: TensorAction | None) -> Iterator[Tensor]:
    """Yield the positions (N, n) in a tensor."""
    if action is None or action.representation.linear or not isinstance(action, On):
        return
    if not isinstance(action.axis, int) or not value.is_floating_point() or not value.numel():
        return
    rows = value.detach().double().movedim(action.axis, -1)
    rep = action.representation
    for (copies, block), part in zip(rep.blocks, rep.slices(), strict=True):
        if not block.linear:
            yield rows[..., part].reshape(-1, copies, block.dim).flatten(0, 1)


@dataclasses.dataclass(frozen=True)
class Worst:
    """Where the relative error is largest: the group element, the output, and the entry in it."""

    element: tuple[tuple[float, ...], ...]
    description: str
    output: str
    entry: tuple[int, ...]
    expected: float | str
    found: float | str

    @property
    def where(self) -> str:
        """The output and its entry, such as ``output[7, 3]``."""
        return f"{self.output}[{', '.join(map(str, self.entry))}]" if self.entry else self.output


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Equivariance errors of one function over sampled elements g_1..g_M.

    Attributes:
        absolute: Max over g, outputs and entries of ``|f(g x) - rho(g) f(x)|``.
        relative: Max over g and outputs of ``||f(g x) - rho(g) f(x)|| / max(||f(g x)||, ||f(x)||)`` in Frobenius norms. The
            denominator of positions is the norm of their distances from their mean. It is 1 if an output of integers or
            booleans differs in any entry.
        e: REMUL's E, ``mean_x || mean_i rho(g_i) f(x) - mean_i f(g_i x) ||`` (arXiv 2410.17878).
        e_prime: REMUL's E', ``mean_x mean_i || f(g_i x) - rho(g_i) f(x) ||``. In both, x runs over the leading
            axis of the output (samples, nodes), and the largest value over several outputs is taken.
        outputs: The relative error of every output.
        components: The relative error over each sampled component of the group ("proper", "with reflection").
        repeatability: ``max |f(x) - f(x)|`` over two calls on the same input; not 0 for a model that draws random numbers.
        worst: The element with the largest relative error.
        not_compared: Path and class of outputs without an error (strings, empty tensors, foreign objects).
        vanishing: Paths of outputs that are 0, exactly or up to rounding, on the sample and on the transformed samples. Their
            relative error counts as 0, and says nothing about the model.
    """

    absolute: float
    relative: float
    e: float
    e_prime: float
    outputs: dict[str, float]
    components: dict[str, float]
    repeatability: float
    worst: Worst
    not_compared: tuple[str, ...] = ()
    vanishing: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The outputs of a model.

    Attributes:
        leaves: The outputs that can be compared, detached, as float64, complex128, or int64 for integers and booleans. Python's
            and NumPy's numbers are tensors here.
        rest: Path and class of the outputs that cannot be compared.
        dtypes: Path of every floating or complex tensor -> its dtype when it was returned.
    """

    leaves: tuple[Leaf, ...]
    rest: tuple[str, ...]
    dtypes: Mapping[str, torch.dtype]


def outputs_of(case: Case, element: Tensor | None, words: str) -> Outputs:
    """Call the model on the sample, transformed by an element, and return its outputs.

    Raises:
        AuditError: The model returns nothing that can be compared.
        NonFiniteError: An output holds NaN or infinity; ``words`` names the input in the message.
    """
    found, rest = [], []
    dtypes: dict[str, torch.dtype] = {}

    def take(leaf: Leaf) -> None:
        value = _comparable(leaf.value.detach())
        if value is None:
            rest.append(f"{leaf.path} ({'empty' if not leaf.value.numel() else 'nested'} tensor)")
            return
        if leaf.value.is_floating_point() or leaf.value.is_complex():
            dtypes[leaf.path] = leaf.value.dtype
        found.append(dataclasses.replace(leaf, value=value))

    def other(path: str, value: Any) -> None:
        if isinstance(value, (bool, int, float, complex, np.generic, np.ndarray)) and _is_number(value):
            found.append(Leaf(path, _comparable(torch.as_tensor(value)), None))  # type: ignore[arg-type]
        elif value is not None:
            rest.append(f"{path} ({type(value).__name__})")

    map_tree(call(case.model, case.moved(element)), case.out_rep, take, "output", other)
    if not found:
        raise AuditError(
            "the model returns nothing whose equivariance could be measured"
            + (f", only {', '.join(rest)}" if rest else "")
            + ": audit a function that returns tensors or numbers"
        )
    for leaf in found:
        if not bool(torch.isfinite(leaf.value).all()):
            raise NonFiniteError(
                f"`{leaf.path}` holds NaN or infinity on {words}: no equivariance error can be measured"
            )
    return Outputs(tuple(found), tuple(rest), dtypes)


def _comparable(value: Tensor) -> Tensor | None:
    """Copy a tensor in the widest dtype of its kind; None if it has no entries that could be compared."""
    if value.is_nested or not value.numel():
        return None
    if value.is_quantized:
        value = value.dequantize()
    if value.layout != torch.strided:
        value = value.to_dense()
    if value.is_floating_point():
        return value.to(torch.float64, copy=True)
    return value.to(torch.complex128 if value.is_complex() else torch.int64, copy=True)


def _is_number(value: Any) -> bool:
    return not isinstance(value, (np.generic, np.ndarray)) or (value.dtype.kind in "biufc" and value.size > 0)


def exact(value: Tensor) -> bool:
    """Whether a tensor holds integers or booleans, which are compared exactly."""
    return not (value.is_floating_point() or value.is_complex())


@dataclasses.dataclass(frozen=True)
class Gap:
    """The error of one output on g x.

    Attributes:
        expected: ``rho(g) f(x)``.
        difference: ``f(g x)`` minus `expected`.
        relative: See :class:`Measurement`.
    """

    expected: Tensor
    difference: Tensor
    relative: float


def gap(
    g: Tensor, words: str, base: Leaf, found: Leaf, spread: float = 0.0, floor: float | None = None
) -> Gap:
    """Compare an output on g x with that on x.

    Args:
        g: The element.
        words: A description of the element.
        base: The output on x.
        found: The output on g x.
        spread: Spread of the sample's coordinates, to which the error of a single position is relative.
        floor: For an output that is 0 up to rounding, the largest entry up to which differences are ignored.

    Raises:
        AuditError: The output's size depends on the group element.
        NonFiniteError: rho(g) f(x) overflows.
    """
    if found.value.shape != base.value.shape:
        raise AuditError(
            f"`{found.path}` has shape {tuple(base.value.shape)} on the sample and "
            f"{tuple(found.value.shape)} after a {words}: outputs whose size depends on the group element cannot be "
            "compared"
        )
    if exact(base.value) or exact(found.value):
        expected = act(g, base.value, base.action) if exact(base.value) else base.value
        difference = (found.value - expected).to(torch.float64)
        return Gap(expected, difference, float(bool((difference != 0).any())))
    try:
        expected = act(g, base.value, base.action)
    except RepresentationError as error:  # the height and the width of a grid differ
        raise AuditError(f"`{found.path}`: {error}") from error
    if not bool(torch.isfinite(expected).all()):
        raise NonFiniteError(
            f"`{found.path}` is so large that it overflows when it is transformed by a {words}"
        )
    if floor is not None and largest_entry(found.value) <= floor:
        return Gap(expected, found.value - expected, 0.0)
    return Gap(
        expected,
        found.value - expected,
        relative_error(found.value, expected, scale_of((found.value, expected), base.action, spread)),
    )


def scale_of(values: Sequence[Tensor], action: TensorAction | None, spread: float) -> float | None:
    """The scale of the relative errors of positions, which does not depend on the origin; None for other tensors.

    Args:
        values: The positions that are compared.
        action: How they transform.
        spread: Spread of the sample's coordinates, which is used for a single point, such as a centre of mass.
    """
    sizes = [size_of_positions(value, action) for value in values]
    if None in sizes:
        return None
    size = max(size for size in sizes if size is not None)
    if size > 1e-12 * max(map(norm, values)):
        return size
    return spread * (values[0].numel() / values[0].shape[-1]) ** 0.5 or None


def measure(case: Case, sampled: Tensor, discrete: Tensor) -> Measurement:
    """Measure equivariance errors over ``sampled`` elements (M, n, n) and, except for E and E', ``discrete`` ones (c, n, n)."""
    group, whole = case.group, outputs_of(case, None, "the sample as given")
    reference, again = whole.leaves, outputs_of(case, None, "the sample as given").leaves
    _same_outputs(reference, again, "a second call")
    repeat = largest(
        largest_entry((a.value - b.value).to(torch.complex128 if a.value.is_complex() else torch.float64))
        for a, b in zip(reference, again, strict=True)
    )

    rounded = floors(case, reference, lambda other: outputs_of(other, None, "the sample as given").leaves)
    tally = _Tally(reference, coordinates(case.sample, case.in_rep).spread, rounded)
    known: dict[bytes, tuple[Leaf, ...]] = {}  # the few elements of a finite group are drawn repeatedly
    for index, g in enumerate(torch.cat((sampled, discrete))):
        words = describe(group, g)
        key = g.numpy().tobytes()
        found = known.get(key)
        if found is None:
            found = outputs_of(case, g, f"the sample after a {words}").leaves
        if group.order is not None and group.order <= len(sampled):
            known[key] = found
        _same_outputs(reference, found, f"a {words}")
        tally.add(group, g, words, found, mean=index < len(sampled))
    return tally.result(repeat, whole)


def _same_outputs(reference: Sequence[Leaf], found: Sequence[Leaf], words: str) -> None:
    names, others = [leaf.path for leaf in reference], [leaf.path for leaf in found]
    if names != others:
        raise AuditError(
            f"after {words} the model returns {others}, and {names} on the sample: outputs that come and go cannot be "
            "compared"
        )


class _Tally:
    """Running maxima and means over elements."""

    def __init__(self, reference: Sequence[Leaf], spread: float, floors: Mapping[str, float]) -> None:
        self.reference, self.spread, self.floors = reference, spread, floors
        self.absolute, self.relative = 0.0, -1.0
        self.outputs = {leaf.path: 0.0 for leaf in reference}
        self.components: dict[str, float] = {}
        self.mean: list[Tensor | None] = [None for _ in reference]
        self.norms = [0.0 for _ in reference]
        self.count = 0
        self.worst: Worst | None = None

    def add(self, group: Group, g: Tensor, words: str, found: Sequence[Leaf], mean: bool) -> None:
        part = component(group, g)
        self.count += mean
        for i, (base, leaf) in enumerate(zip(self.reference, found, strict=True)):
            met = gap(g, words, base, leaf, self.spread, self.floors.get(leaf.path))
            difference = met.difference
            self.absolute = largest((self.absolute, largest_entry(difference)))
            self.outputs[leaf.path] = largest((self.outputs[leaf.path], met.relative))
            self.components[part] = largest((self.components.get(part, 0.0), met.relative))
            if mean:
                before = self.mean[i]
                self.mean[i] = difference if before is None else before + difference
                self.norms[i] += _mean_norm(difference, base)
            if not met.relative <= self.relative:
                self.relative = met.relative
                at = int(difference.abs().argmax())
                self.worst = Worst(
                    element=tuple(tuple(row) for row in g.tolist()),
                    description=words,
                    output=leaf.path,
                    entry=tuple(int(k) for k in np.unravel_index(at, difference.shape)),
                    expected=_number(met.expected.flatten()[at]),
                    found=_number(leaf.value.flatten()[at]),
                )

    def result(self, repeat: float, whole: Outputs) -> Measurement:
        if self.worst is None:
            raise AuditError("no group element was sampled: ask for at least one with samples=")
        count = max(self.count, 1)
        means = zip(self.mean, self.reference, strict=True)
        return Measurement(
            absolute=self.absolute,
            relative=self.relative,
            e=largest(_mean_norm(total / count, base) for total, base in means if total is not None),
            e_prime=largest(total / count for total in self.norms),
            outputs=self.outputs,
            components=self.components,
            repeatability=repeat,
            worst=self.worst,
            not_compared=whole.rest,
            vanishing=tuple(
                leaf.path
                for leaf in self.reference
                if not exact(leaf.value)
                and self.outputs[leaf.path] == 0
                and (leaf.path in self.floors or not leaf.value.any())
            ),
        )


def _number(entry: Tensor) -> float | str:
    value = entry.item()
    return str(value) if isinstance(value, complex) else float(value)


def _mean_norm(difference: Tensor, leaf: Leaf) -> float:
    """Mean over x of the norm over the other axes; x is the leading axis, unless the group acts on that axis."""
    if leaf.action is not None and difference.dim() and leaf.action.moves(0, difference.dim()):
        return norm(difference)
    size = largest_entry(difference)
    if size == 0 or not math.isfinite(size):
        return size
    rows = difference.reshape(difference.shape[0], -1) if difference.dim() else difference.reshape(1, 1)
    return size * float((rows / size).norm(dim=1).mean())


# Casting a float32 model to float64 does not undo the rounding of its constants (1e-7 in e3nn).
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_REAL = {torch.complex128: torch.float64, torch.complex64: torch.float32, torch.complex32: torch.float16}


@dataclasses.dataclass(frozen=True)
class Precision:
    """The floating dtypes of a model's parameters, and of its buffers and other constants.

    A complex tensor counts with the dtype of its real and imaginary parts.
    """

    parameters: frozenset[torch.dtype]
    buffers: frozenset[torch.dtype]

    @classmethod
    def of(cls, model: nn.Module) -> Precision:
        """Read the dtypes of a model outside `measuring`."""
        own = {id(p) for p in model.parameters()}
        plain = (value for module in model.modules() for value in vars(module).values())
        constants = (value for value in plain if isinstance(value, Tensor) and id(value) not in own)
        return cls(_dtypes(model.parameters()), _dtypes((*model.buffers(), *constants)))


def _dtypes(tensors: Iterable[Tensor]) -> frozenset[torch.dtype]:
    """The floating dtypes of tensors, and of the real and imaginary parts of complex ones."""
    found = {tensor.dtype for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()}
    return frozenset(_REAL.get(kind, kind) for kind in found)


def tolerance_of(
    precision: Precision, dtype: torch.dtype, returned: Iterable[torch.dtype]
) -> tuple[float, list[str]]:
    """Choose the tolerance for a model measured in ``dtype``, with notes for the reader.

    It is the tolerance of the coarsest dtype of the run, the parameters and the outputs. Half precision counts for parameters
    only if all of them have it, and never for buffers: a single coarse tensor says nothing about the precision of the others,
    and would let errors of 1e-2 pass.

    Args:
        returned: Dtypes of the floating and complex outputs.
    """
    parameters, buffers = precision.parameters, precision.buffers
    all_half = bool(parameters) and all(map(_is_half, parameters))
    own = parameters if all_half else frozenset(kind for kind in parameters if not _is_half(kind))
    constants = {torch.float32 if _is_half(kind) else kind for kind in buffers | (parameters - own)}
    outputs = {_REAL.get(kind, kind) for kind in returned}
    tolerance = max(TOLERANCES.get(kind, 1e-5) for kind in {dtype} | own | constants | outputs)
    notes = []
    coarse = sorted(str(k).removeprefix("torch.") for k in (buffers | parameters) - own if _is_half(k))
    if coarse:
        notes.append(
            f"some of the model's tensors are {' and '.join(coarse)}, which the tolerance ignores: give "
            "tolerance= if the rounding of constants in them is to be allowed"
        )
    casts = sorted(
        str(kind).removeprefix("torch.") for kind in outputs if _tolerance(kind) > _tolerance(dtype)
    )
    if casts:
        notes.append(
            f"the model returns {' and '.join(casts)} when it runs in {str(dtype).removeprefix('torch.')}: it casts "
            "inside, so errors as large as that rounding are allowed"
        )
    return tolerance, notes


def _is_half(kind: torch.dtype) -> bool:
    return torch.finfo(kind).bits <= 16


def _tolerance(kind: torch.dtype) -> float:
    return TOLERANCES.get(kind, 1e-5)
