"""CMU motion capture: where are 31 joints a quarter of a second later? (EGNO's protocol; ACE section 5)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from equirelax.settings import COUNT, POSITIVE, WIDTH, Range, within
from equirelax.symmetry import E, positions, vector
from equirelax_lab.data import MocapSet, Samples, mocap
from equirelax_lab.data.augment import turn_each
from equirelax_lab.models import EGNN, EGNO, Transformer
from equirelax_lab.models.stack import centres
from equirelax_lab.tasks.nbody import EGNNNetwork
from equirelax_lab.tasks.settings import Dataset, Network, Wide
from equirelax_lab.tasks.task import AuditCase, Batch, Metric, Split, Task

AUDIT_SAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class MocapDataset(Dataset):
    """The motion to predict.

    Attributes:
        subject: run (subject 9, 200 training samples), walk (subject 35, 198), or the name of a case made with
            `equirelax data make mocap`.
        features: Node features: as published (|v| and the height over the largest of the batch), fixed-height
            (over the largest of the training set), or invariant (|v| and joint number: E(3) end to end).
        starts: Training samples of every trial, the first ones; null takes those of the protocol (run: 40 of each of 5
            trials, walk: 18 of each of 11).
    """

    subject: str
    features: Literal["published", "fixed-height", "invariant"] = "published"
    starts: int | None = within(COUNT, None)


@dataclass(frozen=True, kw_only=True)
class EGNONetwork(Wide):
    """Size of the EGNO.

    Attributes:
        layers: Layers, each a temporal convolution and a round of message passing.
        modes: Frequencies that the temporal convolutions keep, 1 to 3.
        time_features: Size of the time embedding.
        vector_init: Initial weights of the temporal convolutions of vectors are drawn from U(0, vector_init).
    """

    modes: int = within(Range(1, 3))
    time_features: int = within(WIDTH)
    vector_init: float = within(POSITIVE, 0.25)


@dataclass(frozen=True, kw_only=True)
class TransformerNetwork(Wide):
    """Size of the Transformer.

    Attributes:
        hidden: Width of a token.
        layers: Encoder layers.
        heads: Attention heads.
    """

    heads: int = within(WIDTH)


class MocapTask(Task[MocapDataset]):
    """Joint positions 26 to 30 frames ahead from positions and velocities. The loss is the mean over these five
    times, the metric the MSE of the last.

    Height as a node feature tells up from down. The network is E(3)-equivariant for given features, but the whole
    prediction only under rotations about the vertical and horizontal translations (see `end_to_end`).
    """

    name: ClassVar[str] = "mocap"
    title: ClassVar[str] = "CMU motion capture: 31 joints, 30 frames ahead"
    models: ClassVar[dict[str, str]] = {
        "egno": "E(3) graph neural operator (6 layers, 128 hidden, 5 times): predicts all five frames",
        "egnn": "E(n) graph network (6 layers, 128 hidden): predicts the last frame",
        "transformer": "not equivariant, joints are tokens (6 layers, 128 hidden): predicts all five frames",
    }
    dataset_type = MocapDataset
    network_types: ClassVar[dict[str, type[Network]]] = {
        "egno": EGNONetwork,
        "egnn": EGNNNetwork,
        "transformer": TransformerNetwork,
    }
    metric = Metric("MSE of the last frame", "1e-2")
    chunk: ClassVar[int] = 12
    """The size of training batches, since the published height is relative to the largest of the batch."""

    def load(self, split: Split) -> MocapSet:
        """The split of the configured subject, float32."""
        d = self.dataset
        starts = d.starts if split == "train" else None
        return mocap.load(split, case=d.subject, features=d.features, starts=starts, root=self.root)

    def train_batch(
        self, data: Any, indices: Tensor, generator: torch.Generator, share: slice = slice(None)
    ) -> Batch:
        """As in `Task`. The published height is relative to the largest of the whole batch, not of this rank's part."""
        batch = super().train_batch(data, indices, generator, share)
        features: Tensor = data.features_of(indices.to(data.device))
        return {**batch, "features": features[share].flatten(0, 1)}

    def part(self, data: Any, share: slice) -> Samples:
        """A rank's part, whose published heights are relative to the largest of `chunk` samples of the whole set."""
        part: Samples = data.in_batches(self.chunk).subset(share)
        return part

    def build_model(self) -> nn.Module:
        """A network on 2 node features (32 for `invariant`) and 2 edge features."""
        network = self.config.network
        features = 1 + mocap.JOINTS if self.dataset.features == "invariant" else 2
        if isinstance(network, EGNONetwork):
            return EGNO(
                network.hidden,
                network.layers,
                in_features=features,
                edge_features=2,
                steps=mocap.STEPS,
                modes=network.modes,
                time_features=network.time_features,
                vector_init=network.vector_init,
            )
        if isinstance(network, TransformerNetwork):
            return Transformer(
                mocap.JOINTS, network.hidden, network.layers, network.heads, features, mocap.STEPS
            )
        egnn: EGNNNetwork = network  # type: ignore[assignment]
        return EGNN(egnn.hidden, egnn.layers, in_features=features, edge_features=2)

    def inputs(self, batch: Batch) -> tuple[Tensor | None, ...]:
        """positions, velocities, features; for networks on graphs also edges and edge features; for EGNO also the
        graph of every node.
        """
        names = ["positions", "velocities", "features"]
        if self.config.model != "transformer":
            names += ["edge_index", "edge_features"]
        if self.config.model == "egno":
            names.append("graph")
        return tuple(batch[name] for name in names)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Positions (nodes, 5, 3) of the five frames, or only of the last (nodes, 3) from an EGNN."""
        predicted: Tensor = model(*self.inputs(batch))
        return predicted

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Mean squared error over samples, joints, coordinates, and the frames that were predicted."""
        target = batch["trajectory"] if prediction.ndim == 3 else batch["targets"]
        return nn.functional.mse_loss(prediction, target)

    def error(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Mean squared error of the last frame over samples, joints and coordinates."""
        last = prediction[:, -1] if prediction.ndim == 3 else prediction
        return nn.functional.mse_loss(last, batch["targets"])

    def moved(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Rotate every sample, by its own rotation, about the mean of its input positions. Features are kept, so that
        the upward direction rotates with the sample.
        """
        mean = centres(batch["positions"], batch["graph"])
        shifts = {"positions": mean, "targets": mean, "trajectory": mean[:, None]}
        centred = {**batch, **{name: batch[name] - shift for name, shift in shifts.items()}}
        turned = turn_each(centred, (*shifts, "velocities"), generator)
        return {**turned, **{name: turned[name] + shift for name, shift in shifts.items()}}

    def audit_case(self) -> AuditCase:
        """Four validation samples under E(3), node features as given."""
        group = E(3)
        inputs = self.inputs(self.load("val").batch(range(AUDIT_SAMPLES)))
        where = positions(group)
        rest = (None,) * (len(inputs) - 2)
        return AuditCase(inputs, (where, vector(group), *rest), where, group)

    def end_to_end(self, model: nn.Module) -> tuple[nn.Module, AuditCase]:
        """The prediction as a function of positions and velocities only, with features made from them, and the case to
        audit it with. With the features `invariant` it is E(3)-equivariant if the model is. With a height among them,
        only rotations about the vertical, reflections in vertical planes and horizontal translations remain.
        """
        data = self.load("val")
        batch = data.batch(range(AUDIT_SAMPLES))
        group = E(3)
        where = positions(group)
        sample = (batch["positions"], batch["velocities"])
        return FromMotion(self, model, data, batch), AuditCase(sample, (where, vector(group)), where, group)

    def published(self) -> dict[str, str]:
        """EGNO from ACE's paper, whose figures are those of relaxed networks; EGNN from EGNO's; the Transformer from
        REMUL's.
        """
        return PUBLISHED.get((self.config.model, self.dataset.subject), {})


PUBLISHED: dict[tuple[str, str], dict[str, str]] = {
    ("egno", "run"): {
        "strict": "35.3 ± 3.2",
        "ace": "32.6 ± 1.6 (relaxed)",
        "resilient": "23.8 ± 1.5 (relaxed)",
    },
    ("egno", "walk"): {
        "strict": "8.5 ± 1.0",
        "ace": "7.5 ± 0.3 (relaxed)",
        "resilient": "7.4 ± 0.2 (relaxed)",
    },
    ("egnn", "run"): {"strict": "50.9 ± 0.9"},
    ("egnn", "walk"): {"strict": "28.7 ± 1.6"},
    ("transformer", "walk"): {"strict": "5.21", "remul": "4.95"},
}


class FromMotion(nn.Module):
    """A model's prediction from positions and velocities only: makes the node and edge features from them.

    Args:
        task, model: The benchmark, and the model that predicts.
        data: The data set of the batch.
        batch: A batch whose edges are used.
    """

    def __init__(self, task: MocapTask, model: nn.Module, data: MocapSet, batch: Batch) -> None:
        super().__init__()
        self.model = model
        self._task, self._kind, self._highest, self._bodies = task, data.kind, data.highest, data.bodies
        self._batch = batch

    def forward(self, positions: Tensor, velocities: Tensor) -> Tensor:
        """positions, velocities (nodes, 3) -> the task's prediction."""
        systems = (-1, self._bodies)
        heights = positions[:, mocap.UP, None].unflatten(0, systems)
        features = mocap.node_features(velocities.unflatten(0, systems), heights, self._highest, self._kind)
        source, target = self._batch["edge_index"]
        hops = self._batch["edge_features"][:, :1].to(positions)
        squared = (positions[source] - positions[target]).square().sum(1, keepdim=True)
        made = {
            "positions": positions,
            "velocities": velocities,
            "features": features.flatten(0, 1),
            "edge_features": torch.cat([hops, squared], 1),
        }
        return self._task.predict(self.model, {**self._batch, **made})
