"""Whole data sets of equal-sized geometric graphs as tensors, and batches of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from equirelax.errors import DataError


@dataclass
class GraphSet:
    """N systems of n bodies each, as whole tensors.

    Attributes:
        positions: (N, n, 3) input positions.
        velocities: (N, n, 3) input velocities.
        features: (N, n, f) further node features, invariant under rotations.
        targets: (N, n, 3) positions to predict.
        edge_index: (2, e) for one directed graph of all systems, or (N, 2, e); rows are (source, target), 0 .. n-1.
        edge_features: (N, e, k), invariant under rotations.
        charges: (N, n, 1) or None.
        trajectory: (N, steps, n, 3) positions at several later times, of which the last are the targets, or None.
    """

    positions: Tensor
    velocities: Tensor
    features: Tensor
    targets: Tensor
    edge_index: Tensor
    edge_features: Tensor
    charges: Tensor | None = None
    trajectory: Tensor | None = None
    # batch size -> (edge_index of a batch, or node offsets if every system has its own graph; graph)
    _cache: dict[int, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __len__(self) -> int:
        return self.positions.shape[0]

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.positions.device

    @property
    def bodies(self) -> int:
        """Number of bodies n of a system."""
        return self.positions.shape[1]

    def batch(self, indices: Tensor | Sequence[int], rotation: Tensor | None = None) -> dict[str, Tensor]:
        """Join the systems `indices` (b of them) into one graph of b * n nodes.

        Args:
            indices: (b,) long tensor or a sequence of integers.
            rotation: (3, 3), or (b, 3, 3) for one per system; acts on positions, velocities, targets and trajectory.

        Returns:
            positions, velocities, targets (b*n, 3), features (b*n, f), edge_index (2, b*e),
            edge_features (b*e, k), graph (b*n,) long: the number 0 .. b-1 of each node's system; and, if the set has them,
            charges (b*n, 1), trajectory (b*n, steps, 3). Batches may share edge_index and graph: do not change them in place.
        """
        index = torch.as_tensor(indices, dtype=torch.long, device=self.positions.device)
        edge_index, graph = self._topology(index)

        def vectors(whole: Tensor) -> Tensor:  # (N, ..., 3) -> (b, ..., 3)
            chosen = whole.index_select(0, index)
            return chosen if rotation is None else _turn(chosen, rotation)

        out = {
            "positions": vectors(self.positions).flatten(0, 1),
            "velocities": vectors(self.velocities).flatten(0, 1),
            "targets": vectors(self.targets).flatten(0, 1),
        }
        out["features"] = self.features_of(index).flatten(0, 1)
        out["edge_index"], out["graph"] = edge_index, graph
        out["edge_features"] = self.edge_features.index_select(0, index).flatten(0, 1)
        if self.charges is not None:
            out["charges"] = self.charges.index_select(0, index).flatten(0, 1)
        if self.trajectory is not None:
            out["trajectory"] = vectors(self.trajectory).transpose(1, 2).flatten(0, 1)
        return out

    def turned(self, rotations: Tensor) -> Self:
        """Rotate positions, velocities, targets and trajectories by matrices (3, 3), or (N, 3, 3) for one per system."""
        vectors: dict[str, Tensor | None] = {
            "positions": self.positions,
            "velocities": self.velocities,
            "targets": self.targets,
            "trajectory": self.trajectory,
        }
        moved: dict[str, Any] = {
            name: _turn(each, rotations) for name, each in vectors.items() if each is not None
        }
        return dataclasses.replace(self, **moved)

    def features_of(self, index: Tensor) -> Tensor:
        """Node features (b, n, f) of a batch of the systems `index` (b,), long and on the set's device.

        A set whose features depend on the batch overrides this.
        """
        return self.features.index_select(0, index)

    def _topology(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Batched edge_index (2, b*e) and graph (b*n,) of the systems `index` (b,)."""
        count = index.shape[0]
        shared = self.edge_index.ndim == 2
        if count not in self._cache:
            systems = torch.arange(count, device=index.device)
            edges = self.edge_index if shared else self.edge_index[:0]
            offsets = (systems * self.bodies)[:, None]
            batched = (edges[:, None] + offsets).flatten(1) if shared else offsets[..., None]
            self._cache[count] = (batched, systems.repeat_interleave(self.bodies))
        edges, graph = self._cache[count]
        if not shared:
            edges = (self.edge_index.index_select(0, index) + edges).transpose(0, 1).flatten(1)
        return edges, graph

    def subset(self, indices: Tensor | Sequence[int] | slice) -> Self:
        """Only the systems `indices`, in that order."""
        return self._map(lambda tensor: tensor[indices])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The set on `device`, its floating point tensors as `dtype`."""
        moved = self._map(lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else None))
        if self.edge_index.ndim == 2:
            moved.edge_index = self.edge_index.to(device)
        return moved

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Copy the set with `change` applied to every tensor whose first axis is the systems."""
        changed: dict[str, Any] = {}
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            shared = entry.name == "edge_index" and self.edge_index.ndim == 2
            if entry.init and isinstance(value, Tensor) and not shared:
                changed[entry.name] = change(value)
        return dataclasses.replace(self, **changed)

    def __post_init__(self) -> None:
        count, n = self.positions.shape[:2]
        edges = self.edge_index.shape[-1]
        expected = {
            "positions": (count, n, 3),
            "velocities": (count, n, 3),
            "targets": (count, n, 3),
            "features": (count, n, self.features.shape[-1]),
            "edge_features": (count, edges, self.edge_features.shape[-1]),
            "edge_index": (2, edges) if self.edge_index.ndim == 2 else (count, 2, edges),
        }
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise DataError(f"{name} must have the shape {shape}; got {found}.")


