"""REMUL: both losses with their weights, GradNorm against its definition, networks without any residual."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from method_toys import batch, chain
from torch import Tensor, nn

import equirelax as er
from equirelax.auditing import label_free
from equirelax.errors import MethodError, RelaxationStateError, StaleOptimizerError
from equirelax.methods import REMUL, GradNorm
from equirelax.methods.unrelaxed import Unrelaxed
from equirelax.relaxation import Relaxation
from equirelax.symmetry import SO, vector

SPACE = 2 * vector(SO(3))


def moved(x: Tensor, y: Tensor, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Both turned, every row by a rotation of its own."""
    g = SO(3).sample(len(x), generator=torch.Generator().manual_seed(seed)).to(x.dtype)
    return SPACE.apply(g, x), SPACE.apply(g, y)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean()


def objective(model: nn.Module, method: REMUL, seed: int = 1) -> Tensor:
    x, y = batch(seed=seed)
    return method.objective(loss_of(model, x, y), lambda: loss_of(model, *moved(x, y, seed)))


def perceptron(seed: int = 0) -> nn.Sequential:
    """Nothing symmetric about it: (rows, 6) -> (rows, 6)."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 6)).double()


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.3, 2.0), (0.0, 1.0), (1.0, 0.0)])
def test_the_objective_is_the_weighted_sum_and_so_is_its_gradient(alpha: float, beta: float) -> None:
    relaxation = chain(2)
    method = REMUL(relaxation, alpha=alpha, beta=beta)
    x, y = batch()
    plain, turned = loss_of(relaxation.model, x, y), loss_of(relaxation.model, *moved(x, y))
    assert abs(plain - turned) > 1e-3  # the residuals do break the symmetry
    total = method.objective(plain, lambda: turned)
    assert total.item() == pytest.approx(alpha * plain.item() + beta * turned.item(), rel=1e-15)
    parameters = [p for p in relaxation.model.parameters() if p.requires_grad]
    parts = [torch.autograd.grad(part, parameters, retain_graph=True) for part in (plain, turned)]
    found = torch.autograd.grad(total, parameters)
    for gradient, first, second in zip(found, *parts, strict=True):
        torch.testing.assert_close(gradient, alpha * first + beta * second, rtol=1e-13, atol=1e-15)


def test_without_a_weight_on_moved_samples_they_are_not_computed() -> None:
    relaxation = chain(2)

    def refuse() -> Tensor:
        raise AssertionError("moved() was called")

    x, y = batch()
    assert torch.isfinite(
        REMUL(relaxation, alpha=1.0, beta=0.0).objective(loss_of(relaxation.model, x, y), refuse)
    )


def test_strengths_are_fixed_and_the_model_is_deployed_relaxed() -> None:
    relaxation = chain(2)
    er.ACE(relaxation, dual_lr=0.1)
    method = REMUL(relaxation, gamma=0.5)
    assert method.deploys_relaxed
    assert relaxation.gammas().tolist() == [0.5, 0.5]
    assert not relaxation.gamma_parameters()
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
    method.attach(optimizer)
    for step in range(3):
        optimizer.zero_grad()
        objective(relaxation.model, method, step).backward()
        optimizer.step()
    assert relaxation.gammas().tolist() == [0.5, 0.5]
    assert REMUL(relaxation.model).paths == method.paths  # a relaxed model is as good as its handle


class SlowGradNorm:
    """Chen et al., Algorithm 1, word for word: L_grad differentiated by autograd, weights by torch's optimizers."""

    def __init__(self, weights: list[float], asymmetry: float, lr: float, optimizer: str) -> None:
        self.weights = nn.Parameter(torch.tensor(weights, dtype=torch.float64))
        self.asymmetry, self.initial = asymmetry, torch.zeros(0)
        make: Any = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
        self.optimizer = make([self.weights], lr=lr)
        self.total = sum(weights)

    def step(self, losses: list[Tensor], parameters: list[Tensor]) -> None:
        values = torch.stack(losses).detach()
        if not len(self.initial):
            self.initial = values
        norms = []
        for weight, loss in zip(self.weights, losses, strict=True):
            gradient = torch.autograd.grad(weight * loss, parameters, retain_graph=True, create_graph=True)
            norms.append(torch.cat([g.flatten() for g in gradient]).norm())
        ratio = values / self.initial
        target = torch.stack(norms).mean().detach() * (ratio / ratio.mean()) ** self.asymmetry
        self.optimizer.zero_grad()
        self.weights.grad = torch.autograd.grad((torch.stack(norms) - target).abs().sum(), self.weights)[0]
        self.optimizer.step()
        with torch.no_grad():
            self.weights.mul_(self.total / self.weights.sum())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("asymmetry", [0.0, 1.5])
