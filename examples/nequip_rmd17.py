"""Relax NequIP (Batzner et al., 2022) from its own package, unmodified: its layers are e3nn's, so nothing needs to be declared.

Its forces are minus the gradient of its energy, relaxed or not. Needs `pip install ".[examples]" "./lab[md17]"`.
"""

from __future__ import annotations

import torch
from ethanol import molecules, show
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state
from torch import Tensor, nn

import equirelax as er
from equirelax.auditing import AuditReport
from equirelax.symmetry import E, positions, vector

SPECIES, CUTOFF = ["H", "C", "O"], 4.0  # A


def audit(network: nn.Module, data: dict[str, Tensor]) -> AuditReport:
    """Audit the energy and the forces among NequIP's outputs."""
    reps = {"pos": positions(E(3))}, {"forces": vector(E(3))}
    return er.audit(network, data, *reps, outputs=["total_energy", "forces"], samples=4)


def main(steps: int = 20) -> tuple[nn.Module, AuditReport, AuditReport]:
    """Relax, train, audit, project, audit."""
    set_global_state()
    network = NequIPGNNModel(
        seed=0, model_dtype="float64", r_max=CUTOFF, type_names=SPECIES, num_layers=2, l_max=1, num_features=8,
        radial_mlp_width=16, avg_num_neighbors=8.0, per_type_energy_scales=1.0, per_type_energy_shifts=0.0,
    )  # fmt: skip
    types = ChemicalSpeciesToAtomTypeMapper(model_type_names=SPECIES)
    graphs = [types(compute_neighborlist_(from_ase(frame), CUTOFF)) for frame in molecules(8)]
    data = AtomicDataDict.batched_from_list(graphs)
    relaxation = er.relax(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    method = er.Scheduled(relaxation, total_steps=steps).attach(optimizer)
    losses = []
    for step in range(steps):
        if step == steps // 2:  # the residuals are at full strength
            relaxed = audit(network, data)
        loss = (network(data)["forces"] - data["forces"]).square().mean()
        (loss + method.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    er.project(network)
    projected = audit(network, data)
    show("NequIP", relaxed, projected, losses)
    return network, relaxed, projected


if __name__ == "__main__":
    main()
