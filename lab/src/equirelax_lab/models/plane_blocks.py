"""Parts of the networks on the plane: checks, pooling that keeps the symmetry of the square, plain blocks.

Arrays are (batch, ..., channels, H, W): row 0 is the top, W is x to the right. Components of vectors are (x, y), y up.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equirelax.errors import NonFiniteError, RepresentationError
from equirelax_lab.models.readable import values_are_readable


def check_numbers(name: str, *, odd: tuple[str, ...] = (), **numbers: int) -> None:
    """Check sizes.

    Args:
        name: The network's name, for messages.
        odd: Names of the sizes that must be odd.
        numbers: The sizes, whole numbers >= 1, by the name of their argument.

    Raises:
        RepresentationError: a number is not whole, is below 1, or is even although it must be odd.
    """
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RepresentationError(f"{name}: {key} is {value!r}; expected a whole number >= 1")
        if key in odd and value % 2 == 0:
            raise RepresentationError(f"{name}: {key} is {value}; expected an odd number, which has a centre")


def check_finite(x: Tensor, name: str) -> None:
    """Check that all values are finite. Nothing is checked under `torch.compile` and `torch.func.vmap`.

    Raises:
        NonFiniteError: some values are not finite; the message says in how many samples, and which is the first.
    """
    if not values_are_readable() or torch.isfinite(x).all():
        return
    bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
    raise NonFiniteError(
        f"{name}: NaN or infinite values in {len(bad)} of {len(x)} samples (the first is number {bad[0]}); a "
        "roll-out that grows without bound ends like this too"
    )


class PlanePool(nn.Module):
    """Max pooling to half the size, exactly equivariant under rotations and reflections of every square grid.

    Even sizes are cut into windows of 2. Odd ones have overlapping windows of 3 around every second pixel, including the
    outermost ones: n -> (n + 1) // 2. Windows of 2 would drop the last row of an odd size, but not its first.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, H, W) -> (batch, channels, (H + 1) // 2, (W + 1) // 2)."""
        odd = (x.shape[-2] % 2, x.shape[-1] % 2)
        return F.max_pool2d(x, (2 + odd[0], 2 + odd[1]), stride=2, padding=odd)


def plain_block(before: int, after: int, kernel: int, norm: bool) -> list[nn.Module]:
    """Build convolution, batch norm and ReLU; without a bias where the norm would remove it."""
    conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=not norm)
    return [conv, nn.BatchNorm2d(after), nn.ReLU()] if norm else [conv, nn.ReLU()]
