"""How symmetric are the data, layer by layer? A score from the gradients of one strict network.

docs/explanation/symmetry_score.md states and proves what the score estimates.
"""

from __future__ import annotations

import dataclasses
import html
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from equirelax.auditing.moments import Loss, Rows, probe, rows_of
from equirelax.auditing.state import measuring
from equirelax.errors import AuditError
from equirelax.relaxation import (
    Convolution,
    GridKernels,
    GridSite,
    Placement,
    Relaxation,
    Residual,
    StreamSite,
    project,
    relax,
    relaxation_of,
)
from equirelax.relaxation.relaxation import unwrapped
from equirelax.symmetry import Representation, equivariant_projection, trivial

ENTRIES = 2**22
"""The moments of so many examples are held at a time that they have about this many entries."""
EPS = 1e-30
"""Keeps the ratio finite where all moments are 0."""
ALL = "all layers"


@dataclasses.dataclass(frozen=True)
class Score:
    """How one layer's data break the symmetry.

    Attributes:
        key: The residual's key; of the row over all residuals `"all layers"`.
        type: Class of its module.
        score: s, an unbiased estimate of ``|E A|^2``, in the square of the loss's unit over the weight's; it may be below 0.
        ratio: ``r = s / mean |A_i|^2``, from -1/(n - 1) to 1: the share of the non-equivariant gradient that is common to all
            examples. 0 (to noise) where the data are symmetric.
        z: s over its standard deviation if ``E A = 0``.
        size: ``mean |A_i|^2``.
    """

    key: str
    type: str
    score: float
    ratio: float
    z: float
    size: float


