"""The edge features of networks on molecules: distance, smooth cutoff, direction."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from equirelax.errors import NonFiniteError
from equirelax_lab.models.exact import Exact
from equirelax_lab.models.radius import radius_graph
from equirelax_lab.models.readable import values_are_readable


class Pairs(NamedTuple):
    """Edges between atoms closer than the cutoff: source and target (e,), distances (e,), unit vectors (3, e) from target
    to source, envelope (e,)."""

    source: Tensor
    target: Tensor
    distances: Tensor
    directions: Tensor
    envelope: Tensor


def envelope(distances: Tensor, cutoff: float) -> Tensor:
    """Compute 1 - 10 u^3 + 15 u^4 - 6 u^5, u = r / cutoff: 1 at 0, 0 beyond the cutoff, with two continuous derivatives."""
    u = (distances / cutoff).clamp(max=1)
    return 1 - u**3 * (10 - 15 * u + 6 * u**2)


def pairs(positions: Tensor, batch: Tensor, cutoff: float, name: str) -> Pairs:
    """Find the edges of every molecule, differentiably in the positions.

    Args:
        positions: (n, 3), in the unit of the cutoff.
        batch: (n,) long, the molecule of every atom.
        name: The model's name, for messages.

    Raises:
        NonFiniteError: two atoms of one molecule are at the same place, so that their direction and the forces are
            undefined. This is not checked under `torch.compile` and `torch.func.vmap`.
    """
    edge_index = radius_graph(positions, batch, cutoff)
    source, target = edge_index[0], edge_index[1]
    columns = positions.t()
    relative = columns.index_select(1, source) - columns.index_select(1, target)  # (3, e)
    squares = relative.square().sum(0)
    if values_are_readable() and bool((squares == 0).any()):
        first = int((squares == 0).nonzero()[0])
        raise NonFiniteError(
            f"{name}: atoms {int(target[first])} and {int(source[first])} of one molecule are at the same place, so that "
            "their direction is undefined; remove one of them, or check `batch`"
        )
    distances = squares.sqrt()
    return Pairs(source, target, distances, relative / distances, envelope(distances, cutoff))


class GaussianBasis(nn.Module):
    """Gaussians with centres spaced evenly over [0, cutoff] and a width equal to their spacing.

    Args:
        count: number of Gaussians, at least 2.
        cutoff: cutoff radius, in the unit of the distances.
    """

    def __init__(self, count: int, cutoff: float) -> None:
        super().__init__()
        self.count, self.cutoff = count, cutoff
        self.spacing = cutoff / (count - 1)
        self.centres = Exact(torch.linspace(0, cutoff, count, dtype=torch.float64)[:, None])

    def forward(self, distances: Tensor) -> Tensor:
        """(e,) -> (count, e)."""
        return (-0.5 * ((distances - self.centres.like(distances)) / self.spacing).square()).exp()


class RadialWeights(nn.Module):
    """A perceptron that maps the radial basis to the weights of a product for every edge; SiLU, two hidden layers.

    Its last biases start at 1, so that products start with about equal weights.

    Args:
        basis: number of radial functions.
        hidden: width of the hidden layers.
        out: number of weights.
    """

    def __init__(self, basis: int, hidden: int, out: int) -> None:
        super().__init__()
        sizes = [basis, hidden, hidden, out]
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(b, a) / a**0.5) for a, b in pairwise(sizes))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(b, 1)) for b in sizes[1:])
        with torch.no_grad():
            self.biases[-1].fill_(1)

    def forward(self, basis: Tensor) -> Tensor:
        """(basis, e) -> (out, e)."""
        x = basis
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.addmm(bias, weight, nn.functional.silu(x) if k else x)
        return x
