"""A small vector-neuron network that predicts an orientation of a point cloud."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.neighbours import check_points, gather, knn
from equirelax_lab.models.vector_neurons import VNLinear
from equirelax_lab.models.vn_blocks import VNBlock

RELATIVE_LEAST = 1e-6  # of the longest vector: the direction of a shorter one is rounding


class VNCanonicalizer(nn.Module):
    """Predicts the orientation c of a cloud: equivariant vectors made into a frame by Gram-Schmidt, so that c(R x) = R c(x).

    Every point starts with two vectors, from the cloud's centre to the point and from the point to the mean of its
    nearest neighbours. Vector-neuron blocks act on each point, and the mean over points is mapped to two vectors (three
    for reflections). The result does not depend on translations of the cloud.

    A cloud that is symmetric under a rotation has no unique orientation. Where the vectors vanish or are parallel, as for
    such a cloud, they are replaced by coordinate axes: the result is still a rotation, but does not rotate with the cloud.

    Args:
        hidden: number of vector channels, at least 1.
        layers: hidden blocks, at least 1.
        neighbours: nearest neighbours of a point, itself included; at least 2.
        reflections: whether orientations are elements of O(3) rather than SO(3), so that a mirror image has the mirrored frame.

    Raises:
        RepresentationError: a size is out of its range.
    """

    def __init__(
        self, hidden: int = 21, layers: int = 2, neighbours: int = 20, reflections: bool = False
    ) -> None:
        super().__init__()
        if hidden < 1 or layers < 1 or neighbours < 2:
            raise RepresentationError(
                f"VNCanonicalizer: hidden is {hidden}, layers {layers}, neighbours {neighbours}; expected at "
                f"least 1, 1 and 2"
            )
        self.neighbours, self.reflections = neighbours, reflections
        sizes = [2, *[hidden] * layers]
        self.blocks = nn.ModuleList(VNBlock(a, b) for a, b in itertools.pairwise(sizes))
        self.to_vectors = VNLinear(hidden, 3 if reflections else 2)

    def forward(self, points: Tensor) -> Tensor:
        """Predict the orientations of clouds.

        Args:
            points: (batch, n, 3).

        Returns:
            Orthogonal matrices (batch, 3, 3), their columns the frame's vectors.

        Raises:
            RepresentationError: the shape is wrong.
            NonFiniteError: a coordinate is NaN or infinite.
        """
        check_points(points, "VNCanonicalizer")
        x = (points - points.mean(1, keepdim=True)).mT  # (batch, 3, n)
        around = gather(x, knn(x, self.neighbours)).mean(-1) - x
        features = torch.stack([x, around], dim=1)  # (batch, 2, 3, n)
        for block in self.blocks:
            features = block(features)
        return frame(self.to_vectors(features.mean(-1)))


def frame(vectors: Tensor) -> Tensor:
    """Make two or three vectors orthonormal columns by Gram-Schmidt.

    The third column is the cross product of the first two, so that the determinant is 1. Given a third vector, its sign is
    chosen so that it points to that vector's side of the plane, and the determinant is 1 or -1.

    Args:
        vectors: (batch, 2 or 3, 3). A vector without length or direction of its own (shorter than 1e-6 of the longest, or
            parallel to the previous one within 1e-6) is replaced by a coordinate axis.

    Returns:
        (batch, 3, 3).
    """
    scale = torch.linalg.vector_norm(vectors.detach(), dim=2).amax(1)
    a, b = vectors[:, 0], vectors[:, 1]
    first = _unit(a, RELATIVE_LEAST * scale, torch.zeros_like(a))
    across = b - (b * first).sum(1, keepdim=True) * first
    second = _unit(across, RELATIVE_LEAST * scale, first)
    third = torch.linalg.cross(first, second, dim=1)
    if vectors.shape[1] == 3:
        side = (vectors[:, 2] * third).sum(1, keepdim=True)
        third = torch.where(side < 0, -third, third)
    return torch.stack([first, second, third], dim=2)


def _unit(v: Tensor, least: Tensor, first: Tensor) -> Tensor:
    """v (batch, 3) normalised to length 1. Where it is not longer than `least` (batch,), the coordinate axis least parallel to
    `first`, made orthogonal to it. Gradients stay finite where v is 0.
    """
    axis = nn.functional.one_hot(first.detach().abs().argmin(1), 3).to(v)
    axis = axis - (axis * first).sum(1, keepdim=True) * first
    long = (torch.linalg.vector_norm(v.detach(), dim=1) > least).unsqueeze(1)
    chosen = torch.where(long, v, axis)
    return chosen / torch.linalg.vector_norm(chosen, dim=1, keepdim=True)
