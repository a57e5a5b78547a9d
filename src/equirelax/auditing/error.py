"""Equivariance errors: how far ``f(g x)`` is from ``rho(g) f(x)``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equirelax.auditing import element as elements
from equirelax.auditing.calling import call
from equirelax.auditing.coordinates import coordinates, size_of_positions
from equirelax.auditing.norms import largest, largest_entry, norm, relative_error
from equirelax.auditing.tree import Leaf, act, map_tree, transformed
from equirelax.errors import AuditError, NonFiniteError, RepresentationError
from equirelax.symmetry import Group, TensorAction


@dataclasses.dataclass(frozen=True)
class Worst:
    """Where the largest relative error was met: the group element, the output, and the entry in it."""

    element: tuple[tuple[float, ...], ...]
    description: str
    output: str
    entry: tuple[int, ...]
    expected: float | str
    found: float | str


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Equivariance errors of one function over sampled elements g_1..g_M.

    Attributes:
        absolute: max over g, outputs and entries of ``|f(g x) - rho(g) f(x)|``.
        relative: max over g and outputs of ``||f(g x) - rho(g) f(x)|| / max(||f(g x)||, ||f(x)||)``,
            Frobenius norms; of positions the sizes below are of their distances from their mean. 1 where an output of
            whole numbers or truth values differs in any entry.
        e: REMUL's E, ``mean_x || mean_i rho(g_i) f(x) - mean_i f(g_i x) ||`` (arXiv 2410.17878).
        e_prime: REMUL's E', ``mean_x mean_i || f(g_i x) - rho(g_i) f(x) ||``. In both x runs over the leading
            axis of the output (samples, nodes); of several outputs the worst counts.
        outputs: the relative error of every output.
        components: the relative error over each component of the group that was met ("proper", "with
            reflection").
        repeatability: ``max |f(x) - f(x)|`` over two calls on the same input; not 0 for a model that draws
            random numbers.
        worst: the element with the largest relative error.
        not_compared: path and class of outputs that no error was measured on (strings, empty tensors, foreign objects).
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


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a model returned.

    Attributes:
        leaves: what can be compared, detached: float64, complex128, or int64 for whole numbers and truth values. Python's
            and numpy's numbers are tensors here.
        rest: path and class of what cannot.
        dtypes: of the floating and complex tensors as they were returned.
    """

    leaves: tuple[Leaf, ...]
    rest: tuple[str, ...]
    dtypes: frozenset[torch.dtype]


def outputs_of(model: Callable[..., Any], sample: Any, out_rep: Any, words: str) -> Outputs:
    """Call the model and return its outputs.

    Raises:
        AuditError: it returns nothing that can be compared.
        NonFiniteError: an output holds NaN or infinity; ``words`` says on which input.
    """
    found, rest, dtypes = [], [], set()

    def take(leaf: Leaf) -> None:
        value = _comparable(leaf.value.detach())
        if value is None:
            rest.append(f"{leaf.path} ({'empty' if not leaf.value.numel() else 'nested'} tensor)")
            return
        if leaf.value.is_floating_point() or leaf.value.is_complex():
            dtypes.add(leaf.value.dtype)
        found.append(dataclasses.replace(leaf, value=value))

    def other(path: str, value: Any) -> None:
        if isinstance(value, (bool, int, float, complex, np.generic, np.ndarray)) and _is_number(value):
            found.append(Leaf(path, _comparable(torch.as_tensor(value)), None))  # type: ignore[arg-type]
        elif value is not None:
            rest.append(f"{path} ({type(value).__name__})")

    map_tree(call(model, sample), out_rep, take, "output", other)
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
    return Outputs(tuple(found), tuple(rest), frozenset(dtypes))


def _comparable(value: Tensor) -> Tensor | None:
    """A copy in the widest dtype of its kind; None for what has no entries that could be compared."""
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
    """Whether a tensor is of whole numbers or truth values, which are right or wrong."""
    return not (value.is_floating_point() or value.is_complex())


@dataclasses.dataclass(frozen=True)
class Gap:
    """One output on g x beside what it should be.

    Attributes:
        expected: ``rho(g) f(x)``; difference: ``f(g x)`` minus that.
        relative: see :class:`Measurement`.
    """

    expected: Tensor
    difference: Tensor
    relative: float


