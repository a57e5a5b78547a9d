"""Random changes of point clouds: what each does to every object, and that a generator decides it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from equirelax_lab.data import clouds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from equirelax.errors import DataError

N = 64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def points() -> Tensor:
    """64 different clouds in the unit sphere, float64."""
    x = torch.randn(64, N, 3, generator=seeded(1), dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True).amax(1, keepdim=True)


CHANGES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "sample": lambda x, g: clouds.sample_points(x, 20, g),
    "so3": lambda x, g: clouds.rotate(x, clouds.rotations("so3", len(x), g, dtype=x.dtype)),
    "z": lambda x, g: clouds.rotate(x, clouds.rotations("z", len(x), g, dtype=x.dtype)),
    "scale": lambda x, g: clouds.scale(x, g),
    "scale per axis": lambda x, g: clouds.scale(x, g, per_axis=True),
    "shift": lambda x, g: clouds.shift(x, g),
    "jitter": lambda x, g: clouds.jitter(x, g),
    "point dropout": lambda x, g: clouds.point_dropout(x, 0.875, g),
    "drop ratio": lambda x, g: clouds.drop_ratio(x, 0.5, g),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_generator_decides_and_objects_differ(points: Tensor, name: str) -> None:
    before = points.clone()
    change = CHANGES[name]
    out = change(points, seeded())
    assert torch.equal(out, change(points, seeded()))
    assert not torch.equal(out, change(points, seeded(1)))
    assert torch.equal(points, before)
    assert out.dtype == points.dtype
    single = change(points.float(), seeded())
    torch.testing.assert_close(single.double(), out, atol=1e-5, rtol=0)
    same = points[:1].expand(8, -1, -1).contiguous()  # equal objects: each draws its own numbers
    assert len(torch.unique(change(same, seeded()).flatten(1), dim=0)) == 8


def test_sampled_points_are_different_points_of_the_object(points: Tensor) -> None:
    out = clouds.sample_points(points, 20, seeded())
    assert out.shape == (64, 20, 3)
    for cloud, chosen in zip(points, out, strict=True):
        index = [(cloud == x).all(-1).nonzero().item() for x in chosen]
        assert len(set(index)) == 20
    everything = clouds.sample_points(points, N, seeded())
    assert torch.equal(everything.sort(1).values, points.sort(1).values)
    # every point is as likely as any other
    counts = torch.zeros(N)
    ramp = torch.arange(N, dtype=torch.float64).view(1, N, 1).expand(2000, N, 3)
    counts.index_add_(0, clouds.sample_points(ramp, 16, seeded())[..., 0].flatten().long(), torch.ones(32000))
    assert (counts / 2000 - 0.25).abs().max() < 0.05


def test_without_a_generator_the_first_points_are_taken(points: Tensor) -> None:
    out = clouds.sample_points(points, 5)
    assert torch.equal(out, points[:, :5])
    out.zero_()
    assert points[:, :5].any()


def test_rotations_are_what_they_are_called() -> None:
    eye = torch.eye(3, dtype=torch.float64)
    for kind in ("z", "so3"):
        r = clouds.rotations(kind, 4000, seeded(), dtype=torch.float64)
        torch.testing.assert_close(r @ r.mT, eye.expand_as(r))
        torch.testing.assert_close(torch.linalg.det(r), torch.ones(4000, dtype=torch.float64))
        turned = r[:, 0]  # uniform over circle or sphere: mean 0, and equal second moments
        assert turned.mean(0).abs().max() < 0.05
        moments = turned.T @ turned / 4000
        expected = torch.diag(torch.tensor([0.5, 0.5, 0.0])) if kind == "z" else torch.eye(3) / 3
        assert (moments - expected).abs().max() < 0.03
    z = torch.tensor([[0.0, 0.0, 1.0]]).expand(10, 1, 3)
    assert torch.equal(clouds.rotate(z, clouds.rotations("z", 10, seeded())), z)
    assert torch.equal(clouds.rotations("none", 3), torch.eye(3).expand(3, 3, 3))


def test_rotate_against_a_loop(points: Tensor) -> None:
    r = clouds.rotations("so3", 64, seeded(), dtype=torch.float64)
    out = clouds.rotate(points, r)
    for i in (0, 5, 63):
        torch.testing.assert_close(out[i], torch.stack([r[i] @ x for x in points[i]]))
    torch.testing.assert_close(clouds.rotate(points, r[3]), points @ r[3].T)


def test_scale_and_shift_are_one_per_object(points: Tensor) -> None:
    factor = clouds.scale(points, seeded()) / points
    torch.testing.assert_close(factor, factor[:, :1, :1].expand_as(factor))
    assert 2 / 3 <= factor.min() < 0.75
    assert 1.4 < factor.max() <= 3 / 2
    per_axis = clouds.scale(points, seeded(), per_axis=True) / points
    torch.testing.assert_close(per_axis, per_axis[:, :1].expand_as(per_axis))
    assert (per_axis[:, 0].std(-1) > 0.01).float().mean() > 0.9
    step = clouds.shift(points, seeded()) - points
    torch.testing.assert_close(step, step[:, :1].expand_as(step))
    assert 0.19 < step.abs().max() <= 0.2
    assert step[:, 0].mean(0).abs().max() < 0.06
    assert (step[:, 0].std(-1) > 0.01).double().mean() > 0.9  # x, y and z each have their own


def test_jitter_is_normal_and_clipped(points: Tensor) -> None:
    noise = clouds.jitter(points, seeded()) - points
    assert noise.abs().max() <= 0.05 + 1e-12
    assert noise.std() == pytest.approx(0.01, rel=0.05)
    clipped = clouds.jitter(points, seeded(), std=0.1, clip=0.02) - points
    assert clipped.abs().max() == pytest.approx(0.02)


def test_point_dropout_draws_one_ratio_per_object(points: Tensor) -> None:
    many = points[:1].expand(4000, -1, -1)
    out = clouds.point_dropout(many, 0.875, seeded())
    moved = (out != many).any(-1)  # (4000, n)
    assert torch.equal(out[moved], many[:, :1].expand_as(many)[moved])
    assert not moved[:, 0].any()
    share = moved[:, 1:].double().mean(1)
    # a uniform ratio: mean 0.4375, standard deviation 0.875 / sqrt(12) = 0.2526 (a binomial's alone would be 0.06)
    assert share.mean() == pytest.approx(0.4375, abs=0.01)
    assert share.std() == pytest.approx(math.sqrt(0.2526**2 + (0.4375 - 0.2552) / 63), abs=0.01)
    assert torch.equal(clouds.point_dropout(points, 0.0, seeded()), points)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.85, 0.999])
def test_drop_ratio_drops_exactly_so_many(points: Tensor, ratio: float) -> None:
    out = clouds.drop_ratio(points, ratio, seeded())
    moved = (out != points).any(-1)
    assert moved.sum(1).tolist() == [min(round(ratio * N), N - 1)] * 64
    assert torch.equal(out[moved], points[:, :1].expand_as(points)[moved])
    assert torch.equal(clouds.drop_ratio(points[:, :1], ratio, seeded()), points[:, :1])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.integers(1, 9), st.sampled_from(sorted(CHANGES)))
def test_any_shape(batch: int, n: int, name: str) -> None:
    x = torch.randn(batch, n, 3, generator=seeded())
    if name == "sample" and n < 20:
        with pytest.raises(DataError, match=f"20 points were requested; the clouds have {n}"):
            CHANGES[name](x, seeded())
        return
    out = CHANGES[name](x, seeded())
    assert out.shape == x.shape
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    "wrong", [torch.zeros(4, 3), torch.zeros(2, 3, 8), torch.zeros(2, 0, 3), torch.zeros(2, 4, 3).long()]
)
@pytest.mark.parametrize("name", CHANGES)
def test_a_wrong_shape_is_refused(name: str, wrong: Tensor) -> None:
    with pytest.raises(DataError, match=r"Point clouds must be .* \(batch, points, 3\)"):
        CHANGES[name](wrong, seeded())


def test_numbers_out_of_range_are_refused(points: Tensor) -> None:
    for count in (0, 65):
        with pytest.raises(DataError, match=f"{count} points were requested"):
            clouds.sample_points(points, count)
    for ratio in (-0.1, 1.0):
        with pytest.raises(DataError, match="ratio of dropped points"):
            clouds.point_dropout(points, ratio, seeded())
        with pytest.raises(DataError, match="ratio of dropped points"):
            clouds.drop_ratio(points, ratio, seeded())
    with pytest.raises(DataError, match="low 0 "):
        clouds.scale(points, seeded(), low=0)
    with pytest.raises(DataError, match="Unknown kind of rotation 'y'"):
        clouds.rotations("y", 3, seeded())
    with pytest.raises(DataError, match="give a generator"):
        clouds.rotations("so3", 3)


@pytest.mark.gpu
def test_a_cpu_generator_gives_the_same_on_the_gpu(points: Tensor) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for name, change in CHANGES.items():
        here, there = change(points, seeded()), change(points.cuda(), seeded())
        torch.testing.assert_close(there.cpu(), here, msg=name)


def test_every_random_change_needs_a_generator() -> None:
    for name in ("scale", "shift", "jitter", "point_dropout", "drop_ratio"):
        parameter = inspect.signature(getattr(clouds, name)).parameters["generator"]
        assert parameter.default is inspect.Parameter.empty, name
