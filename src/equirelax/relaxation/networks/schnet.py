"""SchNet (Schuett et al., arXiv 1706.08566) as in PyTorch Geometric and in schnetpack: ACE's stream on its interactions.

The output of every interaction is added to the atoms' features, and the stream is added to this output. Positions
are read from the network's own call, relative to the mean of their molecule, so that translations stay exact. ACE (arXiv
2505.13631) reads them as they are, as `Streams(..., centred=False)` does.

PyTorch Geometric's network is called as `network(z, pos, batch)`. schnetpack's is a representation that is called with a mapping.
The model around it computes forces by differentiating the energy with respect to the positions in that mapping, which includes
the stream.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from equirelax.relaxation.kinds import ResidualKind, StreamStep
from equirelax.relaxation.networks.network import Network, register_network
from equirelax.relaxation.position_streams import position_stream
from equirelax.relaxation.sites import Named, Site, join, parameters_of

# Name of the width, and the arguments with the positions and with the number of every atom's molecule.
GEOMETRIC: tuple[str, Named, Named] = ("hidden_channels", "pos", "batch")
SCHNETPACK: tuple[str, Named, Named] = (
    "n_atom_basis",
    (0, "inputs", "_positions"),
    (0, "inputs", "_idx_m"),
)


@register_network
class SchNet(Network):
    """Both implementations."""

    name = "SchNet"
    classes = ("SchNet",)
    kind: ClassVar[ResidualKind | None] = StreamStep()

    def matches(self, module: nn.Module) -> bool:
        """Whether it has `interactions`, a width, and the arguments of one of the implementations."""
        interactions = getattr(module, "interactions", None)
        return isinstance(interactions, nn.ModuleList) and len(interactions) > 0 and _code(module) is not None

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """One site on every interaction. An interaction that is used repeatedly has one residual, which advances every time."""
        network: Any = module
        width, positions, batch = _code(module) or GEOMETRIC
        first = {id(one): str(i) for i, one in reversed(list(enumerate(network.interactions)))}
        return position_stream(
            [join(path, f"interactions.{i}") for i in sorted(first.values(), key=int)],
            getattr(network, width),
            path,
            network,
            argument=positions,
            batch=batch,
        )


def _code(module: nn.Module) -> tuple[str, Named, Named] | None:
    """The width and the arguments of its implementation; None for an unknown one."""
    names = {parameter.name for parameter in parameters_of(module)}
    for code, needed in ((GEOMETRIC, {"pos", "batch"}), (SCHNETPACK, {"inputs"})):
        if needed <= names and isinstance(getattr(module, code[0], None), int):
            return code
    return None
