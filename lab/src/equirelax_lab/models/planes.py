"""Networks that forecast vector fields on the plane: a steerable one, plain ones, and ones that can break their symmetry.

They are those compared by Wang, Walters, Yu: "Approximately equivariant networks for imperfectly symmetric dynamics", ICML 2022
(arXiv 2201.11969), sections 4 and 5. All take (batch, frames, 2, H, W) and return the next frame (batch, 2, H, W). The paper's
sizes: 92 hidden, 5 layers, kernel 3 for rotations; 64 hidden, 5 layers, kernel 5 for scale.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.plane_blocks import check_finite, check_numbers, plain_block
from equirelax_lab.models.plane_symmetry import Fields, PlaneSymmetry, plane_symmetry, sequence
from equirelax_lab.models.relaxed_steerable import RelaxedGroupConv2d
from equirelax_lab.models.scale_conv import ScaleConv2d

MODELS = {
    "e2cnn": "steerable convolutions, regular features: exactly equivariant (scale: on a ladder of scales)",
    "conv": "plain convolutions: only translations",
    "mlp": "linear layers on all pixels: no symmetry",
    "rpp": "residual pathway priors: steerable plus plain convolutions",
    "lift": "lift expansion: steerable convolutions joined by fields of a plain encoder",
    "rsteer": "relaxed steerable convolutions: weights that vary over the kernel",
}
"""Forecaster -> its description."""

RELAXABLE = ("e2cnn", "rpp", "lift", "rsteer")
"""The forecasters with equivariant layers."""


class PlaneForecaster(nn.Module):
    """Base class of networks that predict the next frame of a vector field from the last ones.

    A subclass sets `layers`, which takes the frames' components as channels, or overrides `predict`.

    Args:
        frames: number of input frames.
        increment: predict the change since the last frame, not the frame itself as published. Both are equivariant.

    Raises:
        RepresentationError: a size is out of its range.
    """

    layers: nn.Module

    def __init__(self, frames: int, increment: bool) -> None:
        super().__init__()
        self.frames = frames
        self.increment = increment

    def forward(self, x: Tensor) -> Tensor:
        """Predict the next frame (batch, 2, H, W).

        Args:
            x: (batch, frames, 2, H, W), oldest frame first, components (x, y); finite.

        Raises:
            RepresentationError: the shape is wrong.
            NonFiniteError: a value is NaN or infinite.
        """
        check_fields(x, self.frames, type(self).__name__)
        y = self.predict(x.flatten(1, 2))
        return x[:, -1] + y if self.increment else y

    def predict(self, x: Tensor) -> Tensor:
        """(batch, 2 frames, H, W) -> (batch, 2, H, W)."""
        return self.layers(x)

    def regulariser(self) -> Tensor:
        """Compute the term that the network's own paper adds to the loss: a number, 0 for most."""
        return next(self.parameters()).new_zeros(())


class PlaneE2CNN(PlaneForecaster):
    """Steerable network: vectors in, hidden features, a vector out; all convolutions but the last with batch norm and ReLU.

    Exactly equivariant under the group on every square grid, with zero padding. With group "scale", a scale-steerable
    network of `ScaleConv2d`, equivariant as far as a pixel grid and a finite ladder allow.

    Args:
        frames: number of input frames.
        hidden: number of regular fields, each with |G| channels; for "scale", channels on each of 3 rungs.
        layers: number of convolutions, >= 2.
        kernel: kernel size, odd.
        group: "C4", "D4", or one of their subgroups; or "scale" (in the paper 64 hidden, kernel 5).
        norm: whether to use batch norm.
        increment: see `PlaneForecaster`.

    Raises:
        RepresentationError: a size is out of its range.
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
        hidden: channels. To match a `PlaneE2CNN` of h fields of a group of n elements: n h for as many channels, about
            sqrt(n) h for as many parameters.
        frames, layers, kernel, norm, increment: as for `PlaneE2CNN`.

    Raises:
        RepresentationError: a size is out of its range.
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
    """Linear layers on all pixels of all frames at once, all but the last with batch norm and ReLU: no symmetry.

    Args:
        size: H = W of the grid, the only one that the weights fit.
        hidden: features between layers.
        frames, layers, norm, increment: as for `PlaneE2CNN`.

    Raises:
        RepresentationError: a size is out of its range; in `forward`, fields lie on another grid.
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


