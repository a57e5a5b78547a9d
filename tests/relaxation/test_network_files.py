"""Network files of the user's: several residuals on a module, some inside others, and kinds of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.relaxation import MLP, Adds, Dense, Layers, Linear, LowRank, Network, Reads, Site, block_sites
from equirelax.relaxation.networks import register_network
from equirelax.symmetry import O, vector

V = vector(O(3))


class PairBlock(nn.Module):
    """Invariants (nodes, 2) and vectors (nodes, 3); inside it a map of the vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3, bias=False)

    def forward(self, h: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return h, self.inner(v)


class PairNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = PairBlock()
        self.last = nn.Linear(3, 3, bias=False)

    def forward(self, h: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        h, v = self.block(h, v)
        return h, self.last(v)


@register_network
class PairFile(Network):
    name = "pair network"
    classes = ("PairNetwork",)
    kind = MLP(layers=2)

    def matches(self, module: nn.Module) -> bool:
        return hasattr(module, "block")

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        prefix = f"{path}." if path else ""
        block = module.get_submodule("block")
        reads, adds = (Reads("h", "2x0e"), Reads("v", "1x1o")), (Adds(0, "2x0e"), Adds(1, "1x1o"))
        around = block_sites(f"{prefix}block", block, reads, adds)
        inside = block_sites(
            f"{prefix}block.inner",
            block.get_submodule("inner"),
            (Reads("input", "1x1o"),),
            (Adds(None, "1x1o"),),
        )
        return (*around, *inside)


def kinds(relaxation: er.relaxation.Relaxation) -> dict[str, str]:
    return {key: type(residual.map).__name__ for key, residual in relaxation}


def test_several_residuals_on_a_module_and_inside_it() -> None:
    relaxation = er.relax(PairNetwork())
    assert kinds(relaxation) == {
        "block:0": "MLPMap",
        "block:1": "MLPMap",
        "block.inner": "MLPMap",
    }
    names = [
        name for name, _ in relaxation.model.named_modules() if name.endswith(("residual_0", "residual_1"))
    ]
    assert names == ["block.equirelax_residual_0", "block.equirelax_residual_1"]
    reasons = {row.reason for row in relaxation.summary().with_status("relaxed")}
    assert reasons == {"network file pair network"}
    h, v = torch.randn(4, 2), torch.randn(4, 3)
    strict = PairNetwork()
    strict.load_state_dict(relaxation.strict_state_dict())
    relaxation.set_gamma(1.0)
    torch.manual_seed(0)
    for parameter in relaxation.residual_parameters().values():
        nn.init.normal_(parameter)
    expected = [
        h + relaxation["block:0"].delta(torch.cat([h, v], 1)),
        strict.last(
            strict.block.inner(v)
            + relaxation["block.inner"].delta(v)
            + relaxation["block:1"].delta(torch.cat([h, v], 1))
        ),
    ]
    for found, wanted in zip(relaxation.model(h, v), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_users_kind_counts_before_the_files() -> None:
    dense = er.relax(PairNetwork(), residual=Dense())
    assert set(kinds(dense).values()) == {"DenseMap"}
    mixed = er.relax(PairNetwork(), Layers(overrides=(("block", LowRank(1)),)))
    assert kinds(mixed) == {"block:0": "LowRankMap", "block:1": "LowRankMap", "block.inner": "MLPMap"}


def test_modules_outside_of_a_known_network_are_dense() -> None:
    model = nn.ModuleDict({"known": PairNetwork(), "other": nn.Linear(3, 3, bias=False)})
    relaxation = er.relax(model, Layers(declare=Linear("other", V)))
    assert kinds(relaxation) == {
        "known.block:0": "MLPMap",
        "known.block:1": "MLPMap",
        "known.block.inner": "MLPMap",
        "other": "DenseMap",
    }


def test_a_declaration_takes_the_place_of_all_residuals_of_its_module() -> None:
    """What lies inside a declared module is not relaxed again; where a part is declared, the module around it is left alone."""
    for path in ("block", "block.inner"):
        declared = Layers(declare=Linear(path, V))
        assert list(er.relax(PairNetwork(), declared).residuals) == [path]
    assert list(er.relax(PairNetwork(), exclude="block").residuals) == ["block.inner"]
