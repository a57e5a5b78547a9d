"""N-body dynamics: where are five charged particles one time unit later? (EGNN's and SEGNN's benchmark; CR
section 6.2, ACE section 5)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from equirelax.symmetry import E, O, positions, vector
from equirelax_lab.data import NBody, NBodySet
from equirelax_lab.data.augment import random_rotation, turn_each
from equirelax_lab.tasks.settings import Network, RunConfig, Splits, Steerable, Wide
from equirelax_lab.tasks.task import AuditCase, Batch, Metric, Split, Task

AUDIT_SYSTEMS = 8
EVALUATION_SEED = 0
"""Seed of the rotations of validation and test systems."""


@dataclass(frozen=True, kw_only=True)
class NBodyDataset(Splits):
    """Which trajectories are used.

    Attributes:
        train: Training samples, the first ones of the set (the papers use 3,000; a set is made with 10,000).
        val: Validation samples (a set is made with 2,000).
        test: Test samples (a set is made with 2,000).
        draw: Training and validation systems: shared, the same in every run, or seeded, the set whose seed is the run's, so that
            differences between methods also vary with the data. Test systems are always those of seed 0.
        system: Charged particles: 5 bodies.
        clamp: How the force is clamped: by component as in the public data, or by norm, which is equivariant.
        rotations: What `augment` does: one rotation of a whole training batch, or one for each of its systems.
        rotate_evaluation: Rotate validation and test systems as well, each by its own rotation, the same ones in every run.
            It makes no difference to an equivariant network.
    """

    system: Literal["charged"] = "charged"
    clamp: Literal["component", "norm"] = "component"
    draw: Literal["shared", "seeded"] = "shared"
    rotations: Literal["batch", "each"] = "batch"
    rotate_evaluation: bool = False

    @property
    def seeded(self) -> bool:
        """Whether the files are those of the run's seed."""
        return self.draw == "seeded"


@dataclass(frozen=True, kw_only=True)
class SEGNNNetwork(Steerable):
    """Size of the SEGNN.

    Attributes:
        centre: Subtract each system's mean position: E(3) instead of O(3).
        axis_centre: Subtract from every position its own mean over x, y and z, as the released code does. The network is
            then not equivariant, since rotations do not commute with that.
    """

    centre: bool = False
    axis_centre: bool = False


@dataclass(frozen=True, kw_only=True)
class EGNNNetwork(Wide):
    """Size of the EGNN.

    Attributes:
        layers: Rounds of message passing.
    """


class NBodyTask(Task[NBodyDataset]):
    """Positions at frame 40 from positions, velocities and charges at frame 30; MSE over bodies and
    coordinates.
    """

    name: ClassVar[str] = "nbody"
    title: ClassVar[str] = "N-body: five charged particles, positions after one time unit"
    models: ClassVar[dict[str, str]] = {
        "segnn": "steerable E(3) graph network on e3nn (4 layers, 32x0e+32x1o): predicts the displacement",
        "egnn": "E(n) graph network (4 layers, 64 hidden)",
    }
    dataset_type = NBodyDataset
    network_types: ClassVar[dict[str, type[Network]]] = {"segnn": SEGNNNetwork, "egnn": EGNNNetwork}
    metric = Metric("MSE of the positions", "1e-3")
    config: RunConfig

    def load(self, split: Split) -> NBodySet:
        """The first samples of a split, float32."""
        dataset = self.dataset
        count: int = getattr(dataset, split)
        seed = self.config.seed if dataset.seeded and split != "test" else 0
        data = NBody(split, dataset.system, dataset.clamp, count, self.root, seed)
        if split == "train" or not dataset.rotate_evaluation:
            return data
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        return data.turned(random_rotation(generator, count=len(data)))

    def train_batch(
        self, data: Any, indices: Tensor, generator: torch.Generator, share: slice = slice(None)
    ) -> Batch:
        """The systems; with `augment` all rotated by one rotation, or each by its own."""
        if not self.config.training.augment or self.dataset.rotations == "batch":
            return super().train_batch(data, indices, generator, share)
        turns = random_rotation(generator, count=len(indices))[share]
        batch: Batch = data.batch(indices[share], turns)
        return batch

    def moved(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Every system and its target, rotated about the origin by its own rotation."""
        return turn_each(batch, ("positions", "velocities", "targets"), generator)

    def build_model(self) -> nn.Module:
        """A SEGNN or an EGNN."""
        network = self.config.network
        if isinstance(network, SEGNNNetwork):
            from equirelax_lab.models import SEGNN

            return SEGNN(
                hidden=network.hidden,
                l_max=network.l_max,
                layers=network.layers,
                lmax_attributes=network.lmax_attributes,
                centre=network.centre,
                axis_centre=network.axis_centre,
            )
        from equirelax_lab.models import EGNN

        egnn = cast(EGNNNetwork, network)
        return EGNN(hidden=egnn.hidden, layers=egnn.layers, in_features=1, edge_features=2)

    def inputs(self, batch: Batch) -> tuple[Tensor | None, ...]:
        """SEGNN: positions, velocities, charges, edges, graph. EGNN: positions, velocities, speed, edges,
        edge features.
        """
        b = batch
        if self.config.model == "segnn":
            return b["positions"], b["velocities"], b["charges"], b["edge_index"], b["graph"]
        return b["positions"], b["velocities"], b["features"], b["edge_index"], b["edge_features"]

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Positions (nodes, 3) at the target frame; SEGNN predicts the displacement from the input's."""
        output: Tensor = model(*self.inputs(batch))
        return batch["positions"] + output if self.config.model == "segnn" else output

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Mean squared error over systems, bodies and coordinates."""
        return nn.functional.mse_loss(prediction, batch["targets"])

    def error(self, prediction: Tensor, batch: Batch) -> Tensor:
        """The loss, which is also the metric."""
        return self.loss(prediction, batch)

    def audit_case(self) -> AuditCase:
        """Eight validation systems; O(3), or E(3) for EGNN and a centred SEGNN."""
        inputs = self.inputs(self.load("val").batch(range(AUDIT_SYSTEMS)))
        network = self.config.network
        translates = not isinstance(network, SEGNNNetwork) or network.centre
        group = E(3) if translates else O(3)
        in_rep = (positions(group), vector(group), None, None, None)
        out_rep = vector(group) if isinstance(network, SEGNNNetwork) else positions(group)
        return AuditCase(inputs, in_rep, out_rep, group)

    def published(self) -> dict[str, str]:
        """ACE's table for SEGNN on 3,000 samples; EGNN's own number."""
        if self.config.model == "segnn":
            return {"strict": "5.6 ± 0.25", "scheduled": "4.9 ± 0.18", "ace": "3.8 ± 0.17"}
        return {"strict": "7.1"}
