"""SchNet (Schuett et al., arXiv 1706.08566) as in PyTorch Geometric: ACE's residual stream on its interaction blocks.

ACE reads positions as they are, which also relaxes translations. `relax(network)` by itself, and "schnet-centred", read them
relative to the mean of their molecule.
"""

from __future__ import annotations

from functools import partial

from equirelax.relaxation import Streams
from equirelax.relaxation.placements.placement import register_placement

_on_its_blocks = partial(Streams, "InteractionBlock", "hidden_channels")

register_placement("schnet", partial(_on_its_blocks, centred=False))
register_placement("schnet-centred", _on_its_blocks)
