"""Corruptions: each does what it says, more so with every severity, and keeps the number of points."""

from __future__ import annotations

import math

import pytest
import torch
from equirelax_lab.data import clouds, corruptions
from equirelax_lab.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt, refill
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from equirelax.errors import DataError

REMOVING = ("occlusion", "density-decrease", "cutout")
N = 400


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def points() -> Tensor:
    """24 hollow boxes and spheres in the unit sphere, float64."""
    x = torch.randn(24, N, 3, generator=seeded(1), dtype=torch.float64)
    x[:12] = x[:12] / x[:12].norm(dim=-1, keepdim=True)
    x[12:] = 0.55 * x[12:] / x[12:].abs().amax(-1, keepdim=True)
    return x


def distinct(cloud: Tensor) -> int:
    return len(torch.unique(cloud, dim=0))


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_shape_kept_seeded_and_finite(points: Tensor, name: str, severity: int) -> None:
    before = points.clone()
    out = corrupt(points, name, severity, seeded())
    assert out.shape == points.shape
    assert out.dtype == points.dtype
    assert torch.isfinite(out).all()
    assert torch.equal(points, before)
    assert torch.equal(out, corrupt(points, name, severity, seeded()))
    assert not torch.equal(out, corrupt(points, name, severity, seeded(1)))
    same = points[:1].expand(4, -1, -1).contiguous()
    assert len(torch.unique(corrupt(same, name, severity, seeded()).flatten(1), dim=0)) == 4


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_is_severity(points: Tensor, name: str) -> None:
    """How far points are from where they were, averaged over objects and five draws, grows."""

    def strength(severity: int) -> float:
        outs = [corrupt(points, name, severity, seeded(seed)) for seed in range(5)]
        return sum(float((out - points).norm(dim=-1).mean()) for out in outs)

    sizes = [strength(severity) for severity in SEVERITIES]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 1.5 * sizes[0]


@pytest.mark.parametrize("name", REMOVING)
def test_what_is_removed_is_filled_with_what_is_left(points: Tensor, name: str) -> None:
    for severity in SEVERITIES:
        for cloud, out in zip(points, corrupt(points, name, severity, seeded()), strict=True):
            assert {tuple(x) for x in out.tolist()} <= {tuple(x) for x in cloud.tolist()}
            assert 0.15 * N < distinct(out) < N


def test_occlusion_hides_the_far_side() -> None:
    """A sphere of many points: about half of it can be seen, and what is seen is one side of it."""
    x = torch.randn(20, 4000, 3, generator=seeded())
    x = x / x.norm(dim=-1, keepdim=True)
    out = corrupt(x, "occlusion", 5, seeded())
    for cloud in out:
        seen = torch.unique(cloud, dim=0)
        assert 0.3 < len(seen) / 4000 < 0.75
        assert seen.mean(0).norm() > 0.3
    # a flat sheet hides nothing, from wherever it is seen (unless edge-on)
    sheet = torch.rand(20, 500, 3, generator=seeded()) * torch.tensor([1.0, 1.0, 0.0])
    kept = [distinct(cloud) / 500 for cloud in corrupt(sheet, "occlusion", 1, seeded())]
    assert sorted(kept)[10] > 0.95


def test_cutout_makes_round_holes(points: Tensor) -> None:
    cloud = points[:1]
    out = corrupt(cloud, "cutout", 1, seeded())
    gone = (out != cloud).any(-1)[0]
    assert 12 <= gone.sum() <= 24  # two holes of 3 % that may overlap
    hole = cloud[0][gone]
    # with two centres among the removed points, all of them are nearer to one than the hole's radius
    radii = torch.cdist(cloud[0], cloud[0]).sort(1).values[:, 11]
    nearest = torch.cdist(hole, hole)
    best = min(
        float(torch.minimum(nearest[:, i] / radii[gone][i], nearest[:, j] / radii[gone][j]).max())
        for i in range(len(hole))
        for j in range(len(hole))
    )
    assert best <= 1 + 1e-9


