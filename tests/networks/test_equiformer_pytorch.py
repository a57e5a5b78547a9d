"""Equiformer as in equiformer-pytorch: linear maps on features by degree."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
import undisturbed  # noqa: F401  (before the package is imported: it must not write into the home folder)
from torch import Tensor, nn

from equirelax.symmetry import SE, positions, vector
from equirelax.testing import NetworkConformance

pytest.importorskip("equiformer_pytorch", reason="needs equiformer-pytorch: pip install '.[examples]'")
import few_atoms


class ByDegree(nn.Sequential):
    """Its output without the names of the degrees."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        out = self[0](*inputs)
        return out.type0, out.type1


class TestEquiformerPytorch(NetworkConformance):
    name = "equiformer-pytorch"
    package = "equiformer-pytorch"
    count = 10
    paths = (
        "0.tp_in.to_out",
        "0.layers.blocks.0.0.to_attn_and_v.to_xi",
        "0.layers.blocks.0.0.to_attn_and_v.to_xj",
        "0.layers.blocks.0.0.to_attn_and_v.self_interact",
        "0.layers.blocks.0.0.to_attn_and_v.to_out",
        "0.layers.blocks.0.0.to_values.1",
        "0.layers.blocks.0.0.to_out",
        "0.layers.blocks.0.1.project_in",
        "0.layers.blocks.0.1.project_out",
        "0.ff_out",
    )
    cannot: ClassVar = {
        "export": "it asks torch.allclose of the data, on which torch.export cannot branch",
        "script": "it holds lambdas, which TorchScript cannot",
    }
    remarks = "SE(3); built in float32, then cast"
    reversible: ClassVar[bool] = False

    def network(self) -> nn.Module:
        from equiformer_pytorch import Equiformer

        network = Equiformer(
            num_tokens=3, num_degrees=2, dim=(4, 3), dim_head=(4, 3), heads=1, depth=1, num_neighbors=3, valid_radius=8.0,
            l2_dist_attention=False, num_linear_attn_heads=0, reduce_dim_out=True, reversible=self.reversible,
        )  # fmt: skip
        return ByDegree(network.to(torch.get_default_dtype()))

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return few_atoms.types()[None], few_atoms.positions(dtype)[None]

    def representations(self) -> tuple[Any, Any]:
        return (None, positions(SE(3))), (None, vector(SE(3)))


@pytest.mark.slow
class TestReversible(TestEquiformerPytorch):
    """Its layers run again in the backward pass, where penalties must not count their inputs a second time."""

    name = "equiformer-pytorch, reversible"
    reversible = True
    paths = ()
