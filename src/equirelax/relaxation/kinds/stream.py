"""The steps of a residual stream: batch normalisation and a linear map for every block that it passes.

    s_0 = start(x)                              x: an input of the model; start: if its size is not the stream's
    s_i = W_i batchnorm_i(s_{i-1}) + b_i

These are ACE's residuals on SchNet and, with each W_i divided by its largest singular value, on EGNO (arXiv 2505.13631,
experiments). The stream consists only of linear maps, so s_i = A_i x + c_i for every row x, and the mean and variance of
s_i over a batch follow from those of x. A step therefore only maps the small (A, c) to the next (A, c), and rows are
multiplied by it once, where they are used. The results are those of running all rows through every step, also in training
mode, at a fraction of the cost, and the Lie derivative of the whole stream has a closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from equirelax.relaxation.kinds.kind import ResidualKind, ResidualMap, own_draws, register
from equirelax.relaxation.surroundings import in_backward
from equirelax.settings import COUNT, within
from equirelax.symmetry import Representation

WARM_UP = 15
"""Power iterations at construction, from a random vector."""


class Affine(NamedTuple):
    """The map x -> weight x + offset, with weight (out, in) and offset (out,)."""

    weight: Tensor
    offset: Tensor


class Moments(NamedTuple):
    """The number of rows, their mean (dim,), and their covariance (dim, dim), divided by the number."""

    size: int
    mean: Tensor
    covariance: Tensor


def moments(x: Tensor) -> Moments:
    """The moments of the rows of x (rows, dim); zeros if there are no rows."""
    mean = x.mean(dim=0) if len(x) else x.new_zeros(x.shape[1])
    centred = x - mean
    return Moments(x.shape[0], mean, centred.T @ centred / max(x.shape[0], 1))


class SpectralLinear(nn.Linear):
    """`(W / sigma) x + b`, with sigma the largest singular value of W (Miyato et al., arXiv 1802.05957).

    sigma is estimated by `iterations` steps of the power iteration in every training-mode call that has rows. The estimate's
    vectors are kept between calls. Unlike torch's parametrisation, the module can be pickled, and a recomputation by gradient
    checkpointing uses the estimate of the call that it repeats.

    Args:
        in_features, out_features: sizes.
        generator: Random number generator for the first vector of the power iteration.
        iterations: Number of steps of the power iteration.

    Attributes:
        track_running_stats: Whether calls update the estimate; see `ResidualMap`.
    """

    left: Tensor
    right: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        generator: torch.Generator | None = None,
        iterations: int = 1,
    ) -> None:
        super().__init__(in_features, out_features)
        self.iterations = iterations
        self.track_running_stats = True
        self.register_buffer("left", torch.empty(out_features))
        self.register_buffer("right", torch.empty(in_features))
        self.reset_estimate(generator)

    @torch.no_grad()
    def reset_estimate(self, generator: torch.Generator | None = None) -> None:
        """Estimate sigma from the beginning, after the weight was set by hand."""
        self.left.normal_(generator=generator)
        self._power(WARM_UP)

    def iterate(self) -> None:
        """Do the power iteration of a training-mode call."""
        self._power(self.iterations)

    @torch.no_grad()
    def _power(self, steps: int) -> None:
        tiny = torch.finfo(self.weight.dtype).tiny
        for _ in range(steps):
            self.right.copy_(nn.functional.normalize(self.weight.T @ self.left, dim=0, eps=tiny))
            self.left.copy_(nn.functional.normalize(self.weight @ self.right, dim=0, eps=tiny))

    def effective_weight(self) -> Tensor:
        """W / sigma with the current estimate, (out_features, in_features)."""
        # copies, because the buffers change before a backward may need them
        left, right = self.left.clone(), self.right.clone()
        return self.weight / torch.dot(left, self.weight @ right)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in_features) to (..., out_features)."""
        if self.training and self.track_running_stats and x.numel() and not in_backward():
            self.iterate()
        return nn.functional.linear(x, self.effective_weight(), self.bias)


class RowNorm(nn.Module):
    """Batch normalisation of rows, with the names of torch.nn.BatchNorm1d.

    A recomputation by gradient checkpointing does not count twice, and a batch without rows does not count. A `StreamMap` has
    separate arithmetic.

    Args:
        width: number of features.
        eps: added to the variance.
        momentum: momentum of the running statistics.

    Attributes:
        track_running_stats: Whether calls update the running statistics; see `ResidualMap`.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.track_running_stats = True
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (rows, width)."""
        if self.training and x.numel():
            variance, mean = torch.var_mean(x, dim=0, correction=0)
            if self.track_running_stats and not in_backward():
                self.track(mean, variance, x.shape[0])
        else:
            mean, variance = self.running_mean, self.running_var
        return (x - mean) * (self.weight * (variance + self.eps).rsqrt()) + self.bias

    @torch.no_grad()
    def track(self, mean: Tensor, variance: Tensor, size: int) -> None:
        """Update the running statistics by those of a batch of `size` rows, with the variance made unbiased."""
        variance = variance * (size / max(size - 1, 1))
        # torch.func.vmap runs lerp_ member by member, but lerp for all at once
        self.running_mean.copy_(self.running_mean.lerp(mean, self.momentum))
        self.running_var.copy_(self.running_var.lerp(variance, self.momentum))


