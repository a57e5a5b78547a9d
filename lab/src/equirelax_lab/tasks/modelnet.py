"""ModelNet40: which of 40 classes does this rotated point cloud belong to? (CR section 5.1; ACE section 5)"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from equirelax.settings import COUNT, SHARE, Range, within
from equirelax.symmetry import SO, Group, O, vector
from equirelax_lab.data import CloudSet, clouds, corruptions, modelnet
from equirelax_lab.models import DGCNN, VNDGCNN, PointNet, VNPointNet
from equirelax_lab.tasks.settings import Dataset, Network
from equirelax_lab.tasks.task import AuditCase, Batch, Metric, Representations, Split, Task

AUDIT_SAMPLES = 8
EVALUATION_SEED = 0
"""Seed of the rotations and the dropout of validation and test objects, and of the points and rotations of the training objects
whose loss is tracked: they are the same in every run."""
DROPOUTS = (0.0, 0.25, 0.5, 0.75, 0.85)
TEN = (
    "bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet"
)  # fmt: skip
"""The classes of ModelNet10."""


@dataclass(frozen=True, kw_only=True)
class ModelNetDataset(Dataset):
    """Which objects are used, and how their points are changed.

    Attributes:
        classes: All forty, or the ten of ModelNet10.
        per_class: Training objects of every class, the first ones; null takes all outside the validation set.
        test_per_class: Test objects of every class, the first ones; null takes all.
        points: Points of a cloud.
        sampling: Which of the file's points: different ones in every training batch (and the first ones in evaluation), or
            always the first ones.
        normalise: Centre the chosen points, and scale them into the unit ball; the file's whole clouds already are.
        train_rotation: Rotations of training objects: none, about the vertical (z), or any (so3).
        test_rotation: The same for validation and test objects.
        point_dropout: Largest share of points that is dropped from a training object (drawn per object).
        test_point_dropout: The same for validation and test objects; ACE also drops points there.
        scale_and_shift: Scale training objects and shift them.
        scaling: How: all axes alike by 2/3 to 3/2, or every axis by its own factor, and a shift by up to 0.2 along
            each axis; or the latter, then points dropped, all axes alike by 0.8 to 1.25 and a shift by up to 0.1.
        label_smoothing: Share of the target that is spread over all classes.
        conditions: Further measurements on the test set: point dropout, or that and corruptions.
        conditions_per_class: Test objects of every class for these measurements; null takes all.
    """

    classes: Literal["all", "ten"] = "all"
    per_class: int | None = within(COUNT, None)
    test_per_class: int | None = within(COUNT, None)
    points: int = within(Range(1, 2048))
    sampling: Literal["random", "first"] = "random"
    normalise: bool = False
    train_rotation: Literal["none", "z", "so3"] = "so3"
    test_rotation: Literal["none", "z", "so3"] = "so3"
    point_dropout: float = within(SHARE)
    test_point_dropout: float = within(SHARE, 0.0)
    scale_and_shift: bool
    scaling: Literal["alike", "per-axis", "twice"] = "alike"
    label_smoothing: float = within(SHARE, 0.0)
    conditions: Literal["none", "dropout", "all"] = "none"
    conditions_per_class: int | None = within(COUNT, None)


@dataclass(frozen=True, kw_only=True)
class CloudNetwork(Network):
    """Size of a network on point clouds.

    Attributes:
        width: Factor on all channel numbers; 1 is the papers' size.
        neighbours: Neighbours of a point in the graphs; PointNet has none.
        dropout: Share of the head's hidden features that training drops.
    """

    width: float = within(Range(0, 64, open_least=True), 1.0)
    neighbours: int = within(Range(1, 2048))
    dropout: float = within(SHARE)


class ModelNetTask(Task[ModelNetDataset]):
    """Class of an object from points (n, 3) on its surface, rotated at random in training and test; accuracy."""

    name: ClassVar[str] = "modelnet40"
    title: ClassVar[str] = "ModelNet40: rotated point clouds, classification"
    models: ClassVar[dict[str, str]] = {
        "vn-pointnet": "Vector Neuron PointNet: SO(3)-invariant",
        "vn-dgcnn": "Vector Neuron DGCNN: O(3)-invariant, dynamic graphs",
        "pointnet": "PointNet: not equivariant",
        "dgcnn": "DGCNN: not equivariant",
    }
    dataset_type = ModelNetDataset
    network_types: ClassVar[dict[str, type[Network]]] = {
        "vn-pointnet": CloudNetwork,
        "vn-dgcnn": CloudNetwork,
        "pointnet": CloudNetwork,
        "dgcnn": CloudNetwork,
    }
    metric = Metric("instance accuracy", "1e-2", "%", higher_is_better=True)
    counted: ClassVar[str] = ""
    chunk: ClassVar[int] = 50
    smallest_batch: ClassVar[int] = 2
    """All four networks have batch norm over objects."""

    def load(self, split: Split) -> CloudSet:
        """The split; validation and test objects are rotated, and their points dropped, once, as configured."""
        d = self.dataset
        data = modelnet.load(
            split,
            classes=None if d.classes == "all" else TEN,
            per_class={"train": d.per_class, "val": None, "test": d.test_per_class}[split],
            root=self.root,
        )
        if split == "train":
            return data
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        points = self._chosen_points(data.points)
        points = clouds.rotate(points, clouds.rotations(d.test_rotation, len(points), generator))
        if d.test_point_dropout:
            points = clouds.point_dropout(points, d.test_point_dropout, generator)
        return dataclasses.replace(data, points=points)

    def train_batch(
        self, data: Any, indices: Tensor, generator: torch.Generator, share: slice = slice(None)
    ) -> Batch:
        """Points, dropout, scale, shift and rotation for every object (the order of CR's training). With the scaling
        `twice` the rotation comes before the dropout, as there.
        """
        d = self.dataset
        batch = self.eval_batch(data, indices)
        points = self._chosen_points(batch["points"], generator)
        augmented = self.config.training.augment
        twice = d.scaling == "twice" and d.scale_and_shift and augmented
        if twice:
            points = clouds.shift(clouds.scale(points, generator, per_axis=True), generator)
            points = clouds.rotate(points, clouds.rotations(d.train_rotation, len(points), generator))
        if augmented and d.point_dropout:
            points = clouds.point_dropout(points, d.point_dropout, generator)
        if twice:
            points = clouds.shift(clouds.scale(points, generator, low=0.8, high=1.25), generator, limit=0.1)
            return {"points": points[share], "labels": batch["labels"][share]}
        if augmented and d.scale_and_shift:
            points = clouds.scale(points, generator, per_axis=d.scaling == "per-axis")
            points = clouds.shift(points, generator)
        points = clouds.rotate(points, clouds.rotations(d.train_rotation, len(points), generator))
        return {"points": points[share], "labels": batch["labels"][share]}

    def as_trained(self, data: Any) -> CloudSet:
        """The objects with as many points as in training, and rotated as in training, each by its own rotation."""
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        points = self._chosen_points(data.points, generator)
        turns = clouds.rotations(self.dataset.train_rotation, len(points), generator)
        turned: CloudSet = dataclasses.replace(data, points=clouds.rotate(points, turns))
        return turned

    def _chosen_points(self, points: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The points of a cloud that are used, normalised if that is configured."""
        d = self.dataset
        drawn = generator if d.sampling == "random" else None
        chosen = clouds.sample_points(points, d.points, drawn)
        return clouds.normalise(chosen) if d.normalise else chosen

    def moved(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Every object, rotated by its own rotation; the class is kept."""
        points = batch["points"]
        turned = clouds.rotate(points, clouds.rotations("so3", len(points), generator))
        return {**batch, "points": turned}

    def build_model(self) -> nn.Module:
        """The configured network for the configured number of classes.

        Raises:
            RepresentationError: The sizes do not make a network.
        """
        network: CloudNetwork = self.config.network  # type: ignore[assignment]
        classes = len(TEN) if self.dataset.classes == "ten" else modelnet.CLASSES
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
        """Cross entropy, which for log-probabilities is the negative log-likelihood."""
        return nn.functional.cross_entropy(
            prediction, batch["labels"], label_smoothing=self.dataset.label_smoothing
        )

    def error(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Instance accuracy of the batch, between 0 and 1."""
        return (prediction.argmax(1) == batch["labels"]).double().mean()

    def statistics(self, prediction: Tensor, batch: Batch, samples: int) -> Tensor:
        """(2 classes + 1,): correctly classified objects of every class, all objects of every class, sum of the loss."""
        classes = prediction.shape[1]
        right = (prediction.argmax(1) == batch["labels"]).double()
        total = torch.bincount(batch["labels"], minlength=classes).double()
        correct = torch.bincount(batch["labels"], weights=right, minlength=classes)
        loss = nn.functional.cross_entropy(prediction.double(), batch["labels"], reduction="sum")
        return torch.cat([correct, total, loss[None]])

    def metrics(self, totals: Tensor) -> dict[str, float]:
        """Instance accuracy, class accuracy (mean over the classes that occur) in %, mean cross entropy."""
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
        if self.dataset.conditions != "none":
            found |= {
                f"point dropout {ratio:g}": partial(self._changed, change=_dropout(ratio))
                for ratio in DROPOUTS
            }
        if self.dataset.conditions == "all":
            found |= {
                f"{name} {severity}": partial(self._changed, change=_corruption(name, severity))
                for name in corruptions.CORRUPTIONS
                for severity in corruptions.SEVERITIES
            }
        return found

    def _changed(self, data: CloudSet, change: Callable[[Tensor, torch.Generator], Tensor]) -> CloudSet:
        """The chosen objects, with points changed by the same random numbers in every run."""
        chosen = self._chosen(data)
        points = change(chosen.points, torch.Generator().manual_seed(EVALUATION_SEED))
        return dataclasses.replace(chosen, points=points)

    def _chosen(self, data: CloudSet) -> CloudSet:
        """The first objects of every class, as many as configured."""
        count = self.dataset.conditions_per_class
        if count is None:
            return data
        rank = torch.zeros_like(data.labels)
        for label in data.labels.unique():
            mine = data.labels == label
            rank[mine] = torch.arange(int(mine.sum()), device=rank.device)
        return data.subset((rank < count).nonzero().flatten())

    def representations(self) -> Representations:
        """Points rotate, the output is invariant. VN-PointNet has a cross product, which is not equivariant to
        reflections; the plain networks are shown only rotations.
        """
        group: Group = O(3) if self.config.model == "vn-dgcnn" else SO(3)
        return Representations((vector(group),), None, group)

    def audit_case(self) -> AuditCase:
        """Eight validation objects; errors are relative to the differences between the objects' logits.

        The logits of all objects have a large common part, at the start of training nearly their whole size. Relative to
        that size even a broken network would look invariant.
        """
        batch = self.eval_batch(self.load("val"), range(AUDIT_SAMPLES))
        kinds = self.representations()
        return AuditCase(self.inputs(batch), kinds.inputs, kinds.output, kinds.group, head=_contrast)

    def scaled_down(self) -> str | None:
        """The description of every benchmark, and whether there are ten classes."""
        ten = "10 of 40 classes" if self.dataset.classes == "ten" else None
        return "; ".join(filter(None, (ten, super().scaled_down()))) or None

    def published(self) -> dict[str, str]:
        """ACE publishes only gains over its strict network: +1.77 (instance), +2.78 (class)."""
        return {"ace": "strict + 1.77"} if self.config.model == "vn-dgcnn" else {}


def _dropout(ratio: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    return lambda points, generator: clouds.drop_ratio(points, ratio, generator)


def _corruption(name: str, severity: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    return lambda points, generator: corruptions.corrupt(points, name, severity, generator)


def _contrast(logits: Tensor) -> Tensor:
    """Logits (b, classes) minus their mean over the objects."""
    return logits - logits.mean(0)