class ResidualPathway(nn.Module):
    """An equivariant convolution plus a plain one (Finzi, Benton, Wilson, NeurIPS 2021, arXiv 2112.01388, section 4).

    Args:
        symmetry: makes the equivariant convolution.
        before, after: fields of input and output.
        kernel: kernel size, odd.
        bias: whether the equivariant convolution has a bias; the plain one has none.
    """

    def __init__(
        self, symmetry: PlaneSymmetry, before: Fields, after: Fields, kernel: int, *, bias: bool
    ) -> None:
        super().__init__()
        self.equivariant = symmetry.conv(before, after, kernel, bias=bias)
        self.plain = nn.Conv2d(
            symmetry.channels(before), symmetry.channels(after), kernel, padding=kernel // 2, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, H, W) -> (batch, channels', H, W)."""
        y: Tensor = self.equivariant(x) + self.plain(x)
        return y


class PlaneRPP(PlaneForecaster):
    """Residual pathway priors: in every layer an equivariant convolution plus a plain one, which the prior keeps small.

    `regulariser()` is the prior's part of the loss: `decay` times the sum of squares of the plain weights.

    Args:
        decay: the inverse variance of the plain weights' prior.
        frames, hidden, layers, kernel, group, norm, increment: as for `PlaneE2CNN`.

    Raises:
        RepresentationError: a size is out of its range.
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
        decay: float = 1e-6,
    ) -> None:
        check_sizes("PlaneRPP", frames, hidden, layers, kernel)
        super().__init__(frames, increment)
        self.decay = decay
        symmetry = plane_symmetry(group, "PlaneRPP")
        fields = sequence(frames, hidden, layers)
        modules: list[nn.Module] = []
        for before, after in itertools.pairwise(fields[:-1]):
            modules.append(ResidualPathway(symmetry, before, after, kernel, bias=not norm))
            modules += [symmetry.norm(after), nn.ReLU()] if norm else [nn.ReLU()]
        last = ResidualPathway(symmetry, fields[-2], fields[-1], kernel, bias=True)
        self.layers = nn.Sequential(*modules, last)

    def regulariser(self) -> Tensor:
        """Compute decay sum ||plain||^2: a number."""
        plain = [m.plain.weight for m in self.modules() if isinstance(m, ResidualPathway)]
        return self.decay * torch.stack([weight.square().sum() for weight in plain]).sum()


class PlaneLift(PlaneForecaster):
    """Lift expansion: the hidden fields of an equivariant network are extended by fields from a plain encoder.

    The encoder, linear layers on all pixels of all frames at once, makes hidden / 4 hidden fields, constant over the pixels,
    that depend on the orientation. They are concatenated after the second convolution.

    Args:
        size: H = W of the grid for which the encoder is built.
        encoder: features of the encoder's two inner layers.
        layers: convolutions, >= 4.
        frames, hidden, kernel, group, norm, increment: as for `PlaneE2CNN`.

    Raises:
        RepresentationError: a size is out of its range; in `forward`, fields lie on another grid.
    """

    def __init__(
        self,
        frames: int = 10,
        hidden: int = 92,
        layers: int = 5,
        kernel: int = 3,
        group: str = "C4",
        size: int = 64,
        encoder: int = 128,
        norm: bool = True,
        increment: bool = False,
    ) -> None:
        check_sizes("PlaneLift", frames, hidden, layers, kernel, least=4)
        check_numbers("PlaneLift", size=size, encoder=encoder)
        super().__init__(frames, increment)
        self.size = size
        self.symmetry = plane_symmetry(group, "PlaneLift")
        extra = Fields("hidden", max(1, hidden // 4))
        sizes = [2 * frames * size * size, encoder, encoder]
        modules: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            modules += linear_block(before, after, norm)
        self.encoder = nn.Sequential(*modules, nn.Linear(encoder, self.symmetry.channels(extra)))
        fields = sequence(frames, hidden, layers)
        blocks = [
            self.symmetry.block(
                Fields("hidden", hidden + extra.count) if i == 2 else fields[i],
                fields[i + 1],
                kernel,
                norm=norm,
            )
            for i in range(layers - 1)
        ]
        self.first = nn.Sequential(*blocks[0], *blocks[1])
        inner = [module for block in blocks[2:] for module in block]
        self.layers = nn.Sequential(*inner, self.symmetry.conv(fields[-2], fields[-1], kernel))

    def predict(self, x: Tensor) -> Tensor:
        """(batch, 2 frames, size, size) -> (batch, 2, size, size)."""
        check_grid(x, self.size, "PlaneLift")
        lifted = self.encoder(x.flatten(1))[..., None, None].expand(-1, -1, self.size, self.size)
        y: Tensor = self.layers(self.symmetry.join(self.first(x), lifted))
        return y


class PlaneRSteer(PlaneForecaster):
    """Relaxed steerable network: the weights of a steerable kernel may vary over the positions of the kernel.

    Exactly equivariant at the start, unless `varied`, and whenever the weights do not vary. `regulariser()` keeps them
    close together.

    Args:
        alpha: strength of the regulariser; the paper's experiments use 1e-5 (rotations) and 1e-6 (scale).
        varied: start with weights that vary over positions, normal with the deviation of the tied ones, as in the
            authors' code; the network is then not equivariant.
        frames, hidden, layers, kernel, group, norm, increment: as for `PlaneE2CNN`.

    Raises:
        RepresentationError: a size is out of its range.
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
        alpha: float = 1e-5,
        varied: bool = False,
    ) -> None:
        check_sizes("PlaneRSteer", frames, hidden, layers, kernel)
        super().__init__(frames, increment)
        self.alpha = alpha
        symmetry = plane_symmetry(group, "PlaneRSteer")
        fields = sequence(frames, hidden, layers)
        modules: list[nn.Module] = []
        for before, after in itertools.pairwise(fields[:-1]):
            modules += symmetry.block(before, after, kernel, norm=norm, relaxed=True)
        self.layers = nn.Sequential(*modules, symmetry.conv(fields[-2], fields[-1], kernel, relaxed=True))
        if varied:
            with torch.no_grad():
                for layer in self.relaxed():
                    layer.weight.normal_(0, float(layer.weight.std()))

    def relaxed(self) -> list[RelaxedGroupConv2d | ScaleConv2d]:
        """List the relaxed convolutions, first to last."""
        return [m for m in self.modules() if isinstance(m, RelaxedGroupConv2d | ScaleConv2d)]

    def regulariser(self) -> Tensor:
        """Compute alpha times the sum over layers of the weights' distance from equivariant ones: a number."""
        return self.alpha * torch.stack([layer.deviation() for layer in self.relaxed()]).sum()

    def symmetrise(self) -> None:
        """Replace all relaxed weights by the nearest equivariant ones."""
        for layer in self.relaxed():
            layer.symmetrise()


