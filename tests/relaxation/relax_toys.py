"""A small e3nn model with everything that relaxing must cope with, for the tests of this room."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import nn


class Net(nn.Module):
    """e3nn layers, a container that runs its children in order, and something no family knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = o3.Linear("3x0e+2x1o", "4x0e+4x1o")
        self.stack = nn.Sequential(o3.Linear("4x0e+4x1o", "4x0e+4x1o"), o3.Linear("4x0e+4x1o", "2x0e+1x1o"))
        self.product = o3.FullyConnectedTensorProduct("2x0e+1x1o", "1x0e+1x1o", "1x0e+1x1o")
        self.head = nn.Linear(1, 1)
        self.activation = nn.SiLU()

    def forward(self, x, attributes):
        y = self.product(self.stack(self.first(x)), attributes)
        return self.activation(self.head(y[..., :1])), y[..., 1:]


def sample(n=5):
    attributes = torch.randn(n, 4)
    attributes[:, 0] = 1.0
    return torch.randn(n, 9), attributes


def shapes(model):
    return {k: (tuple(v.shape), v.dtype) for k, v in model.state_dict().items()}


def randomise(relaxation, gamma=0.7):
    for p in relaxation.residual_parameters().values():
        nn.init.normal_(p)
    relaxation.set_gamma(gamma)
