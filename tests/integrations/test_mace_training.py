"""What `equirelax.integrations.mace.training` leaves behind after an interrupt; MACE itself is in tests/with_mace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.integrations.mace import training
from equirelax.symmetry import SO, On, vector


class Stopped(nn.Module):
    """A map of vectors (batch, 3, 2) whose evaluation is stopped by the keyboard."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(2, 1, bias=False)

    def forward(self, x: Tensor, training: bool = False) -> Tensor:
        found: Tensor = self.map(x)
        if not training:
            raise KeyboardInterrupt
        return found


def test_an_interrupt_in_an_evaluation_leaves_the_network_relaxed() -> None:
    network, x = Stopped(), torch.randn(4, 3, 2)
    axis = On(vector(SO(3)), -2)
    placement = er.Layers(
        residual=er.Dense(init="normal"), declare=(er.Linear("map", axis, channel_axis=-1),)
    )
    relaxation = er.relax(network, placement)
    relaxation.set_gamma(1.0)
    expected = network(x, training=True)
    method = er.ACE(relaxation, dual_lr=1e-2).attach(torch.optim.Adam(network.parameters()))
    relaxation.set_gamma(1.0)
    with pytest.raises(KeyboardInterrupt), training(method, nn.MSELoss()):
        network(x)
    assert torch.equal(network(x, training=True), expected)
    assert all(residual.training for residual in relaxation.residuals.values())
