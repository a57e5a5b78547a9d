"""CMU motion capture: where are 31 joints a quarter of a second later? (EGNO's protocol; ACE section 5)"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from equirelax.benchmarks.nbody import EGNNNetwork, egnn_residual
from equirelax.benchmarks.settings import Dataset, RunConfig, Training
from equirelax.benchmarks.strengths import ACEStrength, ResilientStrength, choice
from equirelax.benchmarks.task import AuditCase, Batch, Metric, Split, Task
from equirelax.data import MocapSet, mocap
from equirelax.models import EGNN
from equirelax.symmetry import E, positions, vector

AUDIT_SAMPLES = 4


@dataclass
class MocapDataset(Dataset):
    """Which motion.

    Attributes:
        subject: run (subject 9, 200 training samples) or walk (subject 35, 198).
        features: Node features: as published (|v| and the height over the largest of the batch), fixed-height
            (over
            the largest of the training set), or invariant (|v| and joint number: E(3) end to end).
    """

    subject: Literal["run", "walk"] = "run"
    features: Literal["published", "fixed-height", "invariant"] = "published"


class MocapTask(Task):
    """Joint positions 30 frames ahead from positions and velocities; MSE of the last frame.

    Height as a node feature tells up from down: the network is E(3)-equivariant for given features, the whole
    prediction only under rotations about the vertical and horizontal translations.
    """

    name: ClassVar[str] = "mocap"
    title: ClassVar[str] = "CMU motion capture: 31 joints, 30 frames ahead"
    models: ClassVar[dict[str, str]] = {
        "egnn": "E(n) graph network (6 layers, 128 hidden): predicts the last frame"
    }
    metric = Metric("MSE of the last frame", "1e-2")

    @classmethod
    def defaults(cls, model: str, method: str) -> RunConfig:
        """The papers' settings for EGNO (those of their EGNN are not known): Adam 5e-4, batch 12, 3000
        epochs; duals 2e-4.
        """
        strength = choice(method).strength
        if isinstance(strength, ACEStrength):
            strength = dataclasses.replace(strength, dual_lr=2e-4, dual_eps=1e-4)
        elif isinstance(strength, ResilientStrength):
            strength = dataclasses.replace(strength, dual_lr=2e-4)
        return RunConfig(
            benchmark=cls.name,
            model=model,
            method=method,
            seed=0,
            training=Training(
                epochs=3000,
                batch_size=12,
                weight_decay=1e-10,
                gradient_clip=1.0,
                augment=False,
                validate_every=10,
                checkpoint_every=50,
            ),
            dataset=MocapDataset(),
            network=EGNNNetwork(hidden=128, layers=6),
            residual=egnn_residual(method),
            strength=strength,
        )

    def load(self, split: Split) -> MocapSet:
        """The split of the configured subject, float32."""
        return mocap.load(split, case=self._dataset.subject, features=self._dataset.features, root=self.root)

    def build_model(self) -> nn.Module:
        """An EGNN on 2 node features (32 for `invariant`) and 2 edge features."""
        network: EGNNNetwork = self.config.network  # type: ignore[assignment]
        features = 1 + mocap.JOINTS if self._dataset.features == "invariant" else 2
        return EGNN(network.hidden, network.layers, in_features=features, edge_features=2)

    def inputs(self, batch: Batch) -> tuple[Tensor | None, ...]:
        """positions, velocities, features, edges, edge features."""
        names = ("positions", "velocities", "features", "edge_index", "edge_features")
        return tuple(batch[name] for name in names)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Positions (nodes, 3) of the last frame."""
        predicted: Tensor = model(*self.inputs(batch))
        return predicted

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Mean squared error over samples, joints and coordinates."""
        return nn.functional.mse_loss(prediction, batch["targets"])

    def error(self, prediction: Tensor, batch: Batch) -> Tensor:
        """The loss is the metric."""
        return self.loss(prediction, batch)

    def audit_case(self) -> AuditCase:
        """Four validation samples under E(3), node features as given."""
        group = E(3)
        inputs = self.inputs(self.load("val").batch(range(AUDIT_SAMPLES)))
        where = positions(group)
        return AuditCase(inputs, (where, vector(group), None, None, None), where, group)

    def published(self) -> dict[str, str]:
        """EGNN as EGNO's paper has it."""
        return {"strict": {"run": "50.9 ± 0.9", "walk": "28.7 ± 1.6"}[self._dataset.subject]}

    @property
    def _dataset(self) -> MocapDataset:
        dataset: MocapDataset = self.config.dataset  # type: ignore[assignment]
        return dataset
