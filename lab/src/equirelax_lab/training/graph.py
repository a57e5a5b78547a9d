"""A training step at fixed memory addresses, so that a CUDA graph can repeat it with one launch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from equirelax.errors import ConfigError
from equirelax.methods import Method
from equirelax_lab.tasks.task import Batch
from equirelax_lab.training.loader import EpochLoader

WARM_UP = 3
"""Number of steps that run uncaptured first, so that libraries and caches are set up."""
Gradients = Callable[[Batch, int], tuple[Tensor, Tensor]]
"""Computes gradients for part `index` of an epoch, and returns the objective and its terms."""
Capture = Callable[[Callable[[], tuple[Tensor, Tensor]]], tuple[Callable[[], None], tuple[Tensor, Tensor]]]
"""Captures a call: returns a function that repeats its kernels, and its outputs, which every repetition overwrites."""


class GraphedGradients:
    """Computes the gradients of batches of one shape, on a GPU by replaying a CUDA graph.

    Every batch is copied into buffers that keep their memory. The first `WARM_UP` steps run uncaptured. The next one is
    captured, with forward pass, loss, penalty and backward pass, and from then on replayed. The optimizer's step, which
    includes the method's, stays outside the graph: it takes few kernels, reads learning rates and schedules in Python, and
    changes weights, strengths and multipliers in place, where the graph reads them.

    Args:
        gradients: The computation to repeat.
        method: Its `replayed()` is called after every replay; None for a strict network.
        tensors: The network's parameters and buffers, which the graph reads.
        capture: Captures a call; None runs it uncaptured.
    """

    def __init__(
        self,
        gradients: Gradients,
        method: Method | None,
        tensors: Iterable[Tensor],
        capture: Capture | None,
    ) -> None:
        self.gradients, self.method, self.capture = gradients, method, capture
        self.tensors = list(tensors)
        self.batch: Batch = {}
        self.steps = 0
        self._captured: tuple[Callable[[], None], tuple[Tensor, Tensor]] | None = None
        self._places: list[int] = []

    def __call__(self, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        """Compute gradients as `gradients` does; the objective comes without its autograd graph.

        Raises:
            ConfigError: The shapes of the batch differ from those of the first one, or the step cannot be captured.
        """
        self._copy(batch)
        self.steps += 1
        if self.capture is None:
            return self.gradients(self.batch, 0)
        if self.steps <= WARM_UP:
            return _on_side_stream(lambda: self.gradients(self.batch, 0))
        captured = self._captured
        if captured is None:
            try:
                captured = self._captured = self.capture(lambda: self.gradients(self.batch, 0))
            except RuntimeError as error:
                raise ConfigError(
                    f"--graph: this training step cannot be captured as a CUDA graph ({_first_line(error)}). Leave out --graph."
                ) from error
            self._places = [tensor.data_ptr() for tensor in self.tensors]
        if self._places != [tensor.data_ptr() for tensor in self.tensors]:
            raise ConfigError(
                "--graph: the network's weights have moved in memory since the step was captured. Leave out --graph."
            )
        replay, (objective, terms) = captured
        replay()
        if self.method is not None:
            self.method.replayed()
        return objective.detach().clone(), terms.clone()

    def _copy(self, batch: Batch) -> None:
        """Copy a batch into the buffers, which are made for the first batch."""
        if not self.batch:
            self.batch = {name: tensor.clone() for name, tensor in batch.items()}
            return
        for name in sorted(self.batch.keys() | batch.keys()):
            shapes = [tuple(some[name].shape) if name in some else None for some in (self.batch, batch)]
            if shapes[0] != shapes[1]:
                raise ConfigError(
                    f"--graph needs batches of one shape, and '{name}' changes from {shapes[0]} to {shapes[1]}. Leave out "
                    "--graph."
                )
        for name, tensor in batch.items():
            self.batch[name].copy_(tensor)


def graphed(
    gradients: Gradients,
    method: Method | None,
    tensors: Iterable[Tensor],
    loader: EpochLoader,
    method_name: str,
) -> GraphedGradients:
    """`gradients` as a CUDA graph if the loader's device is a GPU; otherwise uncaptured, which is printed.

    Raises:
        ConfigError: The settings make steps that differ in more than the values in their batches.
    """
    obstacle = _obstacle(method, loader, method_name)
    if obstacle:
        raise ConfigError(f"--graph repeats one training step, but {obstacle}.")
    capture = capture_on(loader.device)
    if capture is None:
        print(f"--graph: {loader.device.type} has no CUDA graphs; the step runs uncaptured.", file=sys.stderr)
    return GraphedGradients(gradients, method, tensors, capture)


def capture_on(device: torch.device) -> Capture | None:
    """The function that captures a call on a device; None if there is none."""
    return _cuda_graph if device.type == "cuda" else None


def _obstacle(method: Method | None, loader: EpochLoader, method_name: str) -> str:
    """Why steps differ from each other, in words; empty if they do not."""
    if loader.world > 1:
        return f"{loader.world} processes exchange gradients in it: choose --devices 1"
    if loader.parts > 1:
        return f"every batch comes in {loader.parts} parts: choose --accumulate 1"
    rest = loader.count % loader.batch_size
    if rest and loader.batches * loader.batch_size > loader.count:
        return f"the last batch of an epoch has {rest} samples, and the others {loader.batch_size}: choose --drop_last true"
    reason = "" if method is None else method.capture_obstacle()
    return f"the method {method_name} is not the same in every step: {reason}" if reason else ""


def _cuda_graph(
    call: Callable[[], tuple[Tensor, Tensor]],
) -> tuple[Callable[[], None], tuple[Tensor, Tensor]]:
    """Capture a call as a CUDA graph; nothing is computed until it is replayed."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return graph.replay, outputs


def _on_side_stream(call: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Run a call on a separate stream, as CUDA graphs require before a capture."""
    if not torch.cuda.is_available():
        return call()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        outputs = call()
    torch.cuda.current_stream().wait_stream(stream)
    return outputs


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
