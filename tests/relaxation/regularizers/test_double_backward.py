"""Second derivatives: of the penalties by the residuals' weights, and of losses of forces through relaxed networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from stream_toys import Net as StreamNet
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

import equirelax as er
from equirelax.relaxation import MLP, Dense, LowRank, Streams
from equirelax.relaxation.columns import SharedColumns
from equirelax.relaxation.kinds import EquivariantDense
from equirelax.relaxation.kinds.low_rank import low_rank_terms
from equirelax.relaxation.regularizers import (
    LieDerivative,
    directional_derivative,
    jacobian_terms,
    linear_terms,
)
from equirelax.relaxation.terms.jacobian import directional_derivatives
from equirelax.symmetry import SO, Cyclic, O, Representation, from_irreps, trivial, vector

REPS: dict[str, Representation] = {
    "irreps": from_irreps("1x0e+1x1o"),
    "finite": vector(Cyclic(4)) + trivial(Cyclic(4)),
    "plane": vector(SO(2)) + trivial(SO(2)),
}
KINDS = {
    "dense": Dense(init="normal", std=0.4),
    "equivariant": EquivariantDense(init="normal", std=0.4),
    "low-rank": LowRank(rank=2, init="normal", std=0.4),
    "mlp": MLP(layers=2, init="normal", std=0.4),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def weights(*shape: int, seed: int = 1) -> Tensor:
    return draw(*shape, seed=seed).requires_grad_()


def both_orders(function: Callable[..., Any], *inputs: Tensor) -> None:
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("name", REPS)
@pytest.mark.parametrize("count", [2, 12], ids=["in the space of inputs", "in weight space"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_terms(name: str, count: int, with_bias: bool) -> None:
    rep = REPS[name]
    out, rows = rep + trivial(rep.group), draw(count, rep.dim)
    if with_bias:
        both_orders(
            lambda w, b: linear_terms(w, b, [rows], -1, rep, out), weights(out.dim, rep.dim), weights(out.dim)
        )
    else:
        both_orders(lambda w: linear_terms(w, None, [rows], -1, rep, out), weights(out.dim, rep.dim))


@pytest.mark.parametrize("count", [2, 12])
def test_third_derivatives_of_a_quadratic_vanish_and_second_ones_do_not_depend_on_the_weight(
    count: int,
) -> None:
    rep, rows = REPS["irreps"], draw(count, 4)

    def hessian(weight: Tensor) -> Tensor:
        return torch.autograd.functional.hessian(
            lambda w: sum(linear_terms(w, None, [rows], -1, rep, rep)), weight
        )

    torch.testing.assert_close(hessian(draw(4, 4)), hessian(draw(4, 4, seed=5)))
    weight = weights(4, 4)
    (first,) = torch.autograd.grad(sum(linear_terms(weight, None, [rows], -1, rep, rep)), weight, create_graph=True)  # fmt: skip
    (second,) = torch.autograd.grad(first.square().sum(), weight, create_graph=True)
    (third,) = torch.autograd.grad(second.sum(), weight)
    matrix = hessian(draw(4, 4)).flatten(0, 1).flatten(1)
    torch.testing.assert_close(third.flatten(), (2 * matrix @ matrix).sum(0))


def test_terms_of_inputs_that_points_share() -> None:
    rep = 12 * vector(O(3))
    shared = SharedColumns(draw(1, 18, 40), draw(1, 18, seed=3))
    both_orders(lambda w: linear_terms(w, None, [shared], -2, rep, vector(O(3))), weights(3, rep.dim))


@pytest.mark.parametrize("name", REPS)
@pytest.mark.parametrize("count", [2, 30])
def test_low_rank_terms(name: str, count: int) -> None:
    rep, rows = REPS[name], draw(count, REPS[name].dim)
    up, down = weights(rep.dim, 2), weights(2, rep.dim, seed=2)

    def terms(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        return low_rank_terms(up, down, [rows], -1, rep, rep)

    both_orders(terms, up, down)
    slow = linear_terms(up @ down, None, [rows], -1, rep, rep)
    for fast, exact in zip(terms(up, down), slow, strict=True):
        torch.testing.assert_close(fast, exact)


def test_low_rank_gradients_can_be_asked_for_again() -> None:
    rep, rows = REPS["irreps"], draw(30, 4)
    up, down = weights(4, 2), weights(2, 4, seed=2)
    lie, norm = low_rank_terms(up, down, [rows], -1, rep, rep)
    first = torch.autograd.grad(lie + norm, (up, down), retain_graph=True)
    again = torch.autograd.grad(lie + norm, (up, down))
    torch.testing.assert_close(first, again)


@pytest.mark.parametrize("name", REPS)
def test_jacobian_terms_of_a_perceptron(name: str) -> None:
    rep, rows = REPS[name], draw(3, REPS[name].dim)
    torch.manual_seed(0)
    mlp = MLP(layers=2, init="default").build(rep, rep, -1).double()
    names = [key for key, _ in mlp.named_parameters()]

    def terms(*values: Tensor) -> tuple[Tensor, Tensor]:
        state = dict(zip(names, values, strict=True))
        return jacobian_terms(lambda x: functional_call(mlp, state, (x,)), [rows], -1, rep, rep)

    both_orders(terms, *(p.detach().clone().requires_grad_() for p in mlp.parameters()))


class Energy(nn.Module):
    """An invariant energy of three atoms by linear maps of steerable features: positions (n, 3) -> scalar."""

    def __init__(self) -> None:
        super().__init__()
        from e3nn import o3

        self.first = o3.Linear("1x0e+1x1o", "2x0e+2x1o")
        self.second = o3.Linear("2x0e+2x1o", "2x0e+1x1o")

    def forward(self, positions: Tensor) -> Tensor:
        centred = positions - positions.mean(0)
        x = torch.cat([centred.square().sum(-1, keepdim=True), centred], -1)
        y = self.second(torch.tanh(self.first(x).square().sum(-1, keepdim=True)) * self.first(x))
        return y[:, :2].sin().sum() + y[:, 2:].square().sum()


def relaxed_energy(kind: str) -> tuple[nn.Module, er.Relaxation]:
    """In float64, with residuals that do something."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = Energy()
        relaxation = er.relax(model, residual=KINDS[kind])
    finally:
        torch.set_default_dtype(before)
    relaxation.set_gamma(0.7)
    return model, relaxation


