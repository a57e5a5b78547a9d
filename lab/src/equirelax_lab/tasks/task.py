"""The base class of benchmarks: data, a strict model, a loss, a metric, and what an audit needs to know about them."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from equirelax.errors import ConfigError
from equirelax.relaxation import Dense, placements
from equirelax.relaxation.kinds import StreamStep
from equirelax.relaxation.placements import Layers, Placement
from equirelax.symmetry import Group
from equirelax_lab.data import GraphSet, Samples, random_rotation
from equirelax_lab.recipes import read
from equirelax_lab.tasks.from_recipe import from_recipe
from equirelax_lab.tasks.settings import Dataset, Network, RunConfig

D = TypeVar("D", bound=Dataset)
NO_PLACEMENT = "none"
"""Name of the placement of networks that have nothing to relax."""
Split = Literal["train", "val", "test"]
Batch = dict[str, Tensor]
"""Tensors by name; the graphs of a batch are joined into one, see `GraphSet.batch`."""


@dataclass(frozen=True)
class Metric:
    """The metric that is reported, and by which the best epoch is selected.

    Attributes:
        name: Its name in words.
        unit: A factor: a value of 5.6 with unit "1e-3" is 0.0056.
        symbol: How the unit is printed ("%", "meV"); None prints the factor.
        higher_is_better: Whether higher values are better, as for accuracies.
    """

    name: str
    unit: str = "1"
    symbol: str | None = None
    higher_is_better: bool = False

    @property
    def factor(self) -> float:
        """The unit as a number."""
        return float(self.unit)

    @property
    def heading(self) -> str:
        """Name and unit for tables and axes."""
        return heading(self.to_dict())

    def better(self, value: float, than: float) -> bool:
        """Whether `value` is better than `than`; NaN is never better."""
        return value > than if self.higher_is_better else value < than

    @property
    def worst(self) -> float:
        """The infinity that is worse than every finite value."""
        return float("-inf") if self.higher_is_better else float("inf")

    def to_dict(self) -> dict[str, Any]:
        """The layout of result files."""
        return dataclasses.asdict(self)


def heading(metric: Mapping[str, Any]) -> str:
    """Name and unit of a metric from a result file."""
    if metric.get("symbol"):
        return f"{metric['name']} ({metric['symbol']})"
    return metric["name"] if metric["unit"] == "1" else f"{metric['name']} x{metric['unit']}"


@dataclass(frozen=True)
class Representations:
    """How the group acts on the model's arguments and on its output (None if it does not act)."""

    inputs: tuple[Any, ...]
    output: Any
    group: Group


