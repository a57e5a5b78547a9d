"""GotenNet in the form of the authors' code: attention of one head on a complete graph, features of degrees 1 and 2."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor, nn


def rejected(x: Tensor, directions: Tensor) -> Tensor:
    """Without the part along the directions; both (atoms, atoms, components, channels)."""
    return x - (x * directions).sum(dim=2, keepdim=True) * directions


class GATA(nn.Module):
    """Messages, and an update of the features of edges unless it is the last one."""

    def __init__(self, channels: int, lmax: int, sep_htr: bool, last_layer: bool) -> None:
        super().__init__()
        self.lmax, self.sep_htr, self.last_layer = lmax, sep_htr, last_layer
        self.gamma_s = nn.Linear(channels, 3 * channels)
        self.W_rs = nn.Linear(channels, 3 * channels)
        if not last_layer:
            self.gamma_t = nn.Linear(channels, channels)
            self.W_vq = nn.Linear(channels, channels, bias=False)
            if sep_htr:
                self.W_vk = nn.ModuleList(nn.Linear(channels, channels, bias=False) for _ in range(lmax))
            else:
                self.W_vk = nn.Linear(channels, channels, bias=False)

    def forward(self, h: Tensor, x: Tensor, t: Tensor, harmonics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        apart = ~torch.eye(len(h), dtype=torch.bool)[..., None]
        scalars, along, through = (self.gamma_s(h)[None] * self.W_rs(t) * apart).chunk(3, dim=-1)
        h = h + scalars.sum(dim=1)
        x = x + (along[:, :, None] * harmonics + through[:, :, None] * x[None]).sum(dim=1)
        if self.last_layer:
            return h, x, t
        sizes = [2 * degree + 1 for degree in range(1, self.lmax + 1)]
        queries = self.W_vq(x)
        if self.sep_htr:
            parts = x.split(sizes, dim=1)
            keys = torch.cat([self.W_vk[i](part) for i, part in enumerate(parts)], dim=1)
        else:
            keys = self.W_vk(x)
        products = [
            (rejected(q[:, None], r) * rejected(k[None], -r)).sum(dim=2)
            for q, k, r in zip(
                queries.split(sizes, dim=1),
                keys.split(sizes, dim=1),
                harmonics.split(sizes, dim=2),
                strict=True,
            )
        ]
        return h, x, t + self.gamma_t(t) * torch.stack(products).sum(dim=0)


class EQFF(nn.Module):
    """Mixes the channels of every atom."""

    def __init__(self, channels: int, lmax: int) -> None:
        super().__init__()
        self.lmax = lmax
        self.gamma_m = nn.Sequential(
            nn.Linear(2 * channels, channels), nn.SiLU(), nn.Linear(channels, 2 * channels)
        )
        self.W_vu = nn.Linear(channels, channels, bias=False)

    def forward(self, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        mixed = self.W_vu(x)
        norms = (mixed.square().sum(dim=1) + 1e-8).sqrt()
        scalars, gates = self.gamma_m(torch.cat([h, norms], dim=-1)).chunk(2, dim=-1)
        return h + scalars, x + gates[:, None] * mixed


class GotenNet(nn.Module):
    """From atomic numbers and positions (atoms, 3) to scalars and features (atoms, components, channels)."""

    def __init__(self, channels: int, layers: int, lmax: int = 2, sep_htr: bool = True) -> None:
        super().__init__()
        self.lmax = lmax
        self.A_na = nn.Embedding(20, channels)
        self.edge_init = nn.Linear(1, channels)
        self.gata_list = nn.ModuleList(
            GATA(channels, lmax, sep_htr, last_layer=i == layers - 1) for i in range(layers)
        )
        self.eqff_list = nn.ModuleList(EQFF(channels, lmax) for _ in range(layers))

    def forward(self, z: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        edges = pos[:, None] - pos[None]
        length = (edges.square().sum(dim=-1, keepdim=True) + 1e-12).sqrt()
        degrees = list(range(1, self.lmax + 1))
        harmonics = o3.spherical_harmonics(degrees, edges / length, False, normalization="norm")[..., None]
        h = self.A_na(z)
        x = h.new_zeros(len(h), harmonics.shape[2], h.shape[1])
        t = self.edge_init(torch.exp(-length)) * (h[:, None] + h[None])
        for gata, eqff in zip(self.gata_list, self.eqff_list, strict=True):
            h, x, t = gata(h, x, t, harmonics)
            h, x = eqff(h, x)
        return h, x