def test_gradnorm_is_the_published_algorithm(optimizer: str, asymmetry: float) -> None:
    model = perceptron()
    shared = list(model[2].parameters())
    slow = SlowGradNorm([0.5, 1.5], asymmetry, 0.02, optimizer)
    method = REMUL(
        model,
        alpha=0.5,
        beta=1.5,
        weighting="gradnorm",
        shared=shared,
        asymmetry=asymmetry,
        weights_lr=0.02,
        weights_optimizer=optimizer,
    )
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    seen = []
    for step in range(15):
        x, y = batch(seed=step)
        losses = [loss_of(model, x, y), 3.0 * loss_of(model, *moved(x, y, step))]
        expected = (slow.weights.detach() * torch.stack(losses)).sum()
        total = method.objective(losses[0], lambda second=losses[1]: second)
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
        slow.step(losses, shared)
        sgd.zero_grad()
        total.backward()
        sgd.step()
        method.step()
        found = torch.tensor(method.weights, dtype=torch.float64)
        torch.testing.assert_close(found, slow.weights.detach(), rtol=1e-10, atol=0)
        seen.append(method.weights[0])
    assert max(seen) - min(seen) > 1e-2
    assert sum(method.weights) == pytest.approx(2.0, rel=1e-12)


def test_gradnorm_with_asymmetry_0_makes_the_gradients_equal() -> None:
    theta = nn.Parameter(torch.ones(4, dtype=torch.float64))
    balance = GradNorm((1.0, 1.0), [theta], asymmetry=0.0, weights_lr=0.01)
    for _ in range(400):
        balance.observe((theta.sum(), 9.0 * theta.sum()))
        balance.step()
    first, second = balance.weights.tolist()
    assert first == pytest.approx(1.8, abs=0.05)
    assert second == pytest.approx(0.2, abs=0.05)


def test_gradnorm_weighs_more_what_trains_slower() -> None:
    """Equal gradients, but the second loss has not fallen."""
    theta = nn.Parameter(torch.ones(4, dtype=torch.float64))
    balance = GradNorm((1.0, 1.0), [theta], asymmetry=1.0, weights_lr=0.01)
    for step in range(20):
        fallen = theta.sum() - 0.1 * min(step, 30)
        balance.observe((fallen, theta.sum()))
        balance.step()
    assert balance.weights[1] > 1.05 > 0.95 > balance.weights[0]


def test_no_weight_vanishes_and_bad_losses_move_nothing() -> None:
    theta = nn.Parameter(torch.ones(2, dtype=torch.float64))
    balance = GradNorm((1.0, 1.0), [theta], asymmetry=0.0, weights_lr=10.0, weights_optimizer="sgd")
    balance.observe((1e6 * theta.sum(), theta.sum()))
    balance.step()
    assert balance.weights.min() > 0
    before = balance.weights.clone()
    balance.observe((float("nan") * theta.sum(), theta.sum()))
    balance.step()
    assert torch.equal(balance.weights, before)
    zero = GradNorm((1.0, 1.0), [theta])
    zero.observe((0.0 * theta.sum(), theta.sum()))  # a loss that starts at 0
    zero.step()
    assert torch.isfinite(zero.weights).all()


def test_micro_batches_count_as_one_step() -> None:
    found = []
    for parts in (1, 4):
        relaxation = chain(2)
        method = REMUL(relaxation, weighting="gradnorm", weights_lr=0.1)
        optimizer = torch.optim.SGD(relaxation.model.parameters(), lr=0.01)
        for step in range(4):
            x, y = batch(seed=step)
            pairs = [tuple(t.chunk(parts) for t in pair) for pair in ((x, y), moved(x, y, step))]
            optimizer.zero_grad()
            for a, b, c, d in zip(*pairs[0], *pairs[1], strict=True):
                first, second = (loss_of(relaxation.model, *pair) / parts for pair in ((a, b), (c, d)))
                method.objective(first, lambda second=second: second).backward()
            optimizer.step()
            method.step()
        found.append(torch.tensor(method.weights, dtype=torch.float64))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=0)
    assert abs(found[0][0] - 1.0) > 1e-2


