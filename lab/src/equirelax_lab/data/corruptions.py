"""Corruptions of point clouds in five severities, in the manner of ModelNet40-C (Sun et al., arXiv 2201.12296).

This is our own implementation for clouds (b, n, 3) that fill the unit sphere with z up. Every object draws its own random
numbers. The number of points is kept, so that networks see inputs of one size: removed points are replaced by copies of
random remaining ones, and where points are added, as many others are removed. Severities follow the published ones if those are
lengths or shares; counts became shares of n. Accuracies under these corruptions therefore compare methods with each other, not
with that benchmark's table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from equirelax.errors import DataError
from equirelax.files import did_you_mean
from equirelax_lab.data.clouds import check_clouds, choose, normal, rotate, rotations, uniform

Corruption = Callable[[Tensor, int, torch.Generator], Tensor]
"""(points (b, n, 3), severity 1 .. 5, generator) -> (b, n, 3)."""
SEVERITIES = (1, 2, 3, 4, 5)

CLUSTER = 0.1
"""Share of the points in a region of changed density."""
THINNED = 0.75
"""Share of a region's points that are removed when its density decreases."""
HOLE = 0.03
"""Share of the points in one hole."""


def corrupt(points: Tensor, name: str, severity: int, generator: torch.Generator) -> Tensor:
    """Apply one of `CORRUPTIONS` to `points` (b, n, 3); return a new tensor.

    Raises:
        DataError: The name is unknown, the severity is not 1 .. 5, or the points have another shape, NaN or infinity.
    """
    check_clouds(points)
    if not torch.isfinite(points).all():
        raise DataError("The clouds hold NaN or infinite coordinates; remove those points or clouds first.")
    if name not in CORRUPTIONS:
        raise DataError(
            f"Unknown corruption {name!r}.{did_you_mean(name, tuple(CORRUPTIONS))} "
            f"Known: {', '.join(CORRUPTIONS)}."
        )
    if severity not in SEVERITIES:
        raise DataError(f"The severity of a corruption is a whole number 1 .. 5; got {severity!r}.")
    return CORRUPTIONS[name](points, severity, generator) if len(points) else points.clone()


def refill(points: Tensor, kept: Tensor, generator: torch.Generator) -> Tensor:
    """Replace every point that is not `kept` (b, n) bool by a copy of a random kept point of its object.

    An object without kept points stays as it is.
    """
    kept = kept | ~kept.any(1, keepdim=True)
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)  # kept ones first
    count = kept.sum(1, keepdim=True)
    pick = (uniform(tuple(kept.shape), 0.0, 1.0, generator, points) * count).long().clamp_max(count - 1)
    own = torch.arange(points.shape[1], device=points.device).expand_as(order)
    return choose(points, torch.where(kept, own, order.gather(1, pick)))


def occlusion(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Remove points that cannot be seen from a random direction.

    An orthographic depth buffer with cells of 0.04 .. 0.12 keeps the points that are at most 0.1 behind the nearest one. Wide
    cells hide the far side of a sparse cloud: of ModelNet40's clouds 86 .. 53 % of 300 points and 72 .. 40 % of 1024 remain.
    """
    cell = (0.04, 0.06, 0.08, 0.1, 0.12)[severity - 1]
    turn = rotations("so3", points.shape[0], generator, dtype=points.dtype, device=points.device)
    seen = rotate(points, turn)  # x, y: the image; z: towards the eye
    image = ((seen[..., :2] - seen[..., :2].amin(1, keepdim=True)) / cell).long()
    width = int(image.max()) + 1
    pixel = image[..., 0] * width + image[..., 1]
    nearest = seen.new_full((points.shape[0], width * width), -math.inf)
    nearest = nearest.scatter_reduce(1, pixel, seen[..., 2], "amax")
    return refill(points, seen[..., 2] >= nearest.gather(1, pixel) - 0.1, generator)


def density_decrease(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Remove three quarters of the points in one to five regions, each the tenth of the points nearest to a random one."""
    gone = torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device)
    for near in _places(points, severity, CLUSTER, generator):
        gone |= near & (uniform(tuple(gone.shape), 0.0, 1.0, generator, points) < THINNED)
    return refill(points, ~gone, generator)


def density_increase(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Increase the density in one to five regions, each the tenth of the points nearest to a random one.

    For each region an eighth of the other points become copies of its points, moved by N(0, 0.01^2).
    """
    dense = torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device)
    for near in _places(points, severity, CLUSTER, generator):
        dense |= near
    leaving = ~dense & (uniform(tuple(dense.shape), 0.0, 1.0, generator, points) < severity / 8)
    copies = refill(points, dense, generator) + 0.01 * normal(tuple(points.shape), generator, points)
    return torch.where(leaving[..., None], copies, points)


def cutout(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Cut 2, 3, 5, 7 or 10 holes, each the 3 % of the points nearest to a random one."""
    gone = torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device)
    for near in _places(points, (2, 3, 5, 7, 10)[severity - 1], HOLE, generator):
        gone |= near
    return refill(points, ~gone, generator)


def _places(points: Tensor, count: int, share: float, generator: torch.Generator) -> list[Tensor]:
    """Choose `count` masks (b, n): for every object the round(share n), at least one, points nearest to a random one."""
    batch, n, _ = points.shape
    near = max(1, round(share * n))
    masks = []
    for _ in range(count):
        centre = (uniform((batch, 1), 0.0, 1.0, generator, points) * n).long().clamp_max(n - 1)
        distance = (points - choose(points, centre)).square().sum(-1)
        index = distance.topk(near, largest=False).indices
        masks.append(torch.zeros_like(distance, dtype=torch.bool).scatter_(1, index, True))
    return masks


