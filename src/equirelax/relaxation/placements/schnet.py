"""SchNet (Schuett et al., arXiv 1706.08566) as in PyTorch Geometric: ACE's residual stream on its interaction blocks.

    s_0 = Linear(3, C)(positions)    s_i = Linear_i(BatchNorm_i(s_{i-1}))
    h_i = h_{i-1} + interaction_i(h_{i-1}) + gamma_i s_i

Positions are captured at the model's own `forward(z, pos, batch)`. As they are, which is what ACE does, they relax
translations too; relative to the mean of their molecule they leave translations exact.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from equirelax.errors import PlacementError
from equirelax.relaxation.entries import own_modules
from equirelax.relaxation.kinds import StreamStep
from equirelax.relaxation.placements.placement import (
    Placed,
    Placement,
    Survey,
    matching,
    register_placement,
    with_starts,
)
from equirelax.relaxation.sites import Reader, argument
from equirelax.relaxation.spec import spec
from equirelax.relaxation.streams import StreamSite
from equirelax.symmetry import E, O, positions, trivial, vector


def group_means(x: Tensor, group: Tensor | None) -> Tensor:
    """The mean, for every row of x (rows, dim), over the rows with the same number in `group` (rows,) long; None is one
    group. Shape (rows, dim), or (1, dim) for one group.
    """
    if group is None:
        return x.mean(dim=0, keepdim=True)
    # as many slots as rows: numbers are below that, and nothing waits for the device to find the largest
    total = x.new_zeros(x.shape).index_add(0, group, x)
    count = x.new_zeros(x.shape[0], 1).index_add(0, group, x.new_ones(x.shape[0], 1))
    return (total / count.clamp(min=1)).index_select(0, group)


def optional(args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str) -> Any:
    """The call's argument at `index` or named `name`; None where it is left out."""
    return args[index] if index < len(args) else kwargs.get(name)


@dataclass(frozen=True)
class ModelPositions(Reader):
    """Positions (rows, 3) of a model's call, relative to the mean over their graph if asked.

    Args:
        centred: Whether to subtract the mean.
        position, graph: (index, keyword) of the positions and of the rows' graph numbers, which may be left out.
    """

    centred: bool
    position: tuple[int, str]
    graph: tuple[int, str]

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        x = argument(args, kwargs, *self.position)
        return x - group_means(x, optional(args, kwargs, *self.graph)) if self.centred else x


@spec("schnet")
@dataclass(frozen=True)
class SchNetStream(Placement):
    """One stream over the interaction blocks, read from positions, added to the node features: one gamma per block.

    Args:
        residual: The kind of its steps.
        centred: read positions relative to their molecule's mean (translations stay exact), or as they are (ACE).
        root: path of the SchNet within the model, with a trailing dot, where it is not the model itself.
    """

    residual: StreamStep = dataclasses.field(default_factory=StreamStep)
    centred: bool = False
    root: str = ""

    def survey(self, model: nn.Module) -> Survey:
        """Every module at `interactions.*`; the width is the SchNet's `hidden_channels`."""
        source = self.root.rstrip(".")
        modules = dict(own_modules(model))
        width = getattr(modules.get(source), "hidden_channels", None)
        if not isinstance(width, int):
            raise PlacementError(
                f"{source or type(model).__name__} is no SchNet: expected an integer attribute `hidden_channels`. "
                f'Give its path, as in SchNetStream(root="encoder."), or another placement'
            )
        found = matching([f"{self.root}interactions.*"], modules, "SchNetStream")
        blocks = [path for path in modules if path in found and path.count(".") == self.root.count(".") + 1]
        group = O(3) if self.centred else E(3)
        site = StreamSite(
            "",
            vector(group) if self.centred else positions(group),
            trivial(group, width),
            reader=ModelPositions(self.centred, (1, "pos"), (2, "batch")),
            relaxes="O(3)" if self.centred else "E(3), translations too",
            stream="positions",
            source=source,
        )
        return Survey(stream_sites(site, blocks, self.residual), {})


def stream_sites(site: StreamSite, blocks: list[str], step: StreamStep) -> tuple[Placed, ...]:
    """The site repeated for every block, the first one with the stream's start.

    Raises:
        PlacementError: where the kind of residual is not one for streams.
    """
    if not isinstance(step, StreamStep):
        raise PlacementError(f"a residual stream is made of StreamStep, not of {type(step).__name__}")
    return with_starts(Placed(dataclasses.replace(site, path=path), step) for path in blocks)


register_placement("schnet", SchNetStream)
register_placement("schnet-centred", lambda: SchNetStream(centred=True))
