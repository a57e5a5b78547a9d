"""`Method.mapped`: loss and penalty of members with weights of their own, under `torch.func.vmap`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from method_toys import batch, chain
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

import equirelax as er
from equirelax.errors import MethodError, PenaltyError
from equirelax.methods import Method
from equirelax.relaxation import Relaxation
from equirelax.relaxation.columns import SharedColumns
from equirelax.relaxation.regularizers import FiniteRotation, LieDerivative, ProjectionNorms
from equirelax.relaxation.terms.linear import linear_terms
from equirelax.symmetry import SO, Cyclic, Group, O, trivial, vector

MEMBERS = 3
STRENGTHS = (0.2, -0.3)
Make = Callable[[Relaxation], Method]
METHODS: dict[str, Make] = {
    "strict": er.methods.Strict,
    "scheduled": lambda r: er.Scheduled(r, total_steps=9, schedule="constant", penalty_times_gamma=True),
    "mean": lambda r: er.Scheduled(r, total_steps=9, scaling="mean"),
    "few rows": lambda r: er.Scheduled(r, total_steps=9),
    "ACE": lambda r: er.ACE(r, dual_lr=0.1, pi=0.5, augmented=0.2, regularizer=ProjectionNorms(r, 0.1)),
    "ResilientACE": lambda r: er.ResilientACE(
        r, dual_lr=0.1, primal_lr=0.1, augmented=0.2, regularizer=LieDerivative(r)
    ),
    "swing": lambda r: er.methods.get("swing")(r, period=8),
}


class Member(nn.Module):
    """The objective of a batch, as a module, so that `functional_call` reaches all that it reads."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.model, self.method = method.relaxation.model, method

    def forward(self, x: Tensor, y: Tensor, vectors: dict[str, Tensor]) -> Tensor:
        with self.method.mapped(vectors):
            return nn.functional.mse_loss(self.model(x), y) + self.method.penalty()


def member(make: Make, seed: int) -> Member:
    """Each with weights, strengths and vectors of its own."""
    relaxation = chain(seed=seed)
    method = make(relaxation)
    for i, residual in enumerate(relaxation.residuals.values()):
        residual.set_gamma(STRENGTHS[i] * (1 + seed))
    generator = torch.Generator().manual_seed(seed)
    for own in method.state_vectors().values():
        own.copy_(torch.rand(own.shape, generator=generator))
    return Member(method).train()


def stack(make: Make, rows: int = 8) -> tuple[list[Member], tuple[Any, ...]]:
    """Members, and the arguments of `value` with a leading axis of members."""
    made = [member(make, seed) for seed in range(MEMBERS)]
    parameters, buffers = stack_module_state(made)
    batches = [torch.stack(each) for each in zip(*(batch(rows, seed=k) for k in range(MEMBERS)), strict=True)]
    names = made[0].method.state_vectors()
    vectors = {name: torch.stack([m.method.state_vectors()[name] for m in made]) for name in names}
    return made, (parameters, buffers, *batches, vectors)


def value(of: Member, p: dict[str, Tensor], b: dict[str, Tensor], *batch: Any) -> Tensor:
    total: Tensor = functional_call(of, (p, b), batch)
    return total


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_every_member_is_as_alone(name: str, inside: bool) -> None:
    """Gradients from outside of the map and from inside of it."""
    made, (parameters, buffers, x, y, vectors) = stack(METHODS[name], 2 if name == "few rows" else 8)
    if inside:
        detached = {k: p.detach() for k, p in parameters.items()}
        slopes, totals = torch.vmap(torch.func.grad_and_value(lambda p, *rest: value(made[0], p, *rest)))(
            detached, buffers, x, y, vectors
        )
    else:
        totals = torch.vmap(lambda *stacked: value(made[0], *stacked))(parameters, buffers, x, y, vectors)
        totals.sum().backward()
        slopes = {k: p.grad for k, p in parameters.items()}
    for k, one in enumerate(made):
        alone = nn.functional.mse_loss(one.model(x[k]), y[k]) + one.method.penalty()
        torch.testing.assert_close(totals[k], alone, rtol=1e-12, atol=0)
        names = [n for n, p in one.named_parameters() if p.requires_grad]
        found = torch.autograd.grad(
            alone, [p for p in one.parameters() if p.requires_grad], materialize_grads=True, allow_unused=True
        )
        largest = max(float(g.abs().max()) for g in found)
        for key, gradient in zip(names, found, strict=True):
            slope = slopes[key]
            mine = torch.zeros_like(gradient) if slope is None else slope[k]
            torch.testing.assert_close(mine, gradient, rtol=1e-12, atol=1e-14 * largest)


def test_nothing_outlives_the_map() -> None:
    made, arguments = stack(METHODS["ResilientACE"])
    method = made[0].method
    before, terms = method.state_vectors(), method.regularizer.terms
    seen: list[dict[str, dict[str, Tensor]]] = []

    def mapped(*stacked: Any) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
        found = value(made[0], *stacked)
        seen.append(method.regularizer.terms)
        return found, {}

    torch.vmap(mapped)(*arguments)
    assert seen == [terms]
    assert terms == {}
    assert all(method.state_vectors()[name] is own for name, own in before.items())
    with pytest.raises(PenaltyError, match="no inputs were kept"):
        method.regularizer()
    x, y = batch()
    (nn.functional.mse_loss(made[0].model(x), y) + method.penalty()).backward()
    assert method.regularizer.terms


