"""A placement for unrecognised blocks, which are relaxed as wholes: declared inputs and outputs of their residuals."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from equirelax.errors import PlacementError
from equirelax.relaxation.blocks import Adds, Reads, block_sites
from equirelax.relaxation.entries import own_modules
from equirelax.relaxation.kinds import MLP, ResidualKind
from equirelax.relaxation.placements.declarations import declared_paths
from equirelax.relaxation.placements.placement import Placed, Placement, Survey
from equirelax.relaxation.sites import Named
from equirelax.relaxation.spec import spec


@spec("blocks")
@dataclass(frozen=True)
class Blocks(Placement):
    """One residual for every tensor that a block adds to. Each residual reads all declared tensors.

    Args:
        target: A path pattern ("layers.*.1"), the name of a class, or its full name with the module.
        reads: The tensors of the call that the residuals read: one `Reads`, or several.
        adds: The tensors of the output to which residuals are added: one `Adds`, or several.
        batch: The argument with the number (nodes,) of every node's graph, for flat batches: its name, or (position, keyword).
            By default it is an argument called `batch`, if there is one.
        edges: The argument with the edges (2, edges), instead of `batch`: coordinates are read relative to the mean of a node
            and of the nodes whose edges reach it. By default it is an argument called `edge_index`, if there is one.
        mask: The argument (..., nodes) that says which nodes exist, for padded batches.
        one_graph: Whether all rows of a flat call are nodes of one graph. Without it, and with neither `batch` nor `edges`, a
            flat call with centred coordinates raises a PlacementError, because graphs must not influence one another.
        residual: The kind of the residuals.

    Raises:
        PlacementError: `reads` has no `Reads` or `adds` no `Adds`, or `one_graph` is given together with `batch` or `edges`.

    Examples:
        >>> Blocks(
        ...     "EGNN",
        ...     reads=(Reads("feats", "16x0e"), Reads("coors", "1x1o", centred=True)),
        ...     adds=(Adds(0, "16x0e"), Adds(1, "1x1o")),
        ... ).target
        'EGNN'
    """

    target: str
    reads: tuple[Reads, ...]
    adds: tuple[Adds, ...]
    batch: Named | None = None
    edges: Named | None = None
    mask: Named | None = None
    one_graph: bool = False
    residual: ResidualKind = dataclasses.field(default_factory=lambda: MLP(layers=2, init="normal", std=1e-3))

    def __post_init__(self) -> None:
        for name, kind in (("reads", Reads), ("adds", Adds)):
            given = getattr(self, name)
            several = tuple(given) if isinstance(given, (tuple, list)) else (given,)
            if not several or not all(isinstance(each, kind) for each in several):
                raise PlacementError(
                    f"Blocks({self.target!r}): {name} is {given!r}; expected {kind.__name__}(...)"
                )
            object.__setattr__(self, name, several)
        if self.one_graph and (self.batch is not None or self.edges is not None):
            raise PlacementError(
                f"Blocks({self.target!r}): one_graph=True says that a call has one graph; batch and edges say that it has several"
            )

    def survey(self, model: nn.Module) -> Survey:
        """Choose every module that `target` names.

        Raises:
            PlacementError: It names no module, or one inside another.
        """
        modules = own_modules(model)
        paths = outermost_paths(modules, self.target, "Blocks")
        placed = [
            Placed(site, self.residual)
            for path, module in modules
            if path in paths
            for site in block_sites(
                path,
                module,
                self.reads,
                self.adds,
                batch=self.batch,
                edges=self.edges,
                mask=self.mask,
                one_graph=self.one_graph,
            )
        ]
        return Survey(tuple(placed), {})


def outermost_paths(modules: Iterable[tuple[str, nn.Module]], target: str, what: str) -> set[str]:
    """Find the paths of the modules that `target` names, and check that none is inside another.

    Raises:
        PlacementError: It names no module, or one inside another.
    """
    found = declared_paths(list(modules), target, what)
    for path in found:
        if any(path != above and (above == "" or path.startswith(f"{above}.")) for above in found):
            raise PlacementError(
                f"{what}: {target!r} names {path} and a module around it; give a narrower pattern, or the name of a class"
            )
    return found
