"""EGNN: E(n)-equivariant graph network on positions and invariant features.

Satorras, Hoogeboom, Welling: "E(n) equivariant graph neural networks", ICML 2021 (arXiv 2102.09844), equations 3-7, with the
velocity term of section 3.2 and the mean over neighbours in the coordinate update.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.fast.switch import is_hooked
from equirelax_lab.models.stack import select


class EGNNLayer(nn.Module):
    """One round of message passing, with i the target and j the source of an edge:

    m_ij = message([h_i, h_j, |x_i - x_j|^2, e_ij])
    x_i' = x_i + mean_j (x_i - x_j) coordinate(m_ij) + velocity(h_i) v_i
    h_i' = h_i + update([h_i, sum_j m_ij])

    Args:
        hidden: width of h and of the messages.
        edge_features: number of invariant edge features e_ij, 0 for none.
        skip: whether h_i is added to its update; if not, h_i' = update(...).
        limit: longest mean step of a node (the mean over j), in the unit of x; longer ones are shortened to it. None for no
            limit.
    """

    def __init__(
        self, hidden: int, edge_features: int = 0, skip: bool = True, limit: float | None = None
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.edge_features = edge_features
        self.skip, self.limit = skip, limit
        self.message = nn.Sequential(
            nn.Linear(2 * hidden + 1 + edge_features, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.update = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        last = nn.Linear(hidden, 1, bias=False)
        # small at the start: otherwise the coordinates run away within a few layers
        nn.init.xavier_uniform_(last.weight, gain=0.001)
        self.coordinate = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), last)
        self.velocity = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def forward(
        self, h: Tensor, x: Tensor, v: Tensor | None, edge_index: Tensor, edge_features: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """h (n, hidden), x (n, 3), v (n, 3) or None, edge_index (2, e) [source, target], edge_features
        (e, f) or None -> (h', x')."""
        source, target = edge_index[0], edge_index[1]
        relative = select(x, 0, target) - select(x, 0, source)  # (e, 3)
        scalars = relative.square().sum(dim=1, keepdim=True)
        if edge_features is not None:
            scalars = torch.cat([scalars, edge_features], dim=1)
        messages = self._messages(h, scalars, source, target)  # (e, hidden)

        neighbours = x.new_zeros(x.shape[0]).index_add(0, target, x.new_ones(target.shape)).clamp(min=1)
        shift = torch.zeros_like(x).index_add(0, target, relative * self.coordinate(messages))
        shift = shift / neighbours[:, None]
        if self.limit is not None:
            squared = shift.square().sum(dim=1, keepdim=True)
            # exactly 1, with derivative 0, for shifts that are short enough
            shift = shift * (self.limit**2 / squared.clamp(min=self.limit**2)).sqrt()
        moved = x + shift
        if v is not None:
            moved = moved + self.velocity(h) * v
        received = torch.zeros_like(h).index_add(0, target, messages)
        update = self.update(torch.cat([h, received], dim=1))
        return h + update if self.skip else update, moved

    def _messages(self, h: Tensor, scalars: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Compute message([h_target, h_source, scalars]), (e, hidden).

        The first map is linear in h_i and in h_j, so it is computed once per node instead of once per edge. If it has hooks
        or was replaced, it is called as it is, on all edges. The results differ only by rounding.
        """
        first = self.message[0]
        if type(first) is not nn.Linear or is_hooked(first) or is_hooked(self.message):
            ends = [select(h, 0, target), select(h, 0, source), scalars]
            return self.message(torch.cat(ends, dim=1))
        of_target, of_source, of_scalars = first.weight.split(
            [self.hidden, self.hidden, scalars.shape[1]], dim=1
        )
        mixed = select(nn.functional.linear(h, of_target, first.bias), 0, target)
        mixed = mixed + select(nn.functional.linear(h, of_source), 0, source)
        mixed = mixed + nn.functional.linear(scalars, of_scalars)
        for module in list(self.message)[1:]:
            mixed = module(mixed)
        return mixed


class EGNN(nn.Module):
    """Updates positions by layers of EGNN; E(n)-equivariant, including reflections.

    Args:
        hidden: width of features and messages.
        layers: number of `EGNNLayer` (>= 1).
        in_features: number of invariant node features.
        edge_features: number of invariant edge features, 0 for none.
    """

    def __init__(
        self, hidden: int = 64, layers: int = 4, in_features: int = 1, edge_features: int = 0
    ) -> None:
        super().__init__()
        if min(hidden, layers, in_features) < 1 or edge_features < 0:
            raise RepresentationError(
                "EGNN: hidden, layers and in_features must be at least 1 and edge_features at least 0, got "
                f"{hidden}, {layers}, {in_features}, {edge_features}"
            )
        self.in_features = in_features
        self.edge_features = edge_features
        self.embedding = nn.Linear(in_features, hidden)
        self.layers = nn.ModuleList(EGNNLayer(hidden, edge_features) for _ in range(layers))

    def forward(
        self,
        positions: Tensor,
        velocities: Tensor | None,
        features: Tensor,
        edge_index: Tensor,
        edge_features: Tensor | None = None,
    ) -> Tensor:
        """positions, velocities (n, 3), features (n, in_features), edge_index (2, e) [source, target],
        edge_features (e, f) -> positions (n, 3).

        Raises:
            RepresentationError: the network was built for another number of node or edge features.
        """
        given = 0 if edge_features is None else edge_features.shape[1]
        if features.shape[1] != self.in_features or given != self.edge_features:
            raise RepresentationError(
                f"EGNN: got {features.shape[1]} node and {given} edge features, but was built with "
                f"in_features={self.in_features}, edge_features={self.edge_features}"
            )
        h, x = self.embedding(features), positions
        for layer in self.layers:
            h, x = layer(h, x, velocities, edge_index, edge_features)
        return x
