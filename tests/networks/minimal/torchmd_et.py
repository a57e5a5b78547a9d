"""TorchMD-NET's equivariant transformer with a readout of gated equivariant blocks, on a complete graph."""

from __future__ import annotations

import torch
from minimal.painn import GatedEquivariantBlock
from torch import Tensor, nn


class EquivariantMultiHeadAttention(nn.Module):
    """Attention with one head over the other atoms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(channels)
        self.q_proj, self.k_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.v_proj, self.o_proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, 3 * channels)
        self.vec_proj = nn.Linear(channels, 3 * channels, bias=False)
        self.dk_proj = nn.Linear(1, channels)

    def forward(self, x: Tensor, vec: Tensor, edges: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layernorm(x)
        one, other, third = self.vec_proj(vec).chunk(3, dim=-1)
        keys = self.k_proj(x)[None] * nn.functional.silu(self.dk_proj(torch.exp(-length)))
        weights = nn.functional.silu((self.q_proj(x)[:, None] * keys).sum(dim=-1, keepdim=True))
        weights = weights * (length > 0)
        values, through, along = self.v_proj(x).chunk(3, dim=-1)
        scalars, products, shift = self.o_proj((weights * values[None]).sum(dim=1)).chunk(3, dim=-1)
        passed = (weights * through[None])[:, :, None] * vec[None]
        passed = passed + (weights * along[None])[:, :, None] * edges[..., None]
        return (
            products * (one * other).sum(dim=1) + shift,
            third * scalars[:, None] + passed.sum(dim=1),
        )


class TorchMD_ET(nn.Module):
    """From atomic numbers and positions (atoms, 3) to scalars (atoms, channels) and vectors (atoms, 3, channels)."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, channels)
        self.attention_layers = nn.ModuleList(EquivariantMultiHeadAttention(channels) for _ in range(layers))

    def forward(self, z: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        edges = pos[:, None] - pos[None]
        length = (edges.square().sum(dim=-1, keepdim=True) + 1e-12).sqrt() - 1e-6
        x = self.embedding(z)
        vec = x.new_zeros(x.shape[0], 3, x.shape[1])
        for layer in self.attention_layers:
            dx, dvec = layer(x, vec, edges, length)
            x, vec = x + dx, vec + dvec
        return x, vec


class EquivariantScalar(nn.Module):
    """Two blocks, to one scalar for every atom; the last vectors are not used."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.output_network = nn.ModuleList(
            [GatedEquivariantBlock(channels, channels // 2), GatedEquivariantBlock(channels // 2, 1)]
        )

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        for block in self.output_network:
            x, vec = block(x, vec)
        return x


class EquivariantVectorOutput(EquivariantScalar):
    """The vectors instead."""

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        for block in self.output_network:
            x, vec = block(x, vec)
        return vec.squeeze(-1)


class TorchMD_Net(nn.Module):
    """A representation and its readout."""

    def __init__(self, representation: nn.Module, readout: nn.Module) -> None:
        super().__init__()
        self.representation_model, self.output_model = representation, readout

    def forward(self, z: Tensor, pos: Tensor) -> Tensor:
        x, vec = self.representation_model(z, pos)
        return self.output_model(x, vec)
