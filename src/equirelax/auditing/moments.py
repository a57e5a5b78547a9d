"""The inputs of layers and the gradients of a loss in their outputs, by example, at every place of a residual.

Every residual is replaced by a probe, which adds zeros. The network is then the strict one, and the gradient in the zeros is the
gradient in the layer's output. The example of each row is determined from the gradients themselves, so that nodes,
edges and neighbours that a network creates need no index: for every bit of the example's number, the losses of the examples are
weighted by 0 or 1, and a row has a gradient only if its own example has weight 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from equirelax.errors import AuditError, NonFiniteError
from equirelax.relaxation import Convolution, Relaxation, Residual, ResidualMap
from equirelax.relaxation.columns import Columns, SharedColumns, dense
from equirelax.relaxation.kept import Kept, keep
from equirelax.relaxation.sites import GridSite
from equirelax.relaxation.surroundings import in_backward

PARTIAL = 1e-3
"""A row belongs to several examples if its gradient changes by more than this fraction with other examples' losses."""
NEGLIGIBLE = 1e-5
"""A gradient below this fraction of the largest is rounding."""

Loss = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> one loss per example of the batch, (n,), or the loss of a single example, ()."""


@dataclass(frozen=True)
class Rows:
    """One call of a layer.

    Attributes:
        read: The input of the layer, (rows, in_dim), or (entries, in_dim, ...) for fields on a grid.
        gradient: The gradient of the sum of losses in the layer's output, (rows, out_dim) or (entries, out_dim, ...).
        example: The example of every row, (rows,) or (entries,). Rows and entries whose gradient is 0 are left out.
    """

    read: Tensor
    gradient: Tensor
    example: Tensor


@dataclass
class _Call:
    """One call of a probe."""

    read: Kept
    zeros: Tensor
    axis: int
    on_grid: bool

    def rows(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The input and the gradient, as rows, or unchanged on a grid."""
        return self._rows(dense(self.read.value)), self._rows(gradient)

    def _rows(self, x: Tensor) -> Tensor:
        if self.on_grid:
            return x if x.dim() > -self.axis else x[None]  # fields without a batch
        x = x.movedim(self.axis, -1)
        return x.reshape(-1, x.shape[-1])


class Probe(ResidualMap):
    """A map that adds zeros, which have a gradient, and records its input.

    Args:
        residual: The residual whose map it replaces.
    """

    reads_inputs: ClassVar[bool] = False

    def __init__(self, residual: Residual) -> None:
        super().__init__()
        self.feature_axis = residual.feature_axis
        self.out_dim = residual.out_rep.dim
        site = residual.site
        self.convolution: Convolution | None = site.convolution if isinstance(site, GridSite) else None
        self.calls: list[_Call] = []
        self.differentiated = False
        self._watching: list[Any] = []

    def forward(self, x: Columns, scale: Tensor | None = None) -> Tensor:
        """Return zeros of the shape that a residual adds."""
        zeros = self._zeros(x)
        if in_backward():  # gradient checkpointing recomputes the forward
            return zeros
        for part in (x.own, x.common) if isinstance(x, SharedColumns) else (x,):
            if part.requires_grad:
                self._watching.append(part.register_hook(self._note))
        zeros.requires_grad_()
        self.calls.append(_Call(keep(x), zeros, self.feature_axis, self.convolution is not None))
        return zeros

    def _zeros(self, x: Columns) -> Tensor:
        if self.convolution is None:
            shape = list(x.shape)
            shape[self.feature_axis] = self.out_dim
            return torch.zeros(shape, dtype=x.dtype, device=x.device)
        x = dense(x)
        weight = x.new_zeros(self.convolution.weight_shape(x.shape[self.feature_axis], self.out_dim))
        with torch.no_grad():
            return self.convolution(x, weight)

    def _note(self, gradient: Tensor) -> None:
        self.differentiated = True

    def stop_watching(self) -> None:
        """Mark the end of the forward: derivatives from now on are our own."""
        for handle in self._watching:
            handle.remove()
        self._watching = []

    def take(self) -> list[_Call]:
        """Return the calls since the last time, and forget them."""
        calls, self.calls = self.calls, []
        return calls


def probe(relaxation: Relaxation, wanted: set[str]) -> dict[str, Probe]:
    """Replace the maps of the residuals `wanted` by probes, and switch all others off.

    Call it inside `state.measuring`, which restores everything.
    """
    probes = {}
    for key, residual in relaxation:
        residual.enabled = key in wanted
        if key in wanted:
            probes[key] = Probe(residual)
            residual.map = probes[key]
    return probes


