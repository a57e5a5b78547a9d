"""Relaxed scale-steerable convolutions: residuals, the distance to the basis, folding, and the way back."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from equirelax_lab.models import GroupConv2d, PlaneE2CNN, PlaneRSteer
from equirelax_lab.models.scale_conv import ScaleConv2d
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import UnfoldableError

KINDS = {"inner": (False, False), "lifts": (True, False), "pools": (False, True), "both": (True, True)}


@pytest.fixture(autouse=True)
def _double():  # type: ignore[no-untyped-def]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def network(kind: type[nn.Module] = PlaneE2CNN, group: str = "scale") -> nn.Module:
    torch.manual_seed(1)
    return kind(2, 3, 4, 3, group, norm=False)


def frames() -> Tensor:
    return torch.randn(2, 2, 2, 7, 7, generator=torch.Generator().manual_seed(2))


def vary(relaxation: er.Relaxation) -> None:
    """Residuals that are not zero, and that count."""
    with torch.no_grad():
        for parameter in relaxation.residual_parameters().values():
            parameter.normal_(0, 0.1)
    for residual in relaxation.residuals.values():
        residual.set_gamma(0.7)


@pytest.mark.parametrize("group", ["scale", "C4", "D4"])
@pytest.mark.parametrize("kind", [PlaneE2CNN, PlaneRSteer])
def test_every_convolution_is_relaxed_and_comes_back(kind: type[nn.Module], group: str) -> None:
    author, model = network(kind, group), network(kind, group)
    x = frames()
    relaxation = er.relax(model)
    convolutions = [n for n, m in author.named_modules() if isinstance(m, ScaleConv2d | GroupConv2d)]
    assert list(relaxation.residuals) == convolutions
    assert len(convolutions) == 4
    assert all(r.site.relaxes == group for r in relaxation.residuals.values())
    vary(relaxation)
    assert float((model(x) - author(x)).abs().max().detach()) > 1e-2
    with relaxation.strict():
        torch.testing.assert_close(model(x), author(x))
    er.project(model)
    assert list(model.state_dict()) == list(author.state_dict())
    assert torch.equal(model(x), author(x))


@pytest.mark.parametrize("relaxed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_penalty_is_the_distance_to_the_basis(kind: str, relaxed: bool) -> None:
    """0 for every kernel that the strict layer has; for others what least squares leave."""
    lifts, pools = KINDS[kind]
    layer = ScaleConv2d(3, 2, kernel_size=3, orders=2, lifts=lifts, pools=pools, relaxed=relaxed)
    model = nn.Sequential(layer)
    symmetry = er.relax(model).residuals["0"].site.convolution.symmetry
    strict = ScaleConv2d(3, 2, kernel_size=3, orders=2, lifts=lifts, pools=pools)
    columns = []
    for i in range(strict.weight.numel()):
        with torch.no_grad():
            strict.weight.zero_().view(-1)[i] = 1.0
        columns.append(strict.kernel().detach().flatten())
        assert float(symmetry.lie(strict.kernel()).detach()) < 1e-20
    span = torch.stack(columns, dim=1)
    kernel = torch.randn_like(strict.kernel())
    nearest = span @ torch.linalg.lstsq(span, kernel.flatten()).solution
    torch.testing.assert_close(symmetry.project(kernel).flatten(), nearest)
    torch.testing.assert_close(symmetry.lie(kernel), (kernel.flatten() - nearest).square().sum())
    with torch.no_grad():
        layer.weight.copy_(layer.coefficients(kernel))
    torch.testing.assert_close(layer.kernel().flatten(), nearest)


@pytest.mark.parametrize("kind", [PlaneE2CNN, PlaneRSteer])
def test_folding_keeps_what_the_layers_can_express(kind: type[nn.Module]) -> None:
    model = network(kind)
    x = frames()
    relaxation = er.relax(model)
    vary(relaxation)
    with torch.no_grad():
        for residual in relaxation.residuals.values():
            weight = residual.map.weight
            weight.copy_(residual.site.convolution.symmetry.project(weight))
            if residual.map.bias is not None:
                layer = model.get_submodule(residual.site.path)
                residual.map.bias[layer.rows] = torch.randn(len(layer.rows), 1)
    before = model(x).detach()
    er.project(model, mode="fold")
    torch.testing.assert_close(model(x), before)


def test_a_bias_without_a_place_is_refused() -> None:
    model = nn.Sequential(ScaleConv2d(3, 2, kernel_size=3, bias=False))
    relaxation = er.relax(model, er.Layers(residual=er.Dense(bias=True)))
    vary(relaxation)
    with pytest.raises(UnfoldableError, match=r"0 \(ScaleConv2d\) has no bias"):
        er.project(model, mode="fold")


def test_training_saving_and_loading(tmp_path: Path) -> None:
    model = network()
    x = frames()
    relaxation = er.relax(model)
    method = er.Scheduled(relaxation, total_steps=6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        loss = (model(x) - x[:, -1]).square().mean() + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.step()
    trained = [m.weight.detach().abs().max() for m in (r.map for r in relaxation.residuals.values())]
    assert float(torch.stack(trained).min()) > 0
    er.save(model, tmp_path / "relaxed.pt")
    other = network()
    er.load(other, tmp_path / "relaxed.pt")
    assert torch.equal(other(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