@dataclass(frozen=True)
class AuditCase:
    """A sample for the model, how the group acts on it and on the output, and the group.

    `head`, if given, is applied to the model's output first; its value is measured, also for relative errors.
    """

    sample: tuple[Tensor | None, ...]
    in_rep: tuple[Any, ...]
    out_rep: Any
    group: Group
    head: Callable[[Tensor], Tensor] | None = None

    @contextmanager
    def headed(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model, whose output passes through `head` while the context is open; its layers keep their paths."""
        head = self.head
        if head is None:
            yield model
            return
        handle = model.register_forward_hook(lambda _module, _inputs, output: head(output))
        try:
            yield model
        finally:
            handle.remove()


class Task(ABC, Generic[D]):
    """One benchmark with one configuration; `D` is the class of its data set's settings.

    Args:
        config: The run's settings.
        root: Data root; None takes EQUIRELAX_DATA or the user's cache folder.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    models: ClassVar[dict[str, str]]
    dataset_type: ClassVar[type[Dataset]]
    network_types: ClassVar[Mapping[str, type[Network]]]
    """Model -> the class of its settings."""
    metric: Metric
    counted: ClassVar[str] = "samples"
    """The word for the items that the numbers in the data set's settings count."""
    chunk: ClassVar[int] = 250
    """Samples of one evaluation batch."""
    smallest_batch: ClassVar[int] = 1
    """Fewest samples that a training step needs on every rank; a smaller last batch of an epoch is left out."""

    def __init__(self, config: RunConfig, root: Path | None = None) -> None:
        import equirelax_lab.placements  # noqa: F401  (registers placements and layers of the laboratory's networks)

        self.config = config
        self.root = root

    @property
    def dataset(self) -> D:
        """The settings of the data set."""
        return cast(D, self.config.dataset)

    @classmethod
    def defaults(
        cls, model: str, method: str, recipe: str = "published", trained_as: str | None = None
    ) -> RunConfig:
        """The settings of a recipe for a model and a method, both known to exist; see `equirelax_lab.recipes.read`.

        Raises:
            ConfigError: There is no such recipe.
        """
        return from_recipe(
            read(cls.name, model, method, recipe, trained_as), cls.dataset_type, cls.network_types[model]
        )

    @abstractmethod
    def load(self, split: Split) -> Samples:
        """All samples of a split, on the CPU. Raises `DataError` when the data is missing or damaged."""

    def train_batch(
        self, data: Any, indices: Tensor, generator: torch.Generator, share: slice = slice(None)
    ) -> Batch:
        """A batch for training, augmented as configured.

        Args:
            data: The split, from `load`.
            indices: (b,) samples of the whole batch, over all ranks.
            generator: Random numbers, drawn for the whole batch, so that all ranks together have the batch of a single
                process.
            share: This rank's part of the batch.

        By default the graphs, rotated by one rotation per batch if `augment` is set (CR and ACE, N-body).
        """
        return graph_batch(data, indices, generator, share, rotate=self.config.training.augment)

    def eval_batch(self, data: Any, indices: Any) -> Batch:
        """The samples `indices`, unchanged."""
        batch: Batch = data.batch(indices)
        return batch

    def as_trained(self, data: Any) -> Samples:
        """Training samples (`load("train")`, or some of them) from which `eval_batch` makes batches like those of training.

        The changes of `augment` are left out. By default the samples are returned as they are; a benchmark whose
        `train_batch` changes samples in other ways overrides this. Every call gives the same.
        """
        samples: Samples = data
        return samples

    def part(self, data: Any, share: slice) -> Samples:
        """A rank's part of the samples to evaluate, each the same as if one rank evaluates all of them."""
        part: Samples = data.subset(share)
        return part

    def moved(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with every sample and its target transformed by its own group element (REMUL).

        Raises:
            ConfigError: This benchmark cannot move its samples.
        """
        raise ConfigError(f"Benchmark '{self.name}' cannot move its samples, which the method needs.")

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
        """The training loss: a scalar, the mean over the batch."""

    def regulariser(self, model: nn.Module) -> Tensor | None:
        """A scalar term that a network of this benchmark adds to the loss, or None."""
        return None

    @abstractmethod
    def error(self, prediction: Tensor, batch: Batch) -> Tensor:
        """The metric: a scalar, the mean over the batch, in units of 1 (not of `metric.unit`)."""

    def statistics(self, prediction: Tensor, batch: Batch, samples: int) -> Tensor:
        """(k,) float64 sums over the batch's `samples`, which add up over batches and ranks.

        By default [sum of `error`, number of samples].
        """
        error = self.error(prediction, batch).double() * samples
        return torch.stack([error, torch.full_like(error, samples)])

    def metrics(self, totals: Tensor) -> dict[str, float]:
        """Metrics by name from summed `statistics`, the headline metric (in its unit) first."""
        total, samples = totals.tolist()
        return {self.metric.name: total / samples / self.metric.factor}

    def conditions(self) -> dict[str, Callable[[Any], Any]]:
        """Further conditions (such as corruptions) under which the test set is measured: name -> function of the set."""
        return {}

    @abstractmethod
    def audit_case(self) -> AuditCase:
        """A few validation samples with their representations. Raises `ConfigError` if `auditable` is False."""

    @property
    def auditable(self) -> bool:
        """Whether the group acts exactly on samples, so that an equivariance error is meaningful."""
        return True

    def representations(self) -> Representations:
        """How the group acts on the model's arguments and output; by default as in `audit_case`."""
        case = self.audit_case()
        return Representations(case.in_rep, case.out_rep, case.group)

    @abstractmethod
    def published(self) -> dict[str, str]:
        """The known published values of the metric by method, as text in the metric's unit."""

    def placement(self) -> Placement:
        """The configured placement with the configured residual.

        Raises:
            PlacementError: The name is unknown.
            ConfigError: The placement takes no residual, or there is none.
        """
        if self.config.residual.placement == NO_PLACEMENT:
            raise ConfigError(
                f"{self.config.model} has no residuals (residual.placement is '{NO_PLACEMENT}'): choose a method that "
                f"needs none (strict, remul, equi-tuning, equi-adapt), or another model."
            )
        placement: Any = placements.get(self.config.residual.placement)
        if "residual" not in {f.name for f in dataclasses.fields(placement)}:
            raise ConfigError(
                f"The placement '{self.config.residual.placement}' chooses its residuals itself."
            )
        settings = self.config.residual
        stream = isinstance(placement.residual, StreamStep)
        if stream != (settings.kind is None):
            raise ConfigError(
                f"residual.kind is '{settings.to_dict()['kind']}', but the placement "
                f"'{self.config.residual.placement}' {'is a' if stream else 'has no'} residual stream: "
                f"{'set residual.kind to stream' if stream else 'choose another kind'}, or another placement."
            )
        if stream:
            return placement  # type: ignore[no-any-return]
        kind = settings.kind
        chosen: dict[str, Any] = {"residual": kind}
        if isinstance(placement, Layers):
            plain = dataclasses.replace(kind, bias=False) if isinstance(kind, Dense) else kind
            chosen["exclude"] = tuple(settings.exclude)
            chosen["overrides"] = tuple((pattern, plain) for pattern in settings.unbiased)
        elif settings.exclude or settings.unbiased:
            raise ConfigError(
                f"The placement '{settings.placement}' chooses its sites itself: leave out residual.exclude and "
                "residual.unbiased, which are for the placement 'layers'."
            )
        changed: Placement = dataclasses.replace(placement, **chosen)
        return changed

    def full_size(self) -> RunConfig:
        """The published settings, with which this run's sizes are compared."""
        trained_as = self.config.trained_as
        return self.defaults(
            self.config.model, self.config.method, trained_as=trained_as and trained_as.partition(" ")[0]
        )

    def scaled_down(self) -> str | None:
        """A description of where this run is smaller than the papers' setting, or None."""
        full = self.full_size()
        parts = []
        if self.config.training.epochs < full.training.epochs:
            parts.append(f"{self.config.training.epochs} of {full.training.epochs} epochs")
        for section, words in (("dataset", self.counted), ("network", "")):
            ours, theirs = getattr(self.config, section), getattr(full, section)
            for f in dataclasses.fields(ours):
                here, there = getattr(ours, f.name), getattr(theirs, f.name)
                if _is_number(here) and there is None:
                    parts.append(f"{f.name} {here}")
                elif _is_number(here) and _is_number(there) and here < there:
                    parts.append(" ".join(filter(None, (f"{here} of {there} {f.name}", words))))
        return "; ".join(parts) or None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def graph_batch(
    data: GraphSet, indices: Tensor, generator: torch.Generator, share: slice, *, rotate: bool
) -> Batch:
    """One rank's share of a batch of graphs, all rotated by one rotation or not at all."""
    return data.batch(indices[share], random_rotation(generator) if rotate else None)


def molecule_batch(
    data: Any, indices: Tensor, generator: torch.Generator, share: slice, *, rotate: bool
) -> Batch:
    """One rank's share of a batch of molecules, each rotated by its own rotation or not at all."""
    turns = random_rotation(generator, count=len(indices))[share] if rotate else None
    batch: Batch = data.batch(indices[share], turns)
    return batch
