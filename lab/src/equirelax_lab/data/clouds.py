"""Random changes of point clouds (b, n, 3): sampling, rotations, scale, shift, jitter, dropout of points.

Every function takes an explicit generator, draws separately for every object on the generator's device, and returns a new
tensor. Lengths are in units of the clouds, which fill the unit sphere in ModelNet40; z is the vertical.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from equirelax.errors import DataError
from equirelax_lab.data.augment import random_rotation

RotationKind = Literal["none", "z", "so3"]
ROTATIONS: tuple[RotationKind, ...] = get_args(RotationKind)


def check_clouds(points: Tensor) -> None:
    """Raise `DataError` unless `points` is floating point of shape (b, n, 3) with n >= 1."""
    if points.ndim != 3 or points.shape[-1] != 3 or not points.shape[1] or not points.is_floating_point():
        raise DataError(
            f"Point clouds must be floating point of shape (batch, points, 3) with at least one point; "
            f"got {points.dtype} {tuple(points.shape)}."
        )


def uniform(
    shape: tuple[int, ...], low: float, high: float, generator: torch.Generator, like: Tensor
) -> Tensor:
    """Draw from U(low, high) in float32 on the generator's device; the result has the device and dtype of `like`."""
    drawn = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32)
    return drawn.to(like) * (high - low) + low


def normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw from N(0, 1) in float32 on the generator's device; the result has the device and dtype of `like`."""
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32).to(like)


def choose(points: Tensor, index: Tensor) -> Tensor:
    """Select the points `index` (b, m), long, of every object: (b, n, 3) -> (b, m, 3)."""
    return points.gather(1, index[..., None].expand(-1, -1, points.shape[-1]))


def sample_points(points: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Choose `count` different points of every object at random, in random order: (b, count, 3).

    Without a generator (for evaluation) the first points are taken.

    Raises:
        DataError: `count` is not between 1 and the number of points.
    """
    check_clouds(points)
    if not 1 <= count <= points.shape[1]:
        raise DataError(f"{count} points were requested; the clouds have {points.shape[1]}.")
    if generator is None:
        return points[:, :count].clone()
    keys = torch.rand(points.shape[:2], generator=generator, device=generator.device)
    return choose(points, keys.topk(count).indices.to(points.device))


def normalise(points: Tensor) -> Tensor:
    """Centre every object and divide it by the largest distance from its centre, so that it fills the unit ball."""
    check_clouds(points)
    centred = points - points.mean(1, keepdim=True)
    largest = centred.square().sum(-1).amax(1).sqrt()
    # an object whose points coincide has no size
    return centred / torch.where(largest > 0, largest, torch.ones_like(largest))[:, None, None]


def rotations(
    kind: str,
    count: int,
    generator: torch.Generator | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """Draw rotation matrices (count, 3, 3): the identity (`none`), about the vertical (`z`), or Haar-distributed (`so3`).

    Raises:
        DataError: The kind is unknown, or a random kind has no generator.
    """
    if kind not in ROTATIONS:
        raise DataError(f"Unknown kind of rotation {kind!r}; choose one of {', '.join(ROTATIONS)}.")
    if kind == "none":
        return torch.eye(3, dtype=dtype, device=device).repeat(count, 1, 1)
    if generator is None:
        raise DataError(f"Rotations of kind {kind!r} are random: give a generator.")
    if kind == "so3":
        return random_rotation(generator, count=count, dtype=dtype, device=device)
    angle = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64) * math.tau
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], -1)
    return rows.view(count, 3, 3).to(device=device, dtype=dtype)


def rotate(points: Tensor, matrices: Tensor) -> Tensor:
    """Compute R x for points (b, n, 3) and matrices (b, 3, 3) or (3, 3).

    It is computed element by element, because reduced precision (TF32, autocast) would make a matrix product inexact.
    """
    check_clouds(points)
    columns = matrices.to(points).expand(points.shape[0], 3, 3)[:, None].unbind(-1)  # 3 x (b, 1, 3)
    out = points[..., 0:1] * columns[0]
    return out.addcmul_(points[..., 1:2], columns[1]).addcmul_(points[..., 2:3], columns[2])


def scale(
    points: Tensor,
    generator: torch.Generator,
    *,
    low: float = 2 / 3,
    high: float = 3 / 2,
    per_axis: bool = False,
) -> Tensor:
    """Multiply every object by its own factor from U(low, high).

    With `per_axis`, x, y and z have separate factors, as in DGCNN's training. This distorts shapes and does not commute
    with rotations.
    """
    check_clouds(points)
    if not 0 < low <= high:
        raise DataError(f"scale needs 0 < low <= high; got low {low} and high {high}.")
    return points * uniform((points.shape[0], 1, 3 if per_axis else 1), low, high, generator, points)


def shift(points: Tensor, generator: torch.Generator, *, limit: float = 0.2) -> Tensor:
    """Move every object by its own vector, with coordinates from U(-limit, limit)."""
    check_clouds(points)
    return points + uniform((points.shape[0], 1, 3), -limit, limit, generator, points)


def jitter(points: Tensor, generator: torch.Generator, *, std: float = 0.01, clip: float = 0.05) -> Tensor:
    """Add N(0, std^2), clipped to +-clip, to every coordinate."""
    check_clouds(points)
    return points + (normal(tuple(points.shape), generator, points) * std).clamp_(-clip, clip)


def point_dropout(points: Tensor, max_ratio: float, generator: torch.Generator) -> Tensor:
    """Drop each point of an object with a probability from U(0, max_ratio), which is drawn once per object.

    Dropped points become copies of the object's first point, so that the shape stays (b, n, 3): with ratio r a cloud keeps
    about (1 - r) n different points. CR and ACE train with max_ratio 0.875, like PointNet++, and ACE also applies it to the
    test set.
    """
    check_clouds(points)
    _check_ratio(max_ratio)
    ratio = uniform((points.shape[0], 1), 0.0, max_ratio, generator, points)
    dropped = uniform(tuple(points.shape[:2]), 0.0, 1.0, generator, points) < ratio
    return torch.where(dropped[..., None], points[:, :1], points)


def drop_ratio(points: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Drop exactly round(ratio n) points of every object, never the first one, for accuracy against dropout.

    Raises:
        DataError: The ratio is outside [0, 1).
    """
    check_clouds(points)
    _check_ratio(ratio)
    batch, n, _ = points.shape
    count = min(round(ratio * n), n - 1)
    keys = uniform((batch, n - 1), 0.0, 1.0, generator, points)
    index = torch.arange(n, device=points.device).repeat(batch, 1)
    index.scatter_(1, keys.topk(count).indices + 1, 0)
    return choose(points, index)


def _check_ratio(ratio: float) -> None:
    if not 0 <= ratio < 1:
        raise DataError(f"The ratio of dropped points must be in [0, 1); got {ratio}.")
