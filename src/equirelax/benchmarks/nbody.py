"""N-body dynamics: where are five charged particles one time unit later? (EGNN's and SEGNN's benchmark; CR
section 6.2, ACE section 5)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from equirelax.benchmarks.settings import Dataset, Network, ResidualSettings, RunConfig, Training
from equirelax.benchmarks.strengths import choice, is_learnt
from equirelax.benchmarks.task import AuditCase, Batch, Metric, Split, Task
from equirelax.data import NBody, NBodySet
from equirelax.data.augment import turn_each
from equirelax.ranges import COUNT, DEGREE, DEPTH, WIDTH, Range, within
from equirelax.symmetry import E, O, positions, vector

AUDIT_SYSTEMS = 8


@dataclass
class NBodyDataset(Dataset):
    """Which trajectories.

    Attributes:
        train: Training samples, the first ones of the set (at most 10,000; the papers use 3,000).
        val: Validation samples (at most 2,000).
        test: Test samples (at most 2,000).
        system: Charged particles: 5 bodies.
        clamp: The force rule: by component as in the public data, or by norm, which is equivariant.
    """

    train: int = within(COUNT, 3000)
    val: int = within(COUNT, 2000)
    test: int = within(COUNT, 2000)
    system: Literal["charged"] = "charged"
    clamp: Literal["component", "norm"] = "component"


@dataclass
class SEGNNNetwork(Network):
    """Size of the SEGNN.

    Attributes:
        hidden: Width of the dense network whose number of weights the irreps match (64: 32x0e+32x1o at l_max
            1).
        layers: Rounds of message passing.
        l_max: Largest degree of the features.
        lmax_attributes: Largest degree of the edge and node attributes.
        centre: Subtract each system's mean position: E(3) instead of O(3).
    """

    hidden: int = within(WIDTH, 64)
    layers: int = within(DEPTH, 4)
    l_max: int = within(DEGREE, 1)
    lmax_attributes: int = within(Range(1, 11), 1)
    centre: bool = False


@dataclass
class EGNNNetwork(Network):
    """Size of the EGNN.

    Attributes:
        hidden: Width of features and messages.
        layers: Rounds of message passing.
    """

    hidden: int = within(WIDTH, 64)
    layers: int = within(DEPTH, 4)


class NBodyTask(Task):
    """Positions at frame 40 from positions, velocities and charges at frame 30; MSE over bodies and
    coordinates.
    """

    name: ClassVar[str] = "nbody"
    title: ClassVar[str] = "N-body: five charged particles, positions after one time unit"
    models: ClassVar[dict[str, str]] = {
        "segnn": "steerable E(3) graph network on e3nn (4 layers, 32x0e+32x1o): predicts the displacement",
        "egnn": "E(n) graph network (4 layers, 64 hidden)",
    }
    metric = Metric("MSE of the positions", "1e-3")
    config: RunConfig

    @classmethod
    def defaults(cls, model: str, method: str) -> RunConfig:
        """Adam 5e-4, weight decay 1e-12, batch 100, 1000 epochs; ACE 9e-4 (primal) and 8e-4 (dual)."""
        learnt = is_learnt(method)
        return RunConfig(
            benchmark=cls.name,
            model=model,
            method=method,
            seed=0,
            training=Training(learning_rate=9e-4 if learnt else 5e-4, weight_decay=1e-12),
            dataset=NBodyDataset(),
            network=SEGNNNetwork() if model == "segnn" else EGNNNetwork(),
            residual=segnn_residual(method) if model == "segnn" else egnn_residual(method),
            strength=choice(method).strength,
        )

    def load(self, split: Split) -> NBodySet:
        """The first samples of a split, float32."""
        dataset = self._dataset
        count: int = getattr(dataset, split)
        return NBody(split, dataset.system, dataset.clamp, count, self.root)

    def moved(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Every system turned about the origin by a rotation of its own, its target too."""
        return turn_each(batch, ("positions", "velocities", "targets"), generator)

    def build_model(self) -> nn.Module:
        """A SEGNN or an EGNN."""
        network = self.config.network
        if isinstance(network, SEGNNNetwork):
            from equirelax.models import SEGNN

            return SEGNN(
                hidden=network.hidden,
                l_max=network.l_max,
                layers=network.layers,
                lmax_attributes=network.lmax_attributes,
                centre=network.centre,
            )
        from equirelax.models import EGNN

        return EGNN(hidden=self._egnn.hidden, layers=self._egnn.layers, in_features=1, edge_features=2)

    def inputs(self, batch: Batch) -> tuple[Tensor | None, ...]:
        """SEGNN: positions, velocities, charges, edges, graph. EGNN: positions, velocities, speed, edges,
        edge features.
        """
        b = batch
        if self.config.model == "segnn":
            return b["positions"], b["velocities"], b["charges"], b["edge_index"], b["graph"]
        return b["positions"], b["velocities"], b["features"], b["edge_index"], b["edge_features"]

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Positions (nodes, 3) at the target frame; SEGNN predicts what is added to the input's."""
        output: Tensor = model(*self.inputs(batch))
        return batch["positions"] + output if self.config.model == "segnn" else output

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Mean squared error over systems, bodies and coordinates."""
        return nn.functional.mse_loss(prediction, batch["targets"])

    def error(self, prediction: Tensor, batch: Batch) -> Tensor:
        """The loss is the metric."""
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

    @property
    def _dataset(self) -> NBodyDataset:
        dataset: NBodyDataset = self.config.dataset  # type: ignore[assignment]
        return dataset

    @property
    def _egnn(self) -> EGNNNetwork:
        network: EGNNNetwork = self.config.network  # type: ignore[assignment]
        return network


def segnn_residual(method: str) -> ResidualSettings:
    """The papers' residuals on the node update: dense in CR (and in what is compared with it), three-layer
    perceptrons in ACE.
    """
    if method == "equivariant-control":
        return ResidualSettings("segnn-equivariant", "equivariant-dense", "normal", 1e-4)
    if is_learnt(method):
        return ResidualSettings("segnn-ace", "mlp", "default", layers=3)
    return ResidualSettings("segnn-cr", "dense", "normal", 1e-4)


def egnn_residual(method: str) -> ResidualSettings:
    """Two-layer perceptrons that read features, positions and velocities; the papers have no EGNN of their
    own.
    """
    if method == "equivariant-control":
        return ResidualSettings("egnn-equivariant", "equivariant-dense", "normal", 1e-3)
    return ResidualSettings("egnn", "mlp", "normal", 1e-3, layers=2)
