"""e3nn's own modules with the parameters of ours."""

from __future__ import annotations

import functools
from typing import Any

import torch
from e3nn import o3
from equirelax_lab.models import TensorProduct
from equirelax_lab.models.fast.depthwise import DepthwiseProduct
from torch import Tensor, nn


@functools.cache
def e3nn_product(first: str, second: str, out: str, paths: tuple[Any, ...], shared: bool) -> nn.Module:
    """e3nn's product with weights from outside; those of shared weights without path normalisation, as ours are."""
    normalization = "none" if shared else "element"
    product = o3.TensorProduct(
        first, second, out, list(paths), irrep_normalization="component", path_normalization=normalization,
        shared_weights=shared, internal_weights=False,
    )  # fmt: skip
    return product


class E3nnProduct(nn.Module):
    """e3nn's own product with the parameters of ours."""

    def __init__(self, ours: TensorProduct) -> None:
        super().__init__()
        paths = tuple((i.i_in1, i.i_in2, i.i_out, "uvw", True, 1.0) for i in ours.instructions)
        self.product = e3nn_product(
            str(ours.irreps_in1), str(ours.irreps_in2), str(ours.irreps_out), paths, True
        )
        scalars = [torch.full((mul * ir.dim,), ir == o3.Irrep("0e")) for mul, ir in ours.irreps_out]
        self.register_buffer("scalars", torch.cat(scalars).nonzero().flatten())
        self.weight, self.bias = (
            nn.Parameter(ours.weight.detach().clone()),
            nn.Parameter(ours.bias.detach().clone()),
        )

    def forward(self, x: Tensor, attributes: Tensor) -> Tensor:
        out: Tensor = self.product(x, attributes, self.weight)
        return out.index_add(1, self.scalars, self.bias.expand(len(out), -1))


class E3nnDepthwise(nn.Module):
    """e3nn's own "uvu" products, one path after another, all of them sorted by irrep; weights for every edge."""

    def __init__(self, ours: DepthwiseProduct) -> None:
        super().__init__()
        muls = [ours.irreps_in[i].mul for i, _, _ in ours.paths]
        products = [
            e3nn_product(
                str(ours.irreps_in), str(ours.harmonics), f"{mul}x{ir}", ((i, n, 0, "uvu", True),), False
            )
            for mul, (i, n, ir) in zip(muls, ours.paths, strict=True)
        ]
        self.muls, self.products = muls, nn.ModuleList(products)
        self.order = sorted(range(len(muls)), key=lambda p: (ours.paths[p][2], p))

    def forward(self, x: Tensor, harmonics: Tensor, weights: Tensor) -> Tensor:
        parts = weights.split(self.muls)
        outs = [path(x, harmonics, part.t()) for path, part in zip(self.products, parts, strict=True)]
        return torch.cat([outs[p] for p in self.order], dim=1)
