"""MACE (Batatia et al., 2022) from its own package, unedited: its layers are e3nn's, so all of it is automatic.

It pins e3nn 0.4.4, other networks want 0.5 or later: it needs an environment of its own,
`pip install equirelax mace-torch`, in which e3nn's file of constants must be allowed before it is imported.
"""

# ruff: noqa: E402
from __future__ import annotations

import numpy as np
import torch
from ethanol import molecules, show

torch.serialization.add_safe_globals([slice])  # e3nn 0.4.4 reads its constants with torch.load

from e3nn import o3
from mace import data, modules
from mace.tools import AtomicNumberTable, torch_geometric
from torch import Tensor, nn

import equirelax as er
from equirelax.auditing import AuditReport
from equirelax.symmetry import E, positions, vector

CUTOFF, BLOCKS = 4.0, modules.interaction_classes  # A


class EnergyAndForces(nn.Sequential):
    """Of all that MACE returns, what is to be audited."""

    def forward(self, graph: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return (out := self[0](graph, training=self.training))["energy"], out["forces"]


def main(steps: int = 20) -> tuple[nn.Module, AuditReport, AuditReport]:
    """Relax, train, audit, project, audit."""
    torch.manual_seed(0)
    network = modules.MACE(
        r_max=CUTOFF, num_bessel=8, num_polynomial_cutoff=6, max_ell=2, num_interactions=2, num_elements=3,
        interaction_cls=BLOCKS["RealAgnosticResidualInteractionBlock"], gate=torch.nn.functional.silu,
        interaction_cls_first=BLOCKS["RealAgnosticInteractionBlock"], hidden_irreps=o3.Irreps("8x0e + 8x1o"),
        MLP_irreps=o3.Irreps("8x0e"), atomic_energies=np.zeros(3), avg_num_neighbors=8, correlation=2,
        atomic_numbers=[1, 6, 8],
    )  # fmt: skip
    table, frames = AtomicNumberTable([1, 6, 8]), molecules(8)
    configs = map(data.config_from_atoms, frames)
    atoms = [data.AtomicData.from_config(c, z_table=table, cutoff=CUTOFF) for c in configs]
    graph = next(iter(torch_geometric.dataloader.DataLoader(atoms, batch_size=8))).to_dict()
    forces = torch.tensor(np.concatenate([f.get_forces() for f in frames])).float()
    relaxation = er.relax(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    method = er.Scheduled(relaxation, total_steps=steps).attach(optimizer)
    model, reps, losses = EnergyAndForces(network), ({"positions": positions(E(3))},), []
    for step in range(steps):
        if step == steps // 2:  # the residuals are at full strength
            relaxed = er.audit(model, (graph,), reps, (None, vector(E(3))), samples=4)
        loss = (network(graph, training=True)["forces"] - forces).square().mean()
        (loss + method.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    er.project(network)
    projected = er.audit(model, (graph,), reps, (None, vector(E(3))), samples=4)
    show("MACE", relaxed, projected, losses)
    return network, relaxed, projected


if __name__ == "__main__":
    main()
