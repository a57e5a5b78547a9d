"""What every residual map is called for: `map(x, scale)` is `scale` times `map(x)`, its bias included."""

from __future__ import annotations

import pytest
import torch
from equirelax_lab.models import GroupConv2d
from torch import nn

import equirelax as er
from equirelax.relaxation import Grouped
from equirelax.relaxation.kinds import EquivariantDense, ResidualKind
from equirelax.symmetry import SO, Cyclic, regular, vector

KINDS: dict[str, ResidualKind] = {
    "dense": er.Dense("normal", std=1.0),
    "dense with a bias": er.Dense("normal", std=1.0, bias=True),
    "equivariant": EquivariantDense("normal", std=1.0),
    "low rank": er.LowRank(2, "normal", std=1.0),
    "grouped": Grouped(2, "normal", std=1.0),
    "perceptron": er.MLP(2, init="normal", std=1.0),
}


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_strength_scales_all_of_the_map(kind: str, axis: int) -> None:
    built = KINDS[kind].build(4 * vector(SO(3)), 6 * vector(SO(3)), axis).double()
    x = torch.randn(5, 12, 7, dtype=torch.float64) if axis == -2 else torch.randn(5, 12, dtype=torch.float64)
    unscaled = built(x)
    assert unscaled.shape[axis] == 18
    assert float(unscaled.detach().abs().max()) > 0.1
    scale = torch.tensor([-0.3], dtype=torch.float64)
    torch.testing.assert_close(built(x, scale), scale * unscaled, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_the_strength_scales_all_of_a_convolution(bias: bool) -> None:
    layer = GroupConv2d(regular(Cyclic(4)), regular(Cyclic(4)), 3).double()
    relaxation = er.relax(layer, residual=er.Dense("normal", std=1.0, bias=bias))
    built: nn.Module = relaxation[""].map
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    scale = torch.tensor([-0.3], dtype=torch.float64)
    torch.testing.assert_close(built(x, scale), scale * built(x), rtol=1e-12, atol=1e-12)


class Narrow(nn.Linear):
    """Computes in float32, and gives bfloat16 as layers under autocast do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).to(torch.bfloat16)


def relaxed(model: nn.Sequential) -> er.relaxation.Relaxation:
    """The model's first layer relaxed, from 2 vectors to 2 vectors."""
    features = 2 * vector(SO(3))
    declared = (er.relaxation.Linear("0", features, features),)
    return er.relax(model, er.Layers(residual=er.Dense("normal", std=1.0), declare=declared))


def test_the_output_keeps_its_dtype() -> None:
    model, x = nn.Sequential(Narrow(6, 6, bias=False)), torch.randn(4, 6)
    strict = model(x)
    relaxed(model).set_gamma(1.0)
    assert model(x).dtype == strict.dtype == torch.bfloat16
    assert not torch.equal(model(x), strict)


def test_residuals_are_in_the_mode_of_their_modules() -> None:
    model = nn.Sequential(nn.Linear(6, 6, bias=False)).eval()
    relaxation = relaxed(model)
    assert not any(residual.training for _, residual in relaxation)
    model.train()
    assert all(residual.training for _, residual in relaxation)
