"""Norms of residuals' maps are never below the slopes that are met, and say when ACE's bounds may not use them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from equirelax.relaxation import (
    MLP,
    Dense,
    Layers,
    Linear,
    LowRank,
    Relaxation,
    ResidualKind,
    ResidualMap,
    relax,
)
from equirelax.relaxation.kinds import EquivariantDense
from equirelax.relaxation.kinds.kind import spectral_norm
from equirelax.relaxation.kinds.mlp import GELU_SLOPE
from equirelax.symmetry import SO, vector

DIM = 6
REP = 2 * vector(SO(3))


class Unknown(ResidualMap):
    """A map of which no constant is known."""


def relaxed(kind: ResidualKind, seed: int = 0) -> Relaxation:
    model = nn.Sequential(nn.Linear(DIM, DIM, bias=False, dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    return relax(model, Layers(residual=kind, declare=(Linear("0", REP, REP),)), generator=generator)


def steepest(function: nn.Module, dim: int = DIM, pairs: int = 400) -> float:
    """The largest slope between pairs of points, near and far."""
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(pairs, dim, generator=generator, dtype=torch.float64)
    steps = torch.logspace(-3, 1, pairs, dtype=torch.float64)[:, None]
    y = x + steps * torch.randn(pairs, dim, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        return float(((function(x) - function(y)).norm(dim=-1) / (x - y).norm(dim=-1)).max())


def test_spectral_norms() -> None:
    assert spectral_norm(torch.diag(torch.tensor([1.0, -3.0]))) == pytest.approx(3.0)
    assert spectral_norm(torch.zeros(0, 4)) == 0.0
    assert math.isnan(spectral_norm(torch.full((2, 2), float("inf"))))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), layers=st.integers(1, 3), hidden=st.integers(1, 9))
def test_constants_of_residuals_are_upper_bounds(seed: int, layers: int, hidden: int) -> None:
    linear = (
        Dense("default"),
        EquivariantDense("default"),
        LowRank(hidden, "default"),
    )
    for kind in (*linear, MLP(layers, hidden), Dense("default", bias=True)):
        relaxation = relaxed(kind, seed)
        residual = relaxation["0"]
        if isinstance(kind, Dense) and kind.bias:
            nn.init.ones_(residual.map.bias)
        found = residual.slope()
        assert found.constant is not None
        assert steepest(residual.map) <= found.constant * (1 + 1e-12)
        assert bool(found.reason) is (isinstance(kind, MLP) or getattr(kind, "bias", False))
        assert relaxation.norms() == {"0": found.constant}


def test_a_dense_constant_is_met() -> None:
    residual = relaxed(Dense("default"))["0"]
    top = torch.linalg.svd(residual.map.weight.detach()).Vh[0]
    constant = residual.slope().constant
    assert float(residual.map(top).norm().detach()) == pytest.approx(constant, rel=1e-12)


def test_the_slope_of_gelu() -> None:
    a = math.sqrt(2)
    largest = 0.5 * (1 + math.erf(a / math.sqrt(2))) + a * math.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
    assert largest <= GELU_SLOPE < largest + 2e-4


def test_a_map_of_unknown_kind_has_none() -> None:
    relaxation = relaxed(Dense("default"))
    relaxation["0"].map = Unknown()
    assert relaxation["0"].slope().constant is None
    assert "Unknown" in relaxation["0"].slope().reason
    assert relaxation.norms() == {}
