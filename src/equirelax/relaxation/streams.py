"""Residual streams: residuals that are carried from block to block.

A stream starts from an input of the model, captured at the model's own forward, advances at every block on which it is
placed, and adds `gamma_i s_i` to the output of block i (ACE's residuals on SchNet and EGNO, arXiv 2505.13631). Every
block has its own gamma and its own step. One `Stream`, which the residuals of its blocks share, holds the state of the stream
during a forward, and nothing between two forwards.

Gradient checkpointing works around the whole relaxed model (`checkpoint(model, ..., use_reentrant=False)`). Around
single blocks it is an error, because a recomputed block has no forward of the model around it.

Penalties have a closed form. Given the statistics of its batch normalisations, a stream is affine in a row x of the model's
input, s(x) = A x + c, and so are all its group differences,

    (L_a s)(x) = drho_out(a) s(x) - A [d/dt x under a]        rho_out(g) s(x) - s(g x),

including those for positions, on which the group acts affinely. The sum over rows of the squared norm of an affine function
follows from the rows' mean and covariance, so that all blocks of a stream cost a few small products, for any number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError, RelaxationStateError, RepresentationError
from equirelax.relaxation.across import Shared
from equirelax.relaxation.columns import Columns, dense
from equirelax.relaxation.kept import Kept, keep
from equirelax.relaxation.kinds import ResidualKind, ResidualMap
from equirelax.relaxation.kinds.kind import Penalised, Rule, Slope, Terms, spectral_norm
from equirelax.relaxation.kinds.stream import Affine, Moments, SpectralLinear, StreamMap, moments
from equirelax.relaxation.residual import Residual, residual_for
from equirelax.relaxation.sites import BlockSite, join
from equirelax.relaxation.surroundings import in_backward
from equirelax.relaxation.terms.precision import penalty_dtype, promoted
from equirelax.symmetry import Representation

Path = tuple["StreamResidual", ...]
"""The residuals that a stream passes, in order."""


class Stream(Shared):
    """The state of a stream during a forward. The first member's map owns the start.

    Attributes:
        name: Name of the stream, as in `StreamSite.stream`.
        source: the input (rows, dim) of the current forward; None between forwards.
        path: the residuals that the stream has passed so far in this forward.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._forget()

    def _forget(self) -> None:
        self.path: Path = ()
        self.source: Tensor | None = None
        self._kept: Kept | None = None
        self._moments: Moments | None = None
        self._value: Affine | None = None

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start the stream for a new forward."""
        self._forget()
        if not any(member.active for member in self.members):
            return
        head = self.members[0]
        x = dense(head.site.read(args, kwargs))
        if x.shape[-1] != head.in_rep.dim:
            raise RepresentationError(
                f"{head.site.source or 'the model'} ({type(module).__name__}): the stream {self.name!r} was "
                f"placed for {head.in_rep.dim} input features ({head.in_rep!r}), the call has {x.shape[-1]}; "
                f"relax the model again with a placement that declares the features it gets"
            )
        x = x.reshape(-1, x.shape[-1]).to(head.map.norm.weight.dtype)
        if head.map.training and x.shape[0] < 2:
            raise RepresentationError(
                f"{head.site.key}: batch normalisation in the residual stream {self.name!r} needs at least 2 rows "
                f"in training mode, the call has {x.shape[0]}; use larger batches, or model.eval()"
            )
        with torch.autocast(x.device.type, enabled=False):
            self._moments, self._value = moments(x), head.map.begin(count=True)
        self.source = x

    def advance(self, member: StreamResidual) -> Affine:
        """The stream's value after `member`, as a map of `source`."""
        if self.source is None or self._value is None or self._moments is None:
            raise RelaxationStateError(_outside(member.site.key))
        with torch.autocast(self.source.device.type, enabled=False):
            self._value = member.map(self._value, self._moments)
        self.path = (*self.path, member)
        return self._value

    @property
    def kept(self) -> Kept:
        """The input of the current forward, kept for penalties as one object per forward.

        Raises:
            RelaxationStateError: no forward of the relaxed model is in progress.
        """
        if self.source is None:
            raise RelaxationStateError(_outside(self.members[0].site.key))
        if self._kept is None:
            self._kept = keep(self.source)
        return self._kept

    def end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forget the forward."""
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles must not hold a forward in progress.
        return {"name": self.name, "members": self.members}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


def _outside(key: str) -> str:
    # the first words give the remedy, because reports truncate errors
    if in_backward():
        return (
            f"{key}: checkpoint the whole relaxed model (use_reentrant=False), not single blocks: the residual "
            f"stream starts from the model's inputs, which the recomputation of a block does not see"
        )
    return (
        f"{key}: call the whole model: its residual stream starts from the model's inputs, captured by hooks, "
        f"which neither the block alone nor model.forward(...) runs"
    )


@dataclass(frozen=True)
class StreamSite(BlockSite):
    """The site of one block's part of a stream, which starts from the call of another module.

    The reader reads the call of that module, and `in_rep` is the representation of its features. Reader, source and in_rep are
    the same for every site of a stream.

    Args:
        stream: Name of the stream.
        source: Path of the module from whose input the stream starts ("" is the relaxed model).
    """

    stream: str = field(kw_only=True)
    source: str = field(default="", kw_only=True)

    @property
    def shares(self) -> tuple[str, str]:
        """A key that is equal for the residuals of one stream."""
        return self.source, self.stream

    def build(self, kind: ResidualKind, generator: torch.Generator | None) -> ResidualMap:
        """Make a step of the stream.

        Raises:
            PlacementError: The kind is not for streams.
        """
        if not kind.for_streams:
            raise PlacementError(
                f"{self.key}: a residual stream is made of StreamStep, and not of {type(kind).__name__}"
            )
        return kind.build(self.in_rep, self.out_rep, self.feature_axis, generator)

    def why(self, root: str = "") -> str:
        """Name the stream and its source."""
        source = "the model" if not self.source else join(root, self.source)
        return f"step of the stream {self.stream!r}, from an input of {source}"

    @property
    def inexpressible(self) -> str:
        """Describe it as a step of a stream."""
        return f"a step of the residual stream {self.stream!r}, which starts from the model's inputs and"


@residual_for(StreamSite)
class StreamResidual(Residual):
    """One block's part of a stream: its step, and the strength with which the stream is added there.

    Attributes:
        shared: The stream, common to all its residuals; not a submodule.
        paths: for each of the inputs that `take_inputs` last returned, the residuals that the stream had passed, ending
            with this one.
    """

    map: StreamMap
    site: StreamSite
    shared: Stream

    def __init__(self, site: StreamSite, map: StreamMap, reference: Tensor | None = None) -> None:
        super().__init__(site, map, reference)
        self.shared = Stream(site.stream)
        self.paths: list[Path] = []
        self._kept_paths: list[Path] = []

    @property
    def dependents(self) -> list[StreamResidual]:
        """The later residuals of the stream."""
        members = self.shared.members
        return members[members.index(self) + 1 :]

    def hook_up(self, model: nn.Module) -> None:
        """Put the residual's hook on the block, whose call it does not read."""
        model.get_submodule(self.site.path).register_forward_hook(self.hook, with_kwargs=True)

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Advance the stream, as a forward hook of the block, and add it if this residual is active."""
        source = self.shared.source
        if not self.active and source is None:
            return None
        self.called = True
        value = self.shared.advance(self)
        if not self.active or source is None:
            return None
        if self._keeps():
            self._kept.append(self.shared.kept)
            self._kept_paths.append(self.shared.path)
        return self.add(module, output, self._times_gamma(source, value))

    def _times_gamma(self, x: Tensor, value: Affine) -> Tensor:
        """gamma s_i, (rows, width)."""
        return nn.functional.linear(x, self.gamma * value.weight, self.gamma * value.offset)

    def take_inputs(self) -> list[Columns]:
        """Return the model's inputs (rows, dim) since the last call, and forget them; see `paths`."""
        self.paths, self._kept_paths = self._kept_paths, []
        return super().take_inputs()

    def forget_inputs(self, first: int = 0) -> None:
        """Forget the model's inputs, and the residuals that the stream had passed."""
        super().forget_inputs(first)
        del self._kept_paths[first:]

    @property
    def keeper(self) -> object:
        """The stream."""
        return self.shared

    @property
    def penalty_rule(self) -> Rule:
        """The rule of streams, whose penalties are computed in closed form for a whole stream at once."""
        return stream_sums

    def penalised(self, inputs: list[Columns], finite_difference: bool = False) -> StreamPenalised:
        """The rows with the residuals that the stream had passed: `paths` of the last `take_inputs`, else `default_path`."""
        known = len(self.paths) == len(inputs)
        paths = self.paths if known else [self.default_path()] * len(inputs)
        rows = [dense(x) for x in inputs]
        return StreamPenalised(self.map, rows, -1, self.in_rep, self.out_rep, finite_difference, tuple(paths))

    def slope(self) -> Slope:
        """The norm of the affine map, in evaluation mode, from the model's input to the term added here."""
        start = self.default_path()[0].map.start
        matrix = (
            torch.eye(self.in_rep.dim, dtype=torch.float64, device=self.gamma.device)
            if start is None
            else _weight(start)
        )
        for member in self.default_path():
            norm = member.map.norm
            scale = norm.weight.detach().double() * (norm.running_var.double() + norm.eps).rsqrt()
            matrix = _weight(member.map.linear) @ (scale[:, None] * matrix)
        reason = "batch norm: its scale and shift are those of the batches it was trained on"
        return Slope(spectral_norm(matrix), reason)

    def default_path(self) -> Path:
        """The stream's residuals up to this one, as in a model that calls each block once and in order."""
        members = self.shared.members
        return tuple(members[: members.index(self) + 1])

    def delta(self, x: Columns) -> Tensor:
        """`gamma s_i` for a model's input x (rows, dim) along `default_path`, without side effects."""
        x = dense(x)
        return self._times_gamma(x, stream_values(self.default_path(), moments(x))[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "paths": [], "_kept_paths": []}


def stream_values(
    path: Path, rows: Moments, of: Callable[[StreamMap], StreamMap] | None = None
) -> list[Affine]:
    """The stream at every residual of `path`, as maps of the model's input, without side effects.

    The maps are differentiable in the parameters, including through the statistics of the normalisation. As maps of a row they
    treat the statistics as constants, so their derivatives are those with respect to that row alone.

    Args:
        path: The residuals.
        rows: moments of the model's input, which are used in training mode; otherwise the running statistics are.
        of: A function that returns a replacement for each step's map, such as the same map in another precision.
    """
    head = path[0].shared.members[0].map
    value, values = (head if of is None else of(head)).begin(count=False), []
    for member in path:
        step = member.map if of is None else of(member.map)
        value = step(value, rows, count=False)
        values.append(value)
    return values


@dataclass(frozen=True)
class StreamPenalised(Penalised):
    """A residual of a stream with the model's inputs (rows, dim).

    Args:
        paths: For each of the inputs, the residuals that the stream had passed, ending with this one.
    """

    inputs: Sequence[Tensor]
    paths: tuple[Path, ...] = ()


def stream_sums(calls: Sequence[StreamPenalised]) -> list[Terms]:
    """The exact terms of residuals of streams, differentiable in the parameters."""
    pairs = [list(zip(call.inputs, call.paths, strict=True)) for call in calls]
    # the longest paths first, since the others are prefixes of them
    known: dict[tuple[int, Path], Terms] = {}
    for x, path in sorted((pair for of_one in pairs for pair in of_one), key=lambda pair: -len(pair[1])):
        if (id(x), path) not in known:
            lie, norm = _along(path, x)
            for i in range(len(path)):
                known[id(x), path[: i + 1]] = lie[i], norm[i]
    found = []
    for of_one in pairs:
        lies, norms = zip(*(known[id(x), path] for x, path in of_one), strict=True)
        found.append((torch.stack(lies).sum(), torch.stack(norms).sum()))
    return found


def _along(path: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """(Lie sums, norm sums), each (residuals of the path,), over the rows x (rows, dim)."""
    x = x.to(penalty_dtype(path[0].map.norm.weight.dtype))
    rows = moments(x)
    values = stream_values(path, rows, promoted)
    maps = Affine(torch.stack([v.weight for v in values]), torch.stack([v.offset for v in values]))
    in_rep, out_rep = path[0].in_rep, path[0].out_rep
    norm = _total(maps, rows)
    lie = torch.zeros_like(norm)
    if in_rep.invariant and out_rep.invariant:
        return lie, norm
    for difference in _differences(maps, in_rep, out_rep):
        lie = lie + _total(difference, rows)
    return lie, norm


def _total(maps: Affine, rows: Moments) -> Tensor:
    """The sum over rows of |A x + c|^2 for A (n, out, dim), c (n, out): (n,)."""
    mean = maps.weight @ rows.mean + maps.offset
    spread = ((maps.weight @ rows.covariance) * maps.weight).sum(dim=(1, 2)).clamp(min=0)
    return rows.size * (mean.square().sum(dim=1) + spread)


def _differences(maps: Affine, in_rep: Representation, out_rep: Representation) -> list[Affine]:
    """The affine maps whose squares are the Lie terms, one per generator and one per discrete element."""
    dim = in_rep.dim
    origin = maps.weight.new_zeros(1, dim)
    probes = torch.cat([origin, torch.eye(dim, dtype=origin.dtype, device=origin.device)])  # (dim + 1, dim)
    images = maps.offset[:, None] + probes @ maps.weight.transpose(1, 2)  # (n, dim + 1, out)
    found = []
    for direction, moved in zip(in_rep.derivative(probes), out_rep.derivative(images), strict=True):
        found.append(moved - direction @ maps.weight.transpose(1, 2))
    for g in in_rep.group.discrete(origin.dtype, origin.device):
        shifted = in_rep.apply(g, probes) @ maps.weight.transpose(1, 2) + maps.offset[:, None]
        found.append(out_rep.apply(g, images) - shifted)
    # from values at the probes back to weights and offsets
    return [Affine((f[:, 1:] - f[:, :1]).transpose(1, 2), f[:, 0]) for f in found]


def _weight(linear: nn.Linear) -> Tensor:
    weight = linear.effective_weight() if isinstance(linear, SpectralLinear) else linear.weight
    return weight.detach().double()