def test_micro_batches_that_are_skipped_leave_no_trace() -> None:
    found = []
    for skipped in (False, True):
        relaxation = chain(2)
        method = REMUL(relaxation, weighting="gradnorm", weights_lr=0.1)
        optimizer = torch.optim.SGD(relaxation.model.parameters(), lr=0.01)
        method.attach(optimizer)
        for step in range(3):
            if skipped and step == 1:
                x, y = batch(seed=9)
                first = loss_of(relaxation.model, x, y)
                method.objective(first, lambda first=first: 3 * first, last=False)
                method.skip()
            optimizer.zero_grad()
            objective(relaxation.model, method, seed=step).backward()
            optimizer.step()
        found.append(method.scalars())
    assert found[0] == found[1]


def test_the_last_weight_that_is_used_is_looked_at() -> None:
    model = perceptron()
    model.register_parameter("unused", nn.Parameter(torch.ones(2, 2, dtype=torch.float64)))
    method = REMUL(model, weighting="gradnorm")
    objective(model, method)
    assert method._gradnorm is not None
    assert [p is model[2].weight for p in method._gradnorm.parameters] == [True]
    relaxation = chain(2)  # of a relaxed model the author's, not the residual's
    method = REMUL(relaxation, weighting="gradnorm")
    objective(relaxation.model, method)
    assert method._gradnorm is not None
    last = dict(relaxation.model.named_parameters())["mixes.1.weight"]
    assert [p is last for p in method._gradnorm.parameters] == [True]


