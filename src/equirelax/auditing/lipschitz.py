"""How steep the maps of residuals are, from the largest singular values of their weights."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from equirelax.relaxation import Relaxation, Residual, StreamResidual
from equirelax.relaxation.conv_maps import ConvMap, LowRankConvMap
from equirelax.relaxation.maps import LinearMap, MLPMap
from equirelax.relaxation.stream_maps import SpectralLinear

GELU_SLOPE = 1.1290  # the largest slope of x Phi(x), at sqrt 2; of its tanh form too, rounded up


@dataclasses.dataclass(frozen=True)
class Lipschitz:
    """``|f(x) - f(y)| <= constant |x - y|`` (``None``: not known), and why ACE's bounds may not use it, if so."""

    constant: float | None
    reason: str = ""


def spectral_norm(weight: Tensor) -> float:
    """The largest singular value of a matrix, in float64; 0 of an empty one, NaN where it is not finite."""
    weight = weight.detach().double()
    if not weight.numel() or not bool(torch.isfinite(weight).all()):
        return float("nan") if weight.numel() else 0.0
    # the root of the largest eigenvalue of the smaller Gram matrix: as exact, and many times faster than an SVD
    scale = weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    weight = (weight if weight.shape[0] <= weight.shape[1] else weight.T) / scale
    return float(scale * torch.linalg.eigvalsh(weight @ weight.T)[-1].clamp_min(0).sqrt())


def residual_norms(relaxation: Relaxation) -> dict[str, float]:
    """Key -> norm of every residual's map that has one."""
    found = {key: residual_slope(residual).constant for key, residual in relaxation}
    return {key: value for key, value in found.items() if value is not None}


def residual_slope(residual: Residual) -> Lipschitz:
    """The constant of a residual's map without gamma: the norm of a linear one; for a convolution the sum over its
    kernel's offsets and for a perceptron the product over its layers, both upper bounds; of a stream, which is affine in
    evaluation, from the model's input to what is added here.
    """
    map_ = residual.map
    biases: list[Tensor] = []
    if isinstance(residual, StreamResidual):
        return Lipschitz(
            _stream(residual), "batch norm: its scale and shift are those of the batches it was trained on"
        )
    if isinstance(map_, MLPMap):
        layers = [layer for layer in map_.layers if isinstance(layer, nn.Linear)]
        biases, norms = [layer.bias for layer in layers], [spectral_norm(layer.weight) for layer in layers]
        constant = math.prod(norms) * GELU_SLOPE ** (len(norms) - 1)
    elif isinstance(map_, (ConvMap, LowRankConvMap)):
        if map_.convolution.padding_mode not in ("zeros", "circular"):
            return Lipschitz(None, "its padding repeats pixels, which makes it steeper than its kernel")
        constant = sum(map(spectral_norm, map_.effective_weight().flatten(2).unbind(-1)))
    elif isinstance(map_, LinearMap):
        constant = spectral_norm(map_.effective_weight())
    else:
        return Lipschitz(None, f"no Lipschitz constant is known of {type(map_).__name__}")
    if isinstance(map_, LinearMap):
        biases = [bias for bias in (map_.effective_bias(),) if bias is not None]
    zero = not any(bool(bias.detach().any()) for bias in biases)
    return Lipschitz(constant, "" if zero else "it has a bias, so that f(0) is not 0")


def _stream(residual: StreamResidual) -> float:
    start = residual.default_path()[0].map.start
    matrix = torch.eye(residual.in_rep.dim, dtype=torch.float64) if start is None else _weight(start)
    for member in residual.default_path():
        norm = member.map.norm
        scale = norm.weight.detach().double() * (norm.running_var.double() + norm.eps).rsqrt()
        matrix = _weight(member.map.linear) @ (scale[:, None] * matrix)
    return spectral_norm(matrix)


def _weight(linear: nn.Linear) -> Tensor:
    weight = linear.effective_weight() if isinstance(linear, SpectralLinear) else linear.weight
    return weight.detach().double()
