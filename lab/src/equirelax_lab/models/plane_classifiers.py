"""Image classifiers that are invariant to rotations (and reflections), and their plain counterpart.

Similar to Cohen, Welling: "Group equivariant convolutional networks", ICML 2016 (arXiv 1602.07576), section 8.1.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax.symmetry import regular, trivial
from equirelax_lab.models.group_conv import FieldBatchNorm, GroupConv2d, GroupPool
from equirelax_lab.models.plane_blocks import PlanePool, check_finite, check_numbers, plain_block
from equirelax_lab.models.plane_symmetry import grid_group


class PlaneClassifier(nn.Module):
    """Regular features, then the maximum over the group and the mean over the picture: exactly invariant, at every size.

    Each stage has two convolutions (batch norm, ReLU) at one size. Between stages the size is halved by `PlanePool`, which
    needs no padding to odd sizes or cropping: 28 -> 14 -> 7 and 29 -> 15 -> 8 both keep the symmetry of the square.
    The number of fields doubles with the second stage and then stays the same.

    Args:
        classes: number of classes.
        group: "C4", "D4", or one of their subgroups.
        width: number of regular fields of the first stage; each has |G| channels.
        stages: number of stages of two convolutions.
        kernel: kernel size, odd.
        channels: channels of the picture, all of them scalar fields.
        dropout: dropout before the last linear map.

    Raises:
        RepresentationError: a size is out of its range.
    """

    def __init__(
        self,
        classes: int = 10,
        group: str = "C4",
        width: int = 16,
        stages: int = 3,
        kernel: int = 3,
        channels: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_classifier("PlaneClassifier", classes, width, stages, kernel, channels)
        symmetry = grid_group(group, "PlaneClassifier")
        self.channels = channels
        types = [trivial(symmetry, channels), *(n * regular(symmetry) for n in fields(width, stages))]
        modules: list[nn.Module] = []
        for i, (before, after) in enumerate(itertools.pairwise(types)):
            modules += [PlanePool()] if i and i % 2 == 0 else []
            modules += [GroupConv2d(before, after, kernel, bias=False), FieldBatchNorm(after), nn.ReLU()]
        self.features = nn.Sequential(*modules, GroupPool(types[-1]))
        self.readout = nn.Sequential(nn.Dropout(dropout), nn.Linear(fields(width, stages)[-1], classes))

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (batch, classes) of pictures (batch, channels, H, W), floating and finite.

        Raises:
            RepresentationError: the shape is wrong.
            NonFiniteError: a value is NaN or infinite.
        """
        check_pictures(x, self.channels, "PlaneClassifier")
        return self.readout(self.features(x).mean((-2, -1)))


class PlainClassifier(nn.Module):
    """`PlaneClassifier` without symmetry: plain channels instead of regular fields, no maximum over the group.

    Args:
        width: channels of the first stage. To match a `PlaneClassifier` of w fields of a group of n elements: n w for as many
            channels, about sqrt(n) w for as many parameters.
        classes, stages, kernel, channels, dropout: as for `PlaneClassifier`.

    Raises:
        RepresentationError: a size is out of its range.
    """

    def __init__(
        self,
        classes: int = 10,
        width: int = 32,
        stages: int = 3,
        kernel: int = 3,
        channels: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_classifier("PlainClassifier", classes, width, stages, kernel, channels)
        self.channels = channels
        sizes = [channels, *fields(width, stages)]
        modules: list[nn.Module] = []
        for i, (before, after) in enumerate(itertools.pairwise(sizes)):
            modules += [PlanePool()] if i and i % 2 == 0 else []
            modules += plain_block(before, after, kernel, norm=True)
        self.features = nn.Sequential(*modules)
        self.readout = nn.Sequential(nn.Dropout(dropout), nn.Linear(sizes[-1], classes))

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (batch, classes) of pictures (batch, channels, H, W), floating and finite.

        Raises:
            RepresentationError: the shape is wrong.
            NonFiniteError: a value is NaN or infinite.
        """
        check_pictures(x, self.channels, "PlainClassifier")
        return self.readout(self.features(x).mean((-2, -1)))


def fields(width: int, stages: int) -> list[int]:
    """List the number of fields after every convolution: `width` in the first stage, twice as many in the others."""
    return [width if stage == 0 else 2 * width for stage in range(stages) for _ in range(2)]


def check_classifier(name: str, classes: int, width: int, stages: int, kernel: int, channels: int) -> None:
    """Check the sizes of a classifier.

    Raises:
        RepresentationError: a number is not whole or below 1, or the kernel is even.
    """
    check_numbers(
        name, odd=("kernel",), classes=classes, width=width, stages=stages, kernel=kernel, channels=channels
    )


def check_pictures(x: Tensor, channels: int, name: str) -> None:
    """Check a batch of pictures.

    Raises:
        RepresentationError: the shape is not (batch, channels, H, W), or the dtype is an integer one.
        NonFiniteError: a value is NaN or infinite.
    """
    if x.dim() != 4 or x.shape[1] != channels or not x.numel() or not x.is_floating_point():
        raise RepresentationError(
            f"{name}: expected pictures of shape (batch, {channels}, H, W), floating, got {tuple(x.shape)} of {x.dtype}"
        )
    check_finite(x, name)