@dataclasses.dataclass(frozen=True)
class SymmetryScore:
    """The scores of a model's residuals; ``str()`` is a table, and a notebook shows one.

    Attributes:
        examples: n.
        whole: Over all residuals: ratio is the mean of theirs, and z is that of the mean, so that it is one test and not many.
        layers: One for each residual, in the model's order.
        skipped: Key -> why a residual has no score.
    """

    examples: int
    whole: Score
    layers: tuple[Score, ...]
    skipped: dict[str, str]

    @property
    def ratios(self) -> dict[str, float]:
        """Key -> r."""
        return {one.key: one.ratio for one in self.layers}

    def to_dict(self) -> dict[str, Any]:
        """Convert to a plain dictionary."""
        return dataclasses.asdict(self)

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (one.key or "(model)", one.type, f"{one.score:.3g}", f"{one.ratio:.4f}", f"{one.z:.2f}")
            for one in (*self.layers, dataclasses.replace(self.whole, type=""))
        ]

    def _notes(self) -> list[str]:
        notes = [
            f"{self.examples} examples. r = 0 where the data are symmetric, 1 where every example pulls the same way; "
            f"z above 3 is hardly noise."
        ]
        reasons: dict[str, list[str]] = {}
        for key, reason in self.skipped.items():
            reasons.setdefault(reason, []).append(key or "(model)")
        return notes + [f"Not scored: {', '.join(keys)}: {reason}." for reason, keys in reasons.items()]

    def __str__(self) -> str:
        lines = [HEADER, *self._cells()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
        text = [
            "  ".join(
                cell.rjust(width) if i > 1 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*text, "", *self._notes()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADER)
        rows = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in self._cells()
        )
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{notes}"


HEADER = ("layer", "class", "s", "r", "z")


def symmetry_score(
    model: nn.Module, batch: Any, loss: Loss, *, placement: Placement | str | None = None
) -> SymmetryScore:
    """Score how far the data break the symmetry at every layer that can be relaxed, from gradients of the strict network.

    For a residual and an example i let ``M_i`` be the sum over the layer's rows of the outer product of the loss's gradient by
    its output and ``[x; 1]``, x what it read: the gradient of a dense residual at gamma 1 and weight 0, with a bias. With P
    the orthogonal projection onto the equivariant maps and ``A_i = (1 - P) M_i``,

        s = (n |mean A|^2 - mean |A_i|^2) / (n - 1),        r = s / mean |A_i|^2

    over n examples. If the examples are independent, s estimates ``|E A|^2`` without bias, and ``E A = 0`` where the network is
    equivariant and the data are symmetric. The standard deviation in z is that of

        s = 2 / (n (n - 1)) sum_i d_i,        d_i = <A_i, A_1 + ... + A_(i-1)>,

    a sum of martingale differences if ``E A = 0``: ``z = sum d_i / sqrt(sum d_i^2)``. s and r do not depend on the order
    of the examples, z does a little.

    Take held-out examples, not moved by random group elements, which would hide what they break. The model may be relaxed or
    not. It runs strict (as with all gamma 0), in evaluation mode and in its own dtype, and is left as it was. Calls, rows and
    batches are added up before anything is squared; the moments of a few examples at a time are held. Where a process group
    runs, every rank must call it with examples of its own, and all get the score of all.

    Args:
        model: The network, relaxed or not; wrappers of `torch.compile` and of parallel training are looked through.
        batch: One batch, whatever `loss` takes; or several, as a `DataLoader`, a generator or another iterator, such as
            `iter(list_of_batches)`.
        loss: (model, batch) -> the loss of every example, of shape (examples,). A scalar counts as one example, so that
            an iterator over batches of one example each works with any loss, and with networks that mix the examples of a batch.
        placement: Which layers of a model that is not relaxed are looked at, as for `equirelax.relax`; None: all that it finds.

    Returns:
        The scores. Residuals without an exact orthogonal projection are in `skipped`, with the reason: those that read
        positions (translations), between representations that are not orthogonal (scalings, boosts), of kernels on a grid that
        obey their group only nearly, of streams, and of networks that differentiate themselves (forces) before that layer.

    Raises:
        AuditError: No residual can be scored, there are fewer than two examples, `loss` gives something else, the loss of one
            example depends on another example, or `placement` is given for a model that is relaxed.
        NonFiniteError: A loss or gradient is NaN or infinity.
        PlacementError: The model has nothing to relax.

    Examples:
        >>> import torch, equirelax as er
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False))
        >>> torch.nn.init.eye_(model[0].weight).requires_grad
        True
        >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        >>> y = x + torch.tensor([0.0, 0.0, -1.0])  # gravity: no rotation respects it
        >>> score = er.symmetry_score(
        ...     model,
        ...     (x, y),
        ...     lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1),
        ...     placement=er.Layers(declare=(er.Linear("0", "1x1o", "1x1o"),)),
        ... )
        >>> score.whole.ratio > 0.2, score.whole.z > 3
        (True, True)
    """
    inner = unwrapped(model)
    if any(isinstance(module, Residual) for module in inner.modules()):
        if placement is not None:
            raise AuditError(
                "symmetry_score: the model is relaxed already: leave placement out, or project the model first"
            )
        return _score(relaxation_of(inner), batch, loss)
    relaxation = relax(inner, placement, generator=torch.Generator())
    try:
        return _score(relaxation, batch, loss)
    finally:
        project(inner)


def _score(relaxation: Relaxation, batch: Any, loss: Loss) -> SymmetryScore:
    spaces = {key: _space(residual) for key, residual in relaxation}
    skipped = {key: found for key, found in spaces.items() if isinstance(found, str)}
    sums = {key: Sums(space) for key, space in spaces.items() if not isinstance(space, str)}
    if not sums:
        raise AuditError(
            "no residual of the model can be scored: "
            + "; ".join(f"{key or '(model)'}: {reason}" for key, reason in list(skipped.items())[:5])
        )
    model = relaxation.model
    tensors = (*model.parameters(), *model.buffers())
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())
    count = 0
    with measuring(model, dtype):
        probes = probe(relaxation, set(sums))
        for one in _batches(batch):
            found, rows = rows_of(probes, model, one, loss)
            count += found
            for key, calls in rows.items():
                sums[key].add(calls, found)
        for key, one_probe in probes.items():
            if one_probe.differentiated:
                skipped[key] = (
                    "the network differentiates itself behind it, so that more than its output matters"
                )
    return _summary(relaxation, sums, skipped, count)


def _batches(batch: Any) -> Iterable[Any]:
    return batch if isinstance(batch, (Iterator, DataLoader)) else [batch]


