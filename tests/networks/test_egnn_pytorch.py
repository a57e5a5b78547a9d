"""egnn-pytorch: blocks of padded molecules, networks of them, and blocks of flat graphs."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.symmetry import E, positions, trivial
from equirelax.testing import NetworkConformance

egnn = pytest.importorskip("egnn_pytorch", reason="egnn-pytorch is not installed")
POINTS = positions(E(3))


class TestNetwork(NetworkConformance):
    name = "EGNN_Network (egnn-pytorch)"
    package = "egnn-pytorch"
    count = 4
    paths = ("layers.0.1:h", "layers.0.1:x", "layers.1.1:h", "layers.1.1:x")
    cannot: ClassVar[dict[str, str]] = {"script": "it uses Python that TorchScript does not know"}

    def network(self) -> nn.Module:
        made: nn.Module = egnn.EGNN_Network(num_tokens=4, dim=4, depth=2, m_dim=4, norm_coors=True)
        return made

    def inputs(self, dtype: torch.dtype) -> Any:
        generator = torch.Generator().manual_seed(1)
        numbers = torch.tensor([[0, 1, 2, 3], [3, 1, 0, 0]])
        where = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64) + 2.0
        there = torch.tensor([[True, True, True, True], [True, True, False, False]])
        return {"feats": numbers, "coors": where.to(dtype), "mask": there}

    def representations(self) -> tuple[Any, Any]:
        return {"coors": POINTS}, (None, POINTS)


class TestSparseNetwork(NetworkConformance):
    name = "EGNN_Sparse_Network (egnn-pytorch)"
    package = "egnn-pytorch"
    count = 2
    paths = ("mpnn_layers.0:h", "mpnn_layers.0:x")
    cannot: ClassVar[dict[str, str]] = {
        "script": "it uses Python that TorchScript does not know",
        "export": "its norm reads the number of graphs off the numbers of the nodes",
    }

    def network(self) -> nn.Module:
        pytest.importorskip("torch_geometric", reason="EGNN_Sparse needs torch_geometric")
        made: nn.Module = egnn.EGNN_Sparse_Network(n_layers=1, feats_dim=4, m_dim=4, edge_attr_dim=1)
        return made

    def inputs(self, dtype: torch.dtype) -> Any:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(5, 7, generator=generator, dtype=torch.float64).to(dtype)
        graph = torch.tensor([0, 0, 0, 1, 1])
        pairs = [(i, j) for i in range(5) for j in range(5) if i != j and graph[i] == graph[j]]
        return {
            "x": x,
            "edge_index": torch.tensor(pairs).T,
            "batch": graph,
            "edge_attr": torch.ones(len(pairs), 1, dtype=dtype),
        }

    def representations(self) -> tuple[Any, Any]:
        whole = POINTS + trivial(E(3), 4)
        return {"x": whole}, whole


@pytest.mark.parametrize(
    ("settings", "keys"),
    [({"update_coors": False}, [":h"]), ({"update_feats": False}, None), ({}, [":h", ":x"])],
)
def test_what_a_block_does_not_update_is_not_relaxed(
    settings: dict[str, Any], keys: list[str] | None
) -> None:
    block = egnn.EGNN(dim=4, m_dim=4, **settings)
    if keys is None:  # nothing in it tells how many features there are
        with pytest.raises(er.EquirelaxError, match="nothing to relax"):
            er.relax(block)
    else:
        assert list(er.relax(block).residuals) == keys


def test_sparse_graphs_move_on_their_own_with_and_without_numbers() -> None:
    """Translating one graph of a batch moves its own coordinates and nothing else."""
    pytest.importorskip("torch_geometric", reason="EGNN_Sparse needs torch_geometric")
    torch.manual_seed(0)
    network = egnn.EGNN_Sparse(feats_dim=4, m_dim=4).double()
    relaxation = er.relax(network)
    with torch.no_grad():
        for parameter in relaxation.residual_parameters().values():
            parameter.normal_(0, 0.3)
    relaxation.set_gamma(1.0)
    sample = TestSparseNetwork().inputs(torch.float64)
    shift: Tensor = torch.zeros_like(sample["x"])
    shift[sample["batch"] == 1, :3] = 3.0
    for batch in (sample["batch"], None):
        found = [network(sample["x"] + by, sample["edge_index"], batch=batch) for by in (0.0, shift)]
        torch.testing.assert_close(found[1], found[0] + shift, rtol=1e-12, atol=1e-12)
