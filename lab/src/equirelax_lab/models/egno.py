"""EGNO: E(3)-equivariant graph neural operator, which predicts positions at several later times at once.

Xu, Han, Lou, Kossaifi, Ramanathan, Azizzadenesheli, Leskovec, Ermon, Anandkumar: "Equivariant graph neural operator for
modeling 3D dynamics", ICML 2024 (arXiv 2401.11037), sections 4.1 (temporal convolution) and 4.2 (the layers).
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.egnn import EGNNLayer
from equirelax_lab.models.exact import Exact
from equirelax_lab.models.stack import centres

SHIFT_LIMIT = 100.0
"""Longest step of a node in one layer, in the unit of the positions."""


class TemporalConvolution(nn.Module):
    """Mixes channels frequency by frequency in time, F^-1(W_k F(x)_k) for the first `modes` frequencies k (equation 6); the
    other frequencies are dropped.

    The Fourier transform over the few steps is a product with a small real matrix, exact in every precision and
    possible under autocast. Frequency 0, and the highest one of an even number of steps, are real: only the real part of
    their weights counts.

    Args:
        channels: c.
        steps: number T of time steps.
        modes: how many frequencies, 1 .. T // 2 + 1.
        init: the initial weights are drawn from U(0, init); None for 1 / c^2, as in Fourier neural operators.
    """

    def __init__(self, channels: int, steps: int, modes: int, init: float | None = None) -> None:
        super().__init__()
        self.channels, self.steps, self.modes = channels, steps, modes
        size = 1 / channels**2 if init is None else init
        # real and imaginary part last; small and positive
        self.weight = nn.Parameter(torch.rand(channels, channels, modes, 2) * size)
        analysis, synthesis = fourier_rows(steps, modes)
        self._analysis, self._synthesis = Exact(analysis), Exact(synthesis)

    def forward(self, x: Tensor) -> Tensor:
        """x (steps, ..., channels) -> the same shape."""
        analysis, synthesis = self._analysis.like(x), self._synthesis.like(x)
        rows = x[0].numel() // self.channels
        spectrum = (analysis @ x.flatten(1)).view(len(analysis), rows, self.channels)
        mixed, row = [], 0
        for mode in range(self.modes):
            real, imaginary = self.weight[:, :, mode].unbind(-1)
            if self._is_real(mode):
                mixed.append(spectrum[row] @ real)
                row += 1
            else:
                re, im = spectrum[row], spectrum[row + 1]
                mixed += [re @ real - im @ imaginary, re @ imaginary + im @ real]
                row += 2
        return (synthesis @ torch.stack(mixed).flatten(1)).view_as(x)

    def _is_real(self, mode: int) -> bool:
        return mode == 0 or 2 * mode == self.steps


def fourier_rows(steps: int, modes: int) -> tuple[Tensor, Tensor]:
    """Matrices that map T values to real and imaginary parts of their first frequencies, (rows, T), and back, (T, rows), float64.

    Rows: the real part of every frequency, followed by its imaginary part unless that is always 0 (frequency 0, and
    T / 2 for even T).
    """
    analysis, synthesis = [], []
    time = torch.arange(steps, dtype=torch.float64)
    for mode in range(modes):
        angle = 2 * pi * mode * time / steps
        real = mode == 0 or 2 * mode == steps
        for row in (angle.cos(),) if real else (angle.cos(), -angle.sin()):
            analysis.append(row)
            synthesis.append(row * (1 if real else 2) / steps)
    return torch.stack(analysis), torch.stack(synthesis, dim=1)


def time_embedding(steps: int, size: int) -> Tensor:
    """[sin, cos](t 10000^(-k / (size / 2 - 1))) for t = 0 .. steps - 1 and k = 0 .. size / 2 - 1: (steps, size),
    float64."""
    half = size // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / max(half - 1, 1))
    angles = torch.arange(steps, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class EGNOLayer(EGNNLayer):
    """EGNN's layer with EGNO's changes: h is replaced instead of updated by addition, steps have a limit, and the coordinate
    network has a last bias and PyTorch's initial weights.
    """

    def __init__(self, hidden: int, edge_features: int = 0) -> None:
        super().__init__(hidden, edge_features, skip=False, limit=SHIFT_LIMIT)
        self.coordinate[2] = nn.Linear(hidden, 1)


class EGNO(nn.Module):
    """Predicts positions at several later times from positions and velocities; E(3)-equivariant, including reflections, for
    given node and edge features.

    The nodes are copied for every time step and get a time embedding. Before every layer of message passing
    within the steps, two temporal convolutions mix the steps: one of the features h, added through a LeakyReLU, and
    one of [x - mean, v], added directly, where the mean is that of the graph's input positions.

    Steps longer than `SHIFT_LIMIT` in one layer are shortened to it. The published code limits the components instead,
    which is not equivariant; where nothing is limited the two are equal.

    Args:
        hidden: width of features and messages.
        layers: number of layers, each with its temporal convolutions (>= 1).
        in_features: number of invariant node features.
        edge_features: number of invariant edge features, 0 for none.
        steps: number T of times (>= 1).
        modes: frequencies that the convolutions keep, 1 .. T // 2 + 1.
        time_features: size of the time embedding, an even number from 2 on.
        vector_init: the initial weights of the temporal convolutions of [x - mean, v] are drawn from U(0, vector_init). The
            published code has 0.1; 0.25 is the rule for the features, 1 / channels^2.

    Raises:
        RepresentationError: a size is out of its range.
    """

    def __init__(
        self,
        hidden: int = 128,
        layers: int = 6,
        in_features: int = 2,
        edge_features: int = 2,
        steps: int = 5,
        modes: int = 2,
        time_features: int = 32,
        vector_init: float = 0.25,
    ) -> None:
        super().__init__()
        if min(hidden, layers, in_features, steps) < 1 or edge_features < 0:
            raise RepresentationError(
                "EGNO: hidden, layers, in_features and steps must be at least 1 and edge_features at least 0, got "
                f"{hidden}, {layers}, {in_features}, {steps}, {edge_features}"
            )
        if not 1 <= modes <= steps // 2 + 1:
            raise RepresentationError(
                f"EGNO: {steps} steps have {steps // 2 + 1} frequencies; modes={modes} must be 1 to that number"
            )
        if time_features < 2 or time_features % 2:
            raise RepresentationError(f"EGNO: time_features must be even and at least 2, got {time_features}")
        self.in_features, self.edge_features, self.steps = in_features, edge_features, steps
        self.embedding = nn.Linear(in_features + time_features, hidden)
        self.time_features = nn.ModuleList(TemporalConvolution(hidden, steps, modes) for _ in range(layers))
        self.time_vectors = nn.ModuleList(
            TemporalConvolution(2, steps, modes, vector_init) for _ in range(layers)
        )
        self.layers = nn.ModuleList(EGNOLayer(hidden, edge_features) for _ in range(layers))
        self._times = Exact(time_embedding(steps, time_features))

    def forward(
        self,
        positions: Tensor,
        velocities: Tensor,
        features: Tensor,
        edge_index: Tensor,
        edge_features: Tensor | None = None,
        graph: Tensor | None = None,
    ) -> Tensor:
        """Predict positions (n, steps, 3) at the later times.

        Args:
            positions, velocities: (n, 3).
            features: (n, in_features).
            edge_index: (2, e) long, rows source and target.
            edge_features: (e, edge_features), or None.
            graph: (n,) long, the graph of every node, numbers 0 to n - 1 in any order; None means one graph.

        Raises:
            RepresentationError: the network was built for another number of node or edge features.
        """
        return self.states(positions, velocities, features, edge_index, edge_features, graph)[0].transpose(
            0, 1
        )

    def states(
        self,
        positions: Tensor,
        velocities: Tensor,
        features: Tensor,
        edge_index: Tensor,
        edge_features: Tensor | None = None,
        graph: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute positions, velocities (steps, n, 3) and features (steps, n, hidden) after the last layer."""
        given = 0 if edge_features is None else edge_features.shape[1]
        if features.shape[1] != self.in_features or given != self.edge_features:
            raise RepresentationError(
                f"EGNO: got {features.shape[1]} node and {given} edge features, but was built with "
                f"in_features={self.in_features}, edge_features={self.edge_features}"
            )
        steps, n = self.steps, positions.shape[0]
        times = self._times.like(features)[:, None].expand(-1, n, -1)
        inputs = torch.cat([features.expand(steps, -1, -1), times], dim=2)
        h = self.embedding(inputs.flatten(0, 1)).unflatten(0, (steps, n))  # (steps, n, hidden)
        mean = centres(positions, graph)
        x, v = positions.expand(steps, -1, -1), velocities.expand(steps, -1, -1)
        offsets = n * torch.arange(steps, device=edge_index.device)
        edges = (edge_index[:, None] + offsets[:, None]).flatten(1)  # (2, steps * e)
        if edge_features is not None:
            edge_features = edge_features.repeat(steps, 1)
        for in_time, vectors_in_time, layer in zip(
            self.time_features, self.time_vectors, self.layers, strict=True
        ):
            h = h + nn.functional.leaky_relu(in_time(h))
            vectors = torch.stack([x - mean, v], dim=-1)  # (steps, n, 3, 2)
            vectors = vectors + vectors_in_time(vectors)
            x, v = vectors[..., 0] + mean, vectors[..., 1]
            h, x = layer(h.flatten(0, 1), x.flatten(0, 1), v.flatten(0, 1), edges, edge_features)
            h, x = h.unflatten(0, (steps, n)), x.unflatten(0, (steps, n))
        return x, v, h
