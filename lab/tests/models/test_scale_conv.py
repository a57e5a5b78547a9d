"""Convolutions on a ladder of scales: what stretching the input does, and the fast path against a slow one."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from equirelax_lab.models import PlaneE2CNN, PlaneRSteer
from equirelax_lab.models.plane_symmetry import ScaleSymmetry
from equirelax_lab.models.scale_conv import SCALES, ScaleBatchNorm, ScaleConv2d, hermite_gauss
from torch import Tensor
from torch.nn import functional as F

from equirelax.errors import RepresentationError

KINDS = {"inner": (False, False), "lifts": (True, False), "pools": (False, True), "both": (True, True)}
BOTH = pytest.mark.parametrize("relaxed", [False, True])
RATIO = 2 ** (1 / 3)
LADDER = (1.0, RATIO, RATIO**2)


def layer(kind: str, relaxed: bool = False, size: int = 5) -> ScaleConv2d:
    """Three channels to two, with random weights everywhere."""
    lifts, pools = KINDS[kind]
    torch.manual_seed(4)
    made = ScaleConv2d(3, 2, SCALES, size, lifts=lifts, pools=pools, relaxed=relaxed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def waves(size: int, factor: float, count: int) -> Tensor:
    """The same smooth pictures, stretched about the centre: (1, count, size, size)."""
    generator = torch.Generator().manual_seed(9)
    centres = torch.randn(count, 4, 2, generator=generator) * 3
    heights = torch.randn(count, 4, generator=generator)
    steps = (torch.arange(size) - size // 2).to(torch.float64) / factor
    y, x = torch.meshgrid(-steps, steps, indexing="ij")
    squares = (x - centres[..., :1, None]).square() + (y - centres[..., 1:, None]).square()
    return (heights[..., None, None] * torch.exp(-squares / 18)).sum(1)[None]


@pytest.mark.parametrize("kind", KINDS)
@BOTH
def test_against_a_loop_over_rungs(kind: str, relaxed: bool, generator: torch.Generator) -> None:
    """Kernels written out function by function, one convolution for every rung."""
    conv = layer(kind, relaxed)
    n, size = len(SCALES), conv.kernel_size
    basis = conv.basis
    x = torch.randn(2, 3 * (1 if conv.lifts else n), 9, 7, generator=generator)
    rungs = []
    for s in range(n):
        kernel = torch.zeros(2, 3, size, size)
        for b in range(9):
            weight = conv.weight[:, :, b]
            weight = weight.unflatten(-1, (size, size)) if relaxed else weight[..., None, None]
            kernel = kernel + weight * basis[b, s].view(size, size)
        part = x if conv.lifts else x[:, 3 * s : 3 * s + 3]
        rungs.append(F.conv2d(part, kernel, conv.bias, padding=size // 2))
    expected = torch.stack(rungs).mean(0) if conv.pools else torch.cat(rungs, dim=1)
    torch.testing.assert_close(conv(x), expected)
    bias = conv.bias if conv.pools or conv.bias is None else conv.bias.repeat(n)
    torch.testing.assert_close(F.conv2d(x, conv.kernel(), bias, padding=size // 2), expected)


def test_functions_are_derivatives_of_gaussians() -> None:
    """Function (m, n) is d^m/dy^m d^n/dx^n of a Gaussian, up to its norm and sign; y points up."""
    size, scale = 31, 4.0
    width = 0.8 * scale
    x = torch.arange(size, dtype=torch.float64) - size // 2
    line = torch.exp(-(x**2) / (2 * width**2))
    first, second = -x / width * line, (x**2 / width**2 - 1) * line
    basis = hermite_gauss(size, (scale,), 3, 0.8).view(3, 3, size, size)
    for n, in_x in enumerate((line, first, second)):
        for m, in_y in enumerate((line, first, second)):
            expected = in_y.flip(0)[:, None] * in_x[None, :] * (-1) ** (n + m)
            torch.testing.assert_close(basis[m, n], expected / expected.norm())


@BOTH
def test_a_stretched_input_moves_the_features_up_a_rung(relaxed: bool) -> None:
    """At the centre, where a stretched pixel is a pixel, and with kernels that are wide enough to be sampled well."""
    torch.manual_seed(6)
    first = ScaleConv2d(2, 3, LADDER, 25, lifts=True, width=1.4, relaxed=relaxed)
    second = ScaleConv2d(3, 4, LADDER, 25, width=1.4, relaxed=relaxed)
    norm = ScaleBatchNorm(3, len(LADDER)).eval()

    def features(factor: float) -> Tensor:
        # (rungs, channels) at the centre, which sees 24 pixels on every side
        x = torch.tanh(norm(first(waves(49, factor, 2))))
        return second(x).detach()[0, :, 24, 24].view(3, 4)

    def gap(rungs: int) -> float:
        plain, stretched = features(2.0), features(2.0 * RATIO)
        return float((stretched[rungs:] - plain[: 3 - rungs]).abs().max() / plain.abs().max())

    assert gap(1) < 1e-4
    assert gap(0) > 1e-2
    if relaxed:
        with torch.no_grad():
            first.weight.normal_()
        assert gap(1) > 1e-2


def test_norm_shares_its_statistics_between_rungs(generator: torch.Generator) -> None:
    norm = ScaleBatchNorm(4, 3)
    x = torch.randn(5, 12, 6, 6, generator=generator) * 3 + 1
    y = norm(x).detach().unflatten(1, (3, 4))
    torch.testing.assert_close(y.mean((0, 1, 3, 4)), torch.zeros(4))
    rolled = norm(x.unflatten(1, (3, 4)).roll(1, 1).flatten(1, 2)).detach()
    torch.testing.assert_close(rolled.unflatten(1, (3, 4)), y.roll(1, 1))


def test_joined_features_stay_on_their_rungs(generator: torch.Generator) -> None:
    a, b = (torch.randn(2, 3 * n, 4, 4, generator=generator) for n in (2, 1))
    joined = ScaleSymmetry().join(a, b).unflatten(1, (3, 3))
    assert torch.equal(joined[:, :, :2].flatten(1, 2), a)
    assert torch.equal(joined[:, :, 2:].flatten(1, 2), b)


@pytest.mark.parametrize("kind", KINDS)
def test_relaxed_begins_as_strict_and_goes_back(kind: str) -> None:
    lifts, pools = KINDS[kind]
    made = []
    for relaxed in (False, True):
        torch.manual_seed(8)
        made.append(ScaleConv2d(3, 2, lifts=lifts, pools=pools, relaxed=relaxed))
    strict, relaxed_layer = made
    torch.testing.assert_close(relaxed_layer.kernel(), strict.kernel())
    assert float(strict.deviation()) == 0
    assert float(relaxed_layer.deviation().detach()) < 1e-15
    varied = layer(kind, True)
    mean = varied.weight.detach().mean(-1)
    assert float(varied.deviation().detach()) > 0.1
    varied.symmetrise()
    assert float(varied.deviation().detach()) < 1e-15
    torch.testing.assert_close(varied.weight[..., 3], mean)


def test_scale_networks_begin_alike(generator: torch.Generator) -> None:
    made = []
    for network in (PlaneE2CNN, PlaneRSteer):
        torch.manual_seed(8)
        made.append(network(2, 3, 4, 5, "scale"))
    x = torch.randn(3, 2, 2, 9, 9, generator=generator)
    torch.testing.assert_close(made[1](x), made[0](x))


def test_constants_keep_their_precision() -> None:
    conv = layer("inner")
    exact = conv.kernel()
    back = copy.deepcopy(conv).float().double()
    back.load_state_dict(conv.state_dict())
    assert torch.equal(back.kernel(), exact)


def test_bad_layers_and_inputs_are_refused() -> None:
    for scales in ((), (1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (1.0, math.inf), (math.nan,)):
        with pytest.raises(RepresentationError, match="A ladder of scales rises from above 0"):
            ScaleConv2d(1, 1, scales)
    with pytest.raises(RepresentationError, match="ScaleConv2d: kernel_size is 4; expected an odd number"):
        ScaleConv2d(1, 1, kernel_size=4)
    with pytest.raises(
        RepresentationError, match=r"expected \(batch, 9, H, W\): 3 channels on each of 3 rungs"
    ):
        layer("inner")(torch.randn(2, 3, 5, 5))
    with pytest.raises(RepresentationError, match=r"expected \(batch, 3, H, W\): 3 channels; got"):
        layer("lifts")(torch.randn(2, 9, 5, 5))
