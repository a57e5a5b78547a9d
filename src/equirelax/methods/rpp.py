"""Residual pathway priors (Finzi et al., NeurIPS 2021, arXiv 2112.01388): two Gaussian priors, no constraint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from equirelax.methods.base import Method
from equirelax.methods.registry import register
from equirelax.relaxation import Relaxation
from equirelax.relaxation.terms.precision import whole
from equirelax.settings import NOT_NEGATIVE, within


@register("rpp", "RPP: Gaussian priors on equivariant and residual weights; deployed relaxed")
class RPP(Method):
    """task + eq_weight ||W_eq||^2 + residual_weight ||W_res||^2, with every strength fixed.

    W_eq are all parameters of the author's model, W_res those of the residuals. The penalties are, up to constants, the
    negative logarithms of Gaussian priors N(0, sigma_eq^2) and N(0, sigma_res^2): for a task loss that is
    the mean of negative log-likelihoods over N samples,

        weight = 1 / (2 N sigma^2)

    so residual_weight > eq_weight means that the symmetric solution is more likely a priori.
    Nothing forces the residuals to vanish, and the model is deployed with them. Use an optimizer without weight decay,
    which would be a second prior.

    Args:
        relaxation: The relaxed model. A learnt gamma is fixed again.
        settings: `Settings`, or None to give them by name.
        fields: Settings by name.

    Raises:
        MethodError: A setting is unknown or out of range.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(Method.FixedStrength):
        """Weights of the two priors.

        Attributes:
            eq_weight: Factor of the squared norm of the author's weights. The authors' sweeps go from 1e-6 to 1e-1.
            residual_weight: Factor of the squared norm of the residuals' weights.
        """

        eq_weight: float = within(NOT_NEGATIVE, 1e-5)
        residual_weight: float = within(NOT_NEGATIVE, 1e-3)

    settings: Settings
    deploys_relaxed: ClassVar[bool] = True
    capturable: ClassVar[bool] = True

    def __init__(self, relaxation: Relaxation, settings: Settings | None = None, **fields: Any) -> None:
        super().__init__(relaxation, self.Settings.given(settings, fields))
        for residual in relaxation.residuals.values():
            residual.fix_gamma()
            residual.set_gamma(self.settings.gamma)

    def stack_obstacle(self) -> str:
        """See `Method`."""
        return "its priors leave out what does not train, and mapped parameters do not tell"

    def squares(self) -> tuple[Tensor, Tensor]:
        """||W_eq||^2 and ||W_res||^2 of the trainable parameters, with gradients."""
        zero = self._gammas().new_zeros(())
        strict = list(self.relaxation.strict_parameters().values())
        residual = list(self.relaxation.residual_parameters().values())
        return _squares(strict, zero), _squares(residual, zero)

    def scalars(self) -> dict[str, float]:
        """The current ||W_eq||^2 and ||W_res||^2, as "eq_square" and "residual_square"."""
        with torch.no_grad():
            strict, residual = self.squares()
        return {"eq_square": float(strict), "residual_square": float(residual)}

    def _term(self) -> Tensor:
        strict, residual = self.squares()
        return self.settings.eq_weight * strict + self.settings.residual_weight * residual

    def _advance(self) -> None:
        pass

    def _state(self) -> dict[str, Any]:
        return {}

    def _load(self, state: dict[str, Any]) -> None:
        pass


def _squares(parameters: list[nn.Parameter], zero: Tensor) -> Tensor:
    """The sum of squares over parameters, each once, in the precision and on the device of `zero`."""
    flat = [whole(p).to(zero).flatten() for p in {id(p): p for p in parameters if p.requires_grad}.values()]
    return torch.stack([torch.dot(v, v) for v in flat]).sum() if flat else zero
