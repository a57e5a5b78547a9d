"""The slow reference for a step of Muon: it finds the matrices of e3nn's layers, and a wrong layout shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equirelax.optim import Muon
from equirelax.relaxation.layers.e3nn import E3nnLinear, E3nnTensorProduct
from equirelax.testing.muon import slow_muon_step

o3 = pytest.importorskip("e3nn.o3")
RATE = 0.01


class Small(nn.Module):
    """Both kinds of e3nn's layers, a plain one, a table, a kernel and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4)
        self.linear = o3.Linear("4x0e+3x1o+2x0e", "5x0e+2x1o+1x1o", biases=True)
        self.product = o3.FullyConnectedTensorProduct("5x0e+3x1o", "2x0e+1x1o", "4x0e+2x1o")
        self.plain = nn.Linear(4, 3)
        self.kernel = nn.Parameter(torch.randn(2, 3, 3))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Any sum that every parameter takes part in."""
        features = torch.cat([self.table(torch.zeros(len(x), dtype=torch.long)), x], dim=1)
        products = self.product(self.linear(features), y)
        plain = torch.einsum("abc,nc->nab", self.kernel, self.plain(products[:, :4])).square().sum()
        return products.square().sum() + self.scale * plain


def stepped() -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """The parameters after a step of Muon, those of the reference, and the number of its matrices."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = Small().double()
    x, y = (torch.randn(6, n, generator=generator, dtype=torch.float64) for n in (11, 5))
    network(x, y).backward()
    optimizer = Muon(network, RATE)
    expected, matrices = slow_muon_step(network, network, RATE)
    optimizer.step()
    return {name: p.detach() for name, p in network.named_parameters()}, expected, matrices


def test_every_parameter_takes_the_step() -> None:
    found, expected, matrices = stepped()
    assert set(found) == set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-11, msg=name)
    # linear: 4x0e and 2x0e -> 5x0e, 3x1o -> 2x1o; product: 0e 0e -> 0e and 0e 1o -> 1o, 1o 0e -> 1o and 1o 1o -> 0e, of
    # two 0e and one 1o; plain and kernel
    assert matrices == 3 + (2 + 1 + 2 + 1) + 1 + 1


@pytest.mark.parametrize(("family", "layer"), [(E3nnLinear, "linear"), (E3nnTensorProduct, "product")])
def test_a_wrong_layout_shows(family: Any, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = family.matrices

    def turned(self: Any, module: nn.Module) -> dict[str, Any]:
        """Every shape the other way round: rows for columns."""
        found = right(self, module)
        return {name: tuple(m._replace(shape=m.shape[::-1]) for m in each) for name, each in found.items()}

    monkeypatch.setattr(family, "matrices", turned)
    found, expected, _ = stepped()
    gaps = {name: float((found[name] - value).abs().max()) for name, value in expected.items()}
    assert gaps[f"{layer}.weight"] > 0.1 * RATE
    assert max(gap for name, gap in gaps.items() if name != f"{layer}.weight") < 1e-10
