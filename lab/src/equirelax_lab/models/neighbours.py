"""Nearest neighbours and graph features of point clouds, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from equirelax.errors import NonFiniteError, RepresentationError
from equirelax_lab.models.readable import values_are_readable

# Up to this number of features, distances are computed from differences, which lose no digits between close points.
_FEW = 8


def check_points(points: Tensor, name: str) -> None:
    """Check a batch of point clouds.

    Args:
        points: (batch, n, 3), floating, batch and n >= 1, finite.
        name: The model's name, for messages.

    Raises:
        RepresentationError: the shape is wrong, or the dtype is an integer one.
        NonFiniteError: a coordinate is NaN or infinite; this is not checked under `torch.compile` and `torch.func.vmap`.
    """
    if points.dim() != 3 or points.shape[2] != 3 or not points.numel() or not points.is_floating_point():
        raise RepresentationError(
            f"{name}: expected points of shape (batch, n, 3), floating, of at least one point each, got "
            f"{tuple(points.shape)} of {points.dtype}; a cloud stored as (batch, 3, n) needs "
            "points.transpose(1, 2)"
        )
    if values_are_readable() and not torch.isfinite(points).all():
        bad = (~torch.isfinite(points)).flatten(1).any(1).nonzero().flatten().tolist()
        raise NonFiniteError(
            f"{name}: NaN or infinite coordinates in {len(bad)} of {len(points)} clouds (the first is number "
            f"{bad[0]}); remove those points or clouds first"
        )


def knn(features: Tensor, k: int) -> Tensor:
    """Find the k nearest points of every point, itself included.

    Args:
        features: (batch, C, n); distances are Euclidean over C. It is not differentiated.
        k: >= 1; a cloud with fewer than k points gives all of them.

    Returns:
        (batch, n, min(k, n)) long. Equally distant points are in no particular order; copies of a point count
        as separate points.

    Raises:
        RepresentationError: k is below 1, or the features have a wrong shape.
    """
    if features.dim() != 3 or k < 1:
        raise RepresentationError(
            f"knn: expected features (batch, C, n) and k >= 1, got {tuple(features.shape)} and k={k}"
        )
    # in half precision different distances would be equal
    features = features.detach().to(torch.promote_types(features.dtype, torch.float32))
    with torch.autocast(device_type=features.device.type, enabled=False):
        if features.shape[1] <= _FEW:
            closeness = features.new_zeros(features.shape[0], features.shape[2], features.shape[2])
            for x in features.unbind(1):
                difference = x[:, :, None] - x[:, None, :]
                closeness = torch.addcmul(closeness, difference, difference, value=-1)
        else:
            # |x_i - x_j|^2 without |x_i|^2, which is the same for all j; centred, to lose fewer digits
            features = features - features.mean(2, keepdim=True)
            squares = features.square().sum(1, keepdim=True)
            closeness = torch.baddbmm(squares, features.mT, features, beta=-1, alpha=2)
    return closeness.topk(min(k, features.shape[2]), dim=2, sorted=False).indices


def gather(x: Tensor, neighbours: Tensor) -> Tensor:
    """Gather the features of every point's neighbours: (batch, ..., n), (batch, n, k) -> (batch, ..., n, k)."""
    batch, n, k = neighbours.shape
    flat = x.reshape(batch, -1, x.shape[-1])
    index = neighbours.reshape(batch, 1, n * k).expand(-1, flat.shape[1], -1)
    return flat.gather(2, index).view(*x.shape[:-1], n, k)


def edge_features(x: Tensor, neighbours: Tensor, cross: bool = False) -> Tensor:
    """Build the features of every edge: [neighbour - centre, centre], and with `cross` also neighbour x centre.

    The cross product is a pseudovector: features with it are equivariant to rotations, but not to reflections.

    Args:
        x: (batch, C, 3, n).
        neighbours: (batch, n, k) long.

    Returns:
        (batch, 2 C or 3 C, 3, n, k).
    """
    around = gather(x, neighbours)
    centre = x.unsqueeze(-1).expand_as(around)
    parts = [around - centre, centre]
    if cross:
        parts.append(torch.linalg.cross(around, centre, dim=2))
    return torch.cat(parts, dim=1)


def check_neighbours(neighbours: Tensor | None, points: Tensor, name: str) -> None:
    """Check that a precomputed graph fits these points.

    Raises:
        RepresentationError: the shape is not (batch, n, k), or the dtype is not long.
    """
    if neighbours is None:
        return
    if (
        neighbours.dim() != 3
        or neighbours.shape[:2] != points.shape[:2]
        or neighbours.shape[2] < 1
        or neighbours.dtype != torch.long
    ):
        raise RepresentationError(
            f"{name}: expected neighbours of shape ({points.shape[0]}, {points.shape[1]}, k), long, got "
            f"{tuple(neighbours.shape)} of {neighbours.dtype}; make them with "
            "equirelax_lab.models.neighbours.knn(points.transpose(1, 2), k)"
        )
