"""What the networks on the plane share: checks, pooling that keeps the symmetry of the square, the frame of a forecaster.

Arrays are (batch, ..., channels, H, W): row 0 is the top, W is x to the right. Components of vectors are (x, y), y up.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equirelax.errors import NonFiniteError, RepresentationError
from equirelax_lab.models.readable import values_are_readable


def check_numbers(name: str, *, odd: tuple[str, ...] = (), **numbers: int) -> None:
    """Refuse sizes that make no network.

    Args:
        name: of the network, for the message.
        odd: which numbers must be odd.
        numbers: whole numbers >= 1, by the name of their argument.

    Raises:
        RepresentationError: a number is not whole, below 1, or even where it must be odd.
    """
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RepresentationError(f"{name}: {key} is {value!r}; expected a whole number >= 1")
        if key in odd and value % 2 == 0:
            raise RepresentationError(f"{name}: {key} is {value}; expected an odd number, which has a centre")


def check_finite(x: Tensor, name: str) -> None:
    """Refuse NaN and infinity; not looked for under `torch.compile` and `torch.func.vmap`.

    Raises:
        NonFiniteError: says in how many samples, and in which first.
    """
    if not values_are_readable() or torch.isfinite(x).all():
        return
    bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
    raise NonFiniteError(
        f"{name}: NaN or infinite values in {len(bad)} of {len(x)} samples (the first is number {bad[0]}); a "
        "roll-out that grows without bound ends like this too"
    )


def check_fields(x: Tensor, frames: int, name: str) -> None:
    """Refuse what is no batch of sequences of vector fields.

    Args:
        x: (batch, frames, 2, H, W), floating, finite.
        frames: that the network was built for.
        name: of the network, for the message.

    Raises:
        RepresentationError: another shape or an integer dtype.
        NonFiniteError: NaN or infinity.
    """
    if x.dim() != 5 or tuple(x.shape[1:3]) != (frames, 2) or not x.numel() or not x.is_floating_point():
        raise RepresentationError(
            f"{name}: expected vector fields of shape (batch, {frames}, 2, H, W), floating, got {tuple(x.shape)} of "
            f"{x.dtype}; the frames are the second axis, the components (x, y) the third"
        )
    check_finite(x, name)


class PlanePool(nn.Module):
    """Maximum over windows, to half the size, exactly equivariant under turns and flips of every square grid.

    Even sizes are cut into windows of 2; odd ones have overlapping windows of 3 around every second pixel, the outermost
    ones included: n -> (n + 1) // 2. Windows of 2 alone would drop an odd size's last row, but not its first.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, H, W) -> (batch, channels, (H + 1) // 2, (W + 1) // 2)."""
        odd = (x.shape[-2] % 2, x.shape[-1] % 2)
        return F.max_pool2d(x, (2 + odd[0], 2 + odd[1]), stride=2, padding=odd)


class PlaneForecaster(nn.Module):
    """Predicts the next frame of a vector field from the last ones. What all networks for that share.

    A subclass sets `layers`, which takes the frames' components as channels, or overrides `predict`.

    Args:
        frames: how many frames it sees.
        increment: predict the change since the last frame, not the frame itself as published. Equivariant either way.

    Raises:
        RepresentationError: for sizes that make no network.
    """

    layers: nn.Module

    def __init__(self, frames: int, increment: bool) -> None:
        super().__init__()
        self.frames = frames
        self.increment = increment

    def forward(self, x: Tensor) -> Tensor:
        """The next frame (batch, 2, H, W).

        Args:
            x: (batch, frames, 2, H, W), oldest frame first, components (x, y); finite.

        Raises:
            RepresentationError: another shape.
            NonFiniteError: NaN or infinity.
        """
        check_fields(x, self.frames, type(self).__name__)
        y = self.predict(x.flatten(1, 2))
        return x[:, -1] + y if self.increment else y

    def predict(self, x: Tensor) -> Tensor:
        """(batch, 2 frames, H, W) -> (batch, 2, H, W)."""
        return self.layers(x)

    def regulariser(self) -> Tensor:
        """What the network's own paper adds to the loss: a number, 0 for most."""
        return next(self.parameters()).new_zeros(())
