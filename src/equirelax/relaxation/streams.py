"""Residual streams: residuals that are carried from block to block.

A stream starts from an input of the model, captured at the model's own forward, advances at every block of the model
that it is placed on, and adds `gamma_i s_i` to what block i returns (ACE's residuals on SchNet and EGNO, arXiv
2505.13631). Every block has its own gamma and its own step; one `Stream` object, shared by the residuals of the
blocks, knows where the stream is during a forward, and nothing between two forwards.

Gradient checkpointing works around the whole relaxed model (`checkpoint(model, ..., use_reentrant=False)`). Around
single blocks it cannot work, for a recomputed block has no forward of the model around it: that is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import RelaxationStateError, RepresentationError
from equirelax.relaxation.maps import in_backward
from equirelax.relaxation.residual import Residual
from equirelax.relaxation.site import Site
from equirelax.relaxation.stream_maps import StreamMap


class Stream:
    """Where a stream is: hooks of the module whose call it starts from, and of the relaxed model.

    Attributes:
        name: of the stream, as in `Site.stream`.
        members: the residuals, in the model's order; the first one's map owns the start.
        source: the input of the present forward, (rows, dim), detached; None between forwards.
        path: the residuals that this forward's stream has passed so far.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: list[StreamResidual] = []
        self.path: tuple[StreamResidual, ...] = ()
        self.source: Tensor | None = None
        self._value: Tensor | None = None

    @property
    def running(self) -> bool:
        """Whether a forward of the model is under way that started the stream."""
        return self._value is not None

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the module whose call is read: start anew."""
        self._forget()
        if not any(member.enabled for member in self.members):
            return
        head = self.members[0]
        x = head.site.reader(args, kwargs)
        if x.shape[-1] != head.in_rep.dim:
            raise RepresentationError(
                f"{head.site.source or 'the model'} ({type(module).__name__}): the stream {self.name!r} was "
                f"placed for {head.in_rep.dim} input features ({head.in_rep!r}), the call has {x.shape[-1]}; "
                f"relax the model again with a placement that declares the features it gets"
            )
        x = x.reshape(-1, x.shape[-1]).to(head.map.norm.weight.dtype)
        self.source, self._value = x.detach(), head.map.begin(x)

    def advance(self, member: StreamResidual) -> Tensor:
        """The stream's value after `member`, (rows, width)."""
        if self._value is None:
            raise RelaxationStateError(_outside(member.site.key))
        if member.map.training and len(self._value) < 2:
            raise RepresentationError(
                f"{member.site.key}: batch normalisation in a residual stream needs at least 2 rows in training "
                f"mode, the call has {len(self._value)}; use larger batches, or model.eval()"
            )
        self._value = member.map(self._value)
        self.path = (*self.path, member)
        return self._value

    def end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Hook of the relaxed model, called also when its forward raises: forget."""
        self._forget()

    def _forget(self) -> None:
        self.path, self.source, self._value = (), None, None

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles must not carry a forward that is under way.
        return {**self.__dict__, "path": (), "source": None, "_value": None}


def _outside(key: str) -> str:
    if in_backward():
        return (
            f"{key}: gradient checkpointing of single blocks cannot recompute a residual stream, which starts "
            f"from the model's inputs; checkpoint the whole relaxed model (use_reentrant=False)"
        )
    return (
        f"{key}: its residual stream starts from the model's inputs; call the model itself, not the block (and "
        f"not model.forward, which no hook sees)"
    )


class StreamResidual(Residual):
    """One block's part of a stream: its step, and the strength with which the stream is added there.

    Attributes:
        stream: shared by the residuals of the stream; not a submodule.
        paths: for each of the inputs that `take_inputs` gave last, the residuals that the stream had passed, this
            one last.
    """

    map: StreamMap

    def __init__(self, site: Site, map: StreamMap, reference: Tensor | None = None) -> None:
        super().__init__(site, map, reference)
        self.stream = Stream(site.stream)
        self.paths: list[tuple[StreamResidual, ...]] = []
        self._kept_paths: list[tuple[StreamResidual, ...]] = []

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook of the block: the stream advances, and is added if this residual is enabled."""
        if not (self.enabled or self.stream.running):
            return None
        value = self.stream.advance(self)
        if not self.enabled:
            return None
        source = self.stream.source
        if self._keeps() and source is not None:
            self._kept.append(source)
            self._kept_paths.append(self.stream.path)
        return self.site.writer(output, self.gamma * value)

    def take_inputs(self) -> list[Tensor]:
        """The model's inputs (rows, dim) in the calls since the last time; see `paths`. Then forgets them."""
        self.paths, self._kept_paths = self._kept_paths, []
        return super().take_inputs()

    def default_path(self) -> tuple[StreamResidual, ...]:
        """The stream's residuals up to this one, as in a model that calls each block once and in order."""
        members = self.stream.members
        return tuple(members[: members.index(self) + 1])

    def forward(self, x: Tensor) -> Tensor:
        """`gamma s_i` for a model's input x (rows, dim), by `default_path`; without side effects."""
        return self.gamma * frozen_stream(self.default_path(), x)(x)[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "paths": [], "_kept_paths": []}


def frozen_stream(path: tuple[StreamResidual, ...], x: Tensor) -> Callable[[Tensor], Tensor]:
    """The stream up to every residual of `path` as one per-row map, (rows, dim) -> (residuals, rows, width).

    Batch normalisation uses the statistics of the rows x, as constants (running ones in evaluation mode), so that
    derivatives by a row are those of what happens to that row. Without side effects.
    """
    steps = [path[0].stream.members[0].map.frozen_start()]
    with torch.no_grad():
        s = steps[0](x)
    for member in path:
        steps.append(member.map.frozen(s))
        with torch.no_grad():
            s = steps[-1](s)

    def run(rows: Tensor) -> Tensor:
        s, values = steps[0](rows), []
        for step in steps[1:]:
            s = step(s)
            values.append(s)
        return torch.stack(values)

    return run


def link(model: nn.Module, residuals: Iterable[Residual]) -> None:
    """Make one `Stream` of the residuals of every stream, in their order, and put its hooks on the model."""
    streams: dict[str, Stream] = {}
    for residual in residuals:
        if isinstance(residual, StreamResidual):
            stream = streams.setdefault(residual.site.stream, residual.stream)
            residual.stream = stream
            stream.members.append(residual)
    for stream in streams.values():
        source = model.get_submodule(stream.members[0].site.source)
        source.register_forward_pre_hook(stream.begin, with_kwargs=True)
        # also when the forward raises, so that nothing of it is left
        model.register_forward_hook(stream.end, with_kwargs=True, always_call=True)
