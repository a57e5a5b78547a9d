"""MACE (Batatia et al., arXiv 2206.07697) in its own training function, `mace.tools.train`.

That function takes a model, a loss module and an optimizer, and has no place for a penalty. The argument `training` of each
call of the model says whether it trains or evaluates, which is all that is needed here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from equirelax.methods import Method


@contextlib.contextmanager
def training(method: Method, *losses: nn.Module) -> Iterator[None]:
    """Let `mace.tools.train` train a relaxed MACE inside a `with` block.

        model = mace.modules.ScaleShiftMACE(...)
        method = er.ACE(er.relax(model), dual_lr=1e-2)               # before there is an optimizer
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        with training(method.attach(optimizer), loss_fn):
            mace.tools.train(model=model, loss_fn=loss_fn, optimizer=optimizer, ...)
        er.project(model)

    The method's penalty is added to the loss of training batches. Evaluations, by which MACE chooses the checkpoint that it
    keeps, use the network as the method deploys it: without its residuals, or for `ResilientACE` with them.

    Args:
        method: A method that is attached to the optimizer and drives the residuals of the MACE that is trained, which may be
            wrapped for distributed training.
        losses: The loss module, and that of stage two (`swa.loss_fn`) if there is one. If a loss is missing here, its first
            step has no penalty and raises a `MethodError`.

    Raises:
        MethodError: the method needs the loss on transformed samples (REMUL), which this function cannot compute.
    """
    phase = _Phase(method)
    model = method.relaxation.model
    handles = [
        model.register_forward_pre_hook(phase.enter, with_kwargs=True),
        model.register_forward_hook(phase.leave, with_kwargs=True, always_call=True),
        *(loss.register_forward_hook(phase.add) for loss in losses),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        phase.evaluation.close()  # PyTorch calls no hook after a KeyboardInterrupt


class _Phase:
    """Whether the last call of the model was for training, and the contexts that are open during an evaluation."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.trains = False
        self.evaluation = contextlib.ExitStack()

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Prepare a call of the model."""
        self.trains = bool(kwargs.get("training", False))
        if self.trains:
            return
        if not self.method.deploys_relaxed:
            self.evaluation.enter_context(self.method.relaxation.strict())
        for residual in self.method.relaxation.residuals.values():
            residual.eval()  # MACE evaluates in training mode, in which residuals keep their inputs for penalties
            self.evaluation.callback(residual.train)

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Clean up after a call of the model, even if it failed."""
        self.evaluation.close()

    def add(self, module: nn.Module, args: tuple[Any, ...], value: Tensor) -> Tensor:
        """Add the penalty after a call of the loss."""
        return self.method.objective(value) if self.trains else value
