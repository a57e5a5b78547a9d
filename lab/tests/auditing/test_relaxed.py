"""Relaxed models: before and after projection, and the residual that breaks equivariance."""

from __future__ import annotations

import pytest
import torch
from equirelax_lab.models import Equiformer
from torch import Tensor, nn

import equirelax as er
from equirelax.auditing import audit
from equirelax.symmetry import E, O, from_irreps, positions, trivial

torch.set_num_threads(1)
o3 = pytest.importorskip("e3nn.o3")


class Steerable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = o3.Linear("2x0e+2x1o", "3x0e+3x1o")
        self.product = o3.FullyConnectedTensorProduct("3x0e+3x1o", "3x0e+3x1o", "3x0e+3x1o")
        self.last = o3.Linear("3x0e+3x1o", "1x1o")

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(self.product(h, h))


@pytest.fixture
def relaxed() -> er.relaxation.Relaxation:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        relaxation = er.relax(Steerable())
    finally:
        torch.set_default_dtype(torch.float32)
    for _, residual in relaxation:
        nn.init.normal_(residual.map.weight, std=0.1)
    return relaxation


def test_before_and_after(relaxed: er.relaxation.Relaxation) -> None:
    x = torch.randn(6, 8, dtype=torch.float64)
    reps = from_irreps("2x0e+2x1o"), from_irreps("1x1o")
    relaxed.set_gamma(0.5)
    report = audit(relaxed.model, x, *reps)
    assert report.group == "O(3)"
    assert report.after.relative < 1e-12 < 0.01 < report.before.relative
    assert report.first_break == "first"
    assert "relaxed, gamma = 0.5" in str(report)
    assert report.layers[0].path in ("first", "product", "last")
    assert {row.path for row in report.layers if row.status == "BREAKS"} == {"first", "product", "last"}
    assert not any("equirelax_residual" in row.path for row in report.layers)
    assert torch.equal(relaxed.gammas(), torch.full((3,), 0.5, dtype=torch.float64))
    er.project(relaxed.model)
    after = audit(relaxed.model, x, *reps)
    assert after.after is None
    assert after.equivariant
    assert after.first_break is None


def test_one_residual_breaks_equivariance(relaxed: er.relaxation.Relaxation) -> None:
    x = torch.randn(6, 8, dtype=torch.float64)
    relaxed["product"].set_gamma(1e-4)
    report = audit(relaxed.model, x, from_irreps("2x0e+2x1o"), from_irreps("1x1o"), O(3))
    assert report.first_break == "product"
    rows = {row.path: row for row in report.layers}
    assert rows["first"].status == "ok"
    assert rows["last"].status == "passes on"
    assert rows["last"].relative < 1e-13 < 1e-6 < rows["last"].arriving
    assert 1e-6 < rows["product"].relative < 1e-3


def test_modules_that_read_what_only_some_linear_action_explains_break_nothing() -> None:
    """Equiformer's attention reads couplings of its edges, which arrive intact behind a block that breaks equivariance."""
    torch.manual_seed(0)
    sizes = {"blocks": 2, "heads": 2, "cutoff": 4.0, "basis": 6, "radial_width": 8, "readout": 8}
    model = Equiformer("8x0e+4x1o+4x2e", **sizes)  # type: ignore[arg-type]
    relaxation = er.relax(model, "equiformer")
    with torch.no_grad():
        for parameter in relaxation.residual_parameters().values():
            parameter.normal_(std=0.1)
    relaxation["blocks.0.ffn"].set_gamma(0.7)
    relaxation["blocks.1.ffn"].set_gamma(0.0)
    sample = (torch.tensor([1, 6, 7, 8] * 3), 1.5 * torch.randn(12, 3), torch.arange(12) // 6)
    group = E(3)
    report = er.audit(model, sample, (None, positions(group), None), trivial(group, 2), lie=False)
    assert not report.equivariant
    assert report.first_break == "blocks.0.ffn"
    assert [row.path for row in report.layers if row.status == "BREAKS"] == ["blocks.0.ffn"]
