"""A finite rotation instead of the Lie derivative, as in CR's released code for MD17."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from equirelax.errors import PenaltyError
from equirelax.relaxation.columns import Columns, dense
from equirelax.relaxation.kinds.kind import untracked
from equirelax.relaxation.kinds.stream import StreamMap
from equirelax.relaxation.regularizers.regularizer import Regularizer, register
from equirelax.relaxation.relaxation import Relaxation
from equirelax.relaxation.terms.precision import penalty_dtype, promoted
from equirelax.settings import NOT_NEGATIVE, Range, check
from equirelax.symmetry import SE, SO, E, Group, Lorentz, O


@register("finite-rotation")
class FiniteRotation(Regularizer):
    """`weight * sum_i mean_x || rho_out(g) f_i(x) - f_i(rho_in(g) x) ||` over residuals i and their rows x.

    Here g is a rotation by a given angle in a plane that is newly drawn for every residual and call. The penalty is for groups
    that contain the rotations of space: SO(n), O(n), SE(n) and E(n), without translations, and the Lorentz group, without
    boosts.

    There is no root of a sum: for small angles the penalty is about the angle times the mean length of one Lie derivative, which
    is much weaker than the root of all squares in `LieDerivative`.

    Args:
        relaxation: The residuals to penalise, without convolutions and steps of streams.
        weight: lambda_reg, the factor of the penalty.
        degrees: The angle in degrees.
        generator: Random number generator for the planes, on the CPU.

    Raises:
        PenaltyError: the angle rotates nothing, the group of a residual has no rotations, or there is a residual stream.
    """

    def __init__(
        self,
        relaxation: Relaxation,
        weight: float,
        degrees: float = 5.0,
        generator: torch.Generator | None = None,
    ) -> None:
        check(weight, NOT_NEGATIVE, "weight", PenaltyError)
        check(degrees, Range(0, 360, open_least=True, open_most=True), "degrees", PenaltyError)
        for key, residual in relaxation:
            if isinstance(residual.map, StreamMap):
                raise PenaltyError(
                    f"{key}: a residual stream starts from the model's inputs, and one of its steps cannot be rotated alone; use "
                    "LieDerivative"
                )
            group = residual.in_rep.group
            turns = isinstance(group, (SO, O, SE, E, Lorentz)) and (
                isinstance(group, Lorentz) or group.linear_dim > 1
            )
            if not residual.map.reads_inputs or not turns:
                raise PenaltyError(
                    f"{key}: {group.name} has no plane in which to rotate by {degrees} degrees; use LieDerivative"
                )
        super().__init__(relaxation, generator=generator)
        self.weight, self.degrees = weight, degrees

    def capture_obstacle(self) -> str:
        """See `Regularizer`."""
        return "the penalty draws its planes"

    def stack_obstacle(self) -> str:
        """See `Regularizer`."""
        return "the penalty draws its planes"

    def _value(self, kept: dict[str, list[Columns]]) -> Tensor:
        means = []
        for key, inputs in kept.items():
            residual = self.relaxation[key]
            axis = residual.feature_axis
            g = self._element(residual.in_rep.group)
            map_, lengths = promoted(residual.map), []
            with untracked(map_):
                for rows in inputs:
                    x = dense(rows).to(penalty_dtype(next(map_.parameters()).dtype))
                    turned = residual.out_rep.apply(g.to(x), map_(x), axis=axis)
                    moved = map_(residual.in_rep.apply(g.to(x), x, axis=axis))
                    lengths.append(_length(turned - moved, axis))
            of_all = torch.cat(lengths)
            # the mean of no rows is NaN, their sum is 0
            means.append(of_all.mean() if len(of_all) else of_all.sum())
            self.terms[key] = {"lie": means[-1].detach(), "norm": torch.zeros_like(means[-1])}
        return self.weight * torch.stack(means).sum()

    def _element(self, group: Group) -> Tensor:
        """A rotation by the angle in a random plane: an element of the group, float64."""
        n = 3 if isinstance(group, Lorentz) else group.linear_dim
        ends = torch.linalg.qr(torch.randn(n, 2, generator=self.generator, dtype=torch.float64)).Q
        angle = math.radians(self.degrees)
        cosine, sine = math.cos(angle), math.sin(angle)
        turn = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
        identity = torch.eye(2, dtype=torch.float64)
        g = torch.eye(group.dim, dtype=torch.float64)
        first = group.dim - n if isinstance(group, Lorentz) else 0  # the axis of time comes first
        g[first : first + n, first : first + n] += ends @ (turn - identity) @ ends.mT
        return g


def _length(x: Tensor, axis: int) -> Tensor:
    """Norms over the feature axis, flattened, with gradient 0 where they are 0."""
    squares = x.square().sum(axis).flatten()
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, torch.ones_like(squares)).sqrt(), squares)
