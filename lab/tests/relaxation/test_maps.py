"""What a residual adds keeps the dtype of its module's output, and its map the mode of its module."""

from __future__ import annotations

import torch
from torch import nn

import equirelax as er
from equirelax.symmetry import SO, vector


class Narrow(nn.Linear):
    """Computes in float32, and gives bfloat16 as layers under autocast do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).to(torch.bfloat16)


def relaxed(model: nn.Sequential) -> er.relaxation.Relaxation:
    """The model's first layer relaxed, from 2 vectors to 2 vectors."""
    features = 2 * vector(SO(3))
    declared = (er.relaxation.Linear("0", features, features),)
    return er.relax(model, er.Layers(residual=er.Dense("normal", std=1.0), declare=declared))


def test_the_output_keeps_its_dtype() -> None:
    model, x = nn.Sequential(Narrow(6, 6, bias=False)), torch.randn(4, 6)
    strict = model(x)
    relaxed(model).set_gamma(1.0)
    assert model(x).dtype == strict.dtype == torch.bfloat16
    assert not torch.equal(model(x), strict)


def test_residuals_are_in_the_mode_of_their_modules() -> None:
    model = nn.Sequential(nn.Linear(6, 6, bias=False)).eval()
    relaxation = relaxed(model)
    assert not any(residual.training for _, residual in relaxation)
    model.train()
    assert all(residual.training for _, residual in relaxation)
