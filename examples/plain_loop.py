"""A plain PyTorch loop: one small network of vectors trained strict, scheduled (CR) and learnt (ACE), then projected.

The task: of four bodies, their angular momentum over their mean squared distance. Needs torch alone.
"""

from __future__ import annotations

import torch
from equirelax_lab.models.vector_neurons import VNLinear
from torch import Tensor, nn

import equirelax as er
from equirelax.symmetry import SO, On, vector

VECTORS, METHODS = On(vector(SO(3)), -1), ("strict", "scheduled", "ace")


class Network(nn.Module):
    """Eight vectors (batch, 8, 3) -> one (batch, 1, 3), equivariant to rotations."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = VNLinear(8, 16), VNLinear(8, 16), VNLinear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.linalg.cross(self.left(x), self.right(x))
        return self.out(y / (1 + y.norm(dim=-1, keepdim=True)))


def data(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions, then velocities, of four bodies (size, 8, 3), and what is to be learnt (size, 1, 3)."""
    x = torch.randn(size, 8, 3, generator=torch.Generator().manual_seed(seed))
    momentum = torch.linalg.cross(x[:, :4], x[:, 4:]).sum(1, keepdim=True)
    return x, momentum / x[:, :4].square().sum(-1).mean(1)[:, None, None]


def train(name: str, epochs: int) -> tuple[float, float, float]:
    """Test error relaxed, test error projected, equivariance error projected."""
    torch.manual_seed(0)
    (x, y), (test_x, test_y), mse, model = data(512, 0), data(512, 1), nn.functional.mse_loss, Network()
    options = {"scheduled": {"total_steps": 8 * epochs}, "ace": {"dual_lr": 1e-2, "augmented": 0.5}}
    relaxation = er.relax(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)  # after relax
    method = er.methods.get(name)(relaxation, **options.get(name, {})).attach(optimizer)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(64):
            (mse(model(x[part]), y[part]) + method.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
    relaxed = mse(model(test_x), test_y).item()
    er.project(model)
    report = er.audit(model, test_x[:8], VECTORS, VECTORS)
    return relaxed, mse(model(test_x), test_y).item(), report.relative


if __name__ == "__main__":
    print("method     test error, relaxed  projected  equivariance error, projected")
    for name in METHODS:
        print("{:9}  {:19.4f}  {:9.4f}  {:29.1e}".format(name, *train(name, epochs=40)))
