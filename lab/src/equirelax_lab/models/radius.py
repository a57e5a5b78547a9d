"""Neighbours within a radius, molecule by molecule, without compiled extensions."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def radius_graph(positions: Tensor, graph: Tensor, cutoff: float) -> Tensor:
    """Find all ordered pairs of different atoms of one graph that are at most `cutoff` apart.

    Graphs are padded to the size of the largest, in which time and memory are quadratic: this is for many small graphs.
    It is not differentiated.

    Args:
        positions: (n, 3).
        graph: (n,) long, the number of each atom's graph, in any order.
        cutoff: cutoff radius, in the unit of the positions. An atom whose position is NaN counts as near to all others, so
            that it shows in the output.

    Returns:
        (2, e) long, rows source and target, ordered by graph, target and source.
    """
    if positions.shape[0] == 0:
        return graph.new_zeros(2, 0)
    with torch.no_grad():
        graph, order = graph.sort(stable=True)
        counts = graph.bincount()
        starts = counts.cumsum(0) - counts
        largest = int(counts.max())
        # row of every atom in the padded array
        place = graph * largest + torch.arange(graph.shape[0], device=graph.device) - starts[graph]
        padded = positions.new_zeros(counts.shape[0] * largest, 3)
        padded[place] = positions.detach()[order]
        padded = padded.view(-1, largest, 3)
        distances = torch.cdist(padded, padded, compute_mode="donot_use_mm_for_euclid_dist")
        there = torch.arange(largest, device=graph.device) < counts[:, None]
        near = ~(distances > cutoff) & there[:, None] & there[:, :, None]
        near.diagonal(dim1=1, dim2=2).fill_(False)
        number, target, source = near.nonzero(as_tuple=True)
        return torch.stack([order[starts[number] + source], order[starts[number] + target]])


class RadiusGraph(nn.Module):
    """An ``interaction_graph`` for PyTorch Geometric's SchNet: neighbours within a cutoff and their distances.

    PyG's own needs a compiled extension and keeps at most 32 neighbours of an atom; this one keeps all. In QM9 no atom
    has more than 28, so that the two agree there.

    Args:
        cutoff: cutoff radius, in the unit of the positions.
    """

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """pos (n, 3), batch (n,) the atoms' graphs -> edge_index (2, e), distances (e,), differentiable in pos."""
        edge_index = radius_graph(pos, batch, self.cutoff)
        source, target = edge_index[0], edge_index[1]
        return edge_index, (pos.index_select(0, source) - pos.index_select(0, target)).norm(dim=-1)

    def extra_repr(self) -> str:
        """The cutoff."""
        return f"cutoff={self.cutoff}"
