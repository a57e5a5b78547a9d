"""The multiply-adds of a prediction, counted by hand."""

from __future__ import annotations

import torch
from equirelax_lab.training.cost import MultiplyAdds
from torch import nn


def test_products_and_convolutions_count() -> None:
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), MultiplyAdds() as counted:
        nn.functional.conv2d(x, torch.randn(5, 3, 3, 3), padding=1)
    assert counted.total == 2 * 5 * 3 * 9 * 64
    with MultiplyAdds() as counted:
        torch.randn(4, 5) @ torch.randn(5, 6)
        torch.baddbmm(torch.zeros(2, 3, 7), torch.randn(2, 3, 5), torch.randn(2, 5, 7))
        nn.functional.linear(torch.randn(2, 3, 5), torch.randn(4, 5), torch.randn(4))
    assert counted.total == 4 * 5 * 6 + 2 * 3 * 5 * 7 + 6 * 5 * 4


def test_a_gradient_within_a_prediction_counts_too() -> None:
    weight = torch.randn(4, 3)
    with MultiplyAdds() as counted:
        x = torch.randn(2, 3, requires_grad=True)
        torch.autograd.grad((x @ weight.T).sum(), x)
    assert counted.total == 2 * (2 * 3 * 4)
