"""PaiNN in the form of fairchem (Open Catalyst): message layers, update layers, and a readout of forces, on a complete graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PaiNNMessage(nn.Module):
    """Messages of scalars and vectors, weighted by functions of the distance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.x_proj = nn.Sequential(
            nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, 3 * channels)
        )
        self.rbf_proj = nn.Linear(1, 3 * channels)

    def forward(
        self, x: Tensor, vec: Tensor, source: Tensor, target: Tensor, edges: Tensor
    ) -> tuple[Tensor, Tensor]:
        length = torch.linalg.vector_norm(edges, dim=-1, keepdim=True)
        weights = self.x_proj(x)[source] * self.rbf_proj(torch.exp(-length))
        scalars, along, through = weights.chunk(3, dim=-1)
        vectors = along[:, None] * (edges / length)[..., None] + through[:, None] * vec[source]
        return (
            torch.zeros_like(x).index_add(0, target, scalars),
            torch.zeros_like(vec).index_add(0, target, vectors),
        )


class PaiNNUpdate(nn.Module):
    """Mixes the channels of every atom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.vec_proj = nn.Linear(channels, 2 * channels, bias=False)
        self.xvec_proj = nn.Sequential(
            nn.Linear(2 * channels, channels), nn.SiLU(), nn.Linear(channels, 3 * channels)
        )

    def forward(self, x: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
        one, other = self.vec_proj(vec).chunk(2, dim=-1)
        return self.mixed(x, one, other)

    def mixed(self, x: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """The steps of scalars and vectors, from two images of the vectors."""
        norms = (other.square().sum(dim=-2) + 1e-8).sqrt()
        scalars, products, vectors = self.xvec_proj(torch.cat([x, norms], dim=-1)).chunk(3, dim=-1)
        return scalars + products * (one * other).sum(dim=-2), vectors[:, None] * one


class PainnUpdate(PaiNNUpdate):
    """The same with one map for each of the two images."""

    def __init__(self, channels: int, bias: bool = False) -> None:
        super().__init__(channels)
        del self.vec_proj
        self.update_U = nn.Linear(channels, channels, bias=bias)
        self.update_V = nn.Linear(channels, channels, bias=bias)

    def forward(self, x: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
        return self.mixed(x, self.update_U(vec), self.update_V(vec))


class GatedEquivariantBlock(nn.Module):
    """Norms of one image of the vectors enter the scalars, which gate another."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.vec1_proj = nn.Linear(channels, channels, bias=False)
        self.vec2_proj = nn.Linear(channels, out_channels, bias=False)
        self.update_net = nn.Sequential(
            nn.Linear(2 * channels, channels), nn.SiLU(), nn.Linear(channels, 2 * out_channels)
        )

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        norms = torch.linalg.vector_norm(self.vec1_proj(v), dim=-2)
        x, gates = self.update_net(torch.cat([x, norms], dim=-1)).chunk(2, dim=-1)
        return nn.functional.silu(x), gates[:, None] * self.vec2_proj(v)


class PaiNNOutput(nn.Module):
    """Two blocks, to one vector for every atom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.output_network = nn.ModuleList(
            [GatedEquivariantBlock(channels, channels // 2), GatedEquivariantBlock(channels // 2, 1)]
        )

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        for block in self.output_network:
            x, vec = block(x, vec)
        return vec.squeeze(-1)


class PaiNN(nn.Module):
    """From atomic numbers and positions (atoms, 3) to the energy and the forces (atoms, 3)."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.atom_emb = nn.Embedding(20, channels)
        self.message_layers = nn.ModuleList(PaiNNMessage(channels) for _ in range(layers))
        self.update_layers = nn.ModuleList(PaiNNUpdate(channels) for _ in range(layers))
        self.out_energy = nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, 1))
        self.out_forces = PaiNNOutput(channels)

    def forward(self, z: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        count = z.shape[0]
        pairs = torch.cartesian_prod(torch.arange(count), torch.arange(count))
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        source, target = pairs[:, 0], pairs[:, 1]
        edges = pos[target] - pos[source]
        x = self.atom_emb(z)
        vec = x.new_zeros(count, 3, x.shape[-1])
        for message, update in zip(self.message_layers, self.update_layers):  # noqa: B905 (torch.jit)
            dx, dvec = message(x, vec, source, target, edges)
            x, vec = x + dx, vec + dvec
            dx, dvec = update(x, vec)
            x, vec = x + dx, vec + dvec
        return self.out_energy(x).sum(), self.out_forces(x, vec)