def _space(residual: Residual) -> Space | str:
    """The maps at a residual's place; a string says why their projection is not known."""
    site = residual.site
    out_rep = site.out_rep.linear_part()  # what is added to positions is a displacement
    if isinstance(site, StreamSite):
        return "it is a step of a residual stream"
    if not site.in_rep.linear:
        return "it reads positions, which translations move"
    for rep in (site.in_rep, out_rep):
        if not rep.orthogonal:
            return f"{rep!r} is not orthogonal, so that there is no mean over its group"
    if isinstance(site, GridSite):
        symmetry = site.convolution.symmetry
        if not isinstance(symmetry, GridKernels):
            return "kernels on its grid obey the group only nearly"
        return KernelSpace(site.convolution, site.in_rep, out_rep)
    if not site.can_break:
        return "it maps invariants to invariants, and breaks nothing"
    return DenseSpace(site.in_rep, out_rep)


class Space(ABC):
    """All maps at a residual's place, each with a bias, and the projection onto those that are not equivariant."""

    size: int
    """Entries of a map."""

    @abstractmethod
    def moments(self, calls: list[Rows], start: int, stop: int) -> Tensor:
        """A_i of the examples start, ..., stop - 1 of a batch: (stop - start, size), in float64."""


class DenseSpace(Space):
    """Matrices (out_dim, in_dim + 1), the last column the bias."""

    def __init__(self, in_rep: Representation, out_rep: Representation) -> None:
        self.in_rep, self.out_rep = in_rep + trivial(in_rep.group), out_rep
        self.size = self.in_rep.dim * out_rep.dim

    def moments(self, calls: list[Rows], start: int, stop: int) -> Tensor:
        """See `Space`."""
        like = calls[0].read
        found = like.new_zeros(stop - start, self.out_rep.dim, self.in_rep.dim, dtype=torch.float64)
        for call in calls:
            for example, of_one in _split(call, start, stop):
                rows, gradient = call.read[of_one].double(), call.gradient[of_one].double()
                found[example - start, :, :-1] += gradient.mT @ rows
                found[example - start, :, -1] += gradient.sum(0)
        return (found - equivariant_projection(found, self.in_rep, self.out_rep)).flatten(1)


class KernelSpace(Space):
    """Kernels of a convolution and biases of its output."""

    def __init__(self, convolution: Convolution, in_rep: Representation, out_rep: Representation) -> None:
        self.convolution, self.out_rep = convolution, out_rep
        self.shape = convolution.weight_shape(in_rep.dim, out_rep.dim)
        self.size = math.prod(self.shape) + out_rep.dim

    def moments(self, calls: list[Rows], start: int, stop: int) -> Tensor:
        """See `Space`."""
        found = calls[0].read.new_zeros(stop - start, self.size, dtype=torch.float64)
        kernels, biases = found[:, : -self.out_rep.dim], found[:, -self.out_rep.dim :]
        for call in calls:
            for example, of_one in _split(call, start, stop):
                read, gradient = call.read[of_one].double(), call.gradient[of_one].double()
                weight = read.new_zeros(self.shape, requires_grad=True)
                (kernel,) = torch.autograd.grad(self.convolution(read, weight), weight, gradient)
                kernels[example - start] += kernel.flatten()
                biases[example - start] += gradient.flatten(2).sum((0, 2))
        for kernel in kernels:
            kernel -= self.convolution.symmetry.project(kernel.view(self.shape)).flatten()
        invariant = equivariant_projection(biases[..., None], trivial(self.out_rep.group), self.out_rep)
        biases -= invariant[..., 0]
        return found


