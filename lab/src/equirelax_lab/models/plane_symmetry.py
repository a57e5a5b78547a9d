"""The two symmetries of the forecasters behind one interface: rotations and reflections of the square, and a ladder of scales.

A network is a list of `Fields`; the symmetry makes the layers between them. E2CNN, RPP, Lift and RSteer are therefore written
only once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax.symmetry import Group, Representation, regular, vector
from equirelax_lab.models.group_conv import FieldBatchNorm, GroupConv2d
from equirelax_lab.models.relaxed_steerable import RelaxedGroupConv2d
from equirelax_lab.models.scale_conv import SCALES, ScaleBatchNorm, ScaleConv2d

GROUPS = ("C1", "C2", "C4", "D1", "D2", "D4")
"""Groups whose elements map a square grid onto itself."""


@dataclass(frozen=True)
class Fields:
    """`count` fields: vectors, as in inputs and outputs, or the symmetry's hidden fields."""

    kind: Literal["vectors", "hidden"]
    count: int


class PlaneSymmetry(ABC):
    """Builds the layers that a symmetry allows between fields."""

    @abstractmethod
    def channels(self, fields: Fields) -> int:
        """Return the number of channels of these fields."""

    @abstractmethod
    def conv(
        self, before: Fields, after: Fields, kernel: int, *, bias: bool = True, relaxed: bool = False
    ) -> nn.Module:
        """Build an equivariant convolution that keeps the size; with `relaxed`, one that can break the symmetry."""

    @abstractmethod
    def norm(self, fields: Fields) -> nn.Module:
        """Build an equivariant batch norm of hidden fields."""

    @abstractmethod
    def join(self, a: Tensor, b: Tensor) -> Tensor:
        """Concatenate hidden fields a and b of the same pictures, (batch, channels, H, W) each."""

    def block(
        self, before: Fields, after: Fields, kernel: int, *, norm: bool, relaxed: bool = False
    ) -> list[nn.Module]:
        """Build convolution to hidden fields, batch norm and ReLU; without a bias where the norm would remove it."""
        conv = self.conv(before, after, kernel, bias=not norm, relaxed=relaxed)
        return [conv, self.norm(after), nn.ReLU()] if norm else [conv, nn.ReLU()]


class GridSymmetry(PlaneSymmetry):
    """Rotations and reflections that map a square grid onto itself; hidden fields are regular.

    Args:
        group: A group that maps the grid onto itself.
    """

    def __init__(self, group: Group) -> None:
        self.group = group

    def representation(self, fields: Fields) -> Representation:
        """Return how the group acts on the channels."""
        return fields.count * (vector(self.group) if fields.kind == "vectors" else regular(self.group))

    def channels(self, fields: Fields) -> int:
        return self.representation(fields).dim

    def conv(
        self, before: Fields, after: Fields, kernel: int, *, bias: bool = True, relaxed: bool = False
    ) -> nn.Module:
        layer = RelaxedGroupConv2d if relaxed else GroupConv2d
        return layer(self.representation(before), self.representation(after), kernel, bias=bias)

    def norm(self, fields: Fields) -> nn.Module:
        return FieldBatchNorm(self.representation(fields))

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], dim=1)


class ScaleSymmetry(PlaneSymmetry):
    """Scalings of the plane; hidden fields live on a ladder of scales. Components of vectors are plain channels.

    Args:
        scales: scales of the ladder.
    """

    def __init__(self, scales: tuple[float, ...] = SCALES) -> None:
        self.scales = scales

    def channels(self, fields: Fields) -> int:
        return fields.count * (2 if fields.kind == "vectors" else len(self.scales))

    def conv(
        self, before: Fields, after: Fields, kernel: int, *, bias: bool = True, relaxed: bool = False
    ) -> nn.Module:
        vectors = [2 if fields.kind == "vectors" else 1 for fields in (before, after)]
        return ScaleConv2d(
            vectors[0] * before.count,
            vectors[1] * after.count,
            self.scales,
            kernel,
            lifts=before.kind == "vectors",
            pools=after.kind == "vectors",
            bias=bias,
            relaxed=relaxed,
        )

    def norm(self, fields: Fields) -> nn.Module:
        return ScaleBatchNorm(fields.count, len(self.scales))

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        n = len(self.scales)
        return torch.cat([a.unflatten(1, (n, -1)), b.unflatten(1, (n, -1))], dim=2).flatten(1, 2)


def grid_group(name: str, network: str) -> Group:
    """Build the group called `name`.

    Raises:
        RepresentationError: the group does not map a square grid onto itself.
    """
    if name not in GROUPS:
        raise RepresentationError(
            f"{network}: the group {name!r} does not map a square grid onto itself; choose one of {', '.join(GROUPS)}"
        )
    return Group.from_name(name)


def plane_symmetry(name: str, network: str) -> PlaneSymmetry:
    """Build the symmetry called `name`: a group of the square, or "scale".

    Raises:
        RepresentationError: the name is unknown.
    """
    if name == "scale":
        return ScaleSymmetry()
    if name not in GROUPS:
        raise RepresentationError(
            f"{network}: unknown group {name!r}; choose one of {', '.join(GROUPS)}, scale"
        )
    return GridSymmetry(grid_group(name, network))


def sequence(frames: int, hidden: int, layers: int) -> list[Fields]:
    """List the fields between a forecaster's layers: `frames` vectors, then hidden fields, and one vector at the end."""
    return [Fields("vectors", frames), *[Fields("hidden", hidden)] * (layers - 1), Fields("vectors", 1)]
