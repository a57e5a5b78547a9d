"""What a benchmark is: data, a strict model, a loss, a metric, and what an audit needs to know about all
three.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from equirelax.benchmarks.settings import ResidualSettings, RunConfig
from equirelax.data import GraphSet
from equirelax.errors import ConfigError
from equirelax.relaxation import MLP, Dense, EquivariantDense, placements
from equirelax.relaxation.maps import ResidualKind
from equirelax.relaxation.placements import Placement
from equirelax.symmetry import Group

Split = Literal["train", "val", "test"]
Batch = dict[str, Tensor]
"""Tensors by name, the graphs of a batch as one: see `GraphSet.batch`."""


@dataclass(frozen=True)
class Metric:
    """What is reported. `unit` is a factor: a value of 5.6 with unit "1e-3" is 0.0056. Lower is better."""

    name: str
    unit: str

    @property
    def factor(self) -> float:
        """The unit as a number."""
        return float(self.unit)

    def to_dict(self) -> dict[str, str]:
        """Name and unit, as result files hold them."""
        return {"name": self.name, "unit": self.unit}


@dataclass(frozen=True)
class AuditCase:
    """A sample for the model, how the group acts on it and on the output, and the group."""

    sample: tuple[Tensor | None, ...]
    in_rep: tuple[Any, ...]
    out_rep: Any
    group: Group


class Task(ABC):
    """One benchmark with one configuration.

    Args:
        config: The run's settings.
        root: Data root; None takes EQUIRELAX_DATA or the user's cache folder.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    models: ClassVar[dict[str, str]]
    metric: Metric

    def __init__(self, config: RunConfig, root: Path | None = None) -> None:
        self.config = config
        self.root = root

    @classmethod
    @abstractmethod
    def defaults(cls, model: str, method: str) -> RunConfig:
        """The papers' settings for a model and a method, both known to exist."""

    @abstractmethod
    def load(self, split: Split) -> GraphSet:
        """All samples of a split, on the CPU. Raises `DataError` when the data is missing or damaged."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The strict model, freshly initialised from torch's global random state."""

    @abstractmethod
    def inputs(self, batch: Batch) -> tuple[Tensor | None, ...]:
        """The model's arguments for a batch."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """The prediction that loss and metric compare with the target, nodes first."""

    @abstractmethod
    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """What training minimises: a scalar, the mean over the batch."""

    @abstractmethod
    def error(self, prediction: Tensor, batch: Batch) -> Tensor:
        """The metric: a scalar, the mean over the batch, in units of 1 (not of `metric.unit`)."""

    @abstractmethod
    def audit_case(self) -> AuditCase:
        """A few validation samples with their representations."""

    @abstractmethod
    def published(self) -> dict[str, str]:
        """Published values of the metric by method, as text in the metric's unit; only what is known."""

    def placement(self) -> Placement:
        """The configured placement with the configured residual.

        Raises:
            PlacementError: an unknown name.
            ConfigError: a placement that takes no residual.
        """
        placement: Any = placements.get(self.config.residual.placement)
        if "residual" not in {f.name for f in dataclasses.fields(placement)}:
            raise ConfigError(
                f"The placement '{self.config.residual.placement}' chooses its residuals itself."
            )
        chosen: Placement = dataclasses.replace(placement, residual=residual_kind(self.config.residual))
        return chosen

    def scaled_down(self) -> str | None:
        """In words where this run is smaller than the papers' setting, or None."""
        full = self.defaults(self.config.model, self.config.method)
        parts = []
        if self.config.training.epochs < full.training.epochs:
            parts.append(f"{self.config.training.epochs} of {full.training.epochs} epochs")
        for section, words in (("dataset", "samples"), ("network", "")):
            ours, theirs = getattr(self.config, section), getattr(full, section)
            for f in dataclasses.fields(ours):
                here, there = getattr(ours, f.name), getattr(theirs, f.name)
                number = isinstance(here, int) and isinstance(there, int) and not isinstance(here, bool)
                if number and here < there:
                    parts.append(" ".join(filter(None, (f"{here} of {there} {f.name}", words))))
        return "; ".join(parts) or None


def residual_kind(settings: ResidualSettings) -> ResidualKind:
    """What the residuals are made of, from settings."""
    if settings.kind == "dense":
        return Dense(init=settings.init, std=settings.std, bias=settings.bias)
    if settings.kind == "equivariant-dense":
        return EquivariantDense(init=settings.init, std=settings.std)
    return MLP(layers=settings.layers, hidden=settings.hidden, init=settings.init, std=settings.std)