def gap(g: Tensor, words: str, base: Leaf, found: Leaf, spread: float = 0.0) -> Gap:
    """Compare an output on g x with that on x.

    Args:
        g: the element; words: the same for people.
        base: the output on x; found: on g x.
        spread: of the sample's coordinates: what the error of a single position is relative to.

    Raises:
        AuditError: the output's size depends on the group element.
        NonFiniteError: rho(g) f(x) overflows.
    """
    if found.value.shape != base.value.shape:
        raise AuditError(
            f"`{found.path}` has shape {tuple(base.value.shape)} on the sample and "
            f"{tuple(found.value.shape)} after a {words}: outputs whose size depends on the group element cannot be "
            "compared"
        )
    if exact(base.value) or exact(found.value):
        difference = (found.value - base.value).to(torch.float64)
        return Gap(base.value, difference, float(bool((difference != 0).any())))
    try:
        expected = act(g, base.value, base.action)
    except RepresentationError as error:  # a grid that came out with another height than width
        raise AuditError(f"`{found.path}`: {error}") from error
    if not bool(torch.isfinite(expected).all()):
        raise NonFiniteError(
            f"`{found.path}` is so large that it overflows when it is transformed by a {words}"
        )
    return Gap(
        expected,
        found.value - expected,
        relative_error(found.value, expected, _scale(found.value, expected, base.action, spread)),
    )


def _scale(found: Tensor, expected: Tensor, action: TensorAction | None, spread: float) -> float | None:
    """The size of positions does not depend on where the origin is: it is taken from their mean."""
    sizes = [size_of_positions(value, action) for value in (found, expected)]
    if None in sizes:
        return None
    size = max(size for size in sizes if size is not None)
    if size > 1e-12 * norm(expected):
        return size
    return (
        spread * (expected.numel() / expected.shape[-1]) ** 0.5 or None
    )  # a single point, such as a centre of mass


def measure(
    model: Callable[..., Any],
    sample: Any,
    in_rep: Any,
    out_rep: Any,
    group: Group,
    sampled: Tensor,
    discrete: Tensor,
    dtype: torch.dtype,
) -> Measurement:
    """Equivariance errors over ``sampled`` (M, n, n); ``discrete`` (c, n, n) elements join in all but E and
    E'.
    """
    whole = outputs_of(model, transformed(sample, in_rep, None, dtype), out_rep, "the sample as given")
    reference = whole.leaves
    again = outputs_of(model, transformed(sample, in_rep, None, dtype), out_rep, "the sample as given").leaves
    _same_outputs(reference, again, "a second call")
    repeat = largest(
        largest_entry((a.value - b.value).to(torch.complex128 if a.value.is_complex() else torch.float64))
        for a, b in zip(reference, again, strict=True)
    )

    tally = _Tally(reference, coordinates(sample, in_rep).spread)
    known: dict[
        bytes, tuple[Leaf, ...]
    ] = {}  # of a finite group, whose few elements are drawn again and again
    for index, g in enumerate(torch.cat((sampled, discrete))):
        words = elements.describe(group, g)
        key = g.numpy().tobytes()
        found = known.get(key)
        if found is None:
            moved = transformed(sample, in_rep, g, dtype)
            found = outputs_of(model, moved, out_rep, f"the sample after a {words}").leaves
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

    def __init__(self, reference: Sequence[Leaf], spread: float) -> None:
        self.reference, self.spread = reference, spread
        self.absolute, self.relative = 0.0, -1.0
        self.outputs = {leaf.path: 0.0 for leaf in reference}
        self.components: dict[str, float] = {}
        self.mean: list[Tensor | None] = [None for _ in reference]
        self.norms = [0.0 for _ in reference]
        self.count = 0
        self.worst: Worst | None = None

    def add(self, group: Group, g: Tensor, words: str, found: Sequence[Leaf], mean: bool) -> None:
        part = elements.component(group, g)
        self.count += mean
        for i, (base, leaf) in enumerate(zip(self.reference, found, strict=True)):
            met = gap(g, words, base, leaf, self.spread)
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
                    entry=tuple(int(k) for k in torch.unravel_index(torch.tensor(at), difference.shape)),
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
        )


def _number(entry: Tensor) -> float | str:
    value = entry.item()
    return str(value) if isinstance(value, complex) else float(value)


def _mean_norm(difference: Tensor, leaf: Leaf) -> float:
    """Mean over x of the norm of the rest: x is the leading axis, unless the group acts on that one."""
    if leaf.action is not None and difference.dim() and leaf.action.moves(0, difference.dim()):
        return norm(difference)
    size = largest_entry(difference)
    if size == 0 or not math.isfinite(size):
        return size
    rows = difference.reshape(difference.shape[0], -1) if difference.dim() else difference.reshape(1, 1)
    return size * float((rows / size).norm(dim=1).mean())
