"""Equiformer (Liao and Smidt, arXiv 2206.11990) in the authors' code: its wrapped products, on a minimal network of that form."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from equirelax.symmetry import E, positions
from equirelax.testing import NetworkConformance

pytest.importorskip("e3nn")
import few_atoms
from scripted import scripted


class TestPublicEquiformer(NetworkConformance):
    name = "Equiformer, the authors' code"
    count = 9
    paths = (
        "atom_embed.atom_type_lin.tp",
        "blocks.0.ga.merge_src.tp",
        "blocks.0.ga.merge_dst.tp",
        "blocks.0.ga.sep.dtp",
        "blocks.0.ga.sep.lin.tp",
        "blocks.0.ga.proj.tp",
        "blocks.0.ffn.fctp_1.tp",
        "blocks.0.ffn.fctp_2",
        "blocks.0.ffn_shortcut",
    )
    cannot: ClassVar = {
        "export": "it makes its edges itself, on whose number torch.export cannot branch",
        "script": "its blocks take **keywords, which TorchScript cannot",
    }
    remarks = "the repository itself was tried at its commit 64cb786, with and without nonlinear messages, with the same result"

    def network(self) -> nn.Module:
        from minimal.equiformer import GraphAttentionTransformer

        return GraphAttentionTransformer()

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        return few_atoms.positions(dtype), torch.zeros(4, dtype=torch.long), few_atoms.types()

    def representations(self) -> tuple[Any, Any]:
        return (positions(E(3)), None, None), None

    def script(self, network: nn.Module, sample: Any) -> nn.Module:
        return scripted(network)
