"""A score of how symmetric the data are at each layer, from the gradients of one strict network.

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

from equirelax.auditing.moments import Loss, Probe, Rows, probe, rows_of
from equirelax.auditing.state import measuring
from equirelax.errors import AuditError, NonFiniteError
from equirelax.ranks import ranks, summed
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
"""Approximate number of entries of the moments that are held at a time."""
ROUNDING = 10
"""A part of the gradient smaller than this many units of the dtype's precision, relative to the whole, is rounding."""
SAME = 1e-6
"""Sums of two ranks whose relative difference is at most this are of the same examples."""
ALL = "all layers"
END = object()


@dataclasses.dataclass(frozen=True)
class Score:
    """How strongly the data break the symmetry at one layer.

    Attributes:
        key: The residual's key, or `"all layers"` for the row over all residuals.
        type: Class of its module.
        score: s, an unbiased estimate of ``|E A|^2``, in the square of the loss's unit over the weight's; it may be negative.
        ratio: ``r = s / mean |A_i|^2``, from -1/(n - 1) to 1: the share of the non-equivariant gradient that is common to all
            examples. It is 0 up to noise if the data are symmetric.
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
    """The scores of a model's residuals. ``str()`` is a table, and a notebook shows one.

    Attributes:
        examples: The number of examples, n.
        whole: The score over all residuals. Its ratio is the mean of theirs and its z is that of the mean, which makes it one
            test instead of many.
        layers: One score per residual, in the model's order.
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
    """Score how strongly the data break the symmetry at every layer that can be relaxed, from gradients of the strict network.

    For a residual and an example i, let ``M_i`` be the gradient of a dense residual with a bias, at gamma 1 and weight 0. It is
    the sum over the layer's rows of the outer product of the loss's gradient in the layer's output and ``[x; 1]``, where x is
    the layer's input. With P the orthogonal projection onto the equivariant maps and ``A_i = (1 - P) M_i``,

        s = (n |mean A|^2 - mean |A_i|^2) / (n - 1),        r = s / mean |A_i|^2

    over n examples. If the examples are independent, s estimates ``|E A|^2`` without bias, and ``E A = 0`` if the network is
    equivariant and the data are symmetric. The standard deviation in z is that of

        s = 2 / (n (n - 1)) sum_i d_i,        d_i = <A_i, A_1 + ... + A_(i-1)>,

    a sum of martingale differences if ``E A = 0``: ``z = sum d_i / sqrt(sum d_i^2)``. s and r do not depend on the order
    of the examples; z depends on it slightly.

    Use independent held-out examples that are not moved by random group elements, which would hide the asymmetry. The model may
    be relaxed or not. It runs strict (as with all gamma 0), in evaluation mode and in its own dtype, and is left as it was.
    Calls, rows and batches are added up before anything is squared, and only the moments of a few examples are held at a time.
    In a process group, every rank must call the function with separate examples, and all get the common score.

    Args:
        model: The network, relaxed or not. Wrappers of `torch.compile` and of parallel training are unwrapped.
        batch: One batch, in any form that `loss` takes; or several, as a `DataLoader`, a generator or another iterator, such as
            `iter(list_of_batches)`.
        loss: (model, batch) -> the loss of every example, of shape (examples,). A scalar counts as one example. An iterator over
            batches of one example each therefore works with any loss, and with networks that mix the examples of a batch.
        placement: The layers to score in a model that is not relaxed, as for `equirelax.relax`; None: all that it finds.

    Returns:
        The scores. Some residuals are in `skipped`, with the reason: those between invariants, which break nothing, those that
        read positions (translations), those between representations that are not orthogonal (scalings, boosts),
        kernels on a grid that obey their group only approximately, residuals of streams, those of networks that differentiate
        themselves (forces) before that layer, and those on whose output the loss does not depend.

    Raises:
        AuditError: No residual can be scored, there are fewer than two examples, `loss` returns something else, the loss of one
            example depends on another example, `placement` is given for a relaxed model, another rank failed, or all
            ranks gave the same examples.
        NonFiniteError: A loss, a gradient, or the input of a layer contains NaN or infinity.
        PlacementError: The model has nothing to relax.

    Examples:
        >>> import torch, equirelax as er
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False))
        >>> torch.nn.init.eye_(model[0].weight).requires_grad
        True
        >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        >>> y = x + torch.tensor([0.0, 0.0, -1.0])  # gravity, which breaks the symmetry
        >>> score = er.symmetry_score(
        ...     model,
        ...     (x, y),
        ...     lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1),
        ...     placement=er.Layers(declare=(er.Linear("0", "1x1o", "1x1o"),)),
        ... )
        >>> score.whole.ratio > 0.2, score.whole.z > 3
        (True, True)
    """
    if not isinstance(model, nn.Module) or not callable(loss):
        raise AuditError(
            f"symmetry_score: model is a {type(model).__name__} and loss a {type(loss).__name__}; expected a torch.nn.Module, of "
            f"a handle relaxation.model, and a function (model, batch) -> losses"
        )
    inner = unwrapped(model)
    if any(isinstance(module, Residual) for module in inner.modules()):
        if placement is not None:
            raise AuditError(
                "symmetry_score: the model is relaxed already: leave placement out, or project the model first"
            )
        relaxation = relaxation_of(inner)
        if any(residual.suspended for _, residual in relaxation):
            raise AuditError(
                "symmetry_score: call it outside relaxation.strict(); it uses the strict network anyway"
            )
        return _score(relaxation, batch, loss)
    relaxation = relax(inner, placement, generator=torch.Generator())
    try:
        return _score(relaxation, batch, loss)
    finally:
        project(inner)


