"""The section of a model card: what it says of networks that are deployed relaxed, projected or as they are."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import equirelax as er
from equirelax.auditing import AuditReport, audit, card, write_card
from equirelax.symmetry import SO, Representation, vector

torch.set_num_threads(1)
V = vector(SO(3))


class Scale(nn.Module):
    """A multiple of a vector, and what an author's own code adds to it."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.linear.weight.data = 2.0 * torch.eye(3)
        self.linear.bias.data = torch.full((3,), bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def measured(model: nn.Module, deployed: str | None = None) -> AuditReport:
    return audit(model, torch.randn(4, 3), V, V, samples=4, deployed=deployed)


def relaxed(rep: Representation = V) -> Scale:
    model = Scale()
    placement = er.Layers(
        residual=er.Dense("normal", std=0.1), declare=(er.relaxation.Linear("linear", rep, rep),)
    )
    er.relax(model, placement).set_gamma(0.5)
    return model


def rows(text: str) -> dict[str, str]:
    """First cell -> the rest, of every row of the card's tables."""
    found = re.findall(r"^\| ([^|]+?) \| (.*) \|$", text, flags=re.MULTILINE)
    return {name: value for name, value in found if "---" not in name}


def test_a_network_deployed_relaxed_says_how_far_it_is_from_equivariant() -> None:
    report = measured(relaxed(), "relaxed")
    text = rows(card(report))
    assert report.after is not None
    assert report.relative > 1e-3
    assert text["network"] == "Scale, deployed relaxed"
    assert text["group"] == "SO(3)"
    assert float(text["relative equivariance error"]) == pytest.approx(report.relative, rel=1e-2)
    assert text["equivariant (within the tolerance)"].startswith("no")
    assert float(text["relative error without the residuals"]) < 1e-12
    name, gamma, *_, alone = ["linear", *text["linear"].split(" | ")][1:]
    assert (name, float(gamma)) == ("Linear", 0.5)
    assert float(alone) == pytest.approx(report.modules[0].alone, rel=1e-2)


def test_a_network_deployed_projected_says_what_will_be_left() -> None:
    text = rows(card(measured(relaxed())))
    assert text["network"] == "Scale, deployed projected"
    assert float(text["relative equivariance error"]) < 1e-12
    assert text["equivariant (within the tolerance)"].startswith("yes")
    assert not {"linear", "relative error without the residuals"} & set(text)


def test_a_network_that_is_not_relaxed() -> None:
    text = rows(card(measured(Scale(bias=1.0))))
    assert text["network"] == "Scale, deployed as it is"
    assert text["equivariant (within the tolerance)"].startswith("no")


def test_it_is_written_beside_the_weights(tmp_path) -> None:
    model = relaxed()
    report = measured(model, "relaxed")
    er.save(model, tmp_path / "model.pt")
    path = write_card(report, tmp_path / "model.pt")
    assert path == tmp_path / "model.md"
    assert path.read_text("utf-8") == card(report)
