"""Smoke: the next frames of a rising plume's velocity, under rotations or scalings that hold only approximately
(CR section 5.4).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from equirelax.errors import ConfigError
from equirelax.settings import COUNT, WIDTH, Range, within
from equirelax.symmetry import Cyclic, Dihedral, GridField, Group, vector
from equirelax_lab.data import FieldSet, smoke
from equirelax_lab.data.root import command
from equirelax_lab.models import planes
from equirelax_lab.tasks.settings import Dataset, Layered, Network, RunConfig
from equirelax_lab.tasks.task import AuditCase, Batch, Metric, Split, Task

AUDIT_SAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class SmokeDataset(Dataset, smoke.Plumes):
    """Which simulated plumes are used, and which windows of them. `equirelax data make smoke` makes them.

    Attributes:
        symmetry: rotation: inflow on one of four sides; scale: plumes at several spatial and temporal scales.
        size: Grid points along each side.
        positions: Inflow positions on every side (10: 40 runs).
        steps: Frames of every run.
        asymmetry: How much the buoyancy differs between sides; 0 is exactly symmetric under rotations by 90 degrees.
        inputs: Input frames of a prediction.
        outputs: Frames that are rolled out, and compared, in training.
        horizon: Frames that are rolled out in test.
        val_horizon: Frames that are rolled out in validation; null takes as many as in test.
        every: Frames from the start of one window to the start of the next.
        coarsen: Width of the squares of pixels that are averaged into one.
        loss: Mean squared error over all frames of the roll-out, or the sum of the errors of its frames.
    """

    inputs: int = within(COUNT)
    outputs: int = within(COUNT)
    horizon: int = within(COUNT)
    val_horizon: int | None = within(COUNT, None)
    every: int = within(COUNT, 1)
    coarsen: int = within(COUNT, 1)
    loss: Literal["mean", "sum"] = "mean"


@dataclass(frozen=True, kw_only=True)
class PlaneNetwork(Layered):
    """Size of a forecasting network.

    Attributes:
        hidden: Fields (plain networks: channels) of the hidden layers; null takes the papers' 92, for scale 64.
        layers: Convolutions (of the MLP: linear layers).
        kernel: Width of the kernels; null takes the papers' 3, for scale 5.
        group: Group of the rotation task's equivariant networks.
        norm: Normalise the fields of the hidden layers.
        varied: Start rsteer with weights that vary over the positions of the kernel, which is therefore not equivariant.
    """

    hidden: int | None = within(WIDTH, None)
    kernel: int | None = within(Range(1, 65), None)
    group: Literal["C4", "D4"] = "C4"
    norm: bool = True
    varied: bool = False


class SmokeTask(Task[SmokeDataset]):
    """Velocity (2, H, W) of the next frame from ten frames, rolled out. The metric is the root mean squared error of the
    roll-out on later frames of the training runs (Future) and on runs from other inflow positions (Domain).
    """

    name: ClassVar[str] = "smoke"
    title: ClassVar[str] = "Smoke plumes: velocity forecasts"
    models: ClassVar[dict[str, str]] = planes.MODELS
    dataset_type = SmokeDataset
    network_types: ClassVar[dict[str, type[Network]]] = dict.fromkeys(planes.MODELS, PlaneNetwork)
    metric = Metric("RMSE Future")
    counted: ClassVar[str] = ""
    chunk: ClassVar[int] = 20

    def load(self, split: Split) -> FieldSet:
        """Windows of training or validation frames; for the test set those of both test splits, Future first."""
        if split == "test":
            return FieldSet.joined([self.windows("future"), self.windows("domain")])
        return self.windows(split)

    def windows(self, split: smoke.Split) -> FieldSet:
        """Windows of one split of the data, as long as training or test needs them."""
        d = self.dataset
        self._check_steps()
        return smoke.load(
            split,
            self.settings,
            inputs=d.inputs,
            outputs={"train": d.outputs, "val": d.val_horizon or d.horizon}.get(split, d.horizon),
            every=d.every,
            coarsen=d.coarsen,
            root=self.root,
        )

    def _check_steps(self) -> None:
        """Raise `ConfigError` if the runs are too short for the windows of some split."""
        d = self.dataset
        tested = d.inputs + d.horizon
        validated = d.inputs + (d.val_horizon or d.horizon)
        lengths: dict[smoke.Split, int] = {
            **{"train": d.inputs + d.outputs, "val": validated},
            **{"future": tested, "domain": tested},
        }
        least = smoke.least_steps(lengths)
        if d.steps < least:
            longer = command(dataclasses.replace(self.settings, steps=least).command, self.root)
            raise ConfigError(
                f"Runs of {d.steps} frames (--steps {d.steps}) are too short for windows of {d.inputs} frames and {d.outputs} "
                f"more in training, {validated - d.inputs} in validation and {d.horizon} in test. Take --steps {least} or more "
                f"(`{longer}`), or fewer frames (--inputs, --outputs, --val_horizon, --horizon)."
            )

    @property
    def settings(self) -> smoke.SmokeSettings:
        """The settings of the simulation."""
        fields = dataclasses.fields(smoke.Plumes)
        return smoke.SmokeSettings(**{field.name: getattr(self.dataset, field.name) for field in fields})

    def train_batch(
        self, data: Any, indices: Tensor, generator: torch.Generator, share: slice = slice(None)
    ) -> Batch:
        """The windows; with `augment` each is transformed by its own element of the group."""
        batch: Batch = data.batch(indices[share])
        if not self.config.training.augment:
            return batch
        elements = self._elements(len(indices), generator)[share]
        return self._turned(batch, elements)

    def moved(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Every window and its targets, transformed by its own element of the group."""
        return self._turned(batch, self._elements(len(batch["input"]), generator))

    def build_model(self) -> nn.Module:
        """The configured network for the configured symmetry."""
        network: PlaneNetwork = self.config.network  # type: ignore[assignment]
        hidden, kernel = self._papers_size
        return planes.build(
            self.config.model,
            symmetry=self.dataset.symmetry,
            frames=self.dataset.inputs,
            hidden=network.hidden or hidden,
            layers=network.layers,
            kernel=network.kernel or kernel,
            group=network.group,
            norm=network.norm,
            varied=network.varied,
            size=self.dataset.size // self.dataset.coarsen,
        )

    def inputs(self, batch: Batch) -> tuple[Tensor | None, ...]:
        """frames (b, inputs, 2, H, W)."""
        return (batch["input"],)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """The roll-out (b, outputs, 2, H, W): every predicted frame is an input of the next."""
        return rollout(model, batch["input"], batch["target"].shape[1])

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Mean squared error over the roll-out, or summed over its frames."""
        frames = prediction.shape[1] if self.dataset.loss == "sum" else 1
        return frames * nn.functional.mse_loss(prediction, batch["target"])

    def regulariser(self, model: nn.Module) -> Tensor | None:
        """RSteer's penalty on the variation of its weights, or RPP's prior on its plain weights; 0 for other networks."""
        found = [m.regulariser() for m in model.modules() if isinstance(m, planes.PlaneForecaster)]
        return found[0] if found else None

    def error(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Root mean squared error of the batch."""
        return nn.functional.mse_loss(prediction, batch["target"]).sqrt()

    def statistics(self, prediction: Tensor, batch: Batch, samples: int) -> Tensor:
        """(4,): sums of squared errors and numbers of values, of Future and of Domain."""
        squares = (prediction.double() - batch["target"].double()).square().flatten(1).mean(1)
        domain = batch["domain"].to(squares)
        return torch.stack(
            [((1 - domain) * squares).sum(), (1 - domain).sum(), (domain * squares).sum(), domain.sum()]
        )

    def metrics(self, totals: Tensor) -> dict[str, float]:
        """RMSE Future and, if there are such windows, RMSE Domain."""
        future, count, domain, others = totals.tolist()
        values = {self.metric.name: math.sqrt(future / count)}
        return values | ({"RMSE Domain": math.sqrt(domain / others)} if others else {})

    def full_size(self) -> RunConfig:
        """The published settings, with the widths of the configured symmetry."""
        full = super().full_size()
        hidden, kernel = self._papers_size
        network: PlaneNetwork = full.network  # type: ignore[assignment]
        return dataclasses.replace(full, network=dataclasses.replace(network, hidden=hidden, kernel=kernel))

    @property
    def _papers_size(self) -> tuple[int, int]:
        """Hidden fields and width of the kernels."""
        return (92, 3) if self.dataset.symmetry == "rotation" else (64, 5)

    @property
    def auditable(self) -> bool:
        """Whether the symmetry is rotation: scalings have no exact action on a grid."""
        return self.dataset.symmetry == "rotation"

    def audit_case(self) -> AuditCase:
        """A few validation windows, rotated by multiples of 90 degrees (and reflected, for D4)."""
        if not self.auditable:
            raise ConfigError(
                "smoke with symmetry 'scale' cannot be audited: scalings have no exact action on a grid of pixels. "
                "Compare the errors on the test set instead."
            )
        batch = self.eval_batch(self.load("val"), range(AUDIT_SAMPLES))
        field = GridField(vector(self._group))
        return AuditCase(self.inputs(batch), (field,), field, self._group)

    def published(self) -> dict[str, str]:
        """Empty: we do not know CR's figures."""
        return {}

    def _elements(self, count: int, generator: torch.Generator) -> Tensor:
        if not self.auditable:
            raise ConfigError("smoke with symmetry 'scale' cannot move its samples: leave 'augment' off.")
        return self._group.sample(count, generator=generator)

    def _turned(self, batch: Batch, elements: Tensor) -> Batch:
        field = GridField(vector(self._group))
        moved = {key: field.apply(elements.to(batch[key]), batch[key]) for key in ("input", "target")}
        return {**batch, **moved}

    @property
    def _group(self) -> Group:
        return Dihedral(4) if self.config.network.group == "D4" else Cyclic(4)  # type: ignore[attr-defined]


def rollout(model: nn.Module, frames: Tensor, outputs: int) -> Tensor:
    """Predict a frame, append it, predict the next: frames (b, inputs, 2, H, W) -> (b, outputs, 2, H, W)."""
    predicted = []
    for _ in range(outputs):
        predicted.append(model(frames))
        frames = torch.cat([frames[:, 1:], predicted[-1][:, None]], dim=1)
    return torch.stack(predicted, dim=1)
