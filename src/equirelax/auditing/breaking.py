"""How much each residual of a relaxed model breaks the symmetry: its strength, its size and its measured error.

gamma alone is misleading, because a small gamma may go with large weights. The effect of each residual is therefore measured
with all others switched off. Its input is then transformed exactly, and it alone causes the errors of its term and of the
model's output.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from equirelax.auditing.actions import Action, action_of
from equirelax.auditing.elements import acts_through
from equirelax.auditing.error import coordinates, gap, outputs_of, with_translations
from equirelax.auditing.norms import largest, norm
from equirelax.auditing.samples import (
    FROM_MODEL,
    Case,
    Leaf,
    common_group,
    leaves,
    read_representations,
)
from equirelax.auditing.state import measuring
from equirelax.errors import AuditError
from equirelax.relaxation import Relaxation, Residual
from equirelax.relaxation.columns import Columns, dense
from equirelax.relaxation.sites import Site
from equirelax.symmetry import Group


@dataclasses.dataclass(frozen=True)
class Breaking:
    """How one residual breaks the symmetry at a sample.

    Attributes:
        key: The residual's key.
        type: Class of its module.
        relaxes: A description of the symmetry that it can break.
        gamma: Its strength.
        weight: ||W||: the largest singular value of a dense residual, or the Lipschitz constant (product over the layers) of
            another one; ``None`` if no constant is known.
        share: ``||gamma f_neq(x)|| / ||output of the module||``; ``None`` if the output is unknown.
        added: Maximum over g of ``||rho(g) gamma f_neq(x) - gamma f_neq(rho(g) x)||`` divided by the norm of the module's
            output, with the other residuals off; ``None`` if the residual did not run or its action is unknown.
        bound: Upper bound on ``added``: ``2 |gamma| b ||x||`` divided by the same norm (ACE's bound for this layer); ``None``
            if its assumptions fail.
        reason: The assumption that fails, else empty.
        alone: Relative equivariance error of the model's output with this residual alone.
    """

    key: str
    type: str
    relaxes: str
    gamma: float
    weight: float | None
    share: float | None
    added: float | None
    bound: float | None
    reason: str
    alone: float

    @property
    def size(self) -> float | None:
        """``|gamma| ||W||``, which does not depend on how the scale is divided between gamma and W."""
        return None if self.weight is None else abs(self.gamma) * self.weight

    def to_dict(self) -> dict[str, Any]:
        """Convert to a plain dictionary, with `size`."""
        return {**dataclasses.asdict(self), "size": self.size}


def breaking(
    relaxation: Relaxation,
    sample: Any,
    in_rep: Any = FROM_MODEL,
    out_rep: Any = FROM_MODEL,
    group: Group | None = None,
    *,
    model: Callable[..., Any] | None = None,
    samples: int = 8,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Breaking, ...]:
    """Measure every residual separately, in the model's order. The model is restored afterwards.

    Args:
        relaxation: The model's relaxation.
        sample, in_rep, out_rep, group: As for :func:`equirelax.auditing.audit`.
        model: A function that calls the relaxed model, to be run instead of the relaxed model itself.
        samples: Number of sampled group elements, >= 1. Generators of a finite group and one element of every other component
            are also tried. Translations are sampled up to the largest coordinate of the sample.
        seed: Seed of the elements.
        dtype: Precision in which the model runs.

    Raises:
        AuditError: Sample, representations and group do not fit together, or `samples` is below 1.
        NonFiniteError: The model returns NaN or infinity.
    """
    if samples < 1:
        raise AuditError(f"samples={samples}: at least one group element is needed")
    in_rep, out_rep = read_representations(in_rep, out_rep, group, relaxation.model)
    group = common_group(group, in_rep, out_rep)
    generator = torch.Generator().manual_seed(seed)
    elements = torch.cat(
        (group.sample(samples, generator=generator, dtype=torch.float64), group.discrete(dtype=torch.float64))
    )
    elements = with_translations(group, elements, coordinates(sample, in_rep).largest or 1.0)
    with measuring(relaxation.model, dtype, seed):
        case = Case(model or relaxation.model, sample, in_rep, out_rep, group, dtype)
        run = _Run(relaxation, case, elements)
        return tuple(run.measure(key, residual) for key, residual in relaxation)


@dataclasses.dataclass
class _Call:
    """One call of a residual: the norm of its input, the added term, and the norm of the output it was added to."""

    read: float | None
    added: Tensor
    output: float | None


@dataclasses.dataclass
class _Run:
    """The model with one residual on, run on the sample and on the transformed sample."""

    relaxation: Relaxation
    case: Case
    elements: Tensor

    def measure(self, key: str, residual: Residual) -> Breaking:
        with self.only(residual):
            calls, reference = self.call(residual, None)
            added, share, alone = 0.0, _share(calls), 0.0
            bound, reason = self.bound(residual, calls)
            action = self.action(residual)
            for g in self.elements:
                moved, outputs = self.call(residual, g)
                alone = largest((alone, _output_error(g, reference, outputs)))
                if action is not None and len(moved) == len(calls):
                    pairs = zip(calls, moved, strict=True)
                    added = largest([added, *(_added(action, g, a, b) for a, b in pairs)])
        found = residual.slope()
        return Breaking(
            key=key,
            type=type(self.relaxation.module(key)).__name__,
            relaxes=residual.site.relaxes,
            gamma=float(residual.gamma.detach()),
            weight=found.constant,
            share=share,
            added=added if calls and action is not None else None,
            bound=bound,
            reason=reason,
            alone=alone,
        )

    @contextlib.contextmanager
    def only(self, chosen: Residual) -> Iterator[None]:
        """Switch all other residuals off. A residual that was off stays off."""
        before = {residual: residual.enabled for _, residual in self.relaxation}
        try:
            for residual in before:
                residual.enabled = residual is chosen and residual.enabled
            yield
        finally:
            for residual, enabled in before.items():
                residual.enabled = enabled

    def call(self, residual: Residual, g: Tensor | None) -> tuple[list[_Call], tuple[Leaf, ...]]:
        """Run the model on the sample transformed by g; return the residual's calls and the model's outputs."""
        calls: list[_Call] = []
        site = residual.site
        watched: Any = _Watched(site, calls)
        residual.site = watched
        try:
            words = "the sample" if g is None else "the transformed sample"
            return calls, outputs_of(self.case, g, words).leaves
        finally:
            residual.site = site

    def action(self, residual: Residual) -> Action | None:
        """The action of the group on the residual's term; None if it is unknown."""
        if not acts_through(self.case.group, residual.out_rep.group):
            return None
        found = residual.site.action(residual.out_rep)
        return None if found is None else action_of(found, self.case.group)

    def bound(self, residual: Residual, calls: list[_Call]) -> tuple[float | None, str]:
        found = residual.slope()
        if found.constant is None or found.reason:
            return None, found.reason
        for rep in (residual.in_rep, residual.out_rep):
            if not rep.orthogonal:
                return None, f"{rep!r} is not an orthogonal representation"
        b = 2 * abs(float(residual.gamma.detach())) * found.constant
        over = []
        for one in calls:
            if one.output is None or one.read is None:
                return None, "the size of the module's output is not known"
            over.append(b * one.read / one.output if one.output else 0.0)
        return (max(over), "") if over else (None, "it did not run on this sample")


def _share(calls: list[_Call]) -> float | None:
    sizes = [one.output for one in calls]
    if not calls or None in sizes:
        return None
    return max(norm(one.added) / size if size else 0.0 for one, size in zip(calls, sizes, strict=True))


def _added(action: Action, g: Tensor, base: _Call, moved: _Call) -> float:
    """``||rho(g) d(x) - d(g x)||`` divided by the norm of the module's output, or of d(x) if that is unknown."""
    difference = norm(action.apply(g, base.added) - moved.added)
    size = norm(base.added) if base.output is None else base.output
    return difference / size if size > 0 else 0.0


def _output_error(g: Tensor, reference: Sequence[Leaf], found: Sequence[Leaf]) -> float:
    pairs = zip(reference, found, strict=True)
    return largest(gap(g, "group element", a, b).relative for a, b in pairs)


class _Watched:
    """A site that records the norm of its residual's input, the added term, and the norm of the result."""

    def __init__(self, own: Site, calls: list[_Call]) -> None:
        self.own, self.calls = own, calls
        self.norm: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Columns:
        x = self.own.read(args, kwargs)
        self.norm = norm(dense(x).detach().double())
        return x

    def add(self, output: Any, delta: Tensor) -> Any:
        result = self.own.add(output, delta)
        added = delta.detach().double().clone()
        self.calls.append(_Call(self.norm, added, _size(self.own, result, added)))
        return result


def _size(site: Site, output: Any, added: Tensor) -> float | None:
    """The norm of the tensor that the residual was added to, divided by sqrt(copies) if it was added to several copies."""
    output = site.added_to(output)
    if not isinstance(output, Tensor):
        same = [leaf.value for leaf in leaves(output, None) if leaf.value.shape == added.shape]
        if len(same) != 1:
            return None
        output = same[0]
    copies = output.numel() / added.numel() if added.numel() else 1.0  # time steps of an EGNO
    return norm(output.detach().double()) / math.sqrt(copies)
