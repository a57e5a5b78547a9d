"""Random rotations that augment a batch, as a whole or graph by graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equirelax.symmetry import SO, O


def random_rotation(
    generator: torch.Generator,
    *,
    count: int | None = None,
    reflections: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """Draw a Haar-distributed matrix of SO(3), or of O(3) with `reflections`: (3, 3), or (count, 3, 3) with `count`.

    CR rotates every batch by one rotation: `data.batch(indices, random_rotation(generator))`. The matrix is drawn on the
    generator's device and then moved to `device`.
    """
    group = O(3) if reflections else SO(3)
    drawn = group.sample(
        1 if count is None else count, generator=generator, dtype=torch.float64, device=generator.device
    )
    drawn = drawn.to(device=device, dtype=dtype)
    return drawn[0] if count is None else drawn


def turn_each(
    batch: dict[str, Tensor], names: Sequence[str], generator: torch.Generator, *, reflections: bool = False
) -> dict[str, Tensor]:
    """Rotate each graph of a batch about the origin by its own Haar-distributed rotation.

    Args:
        batch: A batch of `GraphSet.batch`, in which `graph` (nodes,) holds the graph of every node, in order.
        names: The entries that hold vectors, (nodes, ..., 3). Other entries stay as they are; names that the batch lacks are
            ignored.
        generator: Generator of the rotations.
        reflections: Draw from O(3) rather than SO(3).
    """
    graph = batch["graph"]
    count = int(graph[-1]) + 1 if len(graph) else 0
    drawn = random_rotation(generator, count=count, reflections=reflections, dtype=torch.float64)
    turned = dict(batch)
    for name in names:
        if name in batch:
            vectors = batch[name]
            g = drawn.to(vectors).index_select(0, graph)  # (nodes, 3, 3)
            turned[name] = (g @ vectors.reshape(len(graph), -1, 3).mT).mT.reshape(vectors.shape)
    return turned