def forces_of(model: nn.Module, positions: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(model(positions), positions, create_graph=True)
    return -slope


@pytest.mark.parametrize("kind", KINDS)
def test_forces_of_a_relaxed_energy_are_its_gradient_and_can_be_trained(kind: str) -> None:
    model, relaxation = relaxed_energy(kind)
    positions = weights(3, 3)
    both_orders(model, positions)
    names = [key for key, _ in model.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def force_loss(*values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        energy = functional_call(model, state, (positions,))
        return torch.autograd.grad(energy, positions, create_graph=True)[0].square().sum()

    assert any("equirelax_residual" in name for name in names)
    assert gradcheck(force_loss, values, fast_mode=True)
    with relaxation.strict():
        strict = forces_of(model, positions)
    assert not torch.allclose(strict, forces_of(model, positions))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_with_forces_and_penalty_keeps_every_input_once(kind: str) -> None:
    model, relaxation = relaxed_energy(kind)
    penalty = LieDerivative(relaxation)
    positions = weights(3, 3)
    loss = forces_of(model, positions).square().sum()
    kept = {key: len(residual._kept) for key, residual in relaxation}
    assert kept == {"first": 2, "second": 1}  # the model calls its first map twice
    (loss + penalty()).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained)
    assert all(not residual._kept for _, residual in relaxation)


@pytest.mark.parametrize("kind", KINDS)
def test_the_penalty_can_be_differentiated_twice(kind: str) -> None:
    """Its Hessian times a vector against finite differences of its gradient, inputs held fixed as the penalty takes them."""
    model, relaxation = relaxed_energy(kind)
    parameters = list(relaxation.residual_parameters().values())
    penalty, positions = LieDerivative(relaxation, 0.3, 0.2), draw(9, 3)
    direction = [draw(*p.shape, seed=7) for p in parameters]

    model(positions)
    kept = {key: list(residual._kept) for key, residual in relaxation}

    def gradient(create_graph: bool) -> list[Tensor]:
        for key, residual in relaxation:  # the same inputs: the second map's depend on the first residual
            residual._kept = list(kept[key])
        return list(torch.autograd.grad(penalty(), parameters, create_graph=create_graph))

    inner = sum((g * d).sum() for g, d in zip(gradient(True), direction, strict=True))
    product = torch.autograd.grad(inner, parameters)

    def shifted(step: float) -> list[Tensor]:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += step * d
        found = gradient(False)
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p -= step * d
        return found

    for exact, ahead, back in zip(product, shifted(1e-5), shifted(-1e-5), strict=True):
        torch.testing.assert_close(exact, (ahead - back) / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("training", [False, True])
def test_streams(training: bool) -> None:
    """Forces through a stream, in training mode through its batch statistics too; its penalty twice differentiable."""
    torch.manual_seed(0)
    model = StreamNet().double()
    relaxation = er.relax(model, Streams("interactions.?", "hidden_channels"))
    relaxation.set_gamma(0.6)
    model.train(training)
    numbers, batch = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 0, 0, 1, 1])
    positions = weights(5, 3)

    def energy(where: Tensor) -> Tensor:
        return model(numbers, where, batch).sin().sum()

    both_orders(energy, positions)
    if training:
        parameters = list(relaxation.residual_parameters().values())
        penalty = LieDerivative(relaxation)
        energy(positions)
        first = torch.autograd.grad(penalty(), parameters, create_graph=True, allow_unused=True)
        total = sum(g.square().sum() for g in first if g is not None)
        second = torch.autograd.grad(total, parameters, allow_unused=True)
        assert any(g is not None and float(g.abs().max()) > 0 for g in second)
        assert all(g is None or bool(g.isfinite().all()) for g in second)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_several_directions_at_once_are_the_single_ones(count: int) -> None:
    x, directions = draw(5, 4), draw(count, 5, 4, seed=2)
    mlp = MLP(layers=3).build(REPS["irreps"], REPS["irreps"], -1).double()
    value, moved = directional_derivatives(mlp, x, directions)
    torch.testing.assert_close(value, mlp(x))
    assert moved.shape == (count, 5, 4)
    for one, direction in zip(moved, directions, strict=True):
        torch.testing.assert_close(one, directional_derivative(mlp, x, direction)[1])
    near = directional_derivatives(mlp, x, directions, finite_difference=True)
    torch.testing.assert_close(near, (value, moved), rtol=1e-7, atol=1e-8)


def test_what_cannot_be_vectorised_is_derived_one_by_one() -> None:
    def branching(x: Tensor) -> Tensor:
        return (
            x.square() if float(x.sum()) > -1e9 else x
        )  # reads a value, which vmap does not allow of its inputs

    x, directions = draw(2, 3), draw(2, 2, 3, seed=4)
    value, moved = directional_derivatives(branching, x, directions)
    torch.testing.assert_close(value, x.square())
    torch.testing.assert_close(moved, 2 * x * directions, rtol=1e-7, atol=1e-8)
