"""Relaxed steerable convolutions and the networks that can leave their symmetry."""

from __future__ import annotations

import copy

import pytest
import torch
from equirelax_lab.models import GroupConv2d, PlaneE2CNN, PlaneLift, PlaneRPP, PlaneRSteer
from equirelax_lab.models.planes import ResidualPathway
from equirelax_lab.models.relaxed_steerable import RelaxedGroupConv2d
from plane_inputs import ACTIONS, asymmetry
from torch import Tensor, nn

from equirelax.symmetry import Group, Representation, regular, sign, trivial, vector


def reps(name: str) -> list[Representation]:
    """Vectors, regular fields, and a mixture of all kinds."""
    group = Group.from_name(name)
    return [
        2 * vector(group),
        2 * regular(group),
        trivial(group) + vector(group) + regular(group) + sign(group),
    ]


@pytest.fixture
def frames(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 3, 2, 7, 7, generator=generator)


def vary(model: nn.Module) -> None:
    """Move every weight by itself."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


def test_rsteer_as_released_starts_with_weights_that_vary(frames: Tensor) -> None:
    tied, varied = PlaneRSteer(3, 3, 4, 3, "C4").eval(), PlaneRSteer(3, 3, 4, 3, "C4", varied=True).eval()
    assert float(tied.regulariser().detach()) < 1e-9
    assert float(varied.regulariser().detach()) > 1e-7
    turned = torch.rot90(varied(frames), dims=(-2, -1))
    assert turned.shape == varied(frames).shape
    for one, other in zip(tied.relaxed(), varied.relaxed(), strict=True):
        assert 0.5 < float(other.weight.detach().std() / one.weight.detach().std()) < 2


@pytest.mark.parametrize("name", ["C4", "D4"])
@pytest.mark.parametrize("size", [1, 3, 4, 5])
def test_it_begins_as_the_strict_layer(name: str, size: int) -> None:
    for before in reps(name):
        for after in reps(name):
            torch.manual_seed(3)
            strict = GroupConv2d(before, after, size, padding=1)
            torch.manual_seed(3)
            relaxed = RelaxedGroupConv2d(before, after, size, padding=1)
            torch.testing.assert_close(relaxed.kernel(), strict.kernel())
            assert float(relaxed.deviation().detach()) < 1e-15
            x = torch.randn(2, before.dim, 6, 6)
            torch.testing.assert_close(relaxed(x), strict(x))


@pytest.mark.parametrize("name", ["C4", "D4"])
def test_its_kernels_are_all_those_that_vary_over_places(name: str) -> None:
    """Number by number: entries of one orbit at one place share a number up to sign, entries at two places never do."""
    group = Group.from_name(name)
    size = 3
    layer = RelaxedGroupConv2d(vector(group), regular(group), size)
    strict = GroupConv2d(vector(group), regular(group), size)
    which = []
    for conv in (strict, layer):
        kernels = []
        for i in range(conv.weight.numel()):
            with torch.no_grad():
                conv.weight.zero_()[i] = 1.0
            kernels.append(conv.kernel().detach())
        which.append(torch.stack(kernels))
    for kernel in which[1]:
        places = kernel.abs().amax((0, 1)).nonzero()
        assert len(places) == 1, "one number stands at one place"
        owners = [i for i, orbit in enumerate(which[0]) if bool((kernel.abs() <= orbit.abs()).all())]
        assert len(owners) == 1, "and in one orbit"
        row, column = places[0].tolist()
        expected = which[0][owners[0]][..., row, column]
        torch.testing.assert_close(kernel[..., row, column], expected)
    assert len(which[1]) == sum(int((orbit.abs().amax((0, 1)) > 0).sum()) for orbit in which[0])


@pytest.mark.parametrize("name", ["C4", "D4"])
def test_symmetrise_is_the_nearest_equivariant_kernel(name: str) -> None:
    _, before, after = reps(name)
    layer = RelaxedGroupConv2d(before, after, 3)
    strict = GroupConv2d(before, after, 3)
    vary(layer)
    kernel = layer.kernel().detach()
    with torch.no_grad():
        strict.weight.copy_(strict.coefficients(kernel))
    assert float(layer.deviation().detach()) > 1e-3
    layer.symmetrise()
    torch.testing.assert_close(layer.kernel(), strict.kernel())
    assert float(layer.deviation().detach()) < 1e-15
    # what is lost is orthogonal to every equivariant kernel
    lost = kernel - layer.kernel()
    assert float(strict.coefficients(lost).detach().abs().max()) < 1e-15


@pytest.mark.parametrize("group", ["C4", "D4"])
@pytest.mark.parametrize("size", [7, 8])
def test_rsteer_is_equivariant_while_its_weights_do_not_vary(
    group: str, size: int, generator: torch.Generator
) -> None:
    torch.manual_seed(5)
    model = PlaneRSteer(3, 3, 4, 3, group)
    torch.manual_seed(5)
    strict = PlaneE2CNN(3, 3, 4, 3, group)
    x = torch.randn(4, 3, 2, size, size, generator=generator)
    torch.testing.assert_close(model(x), strict(x))
    assert asymmetry(model, x, group) < 1e-12
    vary(model)
    assert asymmetry(model, x, group) > 1e-2
    before = float(model.regulariser().detach())
    model.symmetrise()
    assert asymmetry(model, x, group) < 1e-12
    assert float(model.regulariser().detach()) < 1e-12 * before


@pytest.mark.parametrize("group", ["C4", "scale"])
def test_the_regulariser_pulls_the_weights_together(group: str, frames: Tensor) -> None:
    model = PlaneRSteer(3, 3, 4, 3, group, alpha=1.0)
    vary(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = float(model.regulariser().detach())
    for _ in range(20):
        optimizer.zero_grad()
        model.regulariser().backward()
        optimizer.step()
    assert float(model.regulariser().detach()) < 0.9 * before
    double = copy.deepcopy(model)
    double.alpha = 2.0
    torch.testing.assert_close(double.regulariser(), 2 * model.regulariser())


@pytest.mark.parametrize("group", ACTIONS)
def test_rpp_without_its_plain_paths_is_equivariant(group: str, frames: Tensor) -> None:
    model = PlaneRPP(3, 3, 4, 3, group)
    assert asymmetry(model, frames, group) > 1e-2
    paths = [m for m in model.modules() if isinstance(m, ResidualPathway)]
    assert len(paths) == 4
    total = sum(float(m.plain.weight.detach().square().sum()) for m in paths)
    assert float(model.regulariser().detach()) == pytest.approx(1e-6 * total, rel=1e-12)
    for m in paths:
        nn.init.zeros_(m.plain.weight)
    assert asymmetry(model, frames, group) < 1e-12
    assert float(model.regulariser().detach()) == 0


@pytest.mark.parametrize("group", ACTIONS)
def test_lift_with_an_invariant_encoder_is_equivariant(group: str, frames: Tensor) -> None:
    model = PlaneLift(3, 4, 4, 3, group, size=7, encoder=8)
    model(frames)
    model.eval()
    assert asymmetry(model, frames, group) > 1e-3
    last = model.encoder[-1]
    assert isinstance(last, nn.Linear)
    # the same number in all channels of a regular field, whatever the frames are
    nn.init.zeros_(last.weight)
    nn.init.ones_(last.bias)
    assert asymmetry(model, frames, group) < 1e-12


def test_lift_sees_its_encoder_at_every_pixel(frames: Tensor) -> None:
    model = PlaneLift(3, 4, 4, 1, "C4", size=7, encoder=8, norm=False).eval()
    before = model(frames)
    with torch.no_grad():
        model.encoder[-1].bias.add_(1.0)  # type: ignore[union-attr,operator]
    change = (model(frames) - before).detach().abs().amax((0, 1))
    assert bool((change > 1e-6).all())
