"""A plain PyTorch loop that trains a small network on vectors strict, scheduled (CR) and learnt (ACE), and projects it.

The task is the angular momentum of four bodies divided by their mean squared distance from the origin. Needs only torch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.symmetry import SO, On, vector

VECTORS, METHODS = On(vector(SO(3)), -2), ("strict", "scheduled", "ace")
PLACEMENT = er.Layers(declare=(er.Linear("*", On("1x1o", -2), channel_axis=-1),))


class Network(nn.Module):
    """Eight vectors (batch, 3, 8) -> one (batch, 3, 1), equivariant to rotations."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = (nn.Linear(*c, bias=False) for c in ((8, 16), (8, 16), (16, 1)))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.linalg.cross(self.left(x), self.right(x), dim=1)
        return self.out(y / (1 + y.norm(dim=1, keepdim=True)))


def data(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions and velocities of four bodies (size, 3, 8), and the target (size, 3, 1)."""
    x = torch.randn(size, 3, 8, generator=torch.Generator().manual_seed(seed))
    momentum = torch.linalg.cross(x[..., :4], x[..., 4:], dim=1).sum(-1, keepdim=True)
    return x, momentum / x[..., :4].square().sum(1).mean(-1)[:, None, None]


def train(name: str, epochs: int) -> tuple[float, float, float]:
    """Train with the method `name`; return the relaxed and the projected test error, and the projected equivariance error."""
    torch.manual_seed(0)
    (x, y), (test_x, test_y), mse, model = data(512, 0), data(512, 1), nn.functional.mse_loss, Network()
    options = {"scheduled": {"total_steps": 8 * epochs}, "ace": {"dual_lr": 1e-2, "augmented": 0.5}}
    relaxation = er.relax(model, PLACEMENT)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)  # after relax
    method = er.methods.get(name)(relaxation, **options.get(name, {})).attach(optimizer)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(64):
            (mse(model(x[part]), y[part]) + method.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
    relaxed = mse(model(test_x), test_y).item()
    er.project(model)
    error = er.audit(model, test_x[:8], VECTORS, VECTORS).relative
    return relaxed, mse(model(test_x), test_y).item(), error


if __name__ == "__main__":
    print("method     test error, relaxed  projected  equivariance error, projected")
    for name in METHODS:
        print("{:9}  {:19.4f}  {:9.4f}  {:29.1e}".format(name, *train(name, epochs=40)))
