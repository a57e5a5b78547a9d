"""The equivariance error during training: cheap enough for every validation, and without any effect on the run."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.auditing.error import coordinates, measure, with_translations
from equirelax.auditing.samples import Case
from equirelax.auditing.state import measuring
from equirelax.errors import NonFiniteError
from equirelax.relaxation import relaxation_of
from equirelax_lab.tasks.task import AuditCase
from equirelax_lab.training.assembly import Assembly

ELEMENTS = 2
"""Number of group elements drawn, in addition to a reflection of every further component or the generators of a finite group."""
RELAXED, PROJECTED = "equivariance/relaxed", "equivariance/projected"
"""Columns of metrics.csv."""


class EquivarianceErrors:
    """Measures a run's network repeatedly, always on the same samples and group elements.

    Only the network changes from one measurement to the next. Weights, gradients, modes and random states are left
    unchanged, so that a run is the same with and without it.

    Args:
        assembly: The run's objects.
        copied: Whether to measure a copy of the network. This is necessary if a parameter cannot be cast to another dtype
            and back: PyTorch then drops the hooks by which DDP averages its gradient, and moves its memory, while a CUDA
            graph keeps reading the old place.
    """

    def __init__(self, assembly: Assembly, copied: bool = False) -> None:
        self.assembly, self.copied = assembly, copied
        self._case: AuditCase | None = None

    def columns(self) -> dict[str, float]:
        """The largest relative equivariance errors in float64, as trained and without residuals.

        Returns:
            `RELAXED` and `PROJECTED`, NaN if the network's output is not finite; {} if the group does not act
            exactly on the task's samples.
        """
        task = self.assembly.task
        if not task.auditable:
            return {}
        model = copy.deepcopy(self.assembly.model) if self.copied else self.assembly.model
        device = next(model.parameters()).device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        with torch.random.fork_rng(devices=[]):
            case = self._case = self._case or task.audit_case()
        sample = tuple(part.to(device) if isinstance(part, Tensor) else part for part in case.sample)
        with case.headed(model), measuring(model, dtype):
            relaxed = _error(model, case, sample, dtype)
            if self.assembly.relaxation is None:
                return {RELAXED: relaxed, PROJECTED: relaxed}
            with relaxation_of(model).strict():
                return {RELAXED: relaxed, PROJECTED: _error(model, case, sample, dtype)}


def _error(model: nn.Module, case: AuditCase, sample: tuple[Any, ...], dtype: torch.dtype) -> float:
    group = case.group
    drawn = group.sample(ELEMENTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = with_translations(group, drawn, coordinates(sample, case.in_rep).largest or 1.0)
    further = group.discrete(dtype=torch.float64)
    try:
        error = measure(Case(model, sample, case.in_rep, case.out_rep, group, dtype), drawn, further)
    except NonFiniteError:
        return float("nan")
    return error.relative
