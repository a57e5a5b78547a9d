"""Relax, train, save and project on a GPU, and replay steps as a CUDA graph, if there is a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from equirelax_lab.training.folder import METRICS, read_table
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.run import train as train_run
from test_runtime import METHODS, VectorNet, batches, train

import equirelax as er
from equirelax.symmetry import O

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


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


@pytest.mark.parametrize("method", ["strict", "scheduled", "ace", "resilient", "rpp"])
def test_a_captured_run_is_the_run(method, tiny_root, tiny_config, tmp_path):
    """More steps than warm up, with an audit in between, which must not move the weights that the graph reads."""
    config = tiny_config(method, batch_size=12, validate_every=1, audit_every=1, drop_last=True)
    plain = Machine(accelerator="gpu", progress=False, tensorboard=False)
    for name, machine in (("plain", plain), ("graph", replace(plain, graph=True))):
        train_run(config, tmp_path / name, tiny_root, machine=machine)
    for row, other in zip(
        *(read_table(tmp_path / name / METRICS) for name in ("plain", "graph")), strict=True
    ):
        for column in ("train/loss", "train/penalty", "val/projected", "fit/relaxed"):
            assert float(other[column]) == pytest.approx(float(row[column]), rel=1e-3, abs=1e-6), column