def _score(relaxation: Relaxation, batch: Any, loss: Loss) -> SymmetryScore:
    spaces = {key: _space(residual) for key, residual in relaxation}
    skipped = {key: found for key, found in spaces.items() if isinstance(found, str)}
    scored = {key: space for key, space in spaces.items() if not isinstance(space, str)}
    if not scored:
        reasons: dict[str, list[str]] = {}
        for key, reason in skipped.items():
            reasons.setdefault(reason, []).append(key or "(model)")
        raise AuditError(
            "no residual of the model can be scored: "
            + "; ".join(f"{', '.join(keys[:5])}: {reason}" for reason, keys in reasons.items())
        )
    model, sums = relaxation.model, Sums(scored, relaxation.gammas().device)
    with measuring(model, None):
        probes = probe(relaxation, set(scored))
        count = _measure(probes, model, batch, loss, sums)
        differentiated = _of_ranks([one.differentiated for one in probes.values()], sums.device)
    for key, found in zip(probes, zip(*differentiated, strict=True), strict=True):
        if any(found):
            skipped[key] = "the network differentiates itself after it, so that more than its output matters"
    return _summary(relaxation, sums, skipped, count)


def _batches(batch: Any) -> Iterable[Any]:
    return batch if isinstance(batch, (Iterator, DataLoader)) else [batch]


def _space(residual: Residual) -> Space | str:
    """The space of maps at a residual's place, or a string that says why their projection is not known."""
    site = residual.site
    out_rep = site.out_rep.linear_part()  # what is added to positions is a displacement
    if isinstance(site, StreamSite):
        return "it is a step of a residual stream"
    if not site.in_rep.linear:
        return "it reads positions, which translations move (choose residuals that read them relative to their mean)"
    for rep in (site.in_rep, out_rep):
        if not rep.orthogonal:
            return f"{rep!r} is not orthogonal, so that there is no mean over its group"
    if isinstance(site, GridSite):
        symmetry = site.convolution.symmetry
        if not isinstance(symmetry, GridKernels):
            return "kernels on its grid obey the group only approximately"
        return KernelSpace(site.convolution, site.in_rep, out_rep)
    if not site.can_break:
        return "it maps invariants to invariants, and breaks nothing"
    return DenseSpace(site.in_rep, out_rep)


class Space(ABC):
    """The space of all maps at a residual's place, with biases, and the projection onto its non-equivariant part."""

    size: int
    """Number of entries of a map."""

    @abstractmethod
    def moments(self, calls: list[Rows], start: int, stop: int) -> Tensor:
        """A_i of the examples start, ..., stop - 1 of a batch, (stop - start, size), in float64."""


