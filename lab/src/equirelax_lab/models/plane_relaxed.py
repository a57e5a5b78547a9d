"""Forecasters that can leave their symmetry: residual pathways (RPP), lift expansion, relaxed steerable (RSteer).

Baselines of Wang, Walters, Yu: "Approximately equivariant networks for imperfectly symmetric dynamics", ICML 2022
(arXiv 2201.11969), sections 4 and 5. Each is for turns and flips ("C4", "D4", ...) and for "scale".
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from equirelax_lab.models.plane_blocks import PlaneForecaster, check_numbers
from equirelax_lab.models.plane_networks import check_grid, check_sizes, linear_block
from equirelax_lab.models.plane_symmetry import Fields, PlaneSymmetry, plane_symmetry, sequence
from equirelax_lab.models.relaxed_steerable import RelaxedGroupConv2d
from equirelax_lab.models.scale_conv import ScaleConv2d


class ResidualPathway(nn.Module):
    """An equivariant convolution plus a plain one (Finzi, Benton, Wilson, NeurIPS 2021, arXiv 2112.01388, section 4).

    Args:
        symmetry: makes the equivariant one.
        before, after: fields.
        kernel: odd.
        bias: of the equivariant one; the plain one has none.
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
        """decay sum ||plain||^2: a number."""
        plain = [m.plain.weight for m in self.modules() if isinstance(m, ResidualPathway)]
        return self.decay * torch.stack([weight.square().sum() for weight in plain]).sum()


class PlaneLift(PlaneForecaster):
    """Lift expansion: hidden fields of an equivariant network are joined by ones that a plain encoder made.

    The encoder, linear layers on all pixels of all frames at once, makes hidden / 4 hidden fields, the same at every pixel,
    that know where up is; they join after the second convolution.

    Args:
        size: H = W of the grid, which the encoder is built for.
        encoder: features of the encoder's two inner layers.
        layers: convolutions, >= 4.
        frames, hidden, kernel, group, norm, increment: as for `PlaneE2CNN`.

    Raises:
        RepresentationError: for sizes that make no network, and for fields on another grid.
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
    """Relaxed steerable network: the weights of a steerable kernel may differ from place to place of the kernel.

    Exactly equivariant at the start, unless `varied`, and whenever the weights do not vary. `regulariser()` keeps them
    together.

    Args:
        alpha: strength of the regulariser; the paper's experiments use 1e-5 (turns) and 1e-6 (scale).
        varied: start with weights that differ from place to place, normal with the deviation of the tied ones, as the
            authors' code does: the network is not equivariant then.
        frames, hidden, layers, kernel, group, norm, increment: as for `PlaneE2CNN`.

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
        """The relaxed convolutions, first to last."""
        return [m for m in self.modules() if isinstance(m, RelaxedGroupConv2d | ScaleConv2d)]

    def regulariser(self) -> Tensor:
        """alpha times the sum over layers of how far the weights are from equivariant ones: a number."""
        return self.alpha * torch.stack([layer.deviation() for layer in self.relaxed()]).sum()

    def symmetrise(self) -> None:
        """Replace all relaxed weights by the nearest equivariant ones."""
        for layer in self.relaxed():
            layer.symmetrise()
