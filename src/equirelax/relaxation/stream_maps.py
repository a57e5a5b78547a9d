"""What a residual stream is made of: one linear map with batch normalisation for every block that it passes.

    s_0 = start(x)                   x: an input of the model; where its size is not the stream's
    s_i = W_i batchnorm_i(s_{i-1}) + b_i

ACE's residuals on SchNet, and, with W_i divided by its largest singular value, on EGNO (arXiv 2505.13631, experiments).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equirelax.relaxation.maps import ResidualKind, in_backward
from equirelax.relaxation.spec import spec
from equirelax.symmetry import Representation

WARM_UP = 15
"""Power iterations at construction, from a random vector."""


class SpectralLinear(nn.Linear):
    """`(W / sigma) x + b`, sigma the largest singular value of W (Miyato et al., arXiv 1802.05957).

    sigma is estimated by one step of the power iteration in every training-mode call with gradients; between them
    the estimate's vectors stay. In contrast to torch's parametrisation the module can be pickled, and a recomputation
    by gradient checkpointing sees the estimate of the call that it repeats.

    Args:
        in_features, out_features: sizes. generator: for the power iteration's first vector.
    """

    left: Tensor
    right: Tensor

    def __init__(self, in_features: int, out_features: int, generator: torch.Generator | None = None) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("left", torch.empty(out_features))
        self.register_buffer("right", torch.empty(in_features))
        self.reset_estimate(generator)

    @torch.no_grad()
    def reset_estimate(self, generator: torch.Generator | None = None) -> None:
        """Estimate sigma anew: after the weight was set by hand."""
        self.left.normal_(generator=generator)
        for _ in range(WARM_UP):
            self._iterate()

    @torch.no_grad()
    def _iterate(self) -> None:
        tiny = torch.finfo(self.weight.dtype).tiny
        self.right.copy_(nn.functional.normalize(self.weight.T @ self.left, dim=0, eps=tiny))
        self.left.copy_(nn.functional.normalize(self.weight @ self.right, dim=0, eps=tiny))

    def effective_weight(self) -> Tensor:
        """W / sigma by the present estimate, (out_features, in_features)."""
        # copies: the buffers move on before a backward may need them
        left, right = self.left.clone(), self.right.clone()
        return self.weight / torch.dot(left, self.weight @ right)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        if self.training and torch.is_grad_enabled() and not in_backward():
            self._iterate()
        return nn.functional.linear(x, self.effective_weight(), self.bias)


class StreamMap(nn.Module):
    """One step of a stream, `s -> W batchnorm(s) + b` on rows (rows, width), and the stream's start.

    Args:
        width: of the stream.
        in_dim: size of the model's input where this step has to bring it to `width` first; None elsewhere.
        spectral: divide weights by their largest singular value.
        generator: for the initial weights, PyTorch's uniform ones within 1/sqrt(fan-in).
    """

    def __init__(
        self, width: int, in_dim: int | None, spectral: bool, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.start = None if in_dim is None else _linear(in_dim, width, spectral, generator)
        self.norm = nn.BatchNorm1d(width)
        self.linear = _linear(width, width, spectral, generator)

    def begin(self, x: Tensor) -> Tensor:
        """The stream's first value from the model's input x (rows, in_dim): (rows, width)."""
        return x if self.start is None else self.start(x)

    def forward(self, s: Tensor, scale: Tensor | None = None) -> Tensor:
        """The stream's next value, times `scale`: (rows, width) -> (rows, width)."""
        if self.training and in_backward():
            # gradient checkpointing calls again: the running statistics have counted this batch
            normal = nn.functional.batch_norm(
                s, None, None, self.norm.weight, self.norm.bias, True, eps=self.norm.eps
            )
        else:
            normal = self.norm(s)
        s = self.linear(normal)
        return s if scale is None else scale * s

    def frozen_start(self) -> Callable[[Tensor], Tensor]:
        """`begin` without side effects."""
        return (lambda x: x) if self.start is None else _frozen(self.start)

    def frozen(self, s: Tensor) -> Callable[[Tensor], Tensor]:
        """The step as the per-row map that it is once the batch's statistics are given: for derivatives.

        Without side effects; differentiable by the row and by the parameters, not through the statistics.

        Args:
            s: the rows (rows, width) whose statistics are used in training mode; else the running ones are.
        """
        norm = self.norm
        mean, variance = norm.running_mean, norm.running_var
        if self.training or mean is None or variance is None:
            mean, variance = s.detach().mean(dim=0), s.detach().var(dim=0, unbiased=False)
        shift, spread = mean.clone(), (variance + norm.eps).rsqrt()
        linear = _frozen(self.linear)
        return lambda row: linear((row - shift) * (spread * norm.weight) + norm.bias)


def _linear(in_dim: int, out_dim: int, spectral: bool, generator: torch.Generator | None) -> nn.Linear:
    made = nn.Linear(in_dim, out_dim) if not spectral else SpectralLinear(in_dim, out_dim, generator)
    bound = 1 / math.sqrt(in_dim)
    with torch.no_grad():
        for parameter in (made.weight, made.bias):
            parameter.uniform_(-bound, bound, generator=generator)
    if isinstance(made, SpectralLinear):
        made.reset_estimate(generator)
    return made


def _frozen(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = linear.effective_weight() if isinstance(linear, SpectralLinear) else linear.weight
    return lambda x: nn.functional.linear(x, weight, linear.bias)


@spec("stream-step")
@dataclass(frozen=True)
class StreamStep(ResidualKind):
    """A `StreamMap`, for sites that are in a stream.

    Args:
        spectral: divide every weight by its largest singular value (ACE on EGNO).
        first: whether this is the stream's first step, which brings the model's input to the stream's width
            where they differ; placements set it.
    """

    spectral: bool = False
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
        return StreamMap(out_rep.dim, in_rep.dim if starts else None, self.spectral, generator)

    def count(self, in_dim: int, out_dim: int) -> int:
        """Weights and biases of the linear map, of the normalisation, and of the start where there is one."""
        start = (in_dim + 1) * out_dim if self.first and in_dim != out_dim else 0
        return start + 2 * out_dim + (out_dim + 1) * out_dim
