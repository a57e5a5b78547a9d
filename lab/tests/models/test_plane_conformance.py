"""The strict networks on the plane, and the ones that can leave their symmetry while they do not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from equirelax_lab.models import (
    PlainClassifier,
    PlaneClassifier,
    PlaneE2CNN,
    PlaneLift,
    PlaneRPP,
    PlaneRSteer,
)
from equirelax_lab.models.planes import ResidualPathway
from plane_inputs import turned
from torch import Tensor, nn

from equirelax.errors import NonFiniteError, RepresentationError
from equirelax.symmetry import Cyclic, Dihedral, GridField, Group, trivial, vector
from equirelax.testing import ModelConformance


def used(model: nn.Module, *shape: int) -> nn.Module:
    """The model in evaluation, with norms that are used to such inputs."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _ in range(4):
            model.train()(torch.randn(6, *shape, generator=generator))
    return model.eval()


class Forecaster(ModelConformance):
    """Vector fields in, a vector field out."""

    group: Group = Cyclic(4)
    size = 7

    def network(self) -> nn.Module:
        """The network, before its norms have seen anything."""
        return PlaneE2CNN(3, 4, 4, 3, self.group.name)

    def build(self) -> tuple[nn.Module, Any, Any, Any]:
        torch.manual_seed(0)
        model = used(self.network(), 3, 2, self.size, self.size)
        sample = torch.randn(4, 3, 2, self.size, self.size)
        return model, sample, GridField(vector(self.group)), GridField(vector(self.group))


class TestE2CNN(Forecaster):
    pass


class TestE2CNND4(Forecaster):
    group = Dihedral(4)
    size = 6


class TestRSteer(Forecaster):
    """At the start: its weights do not vary."""

    group = Dihedral(4)

    def network(self) -> nn.Module:
        return PlaneRSteer(3, 4, 4, 3, "D4")


class TestRPP(Forecaster):
    """Without its plain paths."""

    def network(self) -> nn.Module:
        model = PlaneRPP(3, 4, 4, 3)
        for module in model.modules():
            if isinstance(module, ResidualPathway):
                nn.init.zeros_(module.plain.weight)
        return model


class TestLift(Forecaster):
    """With an encoder that says the same of all fields, in all channels of a regular field."""

    def network(self) -> nn.Module:
        model = PlaneLift(3, 4, 4, 3, size=self.size, encoder=8)
        nn.init.zeros_(model.encoder[-1].weight)  # type: ignore[arg-type]
        nn.init.ones_(model.encoder[-1].bias)  # type: ignore[arg-type]
        return model


class Classifier(ModelConformance):
    """Pictures in, numbers that do not change out."""

    group: Group = Cyclic(4)
    size = 11

    def build(self) -> tuple[nn.Module, Any, Any, Any]:
        torch.manual_seed(0)
        model = used(PlaneClassifier(5, self.group.name, 3), 1, self.size, self.size)
        sample = torch.randn(4, 1, self.size, self.size)
        return model, sample, GridField(trivial(self.group)), trivial(self.group, 5)


class TestClassifier(Classifier):
    pass


class TestClassifierD4(Classifier):
    group = Dihedral(4)
    size = 12


def pictures(count: int = 4, size: int = 12) -> Tensor:
    """Smooth ones, all different: noise would look alike to a mean over pixels."""
    coarse = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(3 * coarse, (size, size), mode="bilinear", align_corners=False)


@pytest.mark.parametrize("size", [7, 8, 9, 10, 27, 28, 29])
@pytest.mark.parametrize("group", ["C4", "D4"])
def test_classifiers_are_invariant_at_every_size(group: str, size: int) -> None:
    torch.manual_seed(1)
    model = used(PlaneClassifier(10, group, 2), 1, size, size)
    x = pictures(size=size)
    logits = model(x).detach()
    spread = float(logits.std(0).mean())
    assert spread > 1e-3
    assert float((model(x.rot90(1, (-2, -1))) - logits).abs().max().detach()) < 1e-10 * spread
    flips = float((model(x.flip(-2)) - logits).abs().max().detach()) / spread
    assert flips < 1e-10 if group == "D4" else flips > 1e-2


def test_the_plain_classifier_is_not_invariant() -> None:
    torch.manual_seed(1)
    model = used(PlainClassifier(10, 8), 1, 12, 12)
    x = pictures()
    logits = model(x).detach()
    change = (model(x.rot90(1, (-2, -1))) - logits).abs().max() / logits.std(0).mean()
    assert float(change.detach()) > 1e-2


def test_plain_counterparts_as_documented() -> None:
    """n w channels for as many channels, sqrt(n) w for as many parameters."""
    steerable = PlaneClassifier(10, "C4", 16)
    channels = [m.out_channels for m in steerable.features if hasattr(m, "out_channels")]
    same_channels, same_parameters = PlainClassifier(10, 64), PlainClassifier(10, 32)
    assert [m.out_channels for m in same_channels.features if hasattr(m, "out_channels")] == channels
    assert channels == [64, 64, 128, 128, 128, 128]
    numbers = [sum(p.numel() for p in m.parameters()) for m in (steerable, same_parameters)]
    assert abs(numbers[0] / numbers[1] - 1) < 0.1


@pytest.mark.parametrize("network", [PlaneClassifier, PlainClassifier])
def test_bad_pictures_and_sizes_are_refused(network: type[nn.Module]) -> None:
    name = network.__name__
    model = network(3, width=4)
    x = pictures()
    for wrong in (x[0], x[:0], x.expand(-1, 2, -1, -1), x.long()):
        with pytest.raises(
            RepresentationError, match=rf"{name}: expected pictures of shape \(batch, 1, H, W\)"
        ):
            model(wrong)
    x[1, 0, 2, 3] = torch.inf
    with pytest.raises(NonFiniteError, match=f"{name}: NaN or infinite values in 1 of 4 samples .* number 1"):
        model(x)
    for key in ("classes", "width", "stages", "channels"):
        with pytest.raises(RepresentationError, match=f"{name}: {key} is 0; expected a whole number >= 1"):
            network(**{key: 0})
    with pytest.raises(RepresentationError, match=f"{name}: kernel is 2; expected an odd number"):
        network(kernel=2)


def test_an_off_grid_group_is_refused() -> None:
    with pytest.raises(
        RepresentationError, match="PlaneClassifier: the group 'C8' does not map a square grid"
    ):
        PlaneClassifier(group="C8")


@pytest.mark.parametrize("network", [PlaneClassifier, PlainClassifier])
def test_classifiers_learn(network: type[nn.Module]) -> None:
    """Bars from crosses, turned at random: a few steps are enough."""
    torch.manual_seed(0)
    model = network(2, width=4, stages=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = 0.2 * torch.randn(32, 1, 8, 8)
    labels = torch.arange(32) % 2
    x[labels == 0, :, 3:5] += 1
    x[labels == 1, :, 3:5, 2:6] += 0.7
    x[labels == 1, :, 2:6, 3:5] += 0.7
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1


def test_the_hand_written_turn_is_the_groups() -> None:
    """What the other tests turn with is the action that the audit takes."""
    group = Cyclic(4)
    x = torch.randn(2, 3, 2, 5, 5)
    assert torch.equal(GridField(vector(group)).apply(group.elements()[1].round(), x), turned(x))


@pytest.mark.slow
@pytest.mark.parametrize("network", [PlaneE2CNN, PlaneRSteer])
def test_networks_compile_as_one_graph(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = used(network(3, 2, 3, 3), 3, 2, 6, 6)
    x = torch.randn(2, 3, 2, 6, 6)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
