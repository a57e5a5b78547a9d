"""Networks that forecast vector fields on the plane: steerable (E2CNN), and the plain ones that it is compared with.

The networks of Wang, Walters, Yu: "Approximately equivariant networks for imperfectly symmetric dynamics", ICML 2022
(arXiv 2201.11969), section 5; 92 hidden, 5 layers, kernel 3, 10 frames for smoke under rotations.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.plane_blocks import PlaneForecaster, check_numbers
from equirelax_lab.models.plane_symmetry import plane_symmetry, sequence


class PlaneE2CNN(PlaneForecaster):
    """Steerable network: vectors in, hidden features, a vector out; all convolutions but the last with batch norm and ReLU.

    Exactly equivariant under the group on every square grid, with zeros around it. With group "scale", a scale-steerable
    network of `ScaleConv2d`, equivariant as far as a pixel grid and a finite ladder allow.

    Args:
        frames: how many frames it sees.
        hidden: regular fields, each |G| channels; for "scale", channels on each of 3 rungs.
        layers: convolutions, >= 2.
        kernel: odd.
        group: "C4", "D4", or one of their subgroups; or "scale" (in the paper 64 hidden, kernel 5).
        norm: with batch norm.
        increment: see `PlaneForecaster`.

    Raises:
        RepresentationError: for sizes that make no network.
    """

    def __init__(
        self,
        frames: int = 10,
        hidden: int = 92,
        layers: int = 5,
        kernel: int = 3,
        group: str = "C4",
        norm: bool = True,
        increment: bool = False,
    ) -> None:
        check_sizes("PlaneE2CNN", frames, hidden, layers, kernel)
        super().__init__(frames, increment)
        symmetry = plane_symmetry(group, "PlaneE2CNN")
        fields = sequence(frames, hidden, layers)
        modules: list[nn.Module] = []
        for before, after in itertools.pairwise(fields[:-1]):
            modules += symmetry.block(before, after, kernel, norm=norm)
        self.layers = nn.Sequential(*modules, symmetry.conv(fields[-2], fields[-1], kernel))


class PlaneConv(PlaneForecaster):
    """Plain convolutions, all but the last with batch norm and ReLU.

    Args:
        hidden: channels. A `PlaneE2CNN` of h fields of a group of n elements has as many channels with hidden = n h, and
            about as many parameters with hidden = sqrt(n) h.
        frames, layers, kernel, norm, increment: as for `PlaneE2CNN`.

    Raises:
        RepresentationError: for sizes that make no network.
    """

    def __init__(
        self,
        frames: int = 10,
        hidden: int = 92,
        layers: int = 5,
        kernel: int = 3,
        norm: bool = True,
        increment: bool = False,
    ) -> None:
        check_sizes("PlaneConv", frames, hidden, layers, kernel)
        super().__init__(frames, increment)
        modules: list[nn.Module] = []
        for i in range(layers - 1):
            modules += plain_block(hidden if i else 2 * frames, hidden, kernel, norm)
        self.layers = nn.Sequential(*modules, nn.Conv2d(hidden, 2, kernel, padding=kernel // 2))


class PlaneMLP(PlaneForecaster):
    """Linear layers on all pixels of all frames at once, all but the last with batch norm and ReLU: no symmetry at all.

    Args:
        size: H = W of the grid, which the weights fit alone.
        hidden: features between layers.
        frames, layers, norm, increment: as for `PlaneE2CNN`.

    Raises:
        RepresentationError: for sizes that make no network, and for fields on another grid.
    """

    def __init__(
        self,
        frames: int = 10,
        hidden: int = 92,
        layers: int = 5,
        size: int = 64,
        norm: bool = True,
        increment: bool = False,
    ) -> None:
        check_sizes("PlaneMLP", frames, hidden, layers, 1)
        check_numbers("PlaneMLP", size=size)
        super().__init__(frames, increment)
        self.size = size
        modules: list[nn.Module] = []
        for i in range(layers - 1):
            modules += linear_block(hidden if i else 2 * frames * size * size, hidden, norm)
        self.layers = nn.Sequential(*modules, nn.Linear(hidden, 2 * size * size))

    def predict(self, x: Tensor) -> Tensor:
        """(batch, 2 frames, size, size) -> (batch, 2, size, size)."""
        check_grid(x, self.size, "PlaneMLP")
        return self.layers(x.flatten(1)).view(-1, 2, self.size, self.size)


def plain_block(before: int, after: int, kernel: int, norm: bool) -> list[nn.Module]:
    """Convolution, batch norm, ReLU. No bias where the norm would take it away."""
    conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=not norm)
    return [conv, nn.BatchNorm2d(after), nn.ReLU()] if norm else [conv, nn.ReLU()]


def linear_block(before: int, after: int, norm: bool) -> list[nn.Module]:
    """Linear map, batch norm, ReLU. No bias where the norm would take it away."""
    linear = nn.Linear(before, after, bias=not norm)
    return [linear, nn.BatchNorm1d(after), nn.ReLU()] if norm else [linear, nn.ReLU()]


def check_sizes(name: str, frames: int, hidden: int, layers: int, kernel: int, least: int = 2) -> None:
    """Refuse sizes that make no forecaster.

    Args:
        name: of the network, for the message.
        frames, hidden, layers, kernel: as for `PlaneE2CNN`.
        least: layers.

    Raises:
        RepresentationError: not whole, below 1, too few layers, or an even kernel.
    """
    check_numbers(name, odd=("kernel",), frames=frames, hidden=hidden, layers=layers, kernel=kernel)
    if layers < least:
        raise RepresentationError(f"{name}: layers is {layers}; expected {least} or more")


def check_grid(x: Tensor, size: int, name: str) -> None:
    """Refuse fields on another grid than the one that a network was built for.

    Raises:
        RepresentationError: H or W is not `size`.
    """
    if tuple(x.shape[-2:]) != (size, size):
        raise RepresentationError(
            f"{name}: was built for a grid of {size} x {size}, got {x.shape[-2]} x {x.shape[-1]}; build it with size="
        )