def test_density_changes_where_it_says(points: Tensor) -> None:
    thinned = corrupt(points, "density-decrease", 1, seeded())
    lost = [N - distinct(cloud) for cloud in thinned]
    assert 0.06 < sum(lost) / len(lost) / N < 0.09  # three quarters of a tenth
    dense = corrupt(points, "density-increase", 5, seeded())
    spacing = torch.cdist(dense, dense).sort(-1).values[..., 5]
    before = torch.cdist(points, points).sort(-1).values[..., 5]
    assert spacing.median() < 0.85 * before.median()


@pytest.mark.parametrize(
    ("name", "limit"), [("uniform", 0.01), ("upsampling", 2.1), ("impulse", 0.1), ("gaussian", 0.06)]
)
def test_noise_is_as_large_as_it_says(points: Tensor, name: str, limit: float) -> None:
    for severity in SEVERITIES:
        step = corrupt(points, name, severity, seeded()) - points
        largest = float(step.abs().max())
        if name == "uniform":
            assert 0.95 * limit * severity < largest <= limit * severity
        if name == "gaussian":
            assert float(step.std()) == pytest.approx(0.005 * (severity + 1), rel=0.03)
        if name == "impulse":
            hit = step.abs().amax(-1) > 0
            assert hit.sum(1).unique().tolist() == [round(N / (30, 25, 20, 15, 10)[severity - 1])]
            torch.testing.assert_close(step[hit].abs(), torch.full_like(step[hit], 0.1))
        if name == "upsampling":
            hit = (step.abs().amax(-1) > 0).sum(1)
            assert hit.unique().tolist() == [round(N / (6, 5, 4, 3, 2)[severity - 1])]
            near = torch.cdist(points + step, points).amin(-1)
            assert near.max() <= 0.05 * math.sqrt(3)


def test_background_is_uniform_in_the_cube(points: Tensor) -> None:
    many = points[:1].expand(400, -1, -1)
    out = corrupt(many, "background", 5, seeded())
    hit = (out != many).any(-1)
    assert hit.sum(1).unique().tolist() == [20]
    noise = out[hit]
    assert noise.abs().max() <= 1
    assert noise.mean(0).abs().max() < 0.03
    assert noise.square().mean() == pytest.approx(1 / 3, abs=0.01)


def test_rotation_is_by_the_angle(points: Tensor) -> None:
    for severity, degrees in zip(SEVERITIES, (2.5, 5, 7.5, 10, 15), strict=True):
        out = corrupt(points, "rotation", severity, seeded())
        torch.testing.assert_close(torch.cdist(out, out), torch.cdist(points, points))
        # the best-fitting linear map is the rotation itself
        matrix = torch.linalg.lstsq(points, out).solution
        assert torch.linalg.det(matrix).min() > 0.999
        angle = ((matrix.diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2).clamp(-1, 1).acos()
        torch.testing.assert_close(angle, torch.full_like(angle, math.radians(degrees)))


def test_shear_is_linear_and_keeps_the_volume(points: Tensor) -> None:
    for severity in SEVERITIES:
        out = corrupt(points, "shear", severity, seeded())
        matrix = torch.linalg.lstsq(points, out).solution.mT
        torch.testing.assert_close(clouds.rotate(points, matrix), out)
        torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(24, dtype=torch.float64))
        off = torch.stack([matrix[:, 0, 1], matrix[:, 0, 2], matrix[:, 1, 2]]).abs()
        assert off.min() >= 0.05 * (severity - 1) - 1e-9
        assert off.max() <= 0.05 * severity + 1e-9
        torch.testing.assert_close(matrix[:, 2], torch.tensor([0.0, 0.0, 1.0]).to(matrix).expand(24, 3))


