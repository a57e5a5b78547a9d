"""REMUL (Elhag et al., arXiv 2410.17878): equivariance as a second task, learnt from transformed samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from equirelax.errors import MethodError
from equirelax.methods.base import Method
from equirelax.methods.gradnorm import GradNorm
from equirelax.methods.registry import register
from equirelax.methods.unrelaxed import handle_of
from equirelax.relaxation import Relaxation
from equirelax.settings import NOT_NEGATIVE, within


@register(
    "remul", "REMUL: the loss on samples and on moved samples, weighted; any network; deployed as trained"
)
class REMUL(Method):
    """alpha L(f(x), y) + beta L(f(g x), g y), with a newly drawn g for every sample.

    The loop passes both losses to `objective`:

        loss = method.objective(criterion(model(x), y), lambda: criterion(model(g x), g y))

    It is for networks that can break the symmetry. These are relaxed ones, whose strengths stay at `gamma` (so they are
    deployed as trained, with residuals), and networks without any symmetry, which are given instead of a
    relaxation.

    With "gradnorm", alpha and beta keep their sum and are moved so that both losses train at the same rate; see
    `GradNorm`, whose gradients are taken in `shared`.

    Args:
        relaxation: A relaxed model's handle, or a model that is not relaxed.
        settings: `Settings`, or None to give them by name.
        shared: Parameters in which GradNorm compares the gradients; None takes the model's last weight that the loss depends
            on.
        fields: Settings by name.

    Attributes:
        weights: alpha and beta of the next step.

    Raises:
        MethodError: A setting is unknown or out of range.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(GradNorm.Settings, Method.FixedStrength):
        """Weights of the two losses.

        Attributes:
            alpha: Weight of the loss on the original samples.
            beta: Weight of the loss on transformed samples. At most one of the two is 0, and with gradnorm none.
            weighting: Constant weights, or those of GradNorm, which start at alpha and beta and keep their sum.
            gamma: The fixed strength of the residuals, if the model has any.
        """

        alpha: float = within(NOT_NEGATIVE, 1.0)
        beta: float = within(NOT_NEGATIVE, 1.0)
        weighting: Literal["constant", "gradnorm"] = "constant"

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.alpha + self.beta > 0.0:
                raise MethodError(f"alpha is {self.alpha} and beta is {self.beta}; they cannot both be 0")
            if self.weighting == "gradnorm" and not min(self.alpha, self.beta) > 0.0:
                raise MethodError(
                    f"alpha is {self.alpha} and beta is {self.beta}; gradnorm needs both above 0"
                )

    settings: Settings
    deploys_relaxed: ClassVar[bool] = True

    def __init__(
        self,
        relaxation: Relaxation | nn.Module,
        settings: Settings | None = None,
        *,
        shared: Iterable[nn.Parameter] | None = None,
        **fields: Any,
    ) -> None:
        own = self.Settings.given(settings, fields)
        handle = handle_of(relaxation)
        gradnorm = None
        if own.weighting == "gradnorm":
            chosen = _weights_of(handle) if shared is None else list(shared)
            gradnorm = GradNorm((own.alpha, own.beta), chosen, own, last=shared is None)
        super().__init__(handle, own)
        for residual in self.relaxation.residuals.values():
            residual.fix_gamma()
            residual.set_gamma(own.gamma)
        self._losses: tuple[Tensor, Tensor] | None = None
        self._adding = False  # an earlier micro-batch has recorded its losses, and more follow
        self._gradnorm = gradnorm

    @property
    def weights(self) -> tuple[float, float]:
        """alpha and beta of the next step. Waits for the device if they are learnt."""
        if self._gradnorm is None:
            return self.settings.alpha, self.settings.beta
        alpha, beta = self._gradnorm.weights.tolist()
        return alpha, beta

    def objective(
        self, task: Tensor, moved: Callable[[], Tensor] | None = None, *, last: bool = True
    ) -> Tensor:
        """alpha task + beta moved(). Under `torch.no_grad` it has no side effects. Micro-batches: see `Method.objective`.

        Args:
            task: The loss on the batch, a scalar.
            moved: A function that returns the loss on the batch in which every sample, with its target, is moved by a
                separate group element. With beta = 0 it is not called.
            last: Whether an optimizer step follows.

        Raises:
            MethodError: `moved` is missing.
        """
        if moved is None:
            raise MethodError(
                "REMUL needs the loss on moved samples too: "
                "method.objective(criterion(model(x), y), lambda: criterion(model(g x), g y))"
            )
        penalty = self.penalty()
        if self._gradnorm is None and self.settings.beta == 0.0:
            return self.settings.alpha * task + penalty
        other = moved()
        if torch.is_grad_enabled():
            if self._gradnorm is not None and self._attachment is not None and not self._adding:
                self._gradnorm.forget()  # the values recorded for a step that a GradScaler skipped
            self._note(task.detach(), other.detach(), last)
        if self._gradnorm is None:
            return self.settings.alpha * task + self.settings.beta * other + penalty
        self._gradnorm.follow()
        if task.requires_grad:
            self._gradnorm.observe((task, other))
        alpha, beta = (
            self._gradnorm.weights.clone()
        )  # in some loops `step` overwrites them before backward is called
        return alpha * task + beta * other + penalty

    def _note(self, task: Tensor, other: Tensor, last: bool) -> None:
        """Keep the losses for the logs; those of micro-batches are added up."""
        if self._adding and self._losses is not None:
            task, other = task + self._losses[0], other + self._losses[1]
        self._losses, self._adding = (task, other), not last

    def scalars(self) -> dict[str, float]:
        """alpha, beta, and the two losses of the last step: "loss" and "moved_loss"."""
        alpha, beta = self.weights
        found = {"alpha": alpha, "beta": beta}
        if self._losses is not None:
            found["loss"], found["moved_loss"] = (float(loss) for loss in self._losses)
        return found

    def _term(self) -> Tensor:
        return self._gammas().new_zeros(())

    def _advance(self) -> None:
        if self._gradnorm is not None:
            self._gradnorm.step()

    def _skip(self) -> None:
        self._losses, self._adding = None, False
        if self._gradnorm is not None:
            self._gradnorm.forget()

    def _state(self) -> dict[str, Any]:
        return {"gradnorm": None if self._gradnorm is None else self._gradnorm.state_dict()}

    def _load(self, state: dict[str, Any]) -> None:
        saved = state["gradnorm"]
        if (saved is None) != (self._gradnorm is None):
            names = ["gradnorm" if given else "constant" for given in (saved is not None, saved is None)]
            raise MethodError(
                f"the state was saved with weighting={names[0]!r}, this method has {names[1]!r}; "
                f"build it with the one that was saved"
            )
        if self._gradnorm is not None:
            self._gradnorm.load_state_dict(saved)


def _weights_of(relaxation: Relaxation) -> list[nn.Parameter]:
    """The trainable weights of the author's model in its order, without biases and norms."""
    own = relaxation.strict_parameters().values()
    return [p for p in own if p.requires_grad and p.dim() >= 2]
