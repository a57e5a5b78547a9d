"""ModelNet40: which of 40 kinds is this rotated cloud of points? (CR section 5.1; ACE section 5)"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from equirelax.benchmarks.settings import Dataset, Network, ResidualSettings, RunConfig, Training
from equirelax.benchmarks.strengths import (
    ACEStrength,
    ResilientStrength,
    RPPStrength,
    ScheduledStrength,
    choice,
    is_learnt,
)
from equirelax.benchmarks.task import NO_PLACEMENT, AuditCase, Batch, Metric, Representations, Split, Task
from equirelax.data import CloudSet, clouds, corruptions, modelnet
from equirelax.models import DGCNN, VNDGCNN, PointNet, VNPointNet
from equirelax.ranges import COUNT, SHARE, Range, within
from equirelax.symmetry import SO, Group, O, vector

AUDIT_SAMPLES = 8
HEAD_DROPOUT = {"vn-pointnet": 0.4, "vn-dgcnn": 0.5, "pointnet": 0.3, "dgcnn": 0.5}
"""Dropout of the published heads."""
EVALUATION_SEED = 0
"""Rotations and dropout of validation and test objects are drawn once from it: they are the same in every run."""
DROPOUTS = (0.0, 0.25, 0.5, 0.75, 0.85)
TEN = (
    "bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet"
)  # fmt: skip
"""The classes of ModelNet10."""


@dataclass
class ModelNetDataset(Dataset):
    """Which objects, and what is done to their points.

    Attributes:
        classes: All forty, or the ten of ModelNet10.
        per_class: Training objects of every class, the first ones; null takes all that are not validation's.
        test_per_class: Test objects of every class, the first ones; null takes all.
        points: Points of a cloud.
        train_rotation: Rotations of training objects: none, about the vertical (z), or any (so3).
        test_rotation: The same for validation and test objects.
        point_dropout: Largest share of points that is dropped from a training object (drawn per object).
        test_point_dropout: The same for validation and test objects; ACE drops there too.
        scale_and_shift: Scale training objects by 2/3 to 3/2 and shift them by up to 0.2 along each axis.
        label_smoothing: Share of the target that is spread over all classes.
        conditions: Further measurements on the test set: point dropout, or that and corruptions.
        conditions_per_class: Test objects of every class that these are made on; null takes all.
    """

    classes: Literal["all", "ten"] = "all"
    per_class: int | None = within(COUNT, None)
    test_per_class: int | None = within(COUNT, None)
    points: int = within(Range(1, 2048), 300)
    train_rotation: Literal["none", "z", "so3"] = "so3"
    test_rotation: Literal["none", "z", "so3"] = "so3"
    point_dropout: float = within(SHARE, 0.875)
    test_point_dropout: float = within(SHARE, 0.0)
    scale_and_shift: bool = True
    label_smoothing: float = within(SHARE, 0.0)
    conditions: Literal["none", "dropout", "all"] = "none"
    conditions_per_class: int | None = within(COUNT, None)


@dataclass
class CloudNetwork(Network):
    """Size of a network on point clouds.

    Attributes:
        width: Factor on all numbers of channels; 1 is the papers' size.
        neighbours: Neighbours of a point in the graphs; PointNet has none.
        dropout: Share of the head's hidden features that training drops.
    """

    width: float = within(Range(0, 64, open_least=True), 1.0)
    neighbours: int = within(Range(1, 2048), 20)
    dropout: float = within(SHARE, 0.5)


class ModelNetTask(Task):
    """Class of an object from points (n, 3) on its surface, rotated at random in training and test; accuracy."""

    name: ClassVar[str] = "modelnet40"
    title: ClassVar[str] = "ModelNet40: rotated point clouds, classification"
    models: ClassVar[dict[str, str]] = {
        "vn-pointnet": "Vector Neuron PointNet: SO(3)-invariant",
        "vn-dgcnn": "Vector Neuron DGCNN: O(3)-invariant, dynamic graphs",
        "pointnet": "PointNet: not equivariant",
        "dgcnn": "DGCNN: not equivariant",
    }
    metric = Metric("instance accuracy", "1e-2", "%", higher_is_better=True)
    counted: ClassVar[str] = ""
    chunk: ClassVar[int] = 50
    smallest_batch: ClassVar[int] = 2
    """All four networks have batch norm over objects."""

    @classmethod
    def defaults(cls, model: str, method: str) -> RunConfig:
        """PointNets: Adam 1e-3, weight decay 1e-4, times 0.7 every 20 of 200 epochs, batch 24 (CR).

        DGCNNs: SGD 0.1, batch 32, 250 epochs, label smoothing 0.2; momentum 0.9, weight decay 1e-4 and a cosine
        down to 1e-3 (CR), none of the three for the learnt strengths (ACE: multipliers 1e-4, mean over residuals).
        """
        dgcnn = model.endswith("dgcnn")
        training = _dgcnn_training(is_learnt(method)) if dgcnn else _pointnet_training()
        if method == "rpp":  # its priors take the place of the weight decay
            training = dataclasses.replace(training, weight_decay=0.0)
        return RunConfig(
            benchmark=cls.name,
            model=model,
            method=method,
            seed=0,
            training=training,
            dataset=ModelNetDataset(label_smoothing=0.2 if dgcnn else 0.0),
            network=CloudNetwork(dropout=HEAD_DROPOUT[model]),
            residual=_residual(model, method),
            strength=_strength(dgcnn, method),
        )

    def load(self, split: Split) -> CloudSet:
        """The split; validation and test objects are rotated and thinned out as configured, once and for all."""
        d = self._dataset
        data = modelnet.load(
            split,
            classes=None if d.classes == "all" else TEN,
            per_class={"train": d.per_class, "val": None, "test": d.test_per_class}[split],
            root=self.root,
        )
        if split == "train":
            return data
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        points = clouds.sample_points(data.points, d.points)
        points = clouds.rotate(points, clouds.rotations(d.test_rotation, len(points), generator))
        if d.test_point_dropout:
            points = clouds.point_dropout(points, d.test_point_dropout, generator)
        return dataclasses.replace(data, points=points)

    def train_batch(
        self, data: Any, indices: Tensor, generator: torch.Generator, share: slice = slice(None)
    ) -> Batch:
        """Fresh points, dropout, scale, shift and rotation for every object (the order of CR's training)."""
        d = self._dataset
        batch = self.eval_batch(data, indices)
        points = clouds.sample_points(batch["points"], d.points, generator)
        if self.config.training.augment:
            if d.point_dropout:
                points = clouds.point_dropout(points, d.point_dropout, generator)
            if d.scale_and_shift:
                points = clouds.shift(clouds.scale(points, generator=generator), generator=generator)
        points = clouds.rotate(points, clouds.rotations(d.train_rotation, len(points), generator))
        return {"points": points[share], "labels": batch["labels"][share]}

    def moved(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Every object turned by a rotation of its own; its class stays."""
        points = batch["points"]
        turned = clouds.rotate(points, clouds.rotations("so3", len(points), generator))
        return {**batch, "points": turned}

    def build_model(self) -> nn.Module:
        """The configured network for the configured number of classes.

        Raises:
            RepresentationError: sizes that make no network.
        """
        network: CloudNetwork = self.config.network  # type: ignore[assignment]
        classes = len(TEN) if self._dataset.classes == "ten" else modelnet.CLASSES
        neighbours, width, dropout = network.neighbours, network.width, network.dropout
        builders: dict[str, Callable[[], nn.Module]] = {
            "vn-pointnet": partial(VNPointNet, classes, neighbours, width, dropout=dropout),
            "vn-dgcnn": partial(VNDGCNN, classes, neighbours, width, dropout=dropout),
            "pointnet": partial(PointNet, classes, width, dropout=dropout),
            "dgcnn": partial(DGCNN, classes, neighbours, width, dropout=dropout),
        }
        return builders[self.config.model]()

    def inputs(self, batch: Batch) -> tuple[Tensor | None, ...]:
        """points (b, n, 3)."""
        return (batch["points"],)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits or logarithms of probabilities (b, classes)."""
        predicted: Tensor = model(batch["points"])
        return predicted

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Cross entropy; for logarithms of probabilities that is the negative log-likelihood."""
        return nn.functional.cross_entropy(
            prediction, batch["labels"], label_smoothing=self._dataset.label_smoothing
        )

    def error(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Instance accuracy of the batch, between 0 and 1."""
        return (prediction.argmax(1) == batch["labels"]).double().mean()

    def statistics(self, prediction: Tensor, batch: Batch, samples: int) -> Tensor:
        """(2 classes + 1,): objects of every class that are recognised, all of every class, sum of the loss."""
        classes = prediction.shape[1]
        right = (prediction.argmax(1) == batch["labels"]).double()
        total = torch.bincount(batch["labels"], minlength=classes).double()
        correct = torch.bincount(batch["labels"], weights=right, minlength=classes)
        loss = nn.functional.cross_entropy(prediction.double(), batch["labels"], reduction="sum")
        return torch.cat([correct, total, loss[None]])

    def metrics(self, totals: Tensor) -> dict[str, float]:
        """Instance accuracy, class accuracy (mean over the classes that are there) in %, mean cross entropy."""
        correct, total = totals[:-1].view(2, -1)
        there = total > 0
        return {
            self.metric.name: float(100 * correct.sum() / total.sum()),
            "class accuracy": float(100 * (correct[there] / total[there]).mean()),
            "cross entropy": float(totals[-1] / total.sum()),
        }

    def conditions(self) -> dict[str, Callable[[Any], Any]]:
        """Point dropout of a fixed share, and every corruption at every severity, as configured."""
        found: dict[str, Callable[[Any], Any]] = {}
        if self._dataset.conditions != "none":
            found |= {
                f"point dropout {ratio:g}": partial(self._changed, change=_dropout(ratio))
                for ratio in DROPOUTS
            }
        if self._dataset.conditions == "all":
            found |= {
                f"{name} {severity}": partial(self._changed, change=_corruption(name, severity))
                for name in corruptions.CORRUPTIONS
                for severity in corruptions.SEVERITIES
            }
        return found

    def _changed(self, data: CloudSet, change: Callable[[Tensor, torch.Generator], Tensor]) -> CloudSet:
        """The chosen objects, their points changed by the same random numbers in every run."""
        chosen = self._chosen(data)
        points = change(chosen.points, torch.Generator().manual_seed(EVALUATION_SEED))
        return dataclasses.replace(chosen, points=points)

    def _chosen(self, data: CloudSet) -> CloudSet:
        """The first objects of every class, as many as are configured."""
        count = self._dataset.conditions_per_class
        if count is None:
            return data
        rank = torch.zeros_like(data.labels)
        for label in data.labels.unique():
            mine = data.labels == label
            rank[mine] = torch.arange(int(mine.sum()), device=rank.device)
        return data.subset((rank < count).nonzero().flatten())

    def representations(self) -> Representations:
        """Points turn, what comes out stays. VN-PointNet has a cross product, which reflections would turn over; the
        plain networks are shown rotations alone.
        """
        group: Group = O(3) if self.config.model == "vn-dgcnn" else SO(3)
        return Representations((vector(group),), None, group)

    def audit_case(self) -> AuditCase:
        """Eight validation objects; errors are relative to what tells the objects' logits apart.

        Logits of all objects have much in common, at the start of training nearly everything: relative to their
        size even a broken network would look invariant.
        """
        batch = self.eval_batch(self.load("val"), range(AUDIT_SAMPLES))
        kinds = self.representations()
        return AuditCase(self.inputs(batch), kinds.inputs, kinds.output, kinds.group, head=_contrast)

    def scaled_down(self) -> str | None:
        """Also that there are ten classes."""
        ten = "10 of 40 classes" if self._dataset.classes == "ten" else None
        return "; ".join(filter(None, (ten, super().scaled_down()))) or None

    def published(self) -> dict[str, str]:
        """ACE gives gains over its strict network alone: +1.77 (instance), +2.78 (class)."""
        return {"ace": "strict + 1.77"} if self.config.model == "vn-dgcnn" else {}

    @property
    def _dataset(self) -> ModelNetDataset:
        dataset: ModelNetDataset = self.config.dataset  # type: ignore[assignment]
        return dataset


def _dropout(ratio: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    return lambda points, generator: clouds.drop_ratio(points, ratio, generator)


def _corruption(name: str, severity: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    return lambda points, generator: corruptions.corrupt(points, name, severity, generator)


def _contrast(logits: Tensor) -> Tensor:
    """Logits (b, classes) less their mean over the objects."""
    return logits - logits.mean(0)


def _pointnet_training() -> Training:
    return Training(
        epochs=200, batch_size=24, learning_rate=1e-3, weight_decay=1e-4, schedule="step", validate_every=1
    )


def _dgcnn_training(learnt: bool) -> Training:
    common = Training(epochs=250, batch_size=32, optimizer="sgd", learning_rate=0.1, validate_every=1)
    if learnt:
        return common
    return dataclasses.replace(
        common, momentum=0.9, weight_decay=1e-4, schedule="cosine", final_learning_rate=1e-3
    )


def _residual(model: str, method: str) -> ResidualSettings:
    """Dense on every linear and direction map: zeros in CR's VN-PointNet, PyTorch's default in VN-DGCNN."""
    if model in ("pointnet", "dgcnn"):
        return ResidualSettings(NO_PLACEMENT)
    if method == "equivariant-control":
        return ResidualSettings("layers", "equivariant-dense", "normal", 1e-4)
    return ResidualSettings("layers", "dense", "default" if model == "vn-dgcnn" else "zeros")


def _strength(dgcnn: bool, method: str) -> Any:
    """The method's settings: lambda_reg 0.01, or 5e-4 times gamma (VN-DGCNN); multipliers 1e-4, mean (ACE); RPP's
    prior on the author's weights is what a weight decay of 1e-4 is to the others.
    """
    strength = choice(method).strength
    if isinstance(strength, ScheduledStrength) and dgcnn:
        return dataclasses.replace(
            strength,
            lie_weight=5e-4 if strength.lie_weight else 0.0,
            norm_weight=5e-4 if strength.norm_weight else 0.0,
            penalty_times_gamma=True,
        )
    if isinstance(strength, ACEStrength):
        return dataclasses.replace(strength, dual_lr=1e-4, reduction="mean")
    if isinstance(strength, ResilientStrength):
        return dataclasses.replace(strength, dual_lr=1e-4)
    if isinstance(strength, RPPStrength):
        return dataclasses.replace(strength, eq_weight=5e-5)
    return strength
