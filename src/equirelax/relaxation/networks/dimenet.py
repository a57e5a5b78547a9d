"""DimeNet++ (Gasteiger et al., arXiv 2011.14115) as in PyTorch Geometric: a stream from positions on its output blocks.

Messages are on edges. An output block sums those that reach an atom, and computes atom features by the linear map `lin_up`,
on which perceptrons act. The stream is added to the output of `lin_up`, so that the perceptrons see it. Positions are read from
the call `network(z, pos, batch)`, relative to the mean of their molecule, so that translations stay exact.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from equirelax.relaxation.kinds import ResidualKind, StreamStep
from equirelax.relaxation.networks.network import Network, register_network
from equirelax.relaxation.position_streams import position_stream
from equirelax.relaxation.sites import Site, join, parameters_of


@register_network
class DimeNetPlusPlus(Network):
    """The whole network."""

    name = "DimeNet++"
    classes = ("DimeNetPlusPlus",)
    kind: ClassVar[ResidualKind | None] = StreamStep()

    def matches(self, module: nn.Module) -> bool:
        """Whether its output blocks have linear maps `lin_up` of the same width, and it takes positions."""
        blocks = getattr(module, "output_blocks", None)
        if not isinstance(blocks, nn.ModuleList) or not blocks:
            return False
        ups = [getattr(block, "lin_up", None) for block in blocks]
        widths = {getattr(up, "out_features", None) for up in ups}
        named = {"pos", "batch"} <= {parameter.name for parameter in parameters_of(module)}
        return named and all(isinstance(up, nn.Linear) for up in ups) and len(widths) == 1

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """One site on every output block."""
        network: Any = module
        blocks = network.output_blocks
        return position_stream(
            [join(path, f"output_blocks.{i}.lin_up") for i in range(len(blocks))],
            blocks[0].lin_up.out_features,
            path,
            network,
            argument="pos",
            batch="batch",
        )
