"""Networks on the plane, relaxed, trained and projected: turned roll-outs agree, classes do not change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from equirelax_lab.models import GroupConv2d, PlaneClassifier, PlaneE2CNN, planes
from torch import Tensor, nn

import equirelax as er
from equirelax.methods import Method
from equirelax.symmetry import GridField, Group, trivial, vector

METHODS: dict[str, Callable[[er.Relaxation], Method]] = {
    "scheduled": lambda relaxation: er.Scheduled(relaxation, total_steps=10),
    "ace": lambda relaxation: er.ACE(relaxation, dual_lr=1e-3),
}


@pytest.fixture(autouse=True)
def _double():  # type: ignore[no-untyped-def]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def train(model: nn.Module, method: Method, x: Tensor, loss_of: Callable[[Tensor], Tensor]) -> None:
    """Four steps, the method's too."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(4):
        loss = loss_of(model(x)) + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.step()
    assert bool(torch.isfinite(loss))


def follow(model: nn.Module, x: Tensor, steps: int = 5) -> Tensor:
    """The roll-out (batch, steps, 2, H, W)."""
    frames = []
    for _ in range(steps):
        frames.append(model(x))
        x = torch.cat([x[:, 1:], frames[-1].unsqueeze(1)], dim=1)
    return torch.stack(frames, dim=1).detach()


@pytest.mark.parametrize("mode", ["drop", "fold"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("group", ["C4", pytest.param("D4", marks=pytest.mark.slow)])
def test_turned_roll_outs_of_a_projected_forecaster_agree(group: str, name: str, mode: str) -> None:
    symmetry = Group.from_name(group)
    field = GridField(vector(symmetry))
    model = PlaneE2CNN(3, 4, 4, 3, group)
    relaxation = er.relax(model)
    assert len(relaxation.residuals) == 4
    x = torch.randn(6, 3, 2, 7, 7)
    target = torch.randn(6, 2, 7, 7)
    train(model, METHODS[name](relaxation), x, lambda y: (y - target).square().mean())
    model.eval()

    def gap() -> float:
        start = follow(model, x)
        turned = [
            (follow(model, field.apply(g, x)) - field.apply(g, start)).abs().max()
            for g in symmetry.elements()
        ]
        return float(torch.stack(turned).max() / start.abs().max())

    assert gap() > 1e-4
    er.project(model, mode=mode)
    assert gap() < 1e-9
    report = er.audit(model, x, field, field)
    assert report.relative < 1e-10


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("group", ["C4", pytest.param("D4", marks=pytest.mark.slow)])
def test_a_projected_classifier_is_invariant(group: str, size: int) -> None:
    symmetry = Group.from_name(group)
    model = PlaneClassifier(3, group, 3, stages=2)
    relaxation = er.relax(model)
    x = torch.randn(12, 1, size, size)
    labels = torch.arange(12) % 3
    train(model, METHODS["ace"](relaxation), x, lambda y: nn.functional.cross_entropy(y, labels))
    model.eval()
    case = (model, x, GridField(trivial(symmetry)), trivial(symmetry, 3))
    assert er.audit(*case, per_layer=False).relative > 1e-6
    er.project(model)
    assert er.audit(*case).relative < 1e-10


@pytest.mark.parametrize("symmetry", ["rotation", "scale"])
@pytest.mark.parametrize("name", planes.RELAXABLE)
def test_what_is_said_to_be_relaxable_is(name: str, symmetry: str) -> None:
    model = planes.build(name, symmetry, 2, 4, 4, 3, size=6)  # type: ignore[arg-type]
    x = torch.randn(3, 2, 2, 6, 6)
    expected = model.eval()(x)
    relaxation = er.relax(model)
    assert len(relaxation.residuals) == 4
    assert {r.site.relaxes for r in relaxation.residuals.values()} == {
        "scale" if symmetry == "scale" else "C4"
    }
    with torch.no_grad():
        for residual in relaxation.residuals.values():
            residual.map.weight.normal_(0, 0.1)
            residual.set_gamma(1.0)
    assert float((model(x) - expected).abs().max().detach()) > 1e-2
    er.project(model)
    assert torch.equal(model(x), expected)


def test_an_audit_blames_the_residual_that_was_left() -> None:
    """A relaxed forecaster, one layer of which is far from equivariant."""
    group = Group.from_name("C4")
    field = GridField(vector(group))
    model = PlaneE2CNN(3, 2, 4, 3, norm=False)
    relaxation = er.relax(model)
    convolutions = [n for n, m in model.named_modules() if isinstance(m, GroupConv2d)]
    residual = relaxation.residuals[convolutions[1]]
    with torch.no_grad():
        residual.map.weight.normal_(0, 0.1)
    residual.set_gamma(1.0)
    report = er.audit(model, torch.randn(3, 3, 2, 7, 7), field, field)
    assert report.relative > 1e-3
    assert convolutions[1] in str(report)
