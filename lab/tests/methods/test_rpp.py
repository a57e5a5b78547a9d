"""RPP: the priors are what they say, and what they lead to is the closed form."""

from __future__ import annotations

import pytest
import torch
from equirelax_lab.models.vector_neurons import VNLinear
from method_toys import batch, chain
from torch import Tensor, nn

import equirelax as er
from equirelax.auditing import label_free
from equirelax.errors import MethodError
from equirelax.methods import RPP
from equirelax.symmetry import SO, vector

SPACE = 2 * vector(SO(3))


def test_the_penalty_is_a_sum_of_squares_over_named_parameters() -> None:
    relaxation = chain(3)
    method = RPP(relaxation, eq_weight=0.2, residual_weight=3.0)
    strict = residual = 0.0
    for name, parameter in relaxation.model.named_parameters():
        if name.endswith("gamma"):
            continue
        square = sum(float(value) ** 2 for value in parameter.detach().flatten())
        if "equirelax_residual" in name:
            residual += square
        else:
            strict += square
    assert min(strict, residual) > 0.1
    assert method.penalty().item() == pytest.approx(0.2 * strict + 3.0 * residual, rel=1e-12)
    assert method.scalars() == pytest.approx({"eq_square": strict, "residual_square": residual}, rel=1e-12)
    assert method.deploys_relaxed
    assert relaxation.gammas().tolist() == [1.0] * 3


def test_gradients_are_those_of_weight_decay() -> None:
    """2 weight W: the L2 term of torch's optimizers, which they add to the gradient, is weight_decay W."""
    relaxation = chain(2)
    RPP(relaxation, eq_weight=0.2, residual_weight=3.0).penalty().backward()
    residuals = {id(p) for p in relaxation.residual_parameters().values()}
    assert all(residual.gamma.grad is None for _, residual in relaxation)
    for parameter in (*relaxation.strict_parameters().values(), *relaxation.residual_parameters().values()):
        weight = 3.0 if id(parameter) in residuals else 0.2
        torch.testing.assert_close(parameter.grad, 2.0 * weight * parameter.detach(), rtol=1e-13, atol=0)


class Linear(nn.Module):
    """One vector-neuron map on 2 vectors: y = (A (x) 1_3) x."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mix(x)
        return y


@pytest.mark.parametrize(
    ("eq_weight", "residual_weight"), [pytest.param(0.01, 0.3, marks=pytest.mark.slow), (0.2, 0.05)]
)
def test_training_ends_in_the_closed_form(eq_weight: float, residual_weight: float) -> None:
    """mean |y - (A + B) x|^2 + a |A|^2 + b |B|^2 has A : B = b : a, and A + B the ridge solution for a b / (a + b)."""
    torch.manual_seed(0)
    relaxation = er.relax(Linear(), er.Layers(declare=(er.relaxation.Linear("mix", SPACE, SPACE),)))
    method = RPP(relaxation, eq_weight=eq_weight, residual_weight=residual_weight)
    x, y = batch(20)
    optimizer = torch.optim.SGD(relaxation.model.parameters(), lr=0.1)
    for _ in range(3000):
        optimizer.zero_grad()
        method.objective((relaxation.model(x) - y).square().sum(1).mean()).backward()
        optimizer.step()
        method.step()
    ridge = eq_weight * residual_weight / (eq_weight + residual_weight)
    whole = torch.linalg.solve(x.T @ x / 20 + ridge * torch.eye(6, dtype=torch.float64), x.T @ y / 20).T
    share = residual_weight / (eq_weight + residual_weight)
    strict = relaxation.strict_parameters()["mix.weight"].detach()
    residual = relaxation.residual_parameters()["mix.weight"].detach()
    torch.testing.assert_close(strict, share * whole, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(residual, (1 - share) * whole, rtol=1e-6, atol=1e-8)


def test_what_does_not_train_has_no_prior_and_what_is_shared_has_one() -> None:
    relaxation = chain(2)
    mixes = relaxation.model.mixes  # type: ignore[union-attr]
    mixes[1].weight = mixes[0].weight  # type: ignore[index]
    before = RPP(relaxation, eq_weight=1.0, residual_weight=0.0).penalty().item()
    assert before == pytest.approx(float(mixes[0].weight.detach().square().sum()), rel=1e-12)  # type: ignore[index]
    mixes[0].weight.requires_grad_(False)  # type: ignore[index]
    assert RPP(relaxation, eq_weight=1.0, residual_weight=0.0).penalty().item() == 0.0


def test_a_narrower_prior_on_the_residuals_brings_the_network_nearer_to_equivariance() -> None:
    """A vector-neuron map, which is equivariant whatever its weights, and data that break the symmetry."""
    errors = []
    for weight in (1e-4, 1.0):
        torch.manual_seed(0)
        relaxation = er.relax(VNLinear(2, 2).double())
        method = RPP(relaxation, eq_weight=0.0, residual_weight=weight)
        optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.02)
        for step in range(150):
            x = batch(16, seed=step)[0].view(16, 2, 3)
            target = x * torch.tensor([2.0, 1.0, 1.0])
            optimizer.zero_grad()
            method.objective((relaxation.model(x) - target).square().mean()).backward()
            optimizer.step()
            method.step()
        x = batch(64)[0].view(64, 2, 3)
        errors.append(label_free(relaxation.model, [x], vector(SO(3)), vector(SO(3)), samples=8).relative)
    assert errors[0] > 0.1
    assert errors[1] < 0.3 * errors[0]


def test_half_precision_is_summed_in_float32() -> None:
    relaxation = chain(2, dtype=torch.bfloat16)
    penalty = RPP(relaxation).penalty()
    assert penalty.dtype == torch.float32
    penalty.backward()
    assert all(p.grad is not None for p in relaxation.model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eq_weight": -1.0}, "eq_weight is -1.0"),
        ({"residual_weight": float("inf")}, "residual_weight is inf"),
        ({"gamma": float("inf")}, "gamma is inf"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, float], words: str) -> None:
    with pytest.raises(MethodError, match=words):
        RPP(chain(1), **settings)


def test_it_needs_residuals() -> None:
    relaxation = chain(1)
    er.project(relaxation.model)
    with pytest.raises(MethodError, match="no residual"):
        RPP(relaxation)
