"""QM9: a quantum-chemical property of a small molecule from its atoms and their positions (ACE section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from equirelax.settings import WIDTH, Range, check, within
from equirelax.symmetry import E, positions, trivial
from equirelax_lab.data import MoleculeSet, qm9
from equirelax_lab.data.molecules import turn
from equirelax_lab.models.radius import radius_graph
from equirelax_lab.tasks.settings import Near, Network, RunConfig, Splits, Steerable, Wide
from equirelax_lab.tasks.task import AuditCase, Batch, Metric, Split, Task, molecule_batch

AUDIT_MOLECULES = 4
PAPERS_TRAIN = 100_000


@dataclass(frozen=True, kw_only=True)
class QM9Dataset(Splits):
    """Which molecules are used, and what is learnt about them.

    Attributes:
        target: The property.
        targets: Standardised after subtracting atomic references, or with the mean subtracted and divided by the mean
            absolute deviation (mad), all computed from the training molecules only, or raw.
        source: The 16,771 molecules of qm9_subset.npz, or all 130,831 of qm9.npz.
        partition: How the subset is split: ordered, as in its file, where validation and test molecules are of other
            kinds than those of training; shuffled; or seeded, shuffled anew for every seed of a run. full is never ordered.
        train: Training molecules, in a fixed random order; null takes all (13,000 of the subset).
        val: Validation molecules; null takes all (1,800).
        test: Test molecules; null takes all (1,971).
    """

    target: Literal["mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv"]
    targets: Literal["standardised", "mad", "raw"]
    source: Literal["subset", "full"] = "subset"
    partition: Literal["ordered", "shuffled", "seeded"] = "shuffled"

    @property
    def seeded(self) -> bool:
        """See `Dataset`."""
        return self.partition == "seeded"


@dataclass(frozen=True, kw_only=True)
class SchNetNetwork(Near, Wide):
    """Size of the SchNet.

    Attributes:
        hidden: Width of the atoms' features.
        layers: Interaction blocks.
        filters: Width of the convolutions.
        gaussians: Radial basis functions.
        cutoff: Largest distance of an interaction, Angstrom.
    """

    filters: int = within(WIDTH)
    gaussians: int = within(Range(2, 16_384))

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.hidden, Range(2), "'network.hidden'")  # half of it is the width of the last layer


@dataclass(frozen=True, kw_only=True)
class MolecularSEGNNNetwork(Near, Steerable):
    """Size of the SEGNN.

    Attributes:
        norm: Normalise the features of every layer over the atoms of a molecule, or not at all.
        pooling: How the atoms' features become the molecule's.
        distances: The input of messages: the distance itself, or its square.
        harmonics: Normalisation of the spherical harmonics (of e3nn).
    """

    norm: Literal["none", "instance"] = "none"
    pooling: Literal["sum", "mean"] = "sum"
    distances: Literal["plain", "squared"] = "plain"
    harmonics: Literal["integral", "component"] = "integral"


class QM9Task(Task[QM9Dataset]):
    """One of twelve properties; L1 loss; mean absolute error in the property's usual unit. All are E(3)-invariant."""

    name: ClassVar[str] = "qm9"
    title: ClassVar[str] = "QM9: properties of small molecules"
    models: ClassVar[dict[str, str]] = {
        "schnet": "PyTorch Geometric's SchNet (6 blocks, 64 channels, 10 Angstrom): E(3)-invariant",
        "segnn": "steerable E(3) graph network on e3nn (5 layers, degree 2, 2 Angstrom)",
    }

    dataset_type = QM9Dataset
    network_types: ClassVar[dict[str, type[Network]]] = {
        "schnet": SchNetNetwork,
        "segnn": MolecularSEGNNNetwork,
    }
    metric = Metric("MAE of the target", symbol="its usual unit")

    def __init__(self, config: RunConfig, root: Path | None = None) -> None:
        super().__init__(config, root)
        name = self.dataset.target
        unit = qm9.TARGETS[name].unit
        # energies are reported in thousandths of an electron volt
        thousandths = unit == "eV"
        self.metric = Metric(f"MAE of {name}", "1e-3" if thousandths else "1", "meV" if thousandths else unit)

    def load(self, split: Split) -> MoleculeSet:
        """The split, with the edges for a SEGNN, which are the same in every batch."""
        d = self.dataset
        data = qm9.load(
            split,
            target=d.target,
            targets=d.targets,
            source=d.source,
            partition=d.partition,
            seed=self.config.seed,
            train=d.train,
            count=d.val if split == "val" else d.test,
            root=self.root,
        )
        network = self.config.network
        if isinstance(network, SchNetNetwork):
            return data
        cutoff: float = network.cutoff  # type: ignore[attr-defined]
        return data.with_edges(lambda where, graph: radius_graph(where, graph, cutoff))

    def train_batch(
        self, data: Any, indices: Tensor, generator: torch.Generator, share: slice = slice(None)
    ) -> Batch:
        """The molecules, each rotated by its own rotation if `augment` is set."""
        return molecule_batch(data, indices, generator, share, rotate=self.config.training.augment)

    def moved(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Every molecule transformed by its own element of E(3), with a translation of up to 1 Angstrom along each axis;
        the targets are invariant.
        """
        count = batch["targets"].shape[0]
        where, graph = batch["positions"], batch["graph"]
        drawn = (
            E(3).sample(count, generator=generator, dtype=torch.float64, device=generator.device).to(where)
        )
        turned = turn(where, drawn[:, :3, :3], graph)
        return {**batch, "positions": turned + drawn[:, :3, 3].index_select(0, graph)}

    def build_model(self) -> nn.Module:
        """PyTorch Geometric's SchNet, or a SEGNN."""
        network = self.config.network
        if isinstance(network, SchNetNetwork):
            from equirelax_lab.models import pyg_schnet

            made: nn.Module = pyg_schnet(
                network.hidden, network.layers, network.cutoff, network.gaussians, network.filters
            )
            return made
        from equirelax_lab.models import MolecularSEGNN

        segnn: MolecularSEGNNNetwork = network  # type: ignore[assignment]
        return MolecularSEGNN(
            segnn.hidden,
            segnn.l_max,
            segnn.layers,
            segnn.lmax_attributes,
            pooling=segnn.pooling,
            norm=segnn.norm,
            distances=segnn.distances,
            harmonics=segnn.harmonics,
        )

    def inputs(self, batch: Batch) -> tuple[Tensor | None, ...]:
        """SchNet: atomic numbers, positions, graph. SEGNN: numbers, positions, edges, graph."""
        edges = ("edge_index",) if self.config.model == "segnn" else ()
        names = ("numbers", "positions", *edges, "graph")
        return tuple(batch[name] for name in names)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """The scaled property, (molecules, 1) float64: the largest energies need more digits than float32 has."""
        predicted: Tensor = model(*self.inputs(batch))
        return predicted.double()

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Mean absolute error of the scaled property."""
        return nn.functional.l1_loss(prediction, batch["targets"])

    def error(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Mean absolute error of the property."""
        return self.loss(prediction, batch) * batch["deviation"]

    def audit_case(self) -> AuditCase:
        """Four validation molecules under E(3); the output does not change."""
        group = E(3)
        inputs = self.inputs(self.load("val").batch(range(AUDIT_MOLECULES)))
        where = (None, positions(group), *(None for _ in inputs[2:]))
        return AuditCase(inputs, where, trivial(group), group)

    def published(self) -> dict[str, str]:
        """SchNet on U0, from ACE. Our source does not state the unit; the training set was all of QM9."""
        if self.config.model == "schnet" and self.dataset.target == "U0":
            return {"strict": "9.64 (unit unknown)", "ace": "3.40 (unit unknown)"}
        return {}

    def scaled_down(self) -> str | None:
        """The description of every benchmark, and whether there are fewer training molecules than in the papers."""
        d = self.dataset
        words = [super().scaled_down()]
        if d.train is None and d.source == "subset":
            words.append(f"{qm9.SUBSET_TRAIN} training molecules of the papers' {PAPERS_TRAIN} and more")
        return "; ".join(filter(None, words)) or None
