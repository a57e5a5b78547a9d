"""Lipschitz constants are never below the slopes that are met, and say when ACE's bounds may not use them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equirelax.auditing.lipschitz import (
    BATCH_NORM,
    BIAS,
    GELU_SLOPE,
    SILU_SLOPE,
    lipschitz,
    residual_slope,
    spectral_norm,
)
from equirelax.relaxation import MLP, Dense, EquivariantDense, Layers, Linear, LowRank, relax
from equirelax.symmetry import SO, vector

DIM = 6
REP = 2 * vector(SO(3))


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


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), layers=st.integers(1, 3), hidden=st.integers(1, 9))
def test_constants_of_residuals_are_upper_bounds(seed: int, layers: int, hidden: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    linear = (Dense(init="default"), EquivariantDense(init="default"), LowRank(hidden, "default"))
    for kind in (*linear, MLP(layers, hidden)):
        built = kind.build(REP, REP, -1, generator).double()
        found = lipschitz(built)
        assert found.constant is not None
        assert steepest(built) <= found.constant * (1 + 1e-12)
        assert found.reason == (BIAS if isinstance(kind, MLP) else "")


def test_a_dense_constant_is_met() -> None:
    built = Dense(init="default").build(REP, REP, -1).double()
    top = torch.linalg.svd(built.weight.detach()).Vh[0]
    assert float(built(top).norm().detach()) == pytest.approx(lipschitz(built).constant, rel=1e-12)


@pytest.mark.parametrize(
    "activation",
    [nn.Identity(), nn.ReLU(), nn.LeakyReLU(0.3), nn.LeakyReLU(-2.0), nn.ELU(2.0), nn.Tanh(), nn.Softsign(),
     nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.Flatten(), nn.Dropout(0.5).eval()],
    ids=str,
)  # fmt: skip
def test_activations(activation: nn.Module) -> None:
    found = lipschitz(activation)
    assert found.constant is not None
    assert not found.reason
    x = torch.linspace(-8, 8, 200_001, dtype=torch.float64)[:, None]
    y = activation(x)
    assert float(activation(torch.zeros(1, 1)).abs().max()) == 0.0
    slope = float(((y[1:] - y[:-1]) / (x[1:] - x[:-1])).abs().max())
    assert slope <= found.constant * (1 + 1e-9)
    assert slope > 0.99 * found.constant  # and none is larger than it need be


def test_stated_slopes() -> None:
    a = math.sqrt(2)
    largest = 0.5 * (1 + math.erf(a / math.sqrt(2))) + a * math.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
    assert largest <= GELU_SLOPE < largest + 2e-4
    x = 2.3993572805154
    s = 1 / (1 + math.exp(-x))
    assert s * (1 + x * (1 - s)) <= SILU_SLOPE < s * (1 + x * (1 - s)) + 2e-4


def test_what_bounds_may_not_use() -> None:
    assert lipschitz(nn.Linear(3, 3)).reason == BIAS
    assert lipschitz(nn.Linear(3, 3, bias=False)).reason == ""
    norm = nn.BatchNorm1d(DIM).double()
    norm(torch.randn(50, DIM, dtype=torch.float64) * torch.arange(1, DIM + 1))
    norm.eval()
    assert lipschitz(norm).reason == BATCH_NORM
    assert lipschitz(norm).constant == pytest.approx(steepest(norm), rel=0.2)
    assert steepest(norm) <= lipschitz(norm).constant
    assert lipschitz(nn.BatchNorm1d(DIM, track_running_stats=False)).constant is None
    assert "Softmax" in lipschitz(nn.Softmax(-1)).reason
    assert lipschitz(nn.Softmax(-1)).constant is None


def test_a_sequence_multiplies_and_keeps_the_first_reason() -> None:
    pair = nn.Sequential(nn.Linear(DIM, DIM, bias=False), nn.SiLU(), nn.Linear(DIM, DIM)).double()
    found = lipschitz(pair)
    expected = spectral_norm(pair[0].weight) * SILU_SLOPE * spectral_norm(pair[2].weight)
    assert found.constant == pytest.approx(expected)
    assert found.reason == BIAS
    assert lipschitz(nn.Sequential(nn.Softmax(-1), nn.Linear(2, 2))).constant is None


def test_a_linear_map_with_a_forward_of_its_own_is_unknown() -> None:
    class Squared(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) ** 2

    assert lipschitz(Squared(2, 2)).constant is None


def test_residuals_go_by_their_maps() -> None:
    model = nn.Sequential(nn.Linear(DIM, DIM, bias=False))
    relaxation = relax(model, Layers(residual=Dense(init="default"), declare=(Linear("0", REP, REP),)))
    assert residual_slope(relaxation["0"]) == lipschitz(relaxation["0"].map)
