"""The multiply-adds of a prediction, counted by hand."""

from __future__ import annotations

import torch
from equirelax_lab.training.cost import multiply_adds
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def test_products_and_convolutions_count() -> None:
    x, kernel = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
    with torch.no_grad():
        assert multiply_adds(lambda: nn.functional.conv2d(x, kernel, padding=1)) == 2 * 5 * 3 * 9 * 64

    def several() -> None:
        torch.randn(4, 5) @ torch.randn(5, 6)
        torch.baddbmm(torch.zeros(2, 3, 7), torch.randn(2, 3, 5), torch.randn(2, 5, 7))
        nn.functional.linear(torch.randn(2, 3, 5), torch.randn(4, 5), torch.randn(4))

    with FlopCounterMode(display=False) as counted:
        several()
    assert multiply_adds(several) == 4 * 5 * 6 + 2 * 3 * 5 * 7 + 6 * 5 * 4 == counted.get_total_flops() / 2


def test_a_gradient_within_a_prediction_counts_too() -> None:
    """As in networks that predict forces; `FlopCounterMode` raises where a module is called."""
    layer, x = nn.Linear(3, 4, bias=False), torch.randn(2, 3, requires_grad=True)
    layer.requires_grad_(False)
    assert multiply_adds(lambda: torch.autograd.grad((x @ layer.weight.T).sum(), x)) == 2 * (2 * 3 * 4)
    assert multiply_adds(lambda: torch.autograd.grad(layer(x).sum(), x)) == 2 * (2 * 3 * 4)
