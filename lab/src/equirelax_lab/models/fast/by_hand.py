"""Formulas with hand-written derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equirelax_lab.models.fast.switch import may_map_hand_written, may_use_hand_written, needs_ordinary
from equirelax_lab.models.readable import is_mapped


class ByHand(ABC):
    """A formula, a version of it with fewer operations, and its derivative.

    Attributes:
        unwritten: Indices of the inputs without a hand-written derivative, which is then taken from the formula.
    """

    unwritten: tuple[int, ...] = ()

    @abstractmethod
    def formula(self, *inputs: Tensor) -> Tensor:
        """Compute the output in ordinary operations."""

    @abstractmethod
    def forward(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute the output, and the tensors that `backward` reads."""

    @abstractmethod
    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor], saved: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """Compute the gradients of all inputs from that of the output; None for the unwritten ones."""

    def __call__(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        """Compute the output within a call of `module`, by `forward` if that is allowed and by the formula otherwise."""
        if may_use_hand_written(module, inputs[0]):
            out: Tensor = _Function.apply(self, *inputs)
            return out
        if may_map_hand_written(module, inputs[0]) and self._alike() and any(is_mapped(x) for x in inputs):
            mapped: Tensor = _Mapped.apply(self, *inputs)
            return mapped
        return self.formula(*inputs)

    def _alike(self) -> bool:
        """Whether the tensors that are read in addition to the inputs are the same for all members."""
        return not any(is_mapped(x) for x in self.held)

    @property
    def held(self) -> Sequence[Tensor]:
        """Tensors that are read in addition to the inputs, and differ from call to call."""
        return ()


class _Function(torch.autograd.Function):
    """A `ByHand` for autograd. Derivatives of derivatives, and of unwritten inputs, are those of the formula."""

    @staticmethod
    def forward(ctx: Any, rule: ByHand, *inputs: Tensor) -> Tensor:
        out, saved = rule.forward(*inputs)
        # The unchanged inputs, for the derivative of the derivative.
        ctx.save_for_backward(*inputs, *saved)
        ctx.rule, ctx.count = rule, len(inputs)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Read once: non-reentrant checkpointing allows saved tensors to be unpacked only once.
        tensors = ctx.saved_tensors
        inputs, saved = tensors[: ctx.count], tensors[ctx.count :]
        needed = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() or needs_ordinary(grad) or any(needed[i] for i in ctx.rule.unwritten):
            return None, *gradients(ctx.rule.formula, inputs, needed, grad)
        return None, *ctx.rule.backward(grad, inputs, saved)


class _Mapped(torch.autograd.Function):
    """A `ByHand` for the members that `torch.func.vmap` maps over, one after another."""

    @staticmethod
    def forward(rule: ByHand, *inputs: Tensor) -> Tensor:
        return rule.formula(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save nothing: the operations that `vmap` calls are differentiated by themselves."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], rule: ByHand, *inputs: Tensor) -> tuple[Tensor, int]:
        members = [
            [x] * info.batch_size if dim is None else x.unbind(dim)
            for x, dim in zip(inputs, in_dims[1:], strict=True)
        ]
        return torch.stack([_Function.apply(rule, *of_one) for of_one in zip(*members, strict=True)]), 0


def gradients(
    formula: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Compute the vector-Jacobian product of a formula by autograd, differentiable again where gradients are recorded.

    The formula is evaluated at fresh aliases of the inputs. Where one input was computed from another (features from the
    attributes or the weight that the next product shares), autograd would otherwise walk from the one through its history
    to the other and count that contribution, which the caller adds itself, a second time.

    Args:
        formula: The formula, a function of the inputs.
        inputs: The point at which it is differentiated.
        needed: For each input, whether its gradient is needed.
        grad: Gradient of the formula's output.

    Returns:
        The gradient of each input; None if it is not needed.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [x.view_as(x) if create_graph else x.detach().requires_grad_() for x in inputs]
        wanted = [x for x, need in zip(aliases, needed, strict=True) if need]
        found = iter(
            torch.autograd.grad(formula(*aliases), wanted, grad, create_graph=create_graph, allow_unused=True)
        )
    return tuple(next(found) if need else None for need in needed)