def build(
    name: str,
    symmetry: Literal["rotation", "scale"] = "rotation",
    frames: int = 10,
    hidden: int = 92,
    layers: int = 5,
    kernel: int = 3,
    group: str = "C4",
    size: int = 64,
    norm: bool = True,
    varied: bool = False,
) -> PlaneForecaster:
    """Build the forecaster called `name` for a symmetry.

    Args:
        name: one of `MODELS`.
        symmetry: "rotation" takes the rotations and reflections of `group`; "scale" takes a ladder of scales.
        frames, hidden, layers, kernel, group, norm: as for `PlaneE2CNN`.
        varied: for "rsteer", see `PlaneRSteer`.
        size: H = W of the grid; for "mlp" and "lift", which fit only one grid.

    Raises:
        RepresentationError: the name is unknown, or a size is out of its range.
    """
    of = "scale" if symmetry == "scale" else group
    if name == "e2cnn":
        return PlaneE2CNN(frames, hidden, layers, kernel, of, norm)
    if name == "conv":
        return PlaneConv(frames, hidden, layers, kernel, norm)
    if name == "mlp":
        return PlaneMLP(frames, hidden, layers, size, norm)
    if name == "rpp":
        return PlaneRPP(frames, hidden, layers, kernel, of, norm)
    if name == "lift":
        return PlaneLift(frames, hidden, layers, kernel, of, size, norm=norm)
    if name == "rsteer":
        alpha = 1e-6 if symmetry == "scale" else 1e-5
        return PlaneRSteer(frames, hidden, layers, kernel, of, norm, alpha=alpha, varied=varied)
    raise RepresentationError(f"planes.build: unknown forecaster {name!r}; choose one of {', '.join(MODELS)}")


def linear_block(before: int, after: int, norm: bool) -> list[nn.Module]:
    """Build linear map, batch norm and ReLU; without a bias where the norm would remove it."""
    linear = nn.Linear(before, after, bias=not norm)
    return [linear, nn.BatchNorm1d(after), nn.ReLU()] if norm else [linear, nn.ReLU()]


def check_fields(x: Tensor, frames: int, name: str) -> None:
    """Check a batch of sequences of vector fields.

    Args:
        x: (batch, frames, 2, H, W), floating, finite.
        frames: the number that the network was built for.
        name: The network's name, for messages.

    Raises:
        RepresentationError: the shape is wrong, or the dtype is an integer one.
        NonFiniteError: a value is NaN or infinite.
    """
    if x.dim() != 5 or tuple(x.shape[1:3]) != (frames, 2) or not x.numel() or not x.is_floating_point():
        raise RepresentationError(
            f"{name}: expected vector fields of shape (batch, {frames}, 2, H, W), floating, got {tuple(x.shape)} of "
            f"{x.dtype}; the frames are the second axis, the components (x, y) the third"
        )
    check_finite(x, name)


def check_sizes(name: str, frames: int, hidden: int, layers: int, kernel: int, least: int = 2) -> None:
    """Check the sizes of a forecaster.

    Args:
        name: The network's name, for messages.
        frames, hidden, layers, kernel: as for `PlaneE2CNN`.
        least: Smallest number of layers.

    Raises:
        RepresentationError: a number is not whole or below 1, there are too few layers, or the kernel is even.
    """
    check_numbers(name, odd=("kernel",), frames=frames, hidden=hidden, layers=layers, kernel=kernel)
    if layers < least:
        raise RepresentationError(f"{name}: layers is {layers}; expected {least} or more")


def check_grid(x: Tensor, size: int, name: str) -> None:
    """Check that fields lie on the grid that a network was built for.

    Raises:
        RepresentationError: H or W is not `size`.
    """
    if tuple(x.shape[-2:]) != (size, size):
        raise RepresentationError(
            f"{name}: was built for a grid of {size} x {size}, got {x.shape[-2]} x {x.shape[-1]}; build it with size="
        )
