"""Forecasters on the plane: symmetry on every grid, sizes of the papers, bad fields, copies."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from equirelax_lab.models import PlaneConv, PlaneE2CNN, PlaneLift, PlaneMLP, PlaneRPP, PlaneRSteer, planes
from equirelax_lab.models.plane_blocks import PlanePool
from equirelax_lab.models.planes import PlaneForecaster
from equirelax_lab.models.scale_conv import ScaleConv2d
from hypothesis import given, settings
from hypothesis import strategies as st
from plane_inputs import ACTIONS, asymmetry
from torch import Tensor, nn

from equirelax.errors import NonFiniteError, RepresentationError

SYMMETRIES = ("rotation", "scale")
EVERY = pytest.mark.parametrize(
    ("name", "symmetry"), [(name, symmetry) for name in planes.MODELS for symmetry in SYMMETRIES]
)


def build(name: str, symmetry: str = "rotation", size: int = 7) -> PlaneForecaster:
    """A small one in evaluation, with norms that are used to such fields."""
    torch.manual_seed(2)
    kernel = 5 if symmetry == "scale" else 3
    model = planes.build(name, symmetry, frames=3, hidden=4, layers=4, kernel=kernel, group="C4", size=size)  # type: ignore[arg-type]
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(6, 3, 2, size, size))
    return model.eval()


@pytest.fixture
def frames(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 3, 2, 7, 7, generator=generator)


@pytest.mark.parametrize("group", ACTIONS)
@pytest.mark.parametrize("size", [7, 8])
def test_steerable_networks_are_equivariant_on_odd_and_even_grids(
    group: str, size: int, generator: torch.Generator
) -> None:
    model = PlaneE2CNN(2, 3, 4, 3, group)
    x = torch.randn(3, 2, 2, size, size, generator=generator)
    model(x)  # in training: statistics of the batch are invariant too
    assert asymmetry(model.train(), x, group) < 1e-12
    assert asymmetry(model.eval(), x, group) < 1e-12


@pytest.mark.parametrize("name", ["conv", "mlp", "rpp", "lift"])
def test_the_others_are_not(name: str, frames: Tensor) -> None:
    assert asymmetry(build(name), frames, "C4") > 1e-2


def test_c4_alone_is_no_symmetry_of_flips(frames: Tensor) -> None:
    model = build("e2cnn")
    assert asymmetry(model, frames, "C4") < 1e-12
    assert asymmetry(model, frames, "D4") > 1e-2


@EVERY
def test_the_signature_is_the_same(name: str, symmetry: str, frames: Tensor) -> None:
    model = build(name, symmetry)
    y = model(frames)
    assert y.shape == (4, 2, 7, 7)
    torch.testing.assert_close(torch.cat([model(x[None]) for x in frames]), y)
    assert model.regulariser().shape == ()


@EVERY
def test_gradients_reach_every_parameter(name: str, symmetry: str, frames: Tensor) -> None:
    model = build(name, symmetry).train()
    frames.requires_grad_()
    (model(frames).square().sum() + model.regulariser()).backward()
    for path, parameter in [*model.named_parameters(), ("frames", frames)]:
        assert parameter.grad is not None, path
        assert torch.isfinite(parameter.grad).all(), path
        assert parameter.grad.any(), path


@EVERY
def test_copies_and_float32(name: str, symmetry: str, frames: Tensor) -> None:
    model = build(name, symmetry)
    expected = model(frames).detach()
    assert torch.equal(copy.deepcopy(model)(frames), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(frames), expected)
    single = copy.deepcopy(model).float()(frames.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-3, atol=float(1e-3 * expected.std()))


@pytest.mark.parametrize("name", planes.MODELS)
def test_bad_fields_are_refused(name: str, frames: Tensor) -> None:
    model = build(name)
    kind = type(model).__name__
    for wrong in (
        frames[0],
        frames[:, :2],
        frames.transpose(1, 2),
        frames[:0],
        frames.long(),
        frames.flatten(1, 2),
    ):
        with pytest.raises(
            RepresentationError, match=rf"{kind}: expected vector fields of shape \(batch, 3, 2, H, W\)"
        ):
            model(wrong)
    frames[2, 1, 0, 3, 3] = torch.nan
    with pytest.raises(NonFiniteError, match=f"{kind}: NaN .* in 1 of 4 samples .* number 2"):
        model(frames)


@pytest.mark.parametrize("name", ["mlp", "lift"])
def test_networks_of_one_grid_say_so(name: str) -> None:
    with pytest.raises(RepresentationError, match="was built for a grid of 7 x 7, got 7 x 9"):
        build(name)(torch.randn(2, 3, 2, 7, 9))


@pytest.mark.parametrize("network", [PlaneE2CNN, PlaneConv, PlaneMLP, PlaneRPP, PlaneLift, PlaneRSteer])
def test_bad_sizes_are_refused(network: type[PlaneForecaster]) -> None:
    name = network.__name__
    for key, value in (("frames", 0), ("hidden", 2.5), ("hidden", True), ("layers", -1)):
        with pytest.raises(
            RepresentationError, match=f"{name}: {key} is {value}; expected a whole number >= 1"
        ):
            network(**{"frames": 2, "hidden": 2, "layers": 4, key: value})
    with pytest.raises(RepresentationError, match=f"{name}: layers is 1; expected [24] or more"):
        network(2, 2, 1)
    if network is not PlaneMLP:
        with pytest.raises(RepresentationError, match=f"{name}: kernel is 4; expected an odd number"):
            network(2, 2, 4, kernel=4)
    if network not in (PlaneMLP, PlaneConv):
        with pytest.raises(RepresentationError, match=f"{name}: .*'C8'.* choose one of C1"):
            network(2, 2, 4, group="C8")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(RepresentationError, match="unknown forecaster 'unet'; choose one of e2cnn"):
        planes.build("unet")


def test_the_papers_sizes() -> None:
    """92 hidden and 5 layers for turns; 64 hidden, 5 layers and kernel 5 for scale."""
    model = planes.build("e2cnn", hidden=92, frames=10)
    convs = [m for m in model.layers if hasattr(m, "in_rep")]
    assert [c.in_channels for c in convs] == [20, 368, 368, 368, 368]
    assert [c.out_channels for c in convs] == [368, 368, 368, 368, 2]
    # free numbers of each pair of fields: vector to regular 4 * 2 * 9 / 4, regular to regular 4 * 4 * 9 / 4
    assert [c.weight.numel() for c in convs] == [10 * 92 * 18, *[92 * 92 * 36] * 3, 92 * 18]
    scale = planes.build("e2cnn", "scale", hidden=64, frames=10, kernel=5)
    ladders = [m for m in scale.layers if isinstance(m, ScaleConv2d)]
    assert [tuple(c.weight.shape) for c in ladders] == [(64, 20, 9), *[(64, 64, 9)] * 3, (2, 64, 9)]
    plain = planes.build("conv", hidden=92, frames=10)
    assert [c.weight.shape[0] for c in plain.layers if isinstance(c, nn.Conv2d)] == [92, 92, 92, 92, 2]


def test_equal_parameters_as_documented() -> None:
    """A plain network of sqrt(n) h channels has about as many parameters as an equivariant one of h fields."""
    steerable, plain = PlaneE2CNN(10, 24), PlaneConv(10, 48)
    numbers = [sum(p.numel() for p in m.parameters()) for m in (steerable, plain)]
    assert abs(numbers[0] / numbers[1] - 1) < 0.1


@pytest.mark.parametrize("name", planes.MODELS)
def test_increments_are_added_to_the_last_frame(name: str, frames: Tensor) -> None:
    model = build(name)
    change = model(frames)
    model.increment = True
    torch.testing.assert_close(model(frames) - frames[:, -1], change)


def test_a_roll_out_turns_with_its_start(frames: Tensor) -> None:
    """The four turned roll-outs of a network agree, as far as rounding goes."""

    def follow(x: Tensor) -> Tensor:
        for _ in range(6):
            y = model(x)
            x = torch.cat([x[:, 1:], y.unsqueeze(1)], dim=1)
        return y

    model = build("e2cnn")
    assert asymmetry(follow, frames, "C4") < 1e-9


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9))
def test_pooling_keeps_the_symmetry_at_every_size(height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    pool = PlanePool()
    y = pool(x)
    assert y.shape == (2, 3, (height + 1) // 2, (width + 1) // 2)
    assert torch.equal(pool(x.rot90(1, (-2, -1))), y.rot90(1, (-2, -1)))
    assert torch.equal(pool(x.flip(-1)), y.flip(-1))
    windows = [
        range(2 * i, 2 * i + 2) if height % 2 == 0 else range(2 * i - 1, 2 * i + 2) for i in range(y.shape[2])
    ]
    rows = [[r for r in window if 0 <= r < height] for window in windows]
    assert torch.equal(y.amax(-1), torch.stack([x[:, :, r].amax((-2, -1)) for r in rows], dim=-1))
