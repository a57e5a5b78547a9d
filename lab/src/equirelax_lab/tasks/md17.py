"""MD17 and rMD17: energies and forces of one molecule in many conformations (CR section 5.3, on the original MD17)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from equirelax.errors import ConfigError
from equirelax.symmetry import E, O, positions, trivial, vector
from equirelax_lab.data import MolecularFrames, md17
from equirelax_lab.data.molecules import turn
from equirelax_lab.tasks.settings import Near, Network, Splits
from equirelax_lab.tasks.task import AuditCase, Batch, Metric, Split, Task, molecule_batch

AUDIT_FRAMES = 4
ENERGY_WEIGHT, FORCE_WEIGHT = 1.0, 80.0
THOUSANDTHS = 1e-3


@dataclass(frozen=True, kw_only=True)
class MD17Dataset(Splits):
    """Which molecule, and how many frames of it.

    Attributes:
        molecule: One of ten molecules; aspirin (21 atoms) and ethanol (9 atoms) are measured here.
        source: The recomputed rmd17, or the original md17, on which the papers report.
        train: Training frames.
        val: Validation frames.
        test: Test frames; null takes all others.
        frames: Training and validation frames are the first ones of the published splits, or drawn at random from all
            frames, anew for every seed of a run.
        scale: Energies and forces are divided by the training forces' root mean square, or by the training energies'
            standard deviation.
    """

    molecule: Literal[
        "aspirin", "azobenzene", "benzene", "ethanol", "malonaldehyde", "naphthalene", "paracetamol", "salicylic",
        "toluene", "uracil"
    ]  # fmt: skip
    source: Literal["rmd17", "md17"]
    frames: Literal["first", "random"] = "first"
    scale: Literal["forces", "energies"] = "forces"

    @property
    def seeded(self) -> bool:
        """See `Dataset`."""
        return self.frames == "random"

    @property
    def counts(self) -> tuple[int, int, int | None]:
        """The number of frames of every split. Raises `ConfigError` if that of training or validation is not given."""
        if self.train is None or self.val is None:
            raise ConfigError(
                "'dataset.train' and 'dataset.val' must be numbers: the test set takes the other frames."
            )
        return self.train, self.val, self.test


@dataclass(frozen=True, kw_only=True)
class ForceNetwork(Near):
    """Size of a network that predicts energies.

    Attributes:
        size: paper, or small with a few percent of the weights, for one CPU core.
        cutoff: Largest distance of neighbours, Angstrom; the plain network has none.
    """

    size: Literal["paper", "small"]


class MD17Task(Task[MD17Dataset]):
    """Energy and forces, exactly minus the gradient of the energy. The loss is the L1 error of the energy plus 80 times the mean
    length of the forces' errors, both in units of `dataset.scale`. Weights are selected by the force error.
    """

    name: ClassVar[str] = "md17"
    title: ClassVar[str] = "rMD17: energies and forces of a molecule"
    models: ClassVar[dict[str, str]] = {
        "equiformer": "Equiformer: equivariant graph attention on e3nn irreps, O(3)",
        "se3-transformer": "SE(3)-Transformer: attention with tensor products, O(3)",
        "nequip": "NequIP from its own package, unmodified: convolutions on e3nn irreps, O(3)",
        "plain": "attention on centred positions: not equivariant",
    }
    dataset_type = MD17Dataset
    network_types: ClassVar[dict[str, type[Network]]] = {
        "equiformer": ForceNetwork,
        "se3-transformer": ForceNetwork,
        "nequip": ForceNetwork,
        "plain": ForceNetwork,
    }
    metric = Metric("force MAE", "1e-3", "meV/A")
    counted: ClassVar[str] = "frames"
    chunk: ClassVar[int] = 25

    def load(self, split: Split) -> MolecularFrames:
        """The split's frames."""
        d = self.dataset
        return md17.load(
            split,
            d.molecule,
            source=d.source,
            counts=d.counts,
            root=self.root,
            frames=d.frames,
            seed=self.config.seed,
            scale=d.scale,
        )

    def train_batch(
        self, data: Any, indices: Tensor, generator: torch.Generator, share: slice = slice(None)
    ) -> Batch:
        """The frames, each rotated by its own rotation if `augment` is set."""
        return molecule_batch(data, indices, generator, share, rotate=self.config.training.augment)

    def moved(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Every frame and its forces, transformed by its own element of O(3)."""
        drawn = O(3).sample(len(batch["energies"]), generator=generator)
        moved = {
            key: turn(batch[key], drawn.to(batch[key]), batch["graph"]) for key in ("positions", "forces")
        }
        return {**batch, **moved}

    def build_model(self) -> nn.Module:
        """The configured network of energies, with its forces."""
        from equirelax_lab.models import (
            AtomTransformer,
            ConservativeForces,
            Equiformer,
            NequIP,
            SE3Transformer,
        )

        network: ForceNetwork = self.config.network  # type: ignore[assignment]
        kinds: dict[str, Any] = {
            "equiformer": Equiformer,
            "se3-transformer": SE3Transformer,
            "nequip": NequIP,
            "plain": AtomTransformer,
        }
        kind = kinds[self.config.model]
        # the plain network attends to all atoms
        options = {} if self.config.model == "plain" else {"cutoff": network.cutoff}
        return ConservativeForces(kind.small(**options) if network.size == "small" else kind(**options))

    def inputs(self, batch: Batch) -> tuple[Tensor | None, ...]:
        """numbers, positions, graph."""
        return (batch["numbers"], batch["positions"], batch["graph"])

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """(b, 1 + 3 n): the scaled energy, then the scaled forces."""
        energies, forces = model(*self.inputs(batch))
        return torch.cat([energies[:, None], forces.reshape(len(energies), -1)], dim=1)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """L1 of the energy + 80 x mean over atoms of the length of the force's error."""
        energy = nn.functional.l1_loss(prediction[:, 0].double(), batch["energies"])
        return (
            ENERGY_WEIGHT * energy + FORCE_WEIGHT * self._force_errors(prediction, batch).norm(dim=-1).mean()
        )

    def error(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Mean absolute error of the force components, eV/Angstrom."""
        return self._force_errors(prediction, batch).abs().double().mean() * batch["deviation"]

    def statistics(self, prediction: Tensor, batch: Batch, samples: int) -> Tensor:
        """(3,): sums of the force error and of the energy error, eV/Angstrom and eV, and the number of frames."""
        energy = (prediction[:, 0] - batch["energies"]).abs().double().mean() * batch["deviation"]
        count = torch.full_like(energy, samples)
        return torch.stack([self.error(prediction, batch) * samples, energy * samples, count])

    def metrics(self, totals: Tensor) -> dict[str, float]:
        """Force MAE in meV/Angstrom, energy MAE in meV."""
        force, energy, count = totals.tolist()
        return {
            self.metric.name: force / count / THOUSANDTHS,
            "energy MAE (meV)": energy / count / THOUSANDTHS,
        }

    def audit_case(self) -> AuditCase:
        """Four validation frames (or all, if fewer) under E(3): energies are invariant, forces vectors."""
        group, data = E(3), self.load("val")
        batch = self.eval_batch(data, range(count := min(AUDIT_FRAMES, len(data))))
        return AuditCase(
            self.inputs(batch),
            (None, positions(group), None),
            (trivial(group, count), vector(group)),
            group,
        )

    def published(self) -> dict[str, str]:
        """Empty: we do not know the papers' numbers, which are for the original MD17."""
        return {}

    def scaled_down(self) -> str | None:
        """The description of every benchmark, and whether the network is the small one."""
        network: ForceNetwork = self.config.network  # type: ignore[assignment]
        small = "the small network" if network.size == "small" else None
        return "; ".join(filter(None, (small, super().scaled_down()))) or None

    @staticmethod
    def _force_errors(prediction: Tensor, batch: Batch) -> Tensor:
        """(b n, 3), scaled."""
        return prediction[:, 1:].reshape(-1, 3) - batch["forces"]