@pytest.mark.parametrize("name", ["free-form", "radial-basis"])
def test_warps_are_smooth(name: str) -> None:
    """Points that are close stay close: the displacement is Lipschitz, and bounded by its control points'."""
    x = torch.rand(6, 300, 3, generator=seeded(), dtype=torch.float64) * 1.6 - 0.8
    near = x + 1e-4 * torch.randn(x.shape, generator=seeded(1), dtype=torch.float64)
    for severity in SEVERITIES:
        a, b = corrupt(x, name, severity, seeded()), corrupt(near, name, severity, seeded())
        assert ((b - a).norm(dim=-1) / (near - x).norm(dim=-1)).max() < 6
        limit = 0.1 * severity if name == "free-form" else 0.05 * severity * 3
        assert (a - x).abs().max() <= limit
        # not a rigid motion
        assert (torch.cdist(a, a) - torch.cdist(x, x)).abs().max() > 0.01 * severity


def test_free_form_against_a_loop() -> None:
    x = torch.rand(1, 7, 3, generator=seeded(), dtype=torch.float64) * 2 - 1
    generator = seeded(4)
    moved = corruptions._signed((1, 5, 5, 5, 3), 0.2, 0.1, generator, x)[0]
    out = corrupt(x, "free-form", 2, seeded(4))[0]
    for point, found in zip(x[0], out, strict=True):
        u = [(float(c) + 1) / 2 for c in point]
        b = [[math.comb(4, i) * c**i * (1 - c) ** (4 - i) for i in range(5)] for c in u]
        step = sum(
            b[0][i] * b[1][j] * b[2][k] * moved[i, j, k]
            for i in range(5) for j in range(5) for k in range(5)
        )  # fmt: skip
        torch.testing.assert_close(found, point + step)


def test_radial_basis_against_a_loop() -> None:
    x = torch.rand(1, 7, 3, generator=seeded(), dtype=torch.float64) * 2 - 1
    centres = [(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]
    centres += [(-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1), (0, 0, 0)]
    moved = corruptions._signed((1, 15, 3), 0.15, 0.05, seeded(4), x)[0]
    assert moved.abs().min() >= 0.1 - 1e-9
    assert moved.abs().max() <= 0.15 + 1e-9
    for point, found in zip(x[0], corrupt(x, "radial-basis", 3, seeded(4))[0], strict=True):
        step = sum(
            math.exp(-2 * sum((float(p) - c) ** 2 for p, c in zip(point, centre, strict=True))) * move
            for centre, move in zip(centres, moved, strict=True)
        )
        torch.testing.assert_close(found, point + step)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_refill_against_sets(data: st.DataObject) -> None:
    batch, n = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 6))
    kept = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=batch, max_size=batch)),
        dtype=torch.bool,
    ).view(batch, n)
    x = torch.arange(batch * n * 3, dtype=torch.float32).view(batch, n, 3)
    out = refill(x, kept, seeded(data.draw(st.integers(0, 99))))
    for cloud, mask, filled in zip(x, kept, out, strict=True):
        mask = mask if mask.any() else torch.ones_like(mask)
        assert torch.equal(filled[mask], cloud[mask])
        allowed = {tuple(p) for p in cloud[mask].tolist()}
        assert all(tuple(p) in allowed for p in filled.tolist())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_small_clouds_and_empty_batches(name: str) -> None:
    for shape in ((2, 1, 3), (1, 3, 3), (0, 8, 3)):
        x = torch.rand(shape, generator=seeded())
        out = corrupt(x, name, 5, seeded())
        assert out.shape == shape
        assert torch.isfinite(out).all()


def test_mistakes_are_explained(points: Tensor) -> None:
    with pytest.raises(DataError, match="Did you mean 'gaussian'"):
        corrupt(points, "gausian", 1, seeded())
    for severity in (0, 6, 2.5):
        with pytest.raises(DataError, match=f"whole number 1 .. 5; got {severity}"):
            corrupt(points, "shear", severity, seeded())  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"\(batch, points, 3\)"):
        corrupt(points[0], "shear", 1, seeded())
    for value in (float("nan"), float("inf")):
        with pytest.raises(DataError, match="NaN or infinite"):
            corrupt(points * value, "occlusion", 1, seeded())
