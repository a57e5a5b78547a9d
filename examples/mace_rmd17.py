"""Relax MACE (Batatia et al., 2022), unmodified, in its own training function; needs a separate environment, for e3nn 0.4.4."""

# ruff: noqa: E402
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from ase import Atoms
from ethanol import molecules, show

torch.serialization.add_safe_globals([slice])  # e3nn 0.4.4 reads its constants with torch.load

from e3nn import o3
from mace import data, modules, tools
from mace.tools.torch_geometric.dataloader import DataLoader
from torch import nn

import equirelax as er
from equirelax.auditing import AuditReport
from equirelax.integrations.mace import training
from equirelax.symmetry import E, positions, trivial, vector

BLOCKS, S, V = modules.interaction_classes, trivial(E(3)), vector(E(3))
INPUTS, OUTPUTS = ({"positions": positions(E(3))},), {"forces": V, "node_feats": 8 * S + 8 * V + 8 * S}


def loader(frames: list[Atoms], batch_size: int) -> DataLoader:
    """Batches of frames with their energies in eV and forces in eV/A, as MACE reads them."""
    keys, table = data.KeySpecification({"energy": "E"}, {"forces": "F"}), tools.AtomicNumberTable([1, 6, 8])
    for frame in frames:
        frame.info["E"], frame.arrays["F"] = frame.get_potential_energy(), frame.get_forces()
    configs = [data.config_from_atoms(frame, keys) for frame in frames]
    atoms = [data.AtomicData.from_config(one, z_table=table, cutoff=4.0) for one in configs]
    return DataLoader(atoms, batch_size=batch_size)


def main(epochs: int = 4, folder: Path = Path("runs/mace")) -> tuple[nn.Module, AuditReport, AuditReport]:
    """Relax, train, audit, project, audit, save."""
    torch.manual_seed(0)
    frames, metrics = molecules(20), []
    energies = np.full(3, np.mean([frame.get_potential_energy() for frame in frames]) / len(frames[0]))
    network = modules.ScaleShiftMACE(
        r_max=4.0, num_bessel=8, num_polynomial_cutoff=6, max_ell=1, num_interactions=2, num_elements=3,
        interaction_cls=BLOCKS["RealAgnosticResidualInteractionBlock"], gate=torch.nn.functional.silu,
        interaction_cls_first=BLOCKS["RealAgnosticInteractionBlock"], hidden_irreps=o3.Irreps("8x0e + 8x1o"),
        MLP_irreps=o3.Irreps("8x0e"), atomic_energies=energies, avg_num_neighbors=8, correlation=2,
        atomic_numbers=[1, 6, 8], atomic_inter_scale=1.0, atomic_inter_shift=0.0,
    )  # fmt: skip
    train, valid, loss = loader(frames[:16], 8), loader(frames[16:], 4), modules.WeightedEnergyForcesLoss()
    method = er.ACE(er.relax(network), dual_lr=1e-2)  # before the optimizer
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    checkpoints = tools.CheckpointHandler(directory=str(folder), tag="ethanol", keep=False)
    with training(method.attach(optimizer), loss):
        tools.train(
            network, loss, train, {"Default": valid}, optimizer, schedule, start_epoch=0, max_num_epochs=epochs,
            patience=epochs, checkpoint_handler=checkpoints, logger=SimpleNamespace(log=metrics.append),
            eval_interval=1, output_args={"forces": True, "virials": False, "stress": False},
            device=torch.device("cpu"), log_errors="PerAtomMAE",
        )  # fmt: skip
    checkpoints.load_latest(tools.CheckpointState(network, optimizer, schedule))  # the best epoch
    sample = (next(iter(valid)).to_dict(),)
    relaxed = er.audit(network, sample, INPUTS, OUTPUTS, samples=4)
    er.project(network)
    torch.save(network, folder / "ethanol.model")  # as MACE saves it, for mace.calculators.MACECalculator
    projected = er.audit(network, sample, INPUTS, OUTPUTS, samples=4)
    show("MACE", relaxed, projected, [float(step["loss"]) for step in metrics if step["mode"] == "opt"])
    return network, relaxed, projected


if __name__ == "__main__":
    main()