class DenseSpace(Space):
    """Matrices (out_dim, in_dim + 1), whose last column is the bias."""

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
        rest = found - equivariant_projection(found, self.in_rep, self.out_rep)
        return _without_rounding(rest.flatten(1), found.flatten(1), like.dtype)


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
        whole = found.clone()
        for kernel in kernels:
            kernel -= self.convolution.symmetry.project(kernel.view(self.shape)).flatten()
        invariant = equivariant_projection(biases[..., None], trivial(self.out_rep.group), self.out_rep)
        biases -= invariant[..., 0]
        return _without_rounding(found, whole, calls[0].read.dtype)


def _without_rounding(rest: Tensor, whole: Tensor, dtype: torch.dtype) -> Tensor:
    """A_i, set to 0 where it is only rounding compared with M_i, since rounding may be common to all examples."""
    norms = [torch.linalg.vector_norm(of, dim=1, keepdim=True) for of in (rest, whole)]
    return torch.where(norms[0] > ROUNDING * torch.finfo(dtype).eps * norms[1], rest, 0.0)


def _split(call: Rows, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
    """The rows of each example from `start` up to but not including `stop`."""
    order = call.example.argsort(stable=True)
    counts = torch.bincount(call.example, minlength=stop).tolist()
    at = sum(counts[:start])
    for example in range(start, stop):
        if counts[example]:
            yield example, order[at : at + counts[example]]
        at += counts[example]


class Sums:
    """Running sums over the examples of all ranks, from which the score is computed.

    Args:
        spaces: Key -> the space of maps at a residual's place.
        device: The device on which the ranks exchange tensors.

    Attributes:
        reached: Keys of the residuals whose outputs the loss of this rank's examples depended on.
    """

    def __init__(self, spaces: dict[str, Space], device: torch.device) -> None:
        self.spaces = spaces
        self.reached: set[str] = set()
        self.device = device
        self._sizes = [space.size for space in spaces.values()]
        self._total = torch.zeros(sum(self._sizes), dtype=torch.float64, device=device)
        self._squares = torch.zeros(len(spaces), dtype=torch.float64, device=device)
        self._steps = [torch.zeros(len(spaces), 0, dtype=torch.float64, device=device)]
        self._twins: list[bool] = []

    def add(self, rows: dict[str, list[Rows]], count: int, most: int) -> None:
        """Add a batch of each rank, a few examples at a time, rank by rank.

        Args:
            rows: The calls of every residual in this rank's batch.
            count: Number of examples in this rank's batch; 0 if it has none left.
            most: Number of examples in the largest batch of all ranks.
        """
        self.reached.update(key for key, calls in rows.items() if calls)
        chunk = max(1, ENTRIES // sum(self._sizes))
        for start in range(0, most, chunk):
            stop = max(start, min(start + chunk, count))
            moments = [
                space.moments(rows[key], start, stop).to(self.device)
                if rows.get(key) and stop > start
                else torch.zeros(stop - start, space.size, dtype=torch.float64, device=self.device)
                for key, space in self.spaces.items()
            ]
            lower, every = self._lower_and_all(torch.cat([found.sum(0) for found in moments]))
            before = (self._total + lower).split(self._sizes)
            self._total += every
            grams = [found @ found.T for found in moments]
            self._steps.append(
                torch.stack(
                    [
                        found @ sum_before + gram.tril(-1).sum(1)
                        for found, sum_before, gram in zip(moments, before, grams, strict=True)
                    ]
                )
            )
            self._squares += torch.stack([gram.diagonal().sum() for gram in grams])

    def _lower_and_all(self, local: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of a tensor over the ranks below this one and over all ranks; the latter is identical on all ranks."""
        if ranks() == 1:
            return torch.zeros_like(local), local
        lower, every, first = torch.zeros_like(local), torch.zeros_like(local), local
        for rank in range(ranks()):
            here = local.clone()
            dist.broadcast(here, src=rank)
            if rank < dist.get_rank():
                lower += here
            every += here
            if rank == 0:
                first = here
            elif float(here.norm()) > 0:
                self._twins.append(float((here - first).norm()) <= SAME * float(here.norm()))
        return lower, every

    @property
    def repeated(self) -> bool:
        """Whether all ranks gave the same examples, in the same batches."""
        return bool(self._twins) and all(self._twins)

    def kept(self, keys: list[str]) -> tuple[Tensor, Tensor]:
        """d_i of this rank's examples, (residuals, examples), and the sum of ``|A_i|^2`` over all ranks, of some residuals."""
        chosen = [index for index, key in enumerate(self.spaces) if key in keys]
        return torch.cat(self._steps, 1)[chosen], summed(self._squares)[chosen]


def _measure(probes: dict[str, Probe], model: nn.Module, batch: Any, loss: Loss, sums: Sums) -> int:
    """Add up all batches, one of each rank at a time, and return the number of examples of all ranks."""
    batches, examples, ended = iter(_batches(batch)), 0, False
    while True:
        count, failure = 0, None
        rows: dict[str, list[Rows]] = {}
        try:
            one = END if ended else next(batches, END)
            ended = one is END
            if not ended:
                count, rows = rows_of(probes, model, one, loss)
        except Exception as error:
            failure = error
        states = _of_ranks([count, not ended, failure is not None], sums.device)
        if failure is not None:
            raise failure
        if any(failed for _, _, failed in states):
            raise AuditError("the symmetry score failed in another process, whose message says why")
        if not any(more for _, more, _ in states):
            return examples
        counts = [number for number, _, _ in states]
        sums.add(rows, count, max(counts))
        examples += sum(counts)


def _summary(relaxation: Relaxation, sums: Sums, skipped: dict[str, str], n: int) -> SymmetryScore:
    if sums.repeated:
        raise AuditError(
            "every process gave the same examples, which would count as agreement: give each a separate share, such as "
            "examples[rank::world_size]"
        )
    if n < 2:
        raise AuditError(
            f"the score needs at least two examples; there {'was 1' if n else 'were none'}: let loss return one loss for every "
            f"example, or give an iterator over batches of one example each"
        )
    for key, found in zip(
        sums.spaces,
        zip(*_of_ranks([key in sums.reached for key in sums.spaces], sums.device), strict=True),
        strict=True,
    ):
        if not any(found):
            skipped.setdefault(key, "the loss does not depend on its output")
    kept = [key for key in sums.spaces if key not in skipped]
    if not kept:
        raise AuditError(
            "no residual of the model was scored: "
            + "; ".join(f"{k or '(model)'}: {v}" for k, v in skipped.items())
        )
    steps, squares = sums.kept(kept)
    size = squares / n
    if not bool(torch.isfinite(size).all()):
        raise NonFiniteError("the gradients are so large that their squares overflow")
    weights = torch.where(size > 0, 1 / size, 0.0)
    whole_steps = weights @ steps
    parts = summed(
        torch.cat(
            [
                steps.sum(1),
                steps.square().sum(1),
                torch.stack([whole_steps.sum(), whole_steps.square().sum()]),
            ]
        )
    ).cpu()
    totals, variances, whole = parts.split([len(kept), len(kept), 2])
    size, weights = size.cpu(), weights.cpu()
    scores = 2 * totals / (n * (n - 1))
    layers = tuple(
        Score(key, type(relaxation.module(key)).__name__, *values)
        for key, *values in zip(
            kept,
            scores.tolist(),
            (scores * weights).tolist(),
            _z(totals, variances).tolist(),
            size.tolist(),
            strict=True,
        )
    )
    z = float(_z(whole[0], whole[1]))
    over_all = Score(ALL, "", float(scores.sum()), float((scores * weights).mean()), z, float(size.sum()))
    return SymmetryScore(n, over_all, layers, {key: skipped[key] for key, _ in relaxation if key in skipped})


def _z(total: Tensor, squares: Tensor) -> Tensor:
    return torch.where(squares > 0, total / squares.sqrt(), 0.0)


def _of_ranks(numbers: list[int], device: torch.device) -> list[list[int]]:
    """Gather the numbers of every rank."""
    own = torch.tensor(numbers, dtype=torch.int64, device=device)
    if ranks() == 1:
        return [own.tolist()]
    found = [torch.empty_like(own) for _ in range(ranks())]
    dist.all_gather(found, own)
    return [one.tolist() for one in found]