def test_networks_without_residuals_train_stop_and_go_on(tmp_path: Any) -> None:
    def start() -> tuple[nn.Module, REMUL, torch.optim.Optimizer]:
        model = perceptron()
        return model, REMUL(model, weighting="gradnorm"), torch.optim.Adam(model.parameters(), lr=0.01)

    def train(run: tuple[nn.Module, REMUL, torch.optim.Optimizer], first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            run[2].zero_grad()
            total = objective(run[0], run[1], step)
            total.backward()
            run[2].step()
            run[1].step()
            losses.append(total.item())
        return losses

    whole, part, rest = start(), start(), start()
    losses = train(whole, 0, 8)
    begun = train(part, 0, 4)
    buffer = io.BytesIO()
    torch.save([thing.state_dict() for thing in part], buffer)
    buffer.seek(0)
    for thing, state in zip(rest, torch.load(buffer, weights_only=True), strict=True):
        thing.load_state_dict(state)
    assert begun + train(rest, 4, 8) == losses
    assert rest[1].weights == whole[1].weights
    assert whole[1].logs() == {}
    assert whole[1].scalars().keys() == {"alpha", "beta", "loss", "moved_loss"}


def test_it_teaches_a_network_without_symmetry_what_equivariance_is() -> None:
    """The targets are equivariant; the inputs are never seen turned, except by REMUL."""
    generator = torch.Generator().manual_seed(0)
    errors = {}
    for beta in (0.0, 1.0):
        model = perceptron()
        method = REMUL(model, alpha=1.0, beta=beta)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(150):
            x, _ = batch(32, seed=step)
            x = torch.cat([x[:, :3].abs(), x[:, 3:]], dim=1)
            y = torch.cat([x[:, 3:], -x[:, :3]], dim=1)
            optimizer.zero_grad()
            second = loss_of(model, *moved(x, y, step))
            method.objective(loss_of(model, x, y), lambda second=second: second).backward()
            optimizer.step()
            method.step()
        x = torch.randn(64, 6, generator=generator, dtype=torch.float64)
        errors[beta] = label_free(model, [x], SPACE, SPACE, samples=8).relative
    assert errors[1.0] < 0.7 * errors[0.0]


def test_an_optimizer_from_before_relax_is_found_out() -> None:
    relaxation = chain(2)
    method = REMUL(relaxation)
    stale = torch.optim.SGD(relaxation.strict_parameters().values(), lr=0.01)
    stale.state[next(iter(relaxation.strict_parameters().values()))]["momentum_buffer"] = (
        None  # it has stepped
    )
    with pytest.raises(StaleOptimizerError, match=r"mixes\.0"):
        method.attach(stale)


def test_weights_follow_a_model_that_changes_dtype() -> None:
    model = perceptron().float()
    method = REMUL(model, weighting="gradnorm")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for dtype in (torch.float32, torch.float64, torch.float32):
        model.to(dtype)
        x, y = batch(dtype=dtype)
        total = method.objective(loss_of(model, x, y), lambda x=x, y=y: loss_of(model, *moved(x, y)))
        assert total.dtype == dtype
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        method.step()
    assert torch.isfinite(torch.tensor(method.weights)).all()


def test_states_of_another_weighting_are_refused() -> None:
    constant, learnt = REMUL(perceptron()), REMUL(perceptron(), weighting="gradnorm")
    with pytest.raises(MethodError, match="saved with weighting='gradnorm', this method has 'constant'"):
        constant.load_state_dict(learnt.state_dict())
    with pytest.raises(MethodError, match="saved with weighting='constant'"):
        learnt.load_state_dict(constant.state_dict())
    state = learnt.state_dict()
    state["gradnorm"] = {**state["gradnorm"], "weights": torch.ones(3)}
    with pytest.raises(MethodError, match=r"'weights' of the state has shape \(3,\)"):
        learnt.load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": -1.0}, "alpha is -1"),
        ({"alpha": 0.0, "beta": 0.0}, "beta"),
        ({"beta": float("inf")}, "beta is inf"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"weighting": "gradnrm"}, "Did you mean 'gradnorm'"),
        ({"weighting": "gradnorm", "alpha": 0.0}, "alpha is 0"),
        ({"weighting": "gradnorm", "asymmetry": -1.0}, "asymmetry is -1"),
        ({"weighting": "gradnorm", "shared": []}, "no parameters"),
        ({"weighting": "gradnorm", "weights_lr": 0.0}, "weights_lr is 0"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(MethodError, match=words):
        REMUL(perceptron(), **settings)


def test_misuse_says_what_to_do() -> None:
    model = perceptron()
    x, y = batch()
    with pytest.raises(MethodError, match=r"needs the loss on moved samples.*lambda"):
        REMUL(model).objective(loss_of(model, x, y))
    elsewhere = REMUL(model, weighting="gradnorm", shared=perceptron().parameters())
    with pytest.raises(MethodError, match="does not depend on the parameters"):
        elsewhere.objective(loss_of(model, x, y), lambda: loss_of(model, x, y))
    with pytest.raises(MethodError, match="has no gradient"):
        REMUL(model, weighting="gradnorm").objective(
            loss_of(model, x, y), lambda: loss_of(model, x, y).detach()
        )
    relaxed: Relaxation = chain(2)
    with pytest.raises(RelaxationStateError, match="relaxation_of"):
        Unrelaxed(relaxed.model)
    er.project(relaxed.model)
    with pytest.raises(MethodError, match="no residual"):
        REMUL(relaxed)


@pytest.mark.parametrize("attached", [True, False])
def test_gradnorm_counts_no_step_that_a_scaler_skipped(attached: bool) -> None:
    """Where the losses are finite, and the scaled gradients are not."""
    found = []
    for skipped in (0, 2):
        relaxation = chain(2)
        method = REMUL(relaxation, weighting="gradnorm", weights_optimizer="sgd")
        optimizer = torch.optim.SGD(relaxation.model.parameters(), lr=0.0)
        if attached:
            method.attach(optimizer)
        for _ in range(skipped):
            objective(relaxation.model, method)
            if not attached:
                method.step()  # after an optimizer's step that moved nothing
        objective(relaxation.model, method).backward()
        for parameter in relaxation.model.parameters():
            with torch.no_grad():
                parameter.add_(0.0)
        optimizer.step()
        if not attached:
            method.step()
        found.append((method.weights, method._gradnorm.initial))  # type: ignore[union-attr]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    torch.testing.assert_close(found[0][1], found[1][1])


@pytest.mark.parametrize("method", [REMUL, er.methods.RPP])
def test_a_regularizer_is_no_setting(method: Any) -> None:
    relaxation = chain(2)
    own = er.relaxation.regularizers.LieDerivative(relaxation)
    with pytest.raises(MethodError, match="regularizer"):
        method(relaxation, regularizer=own)
