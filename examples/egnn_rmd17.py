"""Relax the EGNN (Satorras et al., 2021) of egnn-pytorch, unmodified.

Its weights mix only invariant numbers, so there is no equivariant layer to relax. The library knows its blocks: residuals map
[features, coordinates] to both. The predicted force on an atom is its displacement by the network.

Needs `pip install ".[examples]" "./lab[md17]"`.
"""

from __future__ import annotations

import torch
from egnn_pytorch import EGNN_Network
from ethanol import batch, molecules, show
from torch import nn

import equirelax as er
from equirelax.auditing import AuditReport
from equirelax.symmetry import E, positions


def main(steps: int = 20) -> tuple[nn.Module, AuditReport, AuditReport]:
    """Relax, train, audit, project, audit."""
    torch.manual_seed(0)
    network = EGNN_Network(num_tokens=10, dim=16, depth=3, norm_coors=True, coor_weights_clamp_value=2.0)
    numbers, where, forces = batch(molecules(8))
    relaxation = er.relax(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    method = er.Scheduled(relaxation, total_steps=steps).attach(optimizer)
    sample, reps, losses = (numbers, where), (None, positions(E(3))), []
    for step in range(steps):
        if step == steps // 2:  # the residuals are at full strength
            relaxed = er.audit(network, sample, reps, reps, samples=4)
        moved = network(numbers, where)[1]
        loss = (moved - where - forces).square().mean()
        (loss + method.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    er.project(network)
    projected = er.audit(network, sample, reps, reps, samples=4)
    show("EGNN", relaxed, projected, losses)
    return network, relaxed, projected


if __name__ == "__main__":
    main()
