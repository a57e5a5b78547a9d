"""How steep a map can be: Lipschitz constants of linear maps, perceptrons and activations, from spectral norms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from equirelax.relaxation import Relaxation, Residual
from equirelax.relaxation.conv_maps import ConvMap, LowRankConvMap
from equirelax.relaxation.grouped import GroupedMap
from equirelax.relaxation.maps import DenseMap, LinearMap, LowRankMap, MLPMap
from equirelax.relaxation.stream_maps import RowNorm, SpectralLinear, StreamMap
from equirelax.relaxation.streams import StreamResidual

GELU_SLOPE = (
    1.1290  # the largest slope of x Phi(x), Phi(a) + a phi(a) at a = sqrt 2; of its tanh form too, rounded up
)
SILU_SLOPE = 1.0999  # the largest slope of x sigmoid(x), met at 2.3994, rounded up

BIAS = "it has a bias, so that f(0) is not 0"
REPEATS = "its padding repeats pixels, which makes it steeper than its kernel"
BATCH_NORM = "batch norm: its scale and shift are those of the batches it was trained on"


@dataclasses.dataclass(frozen=True)
class Lipschitz:
    """A Lipschitz constant, and why ACE's bounds may not use it.

    Attributes:
        constant: ``|f(x) - f(y)| <= constant |x - y|`` in evaluation mode, an upper bound; ``None`` where none
            is known.
        reason: why the bounds (which need such a constant and f(0) = 0) do not hold for this map; empty where
            they do.
    """

    constant: float | None
    reason: str = ""


def spectral_norm(weight: Tensor) -> float:
    """The largest singular value of a matrix, in float64; 0 of an empty one, NaN where it is not finite."""
    weight = weight.detach().double()
    if not weight.numel():
        return 0.0
    if not bool(torch.isfinite(weight).all()):
        return float("nan")
    # the root of the largest eigenvalue of the smaller Gram matrix: as exact, and many times faster than an SVD
    scale = weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    weight = weight / scale
    gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    return float(scale * torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt())


def residual_norms(relaxation: Relaxation) -> dict[str, float]:
    """Key -> ||W|| of every residual that has one (see :func:`residual_slope`)."""
    found = {key: residual_slope(residual).constant for key, residual in relaxation}
    return {key: value for key, value in found.items() if value is not None}


def residual_slope(residual: Residual) -> Lipschitz:
    """The constant of a residual's map, gamma left out; of a stream, from the model's input to what is added here."""
    if not isinstance(residual, StreamResidual):
        return lipschitz(residual.map)
    matrix: Tensor | None = None  # in evaluation a stream is affine: the product of its steps
    for index, member in enumerate(residual.default_path()):
        step = _step_matrix(member.map, first=index == 0)
        matrix = step if matrix is None else step @ matrix
    return Lipschitz(None if matrix is None else spectral_norm(matrix), BATCH_NORM)


def _step_matrix(step: StreamMap, first: bool) -> Tensor:
    """The matrix of `W batchnorm(s)` in evaluation, behind the stream's start if it is the first step."""
    matrix = _weight(step.linear) * _scale(step.norm.running_var, step.norm)
    return matrix @ _weight(step.start) if first and step.start is not None else matrix


def _weight(linear: nn.Linear) -> Tensor:
    own = linear.effective_weight() if isinstance(linear, SpectralLinear) else linear.weight
    return own.detach().double()


def lipschitz(module: nn.Module) -> Lipschitz:
    """The constant of a module for features on its last axis (or, of residuals, on their feature axis).

    Known are dense, low-rank, grouped, perceptron and convolution residuals, ``Linear``, batch norm (as it is in evaluation), the
    activations of ``torch.nn`` with f(0) = 0, and ``Sequential`` of all these. A perceptron's constant is the product
    over its layers, a convolution's the sum over its kernel's offsets; the true slopes may stay well below.
    """
    if isinstance(module, LinearMap) and type(module).forward in (
        DenseMap.forward,
        LowRankMap.forward,
        GroupedMap.forward,
    ):
        return Lipschitz(spectral_norm(module.effective_weight()), _bias(module.effective_bias()))
    if isinstance(module, (ConvMap, LowRankConvMap)) and type(module).forward in (
        ConvMap.forward,
        LowRankConvMap.forward,
    ):
        return _convolution(module)
    if isinstance(module, MLPMap) and type(module).forward is MLPMap.forward:
        # gelu(0) = 0, so that f(0) = 0 as soon as no layer has a bias
        return _product([*map(lipschitz, module.layers), Lipschitz(GELU_SLOPE ** (len(module.layers) - 1))])
    if isinstance(module, nn.Linear) and type(module).forward in (nn.Linear.forward, SpectralLinear.forward):
        return Lipschitz(spectral_norm(_weight(module)), _bias(module.bias))
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return _batch_norm(module)
    if type(module) is nn.Sequential:
        return _product(map(lipschitz, module))
    for kind, slope in _SLOPES.items():
        if type(module) is kind:
            return Lipschitz(slope(module))
    return Lipschitz(None, f"no Lipschitz constant is known of {type(module).__name__}")


def _product(parts: Iterable[Lipschitz]) -> Lipschitz:
    constant, reason = 1.0, ""
    for part in parts:
        reason = reason or part.reason
        if part.constant is None:
            return part
        constant *= part.constant
    return Lipschitz(constant, reason)


def _convolution(module: ConvMap | LowRankConvMap) -> Lipschitz:
    """The sum over offsets of the kernel's spectral norms: a shift that fills up with zeros, or goes round, makes no
    field larger, and leaving out pixels (a stride) neither.
    """
    if module.convolution.padding_mode not in ("zeros", "circular"):
        return Lipschitz(None, REPEATS)
    offsets = module.effective_weight().flatten(2).unbind(-1)  # (out, in) each
    return Lipschitz(sum(map(spectral_norm, offsets)), _bias(module.effective_bias()))


def _bias(bias: Tensor | None) -> str:
    return BIAS if bias is not None and bool(bias.detach().abs().max() > 0) else ""


def _batch_norm(module: nn.modules.batchnorm._BatchNorm) -> Lipschitz:
    if module.running_var is None:
        return Lipschitz(None, BATCH_NORM)
    return Lipschitz(float(_scale(module.running_var, module).abs().max()), BATCH_NORM)


def _scale(variance: Tensor, norm: nn.modules.batchnorm._BatchNorm | RowNorm) -> Tensor:
    """What batch norm multiplies every channel by in evaluation, (channels,); variance: its running one."""
    scale = (variance.detach().double() + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight.detach().double()


_SLOPES: dict[type[nn.Module], Callable[..., float]] = {
    nn.Identity: lambda module: 1.0,
    nn.Dropout: lambda module: 1.0,  # in evaluation it does nothing
    nn.Flatten: lambda module: 1.0,
    nn.ReLU: lambda module: 1.0,
    nn.LeakyReLU: lambda module: max(1.0, abs(module.negative_slope)),
    nn.ELU: lambda module: max(1.0, abs(module.alpha)),
    nn.Tanh: lambda module: 1.0,
    nn.Softsign: lambda module: 1.0,
    nn.GELU: lambda module: GELU_SLOPE,
    nn.SiLU: lambda module: SILU_SLOPE,
}
