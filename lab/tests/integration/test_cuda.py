"""Relax, train, save, project and audit on a GPU, where there is one."""

from __future__ import annotations

import pytest
import torch
from test_runtime import METHODS, VectorNet, batches, train

import equirelax as er
from equirelax.symmetry import O


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("residual", [er.Dense("default"), er.MLP(layers=2)])
def test_a_whole_life_on_the_gpu(method, residual, tmp_path):
    torch.manual_seed(0)
    model = VectorNet().double().cuda()
    relaxation = er.relax(model, residual=residual)
    made = METHODS[method](relaxation)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = train(model, made, optimizer, steps=[(x.cuda(), y.cuda()) for x, y in batches()])
    assert all(torch.isfinite(torch.tensor(losses)))
    assert all(p.is_cuda for p in model.parameters())
    er.save(model, tmp_path / "model.pt")
    twin = VectorNet().double()
    er.load(twin, tmp_path / "model.pt")
    x, _ = next(batches())
    torch.testing.assert_close(model(x.cuda()).cpu(), twin(x), rtol=1e-9, atol=1e-11)
    er.project(model)
    g = O(3).sample(1)[0].cuda()
    expected = model(x.cuda()) @ g.T
    torch.testing.assert_close(model(x.cuda() @ g.T), expected, rtol=1e-10, atol=1e-11)
