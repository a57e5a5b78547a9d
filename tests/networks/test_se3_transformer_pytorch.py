"""The SE(3)-Transformer (Fuchs et al., arXiv 2006.10503) as in se3-transformer-pytorch: linear maps on features by degree."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import pytest
import torch
import undisturbed  # noqa: F401  (before the package is imported: it must not write into the home folder)
from torch import Tensor, nn

from equirelax.symmetry import SE, positions, vector
from equirelax.testing import NetworkConformance

pytest.importorskip(
    "se3_transformer_pytorch", reason="needs se3-transformer-pytorch: pip install '.[examples]'"
)
import few_atoms
from se3_transformer_pytorch import basis
from se3_transformer_pytorch.utils import to_order


class ByDegree(nn.Sequential):
    """Its output without the names of the degrees."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        out = self[0](*inputs)
        return out["0"], out["1"]


@functools.cache  # as the package's own
def unrounded(J: int, order_in: int, order_out: int) -> Tensor:
    """The package's constants, from its own equations, without its rounding to float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        equations = [basis.sylvester_submatrix(order_out, order_in, J, *a) for a in basis.RANDOM_ANGLES]
        found = basis.get_matrices_kernel(equations)[0]
    finally:
        torch.set_default_dtype(before)
    return found.view(to_order(order_out) * to_order(order_in), to_order(J))


class TestSE3Transformer(NetworkConformance):
    name = "se3-transformer-pytorch"
    package = "se3-transformer-pytorch"
    count = 8
    paths = (
        "0.net.blocks.0.0.attn.to_q",
        "0.net.blocks.0.0.attn.to_out",
        "0.net.blocks.0.0.attn.to_self_k",
        "0.net.blocks.0.0.attn.to_self_v",
        "0.net.blocks.0.1.feedforward.project_in",
        "0.net.blocks.0.1.feedforward.project_out",
        "0.conv_out.self_interact",
        "0.linear_out",
    )
    cannot: ClassVar = {"script": "it holds lambdas, which TorchScript cannot"}
    remarks = "SE(3); with its constants unrounded: it rounds them to float32, which leaves errors of 1e-9 in float64"

    @pytest.fixture(autouse=True)
    def _constants(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(basis, "basis_transformation_Q_J", unrounded)

    def network(self) -> nn.Module:
        from se3_transformer_pytorch import SE3Transformer

        network = SE3Transformer(
            dim=4, heads=2, depth=1, dim_head=4, num_degrees=2, valid_radius=10, num_tokens=3, output_degrees=2,
            reduce_dim_out=True,
        )  # fmt: skip
        return ByDegree(network)

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        mask = torch.ones(1, 4, dtype=torch.bool)
        return few_atoms.types()[None], few_atoms.positions(dtype)[None], mask

    def representations(self) -> tuple[Any, Any]:
        return (None, positions(SE(3)), None), (None, vector(SE(3)))