def test_inputs_of_a_forward_without_a_penalty_are_forgotten() -> None:
    made, (p, b, x, _, _) = stack(METHODS["scheduled"])
    method = made[0].method

    class Forward(Member):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            with method.mapped():
                return self.model(x)

    made[0].__class__ = Forward
    torch.vmap(lambda *stacked: value(made[0], *stacked))(p, b, x)
    with pytest.raises(PenaltyError, match="no inputs were kept"):
        method.penalty()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("samples", "points"), [(2, 2), (40, 2), (2, 20)])
@pytest.mark.parametrize("group", [SO(3), O(3), Cyclic(4)], ids=repr)
def test_sums_in_weight_space(group: Group, samples: int, points: int, shared: bool) -> None:
    """Lie algebras, discrete elements, biases; second moments, rows, and features that points share."""
    rep = 2 * vector(group) + trivial(group, 3)
    generator = torch.Generator().manual_seed(0)
    weights, inputs = (
        torch.randn(MEMBERS, *shape, generator=generator, dtype=torch.float64)
        for shape in ((rep.dim, rep.dim + 1), (samples, rep.dim, points))
    )

    def sums(weight: Tensor, x: Tensor) -> Tensor:
        columns = SharedColumns(x[:, :-1], x[:, -1:, 0]) if shared else x
        bias = None if shared else weight[:, -1]
        return torch.stack(linear_terms(weight[:, :-1], bias, [columns], -2, rep, rep))

    found = torch.vmap(sums)(weights.requires_grad_(), inputs)
    alone = torch.stack([sums(w, x) for w, x in zip(weights, inputs, strict=True)])
    torch.testing.assert_close(found, alone, rtol=1e-12, atol=0)
    factors = torch.tensor([1.0, 3.0], dtype=torch.float64)
    slopes = [torch.autograd.grad((total * factors).sum(), weights)[0] for total in (found, alone)]
    torch.testing.assert_close(*slopes, rtol=1e-11, atol=1e-11)
    assert bool((alone > 0).all())


def test_the_terms_are_there_within() -> None:
    made, arguments = stack(METHODS["scheduled"])
    method = made[0].method

    class Terms(Member):
        def forward(self, x: Tensor, y: Tensor, vectors: dict[str, Tensor]) -> Any:
            with method.mapped(vectors):
                self.model(x)
                method.penalty()
                return method.regularizer.terms

    made[0].__class__ = Terms
    found = torch.vmap(lambda *stacked: value(made[0], *stacked))(*arguments)
    for k, one in enumerate(made):
        if k:
            one.model(arguments[2][k])
            one.method.penalty()
            for path, terms in one.method.regularizer.terms.items():
                for name, alone in terms.items():
                    torch.testing.assert_close(found[path][name][k], alone, rtol=1e-12, atol=0)


def test_a_forward_outside_of_it_keeps_nothing() -> None:
    """Gradients of single samples, which a user takes with `torch.func`, leave no stand-in behind."""
    made, arguments = stack(METHODS["scheduled"])
    torch.vmap(lambda p, b, x, y, v: functional_call(made[0].model, _inner(p), (x,)))(*arguments)
    with pytest.raises(PenaltyError, match="mapped"):
        made[0].method.penalty()


def _inner(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("model."): p for key, p in parameters.items()}


def test_it_counts_as_no_step() -> None:
    """`replayed` says once, outside, that a step was computed."""
    relaxation = chain()
    optimizer = torch.optim.SGD(relaxation.model.parameters(), lr=0.1)
    method = er.ACE(relaxation, dual_lr=0.1).attach(optimizer)
    x, y = batch()
    with method.mapped():
        (nn.functional.mse_loss(relaxation.model(x), y) + method.penalty()).backward()
    with pytest.raises(MethodError, match="without"):
        optimizer.step()
    method.replayed()
    optimizer.step()
    assert bool((method.multipliers != 0).all())


def test_unknown_vectors_are_refused() -> None:
    method = er.ACE(chain(), dual_lr=0.1)
    with pytest.raises(MethodError, match="multiplier"), method.mapped({"multiplier": torch.zeros(2)}):
        pass


def test_obstacles() -> None:
    relaxation = chain()
    for make in METHODS.values():
        assert make(relaxation).stack_obstacle() == ""
    assert er.methods.get("remul")(relaxation).stack_obstacle()
    assert "priors" in er.methods.get("rpp")(relaxation).stack_obstacle()
    drawn = (LieDerivative(relaxation, rows=4), FiniteRotation(relaxation, 0.1))
    for regularizer, word in zip(drawn, ("rows", "planes"), strict=True):
        assert word in er.ACE(relaxation, dual_lr=0.1, regularizer=regularizer).stack_obstacle()
