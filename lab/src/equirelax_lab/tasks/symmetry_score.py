"""The symmetry score of a benchmark's held-out samples, each in a separate batch, which works for every network and loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from equirelax.auditing import SymmetryScore, symmetry_score
from equirelax.errors import ConfigError
from equirelax.relaxation import Relaxation
from equirelax_lab.tasks.task import NO_PLACEMENT, Batch, Split, Task


class HeldOut:
    """Validation or test samples to score networks on, as they are evaluated: evenly spaced, or drawn at random.

    The samples are loaded at the first call. Each of several ranks takes its share.

    Args:
        task: The benchmark.
        examples: Number of samples, at least 2; all samples if there are fewer.
        split: The split of the samples.
    """

    def __init__(self, task: Task[Any], examples: int, split: Split = "val") -> None:
        self.task, self.examples, self.split = task, examples, split
        self._data: Any = None
        self._batches: dict[int | None, list[Batch]] = {}

    def __call__(self, network: Relaxation | nn.Module, draw: int | None = None) -> SymmetryScore:
        """Score a network of the benchmark, relaxed or not; the residuals are placed as in the run.

        Args:
            network: The network.
            draw: None takes evenly spaced samples. A number seeds a draw of `examples` different samples; a sample that is drawn
                twice would count as agreement.

        Raises:
            ConfigError: The network is not relaxed and the run's settings have no places for residuals, or there are no more
                samples than a draw takes.
            AuditError: No residual can be scored.
        """
        relaxed = isinstance(network, Relaxation)
        model = network.model if isinstance(network, Relaxation) else network
        if not relaxed and self.task.config.residual.placement == NO_PLACEMENT:
            raise ConfigError(
                f"{self.task.config.model} has no layers of an equivariant network (residual.placement is '{NO_PLACEMENT}'): "
                f"there is nothing to score."
            )
        placement = None if relaxed else self.task.placement()
        return symmetry_score(model, self.batches(model, draw), self._loss, placement=placement)

    def batches(self, model: nn.Module, draw: int | None = None) -> Iterator[Batch]:
        """This rank's samples one by one, on the model's device; `draw` as for a call."""
        if draw not in self._batches:
            rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
            if self._data is None:
                self._data = self.task.load(self.split)
            chosen = self._chosen(len(self._data), draw)[rank::size]
            self._batches = {draw: [self.task.eval_batch(self._data, one[None]) for one in chosen]}
        device = next(model.parameters()).device
        for batch in self._batches[draw]:
            yield {name: value.to(device) for name, value in batch.items()}

    def _chosen(self, available: int, draw: int | None) -> Tensor:
        if draw is not None:
            if self.examples >= available:
                raise ConfigError(
                    f"there are {available} samples in '{self.split}', and every draw takes {self.examples}: all draws would be "
                    f"the same. Take fewer examples, half of the samples or less."
                )
            order = torch.randperm(available, generator=torch.Generator().manual_seed(draw))
            return order[: self.examples]
        return torch.linspace(0, available - 1, min(self.examples, available)).round().long()

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.task.loss(self.task.predict(model, batch), batch)
