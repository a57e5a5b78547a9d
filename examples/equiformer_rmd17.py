"""Relax the Equiformer (Liao and Smidt, 2023) of equiformer-pytorch, unmodified.

Its linear maps on features by degree are a layer family of the library, so nothing needs to be declared. The package computes
its rotations without gradients, so the gradient of its energy would be wrong: the forces here are its type-1 output. The
network is equivariant to SE(3), not to reflections. Needs `pip install ".[examples]" "./lab[md17]"`.
"""

from __future__ import annotations

import torch
from equiformer_pytorch import Equiformer
from ethanol import batch, molecules, show
from torch import nn

import equirelax as er
from equirelax.auditing import AuditReport
from equirelax.symmetry import SE, positions, vector


def main(steps: int = 20) -> tuple[nn.Module, AuditReport, AuditReport]:
    """Relax, train, audit, project, audit."""
    torch.manual_seed(0)
    network = Equiformer(
        num_tokens=10, num_degrees=3, dim=(16, 8, 4), dim_head=(8, 4, 4), heads=2, depth=1, num_neighbors=8,
        valid_radius=5.0, l2_dist_attention=False, num_linear_attn_heads=0, reduce_dim_out=True,
    )  # fmt: skip
    numbers, where, forces = batch(molecules(8))
    relaxation = er.relax(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    method = er.Scheduled(relaxation, total_steps=steps).attach(optimizer)
    sample, reps, losses = (numbers[:2], where[:2]), (None, positions(SE(3))), []
    for step in range(steps):
        if step == steps // 2:  # the residuals are at full strength
            relaxed = er.audit(network, sample, reps, (None, vector(SE(3))), samples=4)
        loss = (network(numbers, where).type1 - forces).square().mean()
        (loss + method.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    er.project(network)
    projected = er.audit(network, sample, reps, (None, vector(SE(3))), samples=4)
    show("Equiformer", relaxed, projected, losses)
    return network, relaxed, projected


if __name__ == "__main__":
    main()