def _split(call: Rows, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
    """The rows of each example from `start` to before `stop`."""
    order = call.example.argsort(stable=True)
    counts = torch.bincount(call.example, minlength=stop).tolist()
    at = sum(counts[:start])
    for example in range(start, stop):
        if counts[example]:
            yield example, order[at : at + counts[example]]
        at += counts[example]


class Sums:
    """Running sums of one residual: all that the score needs of the examples.

    Args:
        space: The maps at its place.

    Attributes:
        total: The sum of A_i, (size,), float64; None before the first example.
        squares: The sum of ``|A_i|^2``.
        steps: Of every example ``d_i = <A_i, sum of those before>``.
        called: Whether a call has reached the layer.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.total = torch.zeros(space.size, dtype=torch.float64)
        self.squares = 0.0
        self.steps: list[float] = []
        self.called = False

    def add(self, calls: list[Rows], count: int) -> None:
        """Add the examples of a batch."""
        if not calls:
            self.steps += count * [0.0]
            return
        self.called = True
        self.total = self.total.to(calls[0].read.device)
        chunk = max(1, ENTRIES // self.space.size)
        for start in range(0, count, chunk):
            found = self.space.moments(calls, start, min(start + chunk, count))
            gram = found @ found.T
            self.steps += (found @ self.total + gram.tril(-1).sum(1)).tolist()
            self.squares += float(gram.diagonal().sum())
            self.total += found.sum(0)


def _summary(
    relaxation: Relaxation, sums: dict[str, Sums], skipped: dict[str, str], count: int
) -> SymmetryScore:
    device = relaxation.gammas().device
    called = _over_ranks(torch.tensor([float(one.called) for one in sums.values()], device=device))
    for key, number in zip(sums, called.tolist(), strict=True):
        if not number:
            skipped[key] = "no call of the model reaches it"
    kept = {key: one for key, one in sums.items() if key not in skipped}
    if not kept:
        raise AuditError(
            "no residual of the model was scored: " + "; ".join(f"{k}: {v}" for k, v in skipped.items())
        )
    steps = torch.tensor(
        [one.steps for one in kept.values()], dtype=torch.float64
    )  # (residuals, examples of this rank)
    joins = torch.tensor([_joins(one.total.to(device)) for one in kept.values()], dtype=torch.float64)
    squares = torch.tensor([one.squares for one in kept.values()], dtype=torch.float64)
    n = round(float(_over_ranks(torch.tensor([float(count)], dtype=torch.float64, device=device))))
    if n < 2:
        raise AuditError(
            f"{n} example was given, and the score needs two at least: let loss return one loss for every example, or give an "
            f"iterator over batches of one example each"
        )
    size = _over_ranks(squares.to(device)).cpu() / n
    weights = 1 / (size + EPS)
    parts = torch.stack(
        [
            steps.sum(1), steps.square().sum(1), weights * steps.sum(1),
            (weights @ steps).square().sum().expand(len(kept)),
        ]
    )  # fmt: skip
    parts = _over_ranks(parts.to(device)).cpu() + torch.stack(
        [
            joins.sum(1), joins.square().sum(1), weights * joins.sum(1),
            (weights @ joins).square().sum().expand(len(kept)),
        ]
    )  # fmt: skip
    scores = 2 * parts[0] / (n * (n - 1))
    layers = tuple(
        Score(key, type(relaxation.module(key)).__name__, *values)
        for key, *values in zip(
            kept,
            scores.tolist(),
            (scores * weights).tolist(),
            _z(parts[0], parts[1]).tolist(),
            size.tolist(),
            strict=True,
        )
    )
    z = float(_z(parts[2].sum(), parts[3, 0]))
    whole = Score(ALL, "", float(scores.sum()), float((scores * weights).mean()), z, float(size.sum()))
    return SymmetryScore(n, whole, layers, {key: skipped[key] for key, _ in relaxation if key in skipped})


def _z(total: Tensor, squares: Tensor) -> Tensor:
    return total / squares.sqrt().clamp(min=torch.finfo(torch.float64).tiny)


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _over_ranks(local: Tensor) -> Tensor:
    """The sum over the ranks of the default process group."""
    if _ranks() > 1:
        dist.all_reduce(local)
    return local


def _joins(total: Tensor) -> list[float]:
    """<sum of a rank's moments, sum of those of the ranks before it>, rank by rank; the same on all ranks."""
    before, found = torch.zeros_like(total), []
    for rank in range(_ranks()):
        here = total.clone()
        if _ranks() > 1:
            dist.broadcast(here, src=rank)
        found.append(float(here @ before))
        before += here
    return found
