"""TensorNet in the forms of TorchMD-NET and matgl, on a complete graph.

Tensors are (atoms, 3, 3, channels), or with `channels_first` (atoms, channels, 3, 3); then also the multiples of the identity
are mapped as tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def decompose(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The identity's part, the antisymmetric part and the symmetric traceless part of x (atoms, 3, 3, channels)."""
    trace = x.diagonal(dim1=1, dim2=2).mean(dim=-1)
    one = trace[:, None, None] * torch.eye(3, dtype=x.dtype)[None, :, :, None]
    return one, (x - x.transpose(1, 2)) / 2, (x + x.transpose(1, 2)) / 2 - one


def product(x: Tensor, y: Tensor) -> Tensor:
    """The matrix product, channel by channel."""
    return torch.einsum("nijc,njkc->nikc", x, y)


class TensorBlock(nn.Module):
    """A block with a number of maps of tensors."""

    def __init__(self, channels: int, maps: int, channels_first: bool) -> None:
        super().__init__()
        self.channels_first = channels_first
        self.linears_tensor = nn.ModuleList(nn.Linear(channels, channels, bias=False) for _ in range(maps))

    def standing(self, x: Tensor) -> Tensor:
        """As the network has tensors, from channels last; and back."""
        return x.permute(0, 3, 1, 2) if self.channels_first else x

    def lying(self, x: Tensor) -> Tensor:
        """With channels last, from what the network has."""
        return x.permute(0, 2, 3, 1) if self.channels_first else x

    def mixed(self, x: Tensor, first: int) -> list[Tensor]:
        """The three parts of x, each mapped."""
        one, *others = decompose(x)
        linear = self.linears_tensor[first]
        if self.channels_first:
            mapped = [linear(one)]
        else:  # numbers, and not tensors
            mapped = [linear(one[:, 0, 0])[:, None, None] * torch.eye(3, dtype=x.dtype)[None, :, :, None]]
        return mapped + [self.linears_tensor[first + 1 + i](part) for i, part in enumerate(others)]


class TensorEmbedding(TensorBlock):
    """Tensors from the directions of the other atoms."""

    def __init__(self, channels: int, channels_first: bool) -> None:
        super().__init__(channels, 3, channels_first)
        self.emb = nn.Embedding(20, channels)
        self.distance_proj = nn.Linear(1, 3 * channels)

    def forward(self, z: Tensor, edges: Tensor, length: Tensor) -> Tensor:
        weights = self.distance_proj(torch.exp(-length)) * (length > 0)
        weights = weights * (self.emb(z)[:, None] + self.emb(z)[None]).repeat(1, 1, 3)
        scalars, vectors, tensors = weights.chunk(3, dim=-1)
        v = (vectors[:, :, None] * edges[..., None]).sum(dim=1)
        zero = torch.zeros_like(v[:, 0])
        rows = [[zero, -v[:, 2], v[:, 1]], [v[:, 2], zero, -v[:, 0]], [-v[:, 1], v[:, 0], zero]]
        antisymmetric = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
        outer = (tensors[:, :, None, None] * (edges[..., None] * edges[:, :, None])[..., None]).sum(dim=1)
        one = scalars.sum(dim=1)[:, None, None] * torch.eye(3, dtype=edges.dtype)[None, :, :, None]
        parts = self.mixed(one + antisymmetric + outer, 0)
        return self.standing(parts[0] + parts[1] + parts[2])


class Interaction(TensorBlock):
    """Products with the tensors of the other atoms."""

    def __init__(self, channels: int, group: str, channels_first: bool) -> None:
        super().__init__(channels, 6, channels_first)
        self.group = group
        self.linears_scalar = nn.Linear(1, 3 * channels)

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        x = self.lying(x)
        x = x / (x.square().sum(dim=(1, 2), keepdim=True) + 1)
        parts = self.mixed(x, 0)
        weights = (self.linears_scalar(torch.exp(-length)) * (length > 0)).chunk(3, dim=-1)
        sent = [decompose(part)[i] for i, part in enumerate(parts)]
        message = sum(
            (w[:, :, None, None] * part[None]).sum(dim=1) for w, part in zip(weights, sent, strict=True)
        )
        y = parts[0] + parts[1] + parts[2]
        y = product(y, message) + product(message, y) if self.group == "O(3)" else 2 * product(y, message)
        parts = self.mixed(y / (y.square().sum(dim=(1, 2), keepdim=True) + 1), 3)
        step = parts[0] + parts[1] + parts[2]
        return self.standing(x + step + product(step, step))


class TensorNet(nn.Module):
    """From atomic numbers and positions (atoms, 3) to an energy."""

    def __init__(self, channels: int, layers: int, group: str = "O(3)", channels_first: bool = False) -> None:
        super().__init__()
        self.equivariance_invariance_group = group
        self.tensor_embedding = TensorEmbedding(channels, channels_first)
        self.layers = nn.ModuleList(Interaction(channels, group, channels_first) for _ in range(layers))
        self.linear = nn.Linear(3 * channels, channels)

    def forward(self, z: Tensor, pos: Tensor) -> Tensor:
        edges = pos[:, None] - pos[None]
        length = (edges.square().sum(dim=-1, keepdim=True) + 1e-12).sqrt() - 1e-6
        x = self.tensor_embedding(z, edges, length)
        for layer in self.layers:
            x = layer(x, length)
        parts = decompose(self.tensor_embedding.lying(x))
        return self.linear(torch.cat([part.square().sum(dim=(1, 2)) for part in parts], dim=-1)).sum()