def rows_of(
    probes: dict[str, Probe], model: nn.Module, batch: Any, loss: Loss
) -> tuple[int, dict[str, list[Rows]]]:
    """Run the model on a batch once and differentiate its losses.

    The derivatives cost one backward pass, and one more for every bit of the number of examples.

    Returns:
        The number of examples, and the calls of every probe.

    Raises:
        AuditError: The loss is not a tensor with at most one axis, no probe reaches it, an example's loss depends on the rows of
            another example, or the input of a layer was overwritten.
        NonFiniteError: A loss or a gradient is NaN or infinity.
    """
    losses = loss(model, batch)
    for one in probes.values():
        one.stop_watching()
    if not isinstance(losses, Tensor) or losses.dim() > 1 or not losses.is_floating_point():
        got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
        raise AuditError(
            f"loss(model, batch) gave {got}; expected one loss for every example, of shape (examples,), or the loss of a batch "
            f"of one example, of shape ()"
        )
    losses = losses.reshape(-1)
    if not bool(torch.isfinite(losses).all()):
        raise NonFiniteError("loss(model, batch) gave NaN or infinity")
    calls = [(key, call) for key, one in probes.items() for call in one.take() if not one.differentiated]
    found: dict[str, list[Rows]] = {key: [] for key in probes}
    if not calls and any(one.differentiated for one in probes.values()):
        return len(losses), found
    if not calls or not losses.requires_grad:
        raise AuditError(
            "loss(model, batch) reaches no layer that can be relaxed: does it call the model that it is given, with gradients, "
            "and by model(...)?"
        )
    for key, call in calls:
        if not call.read.intact:
            raise AuditError(
                f"{key or 'the model'}: the features that it read were overwritten by an operation in place"
            )
    for (key, call), result in zip(calls, _gradients(losses, calls), strict=True):
        if result is None:
            continue
        gradient, example = result
        moved = _sizes(call, gradient) > 0
        read, rows = (tensor[moved] for tensor in call.rows(gradient))
        if not bool(torch.isfinite(read).all()):
            raise NonFiniteError(f"{key or 'the model'}: it reads NaN or infinity")
        found[key].append(Rows(read, rows, example[moved]))
    return len(losses), found


def _gradients(losses: Tensor, calls: list[tuple[str, _Call]]) -> list[tuple[Tensor, Tensor] | None]:
    """The gradient in every call's zeros, and the example of each of its rows; None if the losses do not depend on them."""
    bits = (len(losses) - 1).bit_length()
    found = _backward(losses, [call for _, call in calls], torch.ones_like(losses), bits > 0)
    places = [place for place, gradient in enumerate(found) if gradient is not None]
    used, whole = [calls[place] for place in places], [g for g in found if g is not None]
    sizes = [_sizes(call, gradient) for (_, call), gradient in zip(used, whole, strict=True)]
    for (key, _), size in zip(used, sizes, strict=True):
        if not bool(torch.isfinite(size).all()):
            raise NonFiniteError(f"{key or 'the model'}: the gradient by its output is NaN or infinity")
    examples = [torch.zeros(size.shape, dtype=torch.long, device=size.device) for size in sizes]
    numbers = torch.arange(len(losses), device=losses.device)
    for bit in range(bits if used else 0):
        parts = _backward(
            losses, [call for _, call in used], ((numbers >> bit) & 1).to(losses), bit < bits - 1
        )
        for index, ((key, call), part) in enumerate(zip(used, parts, strict=True)):
            if part is None:
                raise AuditError(
                    f"{key or 'the model'}: its output had a gradient at the first backward pass and has none at another. "
                    "Give a network and a loss that compute the same at every pass"
                )
            hit = _sizes(call, part) > 0
            gap = _sizes(call, part - whole[index])[hit]
            size = sizes[index]
            if gap.numel() and bool((gap > PARTIAL * size[hit] + NEGLIGIBLE * size.max()).any()):
                raise AuditError(
                    f"{key or 'the model'}: the loss of one example depends on the rows of another (statistics of a batch, a "
                    f"shared row, a loss that is not example by example). Give an iterator over batches of one example each"
                )
            examples[index] += hit.long() << bit
    results: list[tuple[Tensor, Tensor] | None] = [None] * len(calls)
    for place, gradient, example in zip(places, whole, examples, strict=True):
        results[place] = gradient, example
    return results


def _backward(losses: Tensor, calls: list[_Call], weights: Tensor, again: bool) -> list[Tensor | None]:
    return list(
        torch.autograd.grad(
            losses, [call.zeros for call in calls], weights, retain_graph=again, allow_unused=True
        )
    )


def _sizes(call: _Call, gradient: Tensor) -> Tensor:
    """The norms of the gradients of the rows, or of the entries of a batch of fields."""
    _, rows = call.rows(gradient.detach())
    return torch.linalg.vector_norm(rows.flatten(1), dim=1)
