"""Residuals that also read what their block does not get, such as raw positions: captured at the model's own forward.

One `Capture`, shared by the residuals that read the same thing, holds it during a forward, and nothing between two
forwards. What is captured keeps its place in the graph: forces of a relaxed energy go through it too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import RelaxationStateError
from equirelax.relaxation.columns import dense
from equirelax.relaxation.kept import in_backward
from equirelax.relaxation.kinds import ResidualMap
from equirelax.relaxation.residual import Residual, Shared
from equirelax.relaxation.site import Site


class Capture(Shared):
    """Hooks of the module whose call is read, and of the relaxed model.

    Attributes:
        members: the residuals that read it; the first one's site says what.
        value: what was read in the forward under way, rows first; None between forwards.
    """

    def __init__(self) -> None:
        self.members: list[CapturingResidual] = []
        self.value: Tensor | None = None

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the module whose call is read."""
        self.value = None
        reader = self.members[0].site.captured
        if reader is not None and any(member.active for member in self.members):
            self.value = dense(reader(args, kwargs))

    def end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Hook of the relaxed model, called also when its forward raises: forget."""
        self.value = None

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles must not carry a forward that is under way.
        return {"members": self.members, "value": None}


class CapturingResidual(Residual):
    """A residual that reads its block's inputs and, after them, what was captured.

    Attributes:
        capture: shared by the residuals that read the same; not a submodule.
    """

    def __init__(self, site: Site, map: ResidualMap, reference: Tensor | None = None) -> None:
        super().__init__(site, map, reference)
        self.capture = Capture()

    @property
    def shared(self) -> Capture:
        """The capture."""
        return self.capture

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """[what the block gets, what was captured], on the last axis.

        Raises:
            RelaxationStateError: the block is called outside a forward of the relaxed model.
        """
        value = self.capture.value
        if value is None:
            how = (
                "checkpoint the whole relaxed model (use_reentrant=False), not single blocks"
                if in_backward()
                else "call the whole model, which neither the block alone nor model.forward(...) does"
            )
            raise RelaxationStateError(
                f"{self.site.key}: {how}: its residual also reads an input of {self.site.source or 'the model'}, captured "
                "by a hook there"
            )
        own = dense(self.site.reader(args, kwargs))
        return torch.cat([own, value.to(own.dtype)], dim=-1)


def capture_inputs(model: nn.Module, residuals: list[Residual]) -> None:
    """Make one `Capture` for the residuals that read the same thing of the same module, and put its hooks on the model."""
    found: dict[tuple[Any, ...], Capture] = {}
    for residual in residuals:
        if isinstance(residual, CapturingResidual):
            site = residual.site
            residual.capture = found.setdefault((site.source, site.captured), residual.capture)
            residual.capture.members.append(residual)
    for (source, _), capture in found.items():
        model.get_submodule(source).register_forward_pre_hook(capture.begin, with_kwargs=True)
        # also when the forward raises, so that nothing of it is left
        model.register_forward_hook(capture.end, with_kwargs=True, always_call=True)
