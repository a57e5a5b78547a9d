"""This project's GroupConv2d against escnn's R2Conv: the same kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equirelax_lab.models import GroupConv2d
from escnn import nn as enn
from escnn_networks import SPACES, draw
from torch import Tensor

from equirelax.symmetry import as_representation
from equirelax.symmetry.escnn import from_field_type

# Narrow rings through every pixel of a 3 x 3 kernel, with every frequency that its pixels can tell apart: then escnn
# leaves no kernel out.
RINGS = [0.0, 1.0, 2.0**0.5]


def types(name: str) -> tuple[Any, Any]:
    """Vector, regular and trivial fields, of groups whose elements come in the same order in both libraries."""
    space = SPACES[name]()
    one = enn.FieldType(space, [space.basespace_action, space.regular_repr, space.trivial_repr])
    return one, enn.FieldType(space, [space.regular_repr, space.basespace_action])


def kernels_of_escnn(layer: Any) -> Tensor:
    """(parameters, entries): the kernel for each weight alone, in float64."""
    eye = torch.eye(len(layer.weights))
    return torch.stack([layer.basisexpansion(row).flatten() for row in eye]).double()


def kernels_of_ours(layer: GroupConv2d) -> Tensor:
    eye = torch.eye(layer.weight.numel(), dtype=layer.weight.dtype)
    with torch.no_grad():
        made = []
        for row in eye:
            layer.weight.copy_(row)
            made.append(layer.kernel().flatten())
    return torch.stack(made).double()


def rank(vectors: Tensor) -> int:
    return int(torch.linalg.matrix_rank(vectors, rtol=1e-4))


@pytest.mark.parametrize("name", ["C2", "C4", "D1", "D4 along x"])
def test_spans_coincide(name: str) -> None:
    in_type, out_type = types(name)
    settings = {"rings": RINGS, "sigma": [0.2] * 3, "frequencies_cutoff": lambda radius: 4.0 * (radius > 0)}
    theirs = kernels_of_escnn(enn.R2Conv(in_type, out_type, 3, recompute=True, **settings))
    ours = kernels_of_ours(GroupConv2d(from_field_type(in_type), from_field_type(out_type), 3))
    assert rank(theirs) == rank(ours) == len(ours)
    assert rank(torch.cat([theirs, ours])) == len(ours)


@pytest.mark.parametrize("size", [3, 5])
def test_by_default_escnn_spans_a_part_of_ours(size: int) -> None:
    in_type, out_type = types("C4")
    theirs = kernels_of_escnn(enn.R2Conv(in_type, out_type, size, recompute=True))
    ours = kernels_of_ours(GroupConv2d(from_field_type(in_type), from_field_type(out_type), size))
    assert rank(theirs) < len(ours)
    assert rank(torch.cat([theirs, ours])) == len(ours)


@pytest.mark.parametrize("name", ["C4", "D4 along x"])
def test_the_same_output_with_the_same_kernel(name: str) -> None:
    in_type, out_type = types(name)
    theirs = enn.R2Conv(in_type, out_type, 3, padding=1, bias=False, recompute=True)
    ours = GroupConv2d(from_field_type(in_type), from_field_type(out_type), 3, bias=False)
    kernel = theirs.expand_parameters()[0].detach()
    with torch.no_grad():
        ours.weight.copy_(ours.coefficients(kernel))
    x = draw(2, in_type.size, 7, 7).float()
    expected = theirs(enn.GeometricTensor(x, in_type)).tensor
    assert torch.allclose(ours(x), expected, rtol=0, atol=1e-5)
    g = from_field_type(in_type).group.elements(torch.float32)[1]
    turned = as_representation(out_type).apply(g, ours(x))
    assert torch.allclose(ours(as_representation(in_type).apply(g, x)), turned, rtol=0, atol=1e-5)
