"""GradNorm (Chen et al., ICML 2018, arXiv 1711.02257): weights of several losses, balanced by gradient norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from equirelax import settings as checking
from equirelax.errors import EquirelaxError, MethodError
from equirelax.methods.dual import DualAscent
from equirelax.ranks import ranks, summed
from equirelax.settings import NOT_NEGATIVE, POSITIVE, within

LEAST = 1e-3  # a weight stays above this share of the sum: from 0 it could never recover


class GradNorm:
    """Weights w_i of losses L_i, chosen so that all tasks train at the same rate.

        G_i  = w_i || grad_W L_i ||                    W: the shared parameters
        r_i  = (L_i / L_i(0)) / mean_j (L_j / L_j(0))  inverse training rate
        L_gn = sum_i | G_i - mean_j(G_j) r_i^a |       its gradient in w_i, the second term held constant
        w    = w - lr * grad L_gn ("sgd"), or Adam's step; then scaled back to its sum

    Losses and gradients are averaged over the ranks of a process group, so that every rank has the same
    weights.

    Args:
        weights: Initial weights, each > 0. Their sum is kept.
        parameters: W, for example the parameters of the last shared layer, which the paper uses and which is cheap.
        last: Whether W is only the last of `parameters` that the losses depend on.
        settings: `Settings`, or None to give them by name.
        fields: Settings by name.

    Raises:
        MethodError: No parameters, or a setting is unknown or out of range.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(checking.Settings):
        """How the weights move.

        Attributes:
            asymmetry: GradNorm's exponent a of the relative training rate. 0 makes the gradients equal; the paper uses 0.12
                to 1.5.
            weights_lr: Step size of the losses' weights (0.025 in the paper).
            weights_optimizer: The optimiser of the losses' weights.
        """

        error: ClassVar[type[EquirelaxError]] = MethodError
        asymmetry: float = within(NOT_NEGATIVE, 1.5)
        weights_lr: float = within(POSITIVE, 0.025)
        weights_optimizer: Literal["adam", "sgd"] = "adam"

    def __init__(
        self,
        weights: Sequence[float],
        parameters: Sequence[nn.Parameter],
        settings: Settings | None = None,
        *,
        last: bool = False,
        **fields: Any,
    ) -> None:
        self.settings = self.Settings.given(settings, fields)
        if not all(weight > 0.0 for weight in weights):
            raise MethodError(f"GradNorm: the weights are {list(weights)}; all must be above 0")
        if not parameters:
            raise MethodError("GradNorm: no parameters to compare gradients on; give the last shared layer's")
        self.parameters = list(parameters)
        self._last = last
        like = self.parameters[0]
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.weights = torch.tensor(list(weights), dtype=dtype, device=like.device)
        self.total = float(sum(weights))
        self.initial: Tensor | None = None
        self._ascent = DualAscent(self.settings.weights_optimizer, self.settings.weights_lr)
        self._losses: Tensor | None = None
        self._gradients: list[Tensor] = []

    def follow(self) -> None:
        """Follow the parameters to another device or dtype."""
        like = self.parameters[0]
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.weights = self.weights.to(device=like.device, dtype=dtype)
        self.initial = None if self.initial is None else self.initial.to(self.weights)

    def observe(self, losses: Sequence[Tensor]) -> None:
        """Record losses and their gradients, before the backward pass. Those of micro-batches add up.

        Raises:
            MethodError: a loss does not depend on the parameters.
        """
        if self._last:
            self._keep_last(losses[0])
        gradients = [self._gradient(loss) for loss in losses]
        values = torch.stack([loss.detach() for loss in losses]).to(self.weights)
        if self._losses is not None:
            values = values + self._losses
            gradients = [a + b for a, b in zip(gradients, self._gradients, strict=True)]
        self._losses, self._gradients = values, gradients

    def forget(self) -> None:
        """Forget the losses and gradients recorded since the last step."""
        self._losses, self._gradients = None, []

    @torch.no_grad()
    def step(self) -> None:
        """Move the weights by the recorded losses and gradients; do nothing without any, or if a loss is NaN or infinite."""
        losses, gradients = self._losses, self._gradients
        self.forget()
        if losses is None:
            return
        seen = summed(torch.cat([losses, *gradients])) / ranks()
        losses = seen[: len(losses)]
        norms = seen[len(losses) :].view(len(losses), -1).norm(dim=1)
        if not bool(torch.isfinite(seen).all()):
            return
        if self.initial is None:
            self.initial = losses.clone()
        self._ascent.step(self.weights, -self.gradient(losses, norms))
        self.weights.clamp_(min=LEAST * self.total)
        self.weights.mul_(self.total / self.weights.sum())

    def gradient(self, losses: Tensor, norms: Tensor) -> Tensor:
        """The gradient of L_gn in the weights (n,), for losses L_i (n,) and || grad_W L_i || (n,)."""
        initial = losses if self.initial is None else self.initial
        # A loss that was 0 at the start has no rate: it counts as untrained.
        progress = torch.where(initial > 0, losses / initial.where(initial > 0, 1.0), 1.0)
        mean = progress.mean()
        rates = progress / mean if bool(mean > 0) else torch.ones_like(progress)
        scaled = self.weights * norms
        return torch.sign(scaled - scaled.mean() * rates**self.settings.asymmetry) * norms

    def state_dict(self) -> dict[str, Any]:
        """The weights, the initial losses (None before the first step) and the optimizer's state."""
        initial = None if self.initial is None else self.initial.clone()
        return {"weights": self.weights.clone(), "initial": initial, "optimizer": self._ascent.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            MethodError: the state does not fit. Nothing is changed then.
        """
        weights, initial = state.get("weights"), state.get("initial")
        for name, value in (("weights", weights), ("initial", initial)):
            shape = tuple(value.shape) if isinstance(value, Tensor) else None
            if shape != tuple(self.weights.shape) and not (name == "initial" and value is None):
                raise MethodError(
                    f"GradNorm: {name!r} of the state has shape {shape}; expected {tuple(self.weights.shape)}"
                )
        self._ascent.check_state(state["optimizer"], len(self.weights))
        self._ascent.load_state_dict(state["optimizer"], self.weights)
        self.weights = state["weights"].to(self.weights, copy=True)
        self.initial = None if initial is None else initial.to(self.weights, copy=True)
        self.forget()

    def _keep_last(self, loss: Tensor) -> None:
        """Choose the last parameter that a loss depends on, since no output may read the last registered one."""
        pairs = zip(self.parameters, self._parts(loss), strict=True)
        self.parameters = [parameter for parameter, part in pairs if part is not None][-1:]
        self._last = False

    def _parts(self, loss: Tensor) -> tuple[Tensor | None, ...]:
        if not loss.requires_grad:
            raise MethodError("GradNorm: a loss has no gradient; give it losses that depend on the model")
        try:
            parts = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            # Such a compiled backward pass reuses the buffers that it has saved, so that only its first call is correct.
            if "donated" not in str(error):
                raise
            raise MethodError(
                "GradNorm: it takes the gradient of every loss before that of their sum, but the compiled backward pass "
                "can run only once. Set torch._functorch.config.donated_buffer = False before torch.compile, or do not "
                "compile"
            ) from error
        if all(part is None for part in parts):
            raise MethodError(
                "GradNorm: a loss does not depend on the parameters that its gradient is taken in; "
                "name others (shared=)"
            )
        return parts

    def _gradient(self, loss: Tensor) -> Tensor:
        """The flattened gradient of one loss in W."""
        parts = self._parts(loss)
        flat = [
            (torch.zeros_like(p) if part is None else part).reshape(-1)
            for p, part in zip(self.parameters, parts, strict=True)
        ]
        return torch.cat(flat).to(self.weights)


GradNorm.__signature__ = checking.signature_of(GradNorm.__init__, GradNorm.Settings)  # type: ignore[attr-defined]