def uniform_noise(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Add U(-c, c), c = 0.01 .. 0.05, to every coordinate."""
    limit = 0.01 * severity
    return points + uniform(tuple(points.shape), -limit, limit, generator, points)


def gaussian_noise(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Add N(0, s^2), s = 0.01 .. 0.03, to every coordinate."""
    return points + 0.005 * (severity + 1) * normal(tuple(points.shape), generator, points)


def impulse_noise(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Move a share of 1/30 .. 1/10 of the points by +-0.1 in every coordinate."""
    hit = _some(points, 1 / (30, 25, 20, 15, 10)[severity - 1], generator)
    sign = uniform(tuple(points.shape), -1.0, 1.0, generator, points).sign()
    return torch.where(hit[..., None], points + 0.1 * sign, points)


def background_noise(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Replace a share of 1/45 .. 1/20 of the points by uniform ones in the cube [-1, 1]^3."""
    hit = _some(points, 1 / (45, 40, 35, 30, 20)[severity - 1], generator)
    return torch.where(hit[..., None], uniform(tuple(points.shape), -1.0, 1.0, generator, points), points)


def upsampling(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Add n/5 .. n copies of points, moved by U(-0.05, 0.05) per coordinate, and keep n of all points.

    A share of 1/6 .. 1/2 are then such copies.
    """
    added = 1 / (5, 4, 3, 2, 1)[severity - 1]
    hit = _some(points, added / (1 + added), generator)
    moved = refill(points, ~hit, generator) + uniform(tuple(points.shape), -0.05, 0.05, generator, points)
    return torch.where(hit[..., None], moved, points)


def _some(points: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Choose round(share n) points of every object, at least one: (b, n) bool."""
    keys = uniform(tuple(points.shape[:2]), 0.0, 1.0, generator, points)
    index = keys.topk(max(1, round(share * points.shape[1]))).indices
    return torch.zeros_like(keys, dtype=torch.bool).scatter_(1, index, True)


def shear(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Shear by x += a y + b z, y += c z, with a, b, c of random sign and size U(s - 0.05, s), s = 0.05 .. 0.25.

    The volume is kept.
    """
    sizes = _signed((points.shape[0], 3), 0.05 * severity, 0.05, generator, points)
    matrix = torch.eye(3, dtype=points.dtype, device=points.device).repeat(points.shape[0], 1, 1)
    matrix[:, 0, 1], matrix[:, 0, 2], matrix[:, 1, 2] = sizes.unbind(1)
    return rotate(points, matrix)


def rotation(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Rotate by 2.5, 5, 7.5, 10 or 15 degrees about a random axis."""
    angle = math.radians((2.5, 5.0, 7.5, 10.0, 15.0)[severity - 1])
    axis = normal((points.shape[0], 3), generator, points)
    axis = axis / axis.norm(dim=-1, keepdim=True)
    cross = points.new_zeros(points.shape[0], 3, 3)  # Rodrigues' formula
    cross[:, 2, 1], cross[:, 0, 2], cross[:, 1, 0] = axis.unbind(1)
    cross = cross - cross.transpose(1, 2)
    matrix = torch.linalg.matrix_exp(angle * cross)
    return rotate(points, matrix)


def free_form(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Deform by a lattice of 5^3 control points over [-1, 1]^3, interpolated by Bernstein polynomials of degree 4.

    Each point is moved per coordinate by a random sign times U(c - 0.1, c), c = 0.1 .. 0.5.
    """
    nodes, degree = 5, 4
    moved = _signed((points.shape[0], nodes, nodes, nodes, 3), 0.1 * severity, 0.1, generator, points)
    place = ((points + 1) / 2).clamp(0, 1)[..., None]  # (b, n, 3, 1)
    k = torch.arange(nodes, device=points.device)
    binomial = points.new_tensor([math.comb(degree, i) for i in range(nodes)])
    weight = binomial * place**k * (1 - place) ** (degree - k)  # (b, n, 3, 5)
    x, y, z = weight.unbind(2)
    return points + torch.einsum("bni,bnj,bnk,bijkd->bnd", x, y, z, moved)


def radial_basis(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Deform by dents and bumps at the corners, face centres and centre of [-1, 1]^3 (15 places p).

    Each place is moved per coordinate by a random sign times U(c - 0.05, c), c = 0.05 .. 0.25, spread by the Gaussian
    exp(-|x - p|^2 / 0.5).
    """
    corners = list(itertools.product((-1.0, 1.0), repeat=3))
    faces = [tuple(s if a == axis else 0.0 for a in range(3)) for axis in range(3) for s in (-1.0, 1.0)]
    centres = points.new_tensor([*corners, *faces, (0.0, 0.0, 0.0)])
    moved = _signed((points.shape[0], len(centres), 3), 0.05 * severity, 0.05, generator, points)
    distance = (points[:, :, None] - centres).square().sum(-1)  # (b, n, 15)
    return points + torch.einsum("bnp,bpd->bnd", (-distance / 0.5).exp(), moved)


def _signed(
    shape: tuple[int, ...], high: float, width: float, generator: torch.Generator, like: Tensor
) -> Tensor:
    """Draw numbers of random sign and of size U(high - width, high)."""
    size = uniform(shape, high - width, high, generator, like)
    return size * uniform(shape, -1.0, 1.0, generator, like).sign()


CORRUPTIONS: dict[str, Corruption] = {
    "occlusion": occlusion,
    "density-decrease": density_decrease,
    "density-increase": density_increase,
    "cutout": cutout,
    "uniform": uniform_noise,
    "gaussian": gaussian_noise,
    "impulse": impulse_noise,
    "background": background_noise,
    "upsampling": upsampling,
    "rotation": rotation,
    "shear": shear,
    "free-form": free_form,
    "radial-basis": radial_basis,
}
