"""Muon on escnn's flat weights: for every pair of representations the matrix (output fields, input fields x basis)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from escnn import nn as enn
from escnn_networks import SPACES, draw, fill, hidden
from torch import Tensor, nn

from equirelax.optim import Muon, matrices_of
from equirelax.optim.muon import orthogonalised
from equirelax.relaxation.layers.escnn import basis_blocks, exact_bases


def convolution(space: Any) -> nn.Module:
    field = enn.FieldType(space, hidden(space, 3))
    layer = enn.R2Conv(field, field, 3, padding=1, recompute=True).double()
    exact_bases(layer)
    return layer


@pytest.mark.parametrize("space", ["C4", "D4", "SO(2)"])
def test_every_pair_of_representations_is_a_matrix(space: str) -> None:
    layer = convolution(SPACES[space]())
    fill(layer)
    start, gradient = layer.weights.detach().clone(), draw(layer.weights.numel())
    layer.weights.grad = gradient
    Muon(layer, 0.01).step()
    moved, matrices = start - layer.weights.detach(), 0
    for block in basis_blocks(layer):
        rows, columns = len(block.rows), len(block.columns) * len(block.basis)
        where = slice(block.start, block.start + rows * columns)
        if min(rows, columns) > 1:
            matrices += 1
            step = gradient[where].view(rows, columns)
            if rows > columns:
                expected = orthogonalised(step.mT[None])[0].mT
            else:
                expected = orthogonalised(step[None])[0]
            expected = expected * 0.01 * max(rows, columns) ** 0.5
        else:
            expected = 0.01 * gradient[where].sign()  # Adam's first step
        torch.testing.assert_close(moved[where].flatten(), expected.flatten(), rtol=1e-6, atol=1e-7)
    assert matrices == len(matrices_of(layer)[layer.weights]) > 1


def test_the_network_stays_equivariant_and_learns() -> None:
    space = SPACES["C4"]()
    model = enn.SequentialModule(convolution(space), convolution(space)).double()
    x = enn.GeometricTensor(draw(2, model[0].in_type.size, 7, 7), model[0].in_type)
    optimizer = Muon(model, 0.01)
    losses = []
    for _ in range(5):
        loss: Tensor = (model(x).tensor - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for element in space.testing_elements:
        moved = model(x.transform(element)).tensor
        torch.testing.assert_close(moved, model(x).transform(element).tensor, rtol=1e-9, atol=1e-9)
