"""The bounds hold on random deep vector-neuron networks, and are reached where they should be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equirelax.auditing.bounds import equivariance_bound, projection_bound, residual_lipschitz
from equirelax.errors import AuditError
from equirelax.relaxation import MLP, Layers, Linear, relax
from equirelax.symmetry import SO, vector

torch.set_num_threads(1)


class Shrink(nn.Module):
    """Shortens vectors by at most their own length: x / (1 + |x|), equivariant, Lipschitz constant 1."""

    def forward(self, x: Tensor) -> Tensor:
        v = x.unflatten(-1, (-1, 3))
        return (v / (1 + v.norm(dim=-1, keepdim=True))).flatten(-2)


def network(layers: int, channels: int, gamma: float, seed: int):  # type: ignore[no-untyped-def]
    """`layers` equivariant linear maps of norm 1 with residuals of norm 1, with Lipschitz nonlinearities
    between.
    """
    generator = torch.Generator().manual_seed(seed)
    rep = channels * vector(SO(3))
    modules: list[nn.Module] = []
    for _ in range(layers):
        linear = nn.Linear(rep.dim, rep.dim, bias=False, dtype=torch.float64)
        mix = torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64)).Q
        with torch.no_grad():
            linear.weight.copy_(torch.kron(mix.contiguous(), torch.eye(3)))
        modules += [linear, Shrink()]
    model = nn.Sequential(*modules)
    relaxation = relax(model, Layers(declare=(Linear("Linear", rep, rep),)))
    for _, residual in relaxation:
        weight = torch.randn(rep.dim, rep.dim, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            residual.map.weight.copy_(weight / torch.linalg.matrix_norm(weight, 2))
    relaxation.set_gamma(gamma)
    return model, relaxation, rep


@settings(deadline=None, max_examples=20)
@given(
    layers=st.integers(1, 4),
    channels=st.integers(1, 3),
    gamma=st.floats(-1.0, 1.0),
    seed=st.integers(0, 10_000),
)
def test_bounds_hold(layers: int, channels: int, gamma: float, seed: int) -> None:
    model, relaxation, rep = network(layers, channels, gamma, seed)
    x = torch.randn(20, rep.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = x.norm(dim=-1)
    with torch.no_grad():
        relaxed = model(x)
        with relaxation.strict():
            strict = model(x)
        distance = ((relaxed - strict).norm(dim=-1) / size).max()
        assert float(distance) <= projection_bound(1.0, 1.0, gamma, layers) * (1 + 1e-12) + 1e-14
        for g in SO(3).sample(5, generator=torch.Generator().manual_seed(seed)):
            error = rep.apply(g, relaxed) - model(rep.apply(g, x))
            limit = equivariance_bound(1.0, 1.0, gamma, layers)
            assert float((error.norm(dim=-1) / size).max()) <= limit * (1 + 1e-12) + 1e-14


def test_bounds_are_reached_by_one_layer_and_by_copies_of_itself() -> None:
    """A residual equal to the strict layer: f_gamma = (1 + gamma)^L f_0, the largest distance there is."""
    for layers in (1, 3):
        found = (1 + 0.3) ** layers - 1
        assert abs(projection_bound(1.0, 1.0, 0.3, layers) - found) < 1e-12
    # -1 against +1 on one layer: rho W - W rho has norm 2 for a reflection of sign
    assert equivariance_bound(1.0, 1.0, 0.5, 1) == 1.0


def test_lipschitz_constants() -> None:
    _, relaxation, rep = network(2, 2, 0.1, 0)
    assert all(abs(value - 1) < 1e-12 for value in residual_lipschitz(relaxation).values())
    model = nn.Sequential(nn.Linear(rep.dim, rep.dim))
    perceptron = relax(model, Layers(residual=MLP(), declare=(Linear("0", rep, rep),)))
    assert residual_lipschitz(perceptron) == {"0": None}
    with pytest.raises(AuditError, match="at least one layer"):
        projection_bound(1.0, 1.0, 1.0, 0)
