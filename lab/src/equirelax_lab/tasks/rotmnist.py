"""Rotated digits: which digit is this, rotated by any angle? A finite group approximates a continuous one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from equirelax.settings import WIDTH, Range, within
from equirelax.symmetry import Cyclic, Dihedral, GridField, Group, trivial
from equirelax_lab.data import ImageSet, digits, rotmnist
from equirelax_lab.models import PlainClassifier, PlaneClassifier
from equirelax_lab.tasks.settings import Network, Splits
from equirelax_lab.tasks.task import AuditCase, Batch, Metric, Split, Task

AUDIT_SAMPLES = 8
CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class DigitsDataset(Splits):
    """Which images are used.

    Attributes:
        source: MNIST's, rotated by any angle (10,000 training, 2,000 validation, 50,000 test images), or scikit-learn's
            1,797 digits of 8 x 8 pixels, rotated by multiples of 90 degrees.
        train: Training images, the first ones; null takes all.
        val: Validation images; null takes all.
        test: Test images; null takes all.
    """

    source: Literal["mnist", "digits"] = "mnist"


@dataclass(frozen=True, kw_only=True)
class ClassifierNetwork(Network):
    """Size of a convolutional classifier.

    Attributes:
        width: Fields of the first stage, each with as many channels as the group has elements; the plain network has as many
            channels as that of C4.
        stages: Stages of two convolutions each; the size of the image is halved between them.
    """

    width: int = within(WIDTH)
    stages: int = within(Range(1, 16))


class RotMNISTTask(Task[DigitsDataset]):
    """Class of an image of a digit, rotated at random in training and test; the metric is accuracy."""

    name: ClassVar[str] = "rotmnist"
    title: ClassVar[str] = "Rotated MNIST: digits at any angle"
    models: ClassVar[dict[str, str]] = {
        "c4": "group convolutions of C4, regular fields: invariant to rotations by 90 degrees",
        "d4": "group convolutions of D4: also invariant to reflections, which digits are not",
        "plain": "convolutions of the same width: not equivariant",
    }
    dataset_type = DigitsDataset
    network_types: ClassVar[dict[str, type[Network]]] = dict.fromkeys(models, ClassifierNetwork)
    metric = Metric("accuracy", "1e-2", "%", higher_is_better=True)
    counted: ClassVar[str] = "images"
    smallest_batch: ClassVar[int] = 2
    """The networks have batch norm."""

    def load(self, split: Split) -> ImageSet:
        """The first images of the split, as many as configured."""
        source = digits if self.dataset.source == "digits" else rotmnist
        data: ImageSet = source.load(split, root=self.root)
        return data.subset(slice(getattr(self.dataset, split)))

    def train_batch(
        self, data: Any, indices: Tensor, generator: torch.Generator, share: slice = slice(None)
    ) -> Batch:
        """The images; with `augment` each is transformed by its own element of C4 (or D4)."""
        batch: Batch = data.batch(indices[share])
        if not self.config.training.augment:
            return batch
        return self._turned(batch, self._group.sample(len(indices), generator=generator)[share])

    def moved(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Every image transformed by its own element of C4 (or D4); the class is kept."""
        return self._turned(batch, self._group.sample(len(batch["images"]), generator=generator))

    def _turned(self, batch: Batch, elements: Tensor) -> Batch:
        images = batch["images"]
        return {**batch, "images": GridField(trivial(self._group)).apply(elements.to(images), images)}

    def build_model(self) -> nn.Module:
        """The configured network."""
        network: ClassifierNetwork = self.config.network  # type: ignore[assignment]
        if self.config.model == "plain":
            return PlainClassifier(CLASSES, network.width * 4, network.stages)
        return PlaneClassifier(CLASSES, self._group.name, network.width, network.stages)

    def inputs(self, batch: Batch) -> tuple[Tensor | None, ...]:
        """images (b, 1, H, W)."""
        return (batch["images"],)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits (b, 10)."""
        predicted: Tensor = model(batch["images"])
        return predicted

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Cross entropy."""
        return nn.functional.cross_entropy(prediction, batch["labels"])

    def error(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Accuracy of the batch, between 0 and 1."""
        return (prediction.argmax(1) == batch["labels"]).double().mean()

    def audit_case(self) -> AuditCase:
        """Eight validation images; errors are relative to the differences between the images' logits."""
        batch = self.eval_batch(self.load("val"), range(AUDIT_SAMPLES))
        return AuditCase(
            self.inputs(batch),
            (GridField(trivial(self._group)),),
            None,
            self._group,
            head=lambda y: y - y.mean(0),
        )

    def published(self) -> dict[str, str]:
        """None: neither paper has this experiment."""
        return {}

    @property
    def _group(self) -> Group:
        return Dihedral(4) if self.config.model == "d4" else Cyclic(4)