class StreamMap(ResidualMap):
    """One step of a stream, `s -> W batchnorm(s) + b`, and the stream's start.

    Args:
        width: Width of the stream.
        in_dim: Size of the model's input if this step must first map it to `width`; else None.
        spectral: Whether weights are divided by their largest singular value.
        generator: Random number generator for the initial weights, which are PyTorch's, uniform within 1/sqrt(fan-in).
        iterations, plain_start: See `StreamStep`.
    """

    takes_rows: ClassVar[bool] = False  # using all rows costs less than choosing some

    def __init__(
        self,
        width: int,
        in_dim: int | None,
        spectral: bool,
        generator: torch.Generator | None = None,
        iterations: int = 1,
        plain_start: bool = False,
    ) -> None:
        super().__init__()
        self.feature_axis = -1
        steps = iterations if spectral else 0
        self.start = None if in_dim is None else linear(in_dim, width, 0 if plain_start else steps, generator)
        self.norm = RowNorm(width)
        self.linear = linear(width, width, steps, generator)

    def begin(self, count: bool) -> Affine:
        """The stream's first value, as a map of the model's input. For `count` see `forward`."""
        if self.start is not None:
            return Affine(self._weight(self.start, count), self.start.bias)
        weight = self.norm.weight
        identity = torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device)
        return Affine(identity, torch.zeros_like(identity[0]))

    def forward(self, s: Affine, rows: Moments, count: bool = True) -> Affine:
        """The stream's next value.

        Args:
            s: the current value, as a map of the model's input.
            rows: moments of the model's input, which determine the statistics of the normalisation in training mode.
            count: Whether the call updates the running statistics and the estimate of sigma (in training mode, and
                not in a recomputation by gradient checkpointing).
        """
        mean = s.weight @ rows.mean + s.offset
        if self.training:
            # the diagonal of A C A^T: sums of products of deviations, never a difference of large numbers
            variance = ((s.weight @ rows.covariance) * s.weight).sum(dim=1).clamp(min=0)
            if count and not in_backward():
                self.norm.track(mean, variance, rows.size)
        else:
            mean, variance = self.norm.running_mean, self.norm.running_var
        scale = self.norm.weight * (variance + self.norm.eps).rsqrt()
        weight = self._weight(self.linear, count)
        offset = weight @ (scale * (s.offset - mean) + self.norm.bias) + self.linear.bias
        return Affine(weight @ (scale[:, None] * s.weight), offset)

    def _weight(self, linear: nn.Linear, count: bool) -> Tensor:
        if not isinstance(linear, SpectralLinear):
            return linear.weight
        if count and self.training and not in_backward():
            linear.iterate()
        return linear.effective_weight()


def linear(in_dim: int, out_dim: int, iterations: int, generator: torch.Generator | None = None) -> nn.Linear:
    """A linear map with PyTorch's initial weights; a `SpectralLinear` if `iterations` is above 0."""
    with own_draws(generator):
        plain = not iterations
        made = nn.Linear(in_dim, out_dim) if plain else SpectralLinear(in_dim, out_dim, generator, iterations)
    bound = 1 / math.sqrt(in_dim)
    with torch.no_grad():
        for parameter in (made.weight, made.bias):
            parameter.uniform_(-bound, bound, generator=generator)
    if isinstance(made, SpectralLinear):
        made.reset_estimate(generator)
    return made


@register("stream-step")
@dataclass(frozen=True)
class StreamStep(ResidualKind):
    """A step of a residual stream, batch normalisation and a linear map, for sites in a stream.

    Attributes:
        spectral: Whether every weight is divided by its largest singular value (ACE on EGNO).
        iterations: Steps of the power iteration that estimate it in every training-mode call (ACE's code: 5).
        plain_start: Whether the start's weight is not divided (ACE's code).
        first: Whether this is the stream's first step, which maps the model's input to the stream's width
            if they differ; placements set it.
    """

    for_streams: ClassVar[bool] = True

    spectral: bool = False
    iterations: int = within(COUNT, 1)
    plain_start: bool = False
    first: bool = False

    def build(
        self,
        in_rep: Representation,
        out_rep: Representation,
        feature_axis: int,
        generator: torch.Generator | None = None,
    ) -> StreamMap:
        """A `StreamMap` of width out_rep.dim."""
        starts = self.first and in_rep.dim != out_rep.dim
        start = in_rep.dim if starts else None
        return StreamMap(out_rep.dim, start, self.spectral, generator, self.iterations, self.plain_start)
