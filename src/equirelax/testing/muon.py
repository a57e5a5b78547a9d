"""A slow reference for the first step of `equirelax.optim.Muon`, written without its code.

The positions of weights in e3nn's layers are not read from the layers' instructions. The dense matrix of a layer is computed
with numbered weights, so that every entry of the matrix identifies its weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.relaxation.kinds import ResidualMap
from equirelax.testing.checks import check

POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""Coefficients of s, s^3 and s^5 for singular values s; Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/."""
LEAST_NORM = 1e-7
MOMENTUM, EPSILON = 0.95, 1e-8
ABSENT = 1e-9
"""Entries of a dense matrix below this fraction of the largest count as zero."""


def slow_muon_step(
    network: nn.Module, author: nn.Module, lr: float, no_matrices: Sequence[str] = ()
) -> tuple[dict[str, Tensor], int]:
    """Compute the parameters after the first step of ``Muon(network, lr)``, one matrix at a time by its singular values.

    Args:
        network: The network, relaxed or not, with gradients. Parameters without a gradient do not move.
        author: The network before it was relaxed, whose layers can be called without residuals.
        lr: Learning rate.
        no_matrices: Patterns of names of parameters that are left to Adam although they have several axes.

    Returns:
        The values by name of the parameter, and the number of matrices among them.
    """
    plain, tables = dict(author.named_modules()), _tables(network)
    found, count = {}, 0
    for path, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            value = parameter.detach().clone()
            if parameter.grad is not None:
                gradient = parameter.grad.reshape(-1)
                flat = value.reshape(-1)
                moved = flat - lr * gradient / (gradient.abs() + EPSILON)  # the first step of Adam
                none = parameter in tables or any(fnmatchcase(full, pattern) for pattern in no_matrices)
                known = [] if none else _blocks(plain.get(path, module), name, parameter)
                for block in known:
                    if min(block.shape) > 1:
                        moved[block] = flat[block] - lr * math.sqrt(max(block.shape)) * _newton_schulz(
                            gradient[block]
                        )
                        count += 1
                value = moved.view(value.shape)
            found[full] = value
    return found, count


def _newton_schulz(gradient: Tensor) -> Tensor:
    """Do five Newton-Schulz steps on one matrix, by applying the polynomial to every singular value."""
    momentum = (1 - MOMENTUM) * gradient
    averaged = (1 - MOMENTUM) * gradient + MOMENTUM * momentum
    u, s, vh = torch.linalg.svd(averaged / averaged.norm().clamp(min=LEAST_NORM), full_matrices=False)
    a, b, c = POLYNOMIAL
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ vh


def _tables(network: nn.Module) -> set[nn.Parameter]:
    """The embedding tables, even if they are also used elsewhere."""
    return {
        table
        for module in network.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for table in module.parameters(recurse=False)
    }


def _blocks(module: nn.Module, name: str, parameter: Tensor) -> list[Tensor]:
    """The matrices within a parameter, each as the flat indices of its entries, (rows, columns)."""
    indices = torch.arange(parameter.numel())
    if isinstance(module, ResidualMap) and parameter.dim() == 3:
        return list(indices.view(parameter.shape))  # a residual of groups
    if parameter.dim() == 1 and name == "weight" and hasattr(module, "instructions"):
        return list(_dense_blocks(module, parameter))
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm):
        return []
    if isinstance(module, nn.modules.conv._ConvNd) and name == "weight":
        return [part.reshape(len(part), -1) for part in indices.view(parameter.shape).chunk(module.groups)]
    if parameter.dim() > 1 and parameter.numel():
        return [indices.view(len(parameter), -1)]
    return []


def _dense_blocks(layer: Any, weight: Tensor) -> Iterator[Tensor]:
    """Find the positions of a layer's weights in its dense matrices, one for every basis vector of a second input.

    The block from the copies of one irrep to those of another is a matrix if every entry of it has a weight.
    """
    first = layer.irreps_in if hasattr(layer, "irreps_in") else layer.irreps_in1
    second = None if hasattr(layer, "irreps_in") else layer.irreps_in2
    ins, outs = (
        list(zip(first, first.slices(), strict=True)),
        list(zip(layer.irreps_out, layer.irreps_out.slices(), strict=True)),
    )
    known: set[frozenset[int]] = set()
    for vector in [None] if second is None else list(torch.eye(second.dim).to(weight)):
        coefficients, number = _standing(layer, weight, first.dim, vector)
        for (copies_in, ir_in), rows in ins:
            for (copies_out, ir_out), columns in outs:
                shape = (copies_in, ir_in.dim, copies_out, ir_out.dim)
                size = coefficients[rows, columns].reshape(shape).abs().sum((0, 2))
                if not size.any():
                    continue
                m, n = divmod(int(size.argmax()), ir_out.dim)
                block = number[rows, columns].reshape(shape)[:, m, :, n]
                entries = frozenset(block.flatten().tolist())
                if -1 not in entries and entries not in known:
                    known.add(entries)
                    yield block


def _standing(layer: Any, weight: Tensor, dim: int, second: Tensor | None) -> tuple[Tensor, Tensor]:
    """The dense matrix of a layer for weights 1, and the number of the weight at every entry, -1 for none."""
    counted = torch.arange(1, weight.numel() + 1).to(weight)
    eye = torch.eye(dim).to(weight)
    inputs = (eye,) if second is None else (eye, second.expand(dim, -1))

    def matrix(values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": values}, inputs).detach()

    nothing = matrix(torch.zeros_like(weight))  # the bias
    one, once, squared = (matrix(counted**power) - nothing for power in (0, 1, 2))
    there = squared.abs() > ABSENT * squared.abs().max()
    number = torch.where(there, once / torch.where(there, one, torch.ones_like(one)), torch.zeros_like(one))
    check(
        bool(torch.allclose(squared, one * number.square(), rtol=1e-6, atol=1e-6)),
        f"{type(layer).__name__}: an entry of its dense matrix depends on several weights",
    )
    return one, number.round().long() - 1
