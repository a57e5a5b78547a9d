"""Wrappers of tensor products in the forms in which published networks write them, as small as they can be."""

from __future__ import annotations

import copy
import functools

import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from torch import Tensor, nn

ATTRIBUTES = o3.Irreps("1x0e+1x1o")


class Scaled(nn.Module):
    """A product, divided by a constant of every slot, and a bias: SEGNN's and Equiformer's plain layer."""

    def __init__(self, irreps_in: str, irreps_out: str, irreps_in2: o3.Irreps = ATTRIBUTES) -> None:
        super().__init__()
        self.irreps_in1, self.irreps_in2 = o3.Irreps(irreps_in), o3.Irreps(irreps_in2)
        self.irreps_out = o3.Irreps(irreps_out)
        self.tp = o3.FullyConnectedTensorProduct(self.irreps_in1, self.irreps_in2, self.irreps_out)
        self.register_buffer("correction", torch.linspace(0.5, 2.0, len(self.irreps_out)), persistent=False)
        self.biases = nn.Parameter(torch.randn(self.irreps_out[0].mul))

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        factors = torch.cat(
            [c.expand(mul_ir.dim) for c, mul_ir in zip(self.correction, self.irreps_out, strict=True)]
        )
        out = self.tp(x, y) / factors
        scalars = self.irreps_out[0].dim
        return torch.cat([out[:, :scalars] + self.biases, out[:, scalars:]], dim=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.product(x, y)


class Gated(Scaled):
    """The same with a gate behind it: its irreps_out are the product's, its output's are others."""

    def __init__(self, irreps_in: str, scalars: int, vectors: int) -> None:
        gate = e3nn_nn.Gate(
            f"{scalars}x0e", [torch.nn.functional.silu], f"{vectors}x0e", [torch.sigmoid], f"{vectors}x1o"
        )
        super().__init__(irreps_in, str(gate.irreps_in.simplify()))
        self.gate = gate

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.gate(self.product(x, y))


class Normed(Scaled):
    """The same with a norm behind it, which keeps the irreps."""

    def __init__(self, irreps_in: str, irreps_out: str) -> None:
        super().__init__(irreps_in, irreps_out)
        self.norm = e3nn_nn.BatchNorm(self.irreps_out)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.norm(self.product(x, y))


class Alone(Scaled):
    """A linear map written as a product with ones, which it makes itself."""

    def __init__(self, irreps_in: str, irreps_out: str) -> None:
        super().__init__(irreps_in, irreps_out, o3.Irreps("1x0e"))

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, torch.ones_like(x[:, :1]))


class OfDicts(nn.Module):
    """Takes and gives a dictionary, as SevenNet's layers do."""

    def __init__(self, irreps_in: str, irreps_out: str) -> None:
        super().__init__()
        self.irreps_in1, self.irreps_in2 = o3.Irreps(irreps_in), ATTRIBUTES
        self.irreps_out = o3.Irreps(irreps_out)
        self.fc_tensor_product = o3.FullyConnectedTensorProduct(
            self.irreps_in1, self.irreps_in2, self.irreps_out
        )

    def forward(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**data, "x": self.fc_tensor_product(data["x"], data["y"])}


class Node(nn.Module):
    """A gated, a plain, a normed, a constant and a dictionary layer, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.gated = Gated("3x0e+2x1o", 4, 3)
        self.plain = Scaled("4x0e+3x1o", "2x0e+2x1o")
        self.normed = Normed("2x0e+2x1o", "2x0e+2x1o")
        self.alone = Alone("2x0e+2x1o", "1x0e+1x1o")
        self.dicts = OfDicts("1x0e+1x1o", "1x0e+1x1o")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.alone(self.normed(self.plain(self.gated(x, y), y), y))
        return self.dicts({"x": x, "y": y})["x"]


@functools.cache
def _node() -> Node:
    return Node()


def node() -> Node:
    """A copy of one network, for e3nn takes long to build its products."""
    return copy.deepcopy(_node())


IN_IRREPS, OUT_IRREPS = "3x0e+2x1o", "1x0e+1x1o"


def sample(rows: int = 6) -> tuple[Tensor, Tensor]:
    """Features, and attributes whose scalar is 1."""
    y = torch.randn(rows, 4)
    return torch.randn(rows, 9), torch.cat([torch.ones(rows, 1), y[:, 1:]], dim=1)
