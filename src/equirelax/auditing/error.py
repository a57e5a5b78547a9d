"""Equivariance errors: how far ``f(g x)`` is from ``rho(g) f(x)``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from equirelax.auditing import element as elements
from equirelax.auditing.tree import Leaf, act, call, leaves, transformed
from equirelax.errors import AuditError, NonFiniteError, RepresentationError
from equirelax.symmetry import Group


@dataclasses.dataclass(frozen=True)
class Worst:
    """Where the largest relative error was met: the group element, the output, and the entry in it."""

    element: tuple[tuple[float, ...], ...]
    description: str
    output: str
    entry: tuple[int, ...]
    expected: float
    found: float


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Equivariance errors of one function over sampled elements g_1..g_M.

    Attributes:
        absolute: max over g, outputs and entries of ``|f(g x) - rho(g) f(x)|``.
        relative: max over g and outputs of ``||f(g x) - rho(g) f(x)|| / max(||f(g x)||, ||f(x)||)``,
            Frobenius norms.
        e: REMUL's E, ``mean_x || mean_i rho(g_i) f(x) - mean_i f(g_i x) ||`` (arXiv 2410.17878).
        e_prime: REMUL's E', ``mean_x mean_i || f(g_i x) - rho(g_i) f(x) ||``. In both x runs over the leading
            axis of the output (samples, nodes); of several outputs the worst counts.
        outputs: the relative error of every output.
        components: the relative error over each component of the group that was met ("proper", "with
            reflection").
        repeatability: ``max |f(x) - f(x)|`` over two calls on the same input; not 0 for a model that draws
            random numbers.
        worst: the element with the largest relative error.
    """

    absolute: float
    relative: float
    e: float
    e_prime: float
    outputs: dict[str, float]
    components: dict[str, float]
    repeatability: float
    worst: Worst


def relative_error(found: Tensor, expected: Tensor) -> float:
    """``||a - b|| / max(||a||, ||b||)``, 0 where both are 0: symmetric, at most 2."""
    scale = max(float(found.norm()), float(expected.norm()))
    return float((found - expected).norm()) / scale if scale > 0 else 0.0


def outputs_of(model: Callable[..., Any], sample: Any, out_rep: Any, words: str) -> list[Leaf]:
    """Call the model and return its measurable outputs, detached, in float64.

    Raises:
        AuditError: it returns no floating tensor.
        NonFiniteError: an output holds NaN or infinity; ``words`` says on which input.
    """
    found = [leaf for leaf in leaves(call(model, sample), out_rep, "output") if leaf.measurable]
    if not found:
        raise AuditError(
            "the model returns no floating tensor: there is nothing whose equivariance could be measured"
        )
    for leaf in found:
        if not bool(torch.isfinite(leaf.value).all()):
            raise NonFiniteError(
                f"`{leaf.path}` holds NaN or infinity on {words}: no equivariance error can be measured"
            )
    return [dataclasses.replace(leaf, value=leaf.value.detach().double().clone()) for leaf in found]


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
    reference = outputs_of(model, transformed(sample, in_rep, None, dtype), out_rep, "the sample as given")
    again = outputs_of(model, transformed(sample, in_rep, None, dtype), out_rep, "the sample as given")
    repeat = max(float((a.value - b.value).abs().max()) for a, b in zip(reference, again, strict=True))

    tally = _Tally(reference)
    known: dict[bytes, list[Leaf]] = {}  # of a finite group, whose few elements are drawn again and again
    for index, g in enumerate(torch.cat((sampled, discrete))):
        words = elements.describe(group, g)
        key = g.numpy().tobytes()
        found = known.get(key) or outputs_of(
            model, transformed(sample, in_rep, g, dtype), out_rep, f"the sample after a {words}"
        )
        if group.order is not None and group.order <= len(sampled):
            known[key] = found
        tally.add(group, g, words, found, mean=index < len(sampled))
    return tally.result(repeat)


class _Tally:
    """Running maxima and means over elements."""

    def __init__(self, reference: list[Leaf]) -> None:
        self.reference = reference
        self.absolute, self.relative = 0.0, -1.0
        self.outputs = {leaf.path: 0.0 for leaf in reference}
        self.components: dict[str, float] = {}
        self.mean = [torch.zeros_like(leaf.value) for leaf in reference]
        self.norms = [0.0 for _ in reference]
        self.count = 0
        self.worst: Worst | None = None

    def add(self, group: Group, g: Tensor, words: str, found: list[Leaf], mean: bool) -> None:
        part = elements.component(group, g)
        self.count += mean
        for i, (base, leaf) in enumerate(zip(self.reference, found, strict=True)):
            if leaf.value.shape != base.value.shape:
                raise AuditError(
                    f"`{leaf.path}` has shape {tuple(base.value.shape)} on the sample and "
                    f"{tuple(leaf.value.shape)} after a "
                    f"{words}: outputs whose size depends on the group element cannot be compared"
                )
            try:
                expected = act(g, base.value, base.action)
            except RepresentationError as error:  # a grid that came out with another height than width
                raise AuditError(f"`{leaf.path}`: {error}") from error
            difference = leaf.value - expected
            relative = relative_error(leaf.value, expected)
            self.absolute = max(self.absolute, float(difference.abs().max()))
            self.outputs[leaf.path] = max(self.outputs[leaf.path], relative)
            self.components[part] = max(self.components.get(part, 0.0), relative)
            if mean:
                self.mean[i] += difference
                self.norms[i] += _mean_norm(difference, base)
            if relative > self.relative:
                self.relative = relative
                at = int(difference.abs().argmax())
                self.worst = Worst(
                    element=tuple(tuple(row) for row in g.tolist()),
                    description=words,
                    output=leaf.path,
                    entry=tuple(int(k) for k in torch.unravel_index(torch.tensor(at), difference.shape)),
                    expected=float(expected.flatten()[at]),
                    found=float(leaf.value.flatten()[at]),
                )

    def result(self, repeat: float) -> Measurement:
        if self.worst is None:
            raise AuditError("no group element was sampled: ask for at least one with samples=")
        count = max(self.count, 1)
        return Measurement(
            absolute=self.absolute,
            relative=self.relative,
            e=max(
                _mean_norm(total / count, base) for total, base in zip(self.mean, self.reference, strict=True)
            ),
            e_prime=max(norm / count for norm in self.norms),
            outputs=self.outputs,
            components=self.components,
            repeatability=repeat,
            worst=self.worst,
        )


def _mean_norm(difference: Tensor, leaf: Leaf) -> float:
    """Mean over x of the norm of the rest: x is the leading axis, unless the group acts on that one."""
    if leaf.action is not None and difference.dim() and leaf.action.moves(0, difference.dim()):
        return float(difference.norm())
    rows = difference.reshape(difference.shape[0], -1) if difference.dim() else difference.reshape(1, 1)
    return float(rows.norm(dim=1).mean())