def _turn(vectors: Tensor, rotation: Tensor) -> Tensor:
    """Compute R x for vectors (b, ..., 3) and a rotation (3, 3) or (b, 3, 3).

    It is computed element by element, because a matrix product wakes the thread pool, which on a busy machine takes far longer
    than the 1500 products of a batch. For the same reason `index_select` is used above instead of indexing.
    """
    columns = rotation.to(vectors).unbind(-1)  # 3 x (3,) or (b, 3)
    if rotation.ndim == 3:
        columns = tuple(column.view(-1, *(1,) * (vectors.ndim - 2), 3) for column in columns)
    out = vectors[..., 0:1] * columns[0]
    return out.addcmul_(vectors[..., 1:2], columns[1]).addcmul_(vectors[..., 2:3], columns[2])


def complete_graph(bodies: int) -> Tensor:
    """List every ordered pair of different bodies, (2, n (n-1)): rows (source, target), ordered by target."""
    target, source = (~torch.eye(bodies, dtype=torch.bool)).nonzero(as_tuple=True)
    return torch.stack([source, target])


def nearest_neighbours(positions: Tensor, neighbours: int) -> Tensor:
    """Connect every body (target) to its nearest others (sources): (N, 2, n * neighbours) for positions (N, n, 3)."""
    count, n, _ = positions.shape
    distance = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
    distance.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    source = distance.topk(neighbours, largest=False).indices.flatten(1)
    target = torch.arange(n).repeat_interleave(neighbours).expand(count, -1)
    return torch.stack([source, target], 1)


def squared_distances(positions: Tensor, edge_index: Tensor) -> Tensor:
    """Squared lengths of the edges, (N, e), for positions (N, n, 3) and edge_index (2, e) or (N, 2, e)."""
    source, target = gather(positions, edge_index)
    return (source - target).square().sum(-1)


def gather(values: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    """Node values (N, n, d) at the edges' sources and targets, each (N, e, d)."""
    if edge_index.ndim == 2:
        return values[:, edge_index[0]], values[:, edge_index[1]]
    rows = torch.arange(values.shape[0])[:, None]
    return values[rows, edge_index[:, 0]], values[rows, edge_index[:, 1]]
