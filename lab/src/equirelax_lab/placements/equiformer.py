"""Equiformer (Liao, Smidt, arXiv 2206.11990): CR's residual on the feed-forward network of every block (CR section 5.3).

The residual is a two-layer GELU perceptron of [features, attributes, positions relative to their molecule's mean], whose output
is small at the start. The positions are captured at the network's own forward(numbers, positions, batch). Since they are
relative to the mean, translations stay exact.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from dataclasses import dataclass

from torch import nn

from equirelax.errors import PlacementError
from equirelax.relaxation.across import CapturedSite
from equirelax.relaxation.entries import own_modules
from equirelax.relaxation.graphs import Graphs, Positions
from equirelax.relaxation.kinds import MLP, ResidualKind
from equirelax.relaxation.placements.placement import (
    Placed,
    Placement,
    Survey,
    register_placement,
)
from equirelax.relaxation.sites import Argument, Arguments
from equirelax.relaxation.spec import spec
from equirelax.symmetry import O, Representation, from_irreps, vector


@spec("equiformer")
@dataclass(frozen=True)
class EquiformerBlocks(Placement):
    """A residual on every feed-forward network, called as `ffn(features, attributes)`.

    Args:
        residual: the kind of residual; the hidden width None is that of the features.
        pattern: pattern of the networks' paths, relative to the Equiformer.
    """

    residual: ResidualKind = dataclasses.field(default_factory=lambda: MLP(layers=2, scale=0.01))
    pattern: str = "blocks.*.ffn"

    def survey(self, model: nn.Module) -> Survey:
        """Every module at `pattern` of the one module that has `hidden_irreps`, `attribute_irreps` and `blocks`."""
        modules = dict(own_modules(model))
        roots = [path for path, module in modules.items() if _is_equiformer(module)]
        if len(roots) != 1:
            raise PlacementError(
                f"{type(model).__name__} holds {len(roots)} modules with `hidden_irreps`, `attribute_irreps` and `blocks`; "
                "expected one Equiformer. Relax that one by itself, or take another placement"
            )
        source = roots[0]
        root, prefix = modules[source], f"{source}." if source else ""
        wanted = prefix + self.pattern
        paths = [p for p in modules if fnmatch.fnmatch(p, wanted) and p.count(".") == wanted.count(".")]
        if not paths:
            raise PlacementError(
                f"{source or type(model).__name__} has no module at {self.pattern!r}: give the pattern"
            )
        group = O(3)
        hidden = _representation(root, "hidden_irreps", group)
        site = CapturedSite(
            "",
            hidden + _representation(root, "attribute_irreps", group) + vector(group),
            hidden,
            reader=Arguments(((0, "features"), (1, "attributes"))),
            relaxes="O(3)",
            source=source,
            captured=Positions(Argument(1, "positions"), Graphs(batch=Argument(2, "batch"))),
        )
        return Survey(tuple(Placed(dataclasses.replace(site, path=p), self.residual) for p in paths), {})


def _is_equiformer(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in ("hidden_irreps", "attribute_irreps", "blocks"))


def _representation(module: nn.Module, name: str, group: O) -> Representation:
    return from_irreps(str(getattr(module, name)), group)


register_placement("equiformer", EquiformerBlocks)
