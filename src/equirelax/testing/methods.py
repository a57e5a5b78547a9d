"""The conformance class of methods."""

from __future__ import annotations

import functools
import io
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import MethodError, StaleOptimizerError
from equirelax.methods import Method
from equirelax.relaxation import Layers, Linear, Relaxation, project, relax
from equirelax.symmetry import SO, trivial, vector
from equirelax.testing.checks import check, equal, finite, refused, same, skip


class Toy(nn.Module):
    """Two plain linear maps between numbers and vectors of the plane, (batch, 5) -> (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6, bias=False, dtype=torch.float64)
        self.second = nn.Linear(6, 4, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 5) to (batch, 4)."""
        y: Tensor = self.second(self.first(x))
        return y


class MethodConformance(ABC):
    """Tests for a method. A test file contains

    class TestMine(MethodConformance):
        def build_method(self, relaxation):
            return Mine(relaxation, regularizer=LieDerivative(relaxation))
    """

    steps: int = 8
    """Number of steps of the training runs in the tests. A schedule must not end earlier."""

    needs_penalty: bool = True
    """Whether a step without ``penalty()`` before it is an error."""

    # `SO(2)` acts on the toy's input, hidden features and output
    _group = SO(2)
    _reps = (
        trivial(_group) + 2 * vector(_group),
        trivial(_group, 2) + 2 * vector(_group),
        2 * vector(_group),
    )

    @abstractmethod
    def build_method(self, relaxation: Relaxation) -> Method:
        """Build the method on a newly relaxed model, the same at every call."""

    def build_model(self) -> nn.Module:
        """Build a model in float64 that ``relaxed`` can relax, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Toy()

    def relaxed(self) -> Relaxation:
        """Build and relax the model, with small random residuals."""
        reps = self._reps
        declared = (Linear("first", reps[0], reps[1]), Linear("second", reps[1], reps[2]))
        relaxation = relax(self.build_model(), Layers(declare=declared))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in relaxation.residual_parameters().values():
                parameter.normal_(0, 0.1, generator=generator)
        return relaxation

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The inputs and targets of one step."""
        generator = torch.Generator().manual_seed(100 + step)
        draw = [torch.randn(16, n, generator=generator, dtype=torch.float64) for n in (5, 4)]
        return draw[0], draw[1]

    def move(self, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Transform every sample, with its target, by a separate group element, the same at every call.

        Override it together with `relaxed` or `batch`.
        """
        g = self._group.sample(len(x), generator=torch.Generator().manual_seed(200 + step))
        return self._reps[0].apply(g, x), self._reps[2].apply(g, y)

    # Tools

    def objective(self, run: tuple[Relaxation, Method, torch.optim.Optimizer], step: int) -> Tensor:
        """The method's objective on the batch of a step."""
        model, method = run[0].model, run[1]

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return (model(x) - y).square().mean()

        x, y = self.batch(step)
        return method.objective(loss(x, y), lambda: loss(*self.move(x, y, step)))

    def start(self, attach: bool = True) -> tuple[Relaxation, Method, torch.optim.Optimizer]:
        """Relax the model, make the optimizer and the method, and attach it."""
        relaxation = self.relaxed()
        optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=1e-2)
        method = self.build_method(relaxation)
        return relaxation, method.attach(optimizer) if attach else method, optimizer

    def train(
        self,
        run: tuple[Relaxation, Method, torch.optim.Optimizer],
        first: int,
        last: int,
        by_hand: bool = False,
    ) -> list[float]:
        """Train from step ``first`` to ``last`` and return the objectives. ``by_hand`` steps a method that is not attached."""
        relaxation, method, optimizer = run
        relaxation.model.train()
        losses = []
        for step in range(first, last):
            loss = self.objective(run, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if by_hand:
                method.step()
            losses.append(float(loss.detach()))
        return losses

    @staticmethod
    def through_file(state: Any) -> Any:
        """Save a state, and load it with ``weights_only=True``."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=True)

    # Tests

    def test_has_a_name_and_a_description(self) -> None:
        _, method, _ = self.start()
        check(bool(method.name and method.description), "name or description is empty")
        same(method.paths, ["first", "second"], "paths")

    def test_penalty_is_a_finite_scalar_with_finite_gradients(self) -> None:
        relaxation, method, _ = self.start()
        relaxation.model.train()
        x, y = self.batch(0)
        task = (relaxation.model(x) - y).square().mean()
        penalty = method.penalty()
        same(tuple(penalty.shape), (), "shape of the penalty")
        finite([("the method", penalty)], "the penalty")
        (task + penalty).backward()
        finite([(name, p.grad) for name, p in relaxation.model.named_parameters()], "the gradient")

    def test_objective_is_a_finite_scalar_that_trains_what_the_penalty_trains(self) -> None:
        run = self.start()
        run[0].model.train()
        objective = self.objective(run, 0)
        same(tuple(objective.shape), (), "shape of the objective")
        finite([("the method", objective)], "the objective")
        objective.backward()
        trained = [(name, p.grad) for name, p in run[0].model.named_parameters() if p.requires_grad]
        finite(trained, "the gradient")
        missing = [name for name, gradient in trained if gradient is None]
        check(not missing, f"the objective gives no gradient to {', '.join(missing)}")

    def test_objective_without_gradients_leaves_no_trace(self) -> None:
        run = self.start()
        self.train(run, 0, 2)
        before = run[1].state_dict()
        with torch.no_grad():
            evaluated = self.objective(run, 2)
        check(not evaluated.requires_grad, "the objective has a gradient under no_grad")
        same(run[1].state_dict(), before, "the state")
        if self.needs_penalty:
            refused(MethodError, run[2].step, "a step after an objective without gradients")

    def test_trains_and_logs(self) -> None:
        run = self.start()
        losses = self.train(run, 0, self.steps)
        finite([("training", torch.tensor(losses)), ("training", run[0].gammas())], "a loss or strength")
        logs = run[1].logs()
        same(list(logs), run[1].paths, "keys of the logs")
        for row, gamma in zip(logs.values(), run[0].gammas().tolist(), strict=True):
            check(abs(row["gamma"] - gamma) < 1e-12, f"gamma is {gamma}, logged as {row['gamma']}")
            check(all(isinstance(value, float) for value in row.values()), f"not all plain numbers: {row}")
        scalars = run[1].scalars()
        check(all(isinstance(v, float) for v in scalars.values()), f"not all plain numbers: {scalars}")
        finite([(name, torch.tensor(value)) for name, value in scalars.items()], "a scalar")

    def test_resuming_continues_bit_for_bit(self) -> None:
        whole = self.start()
        losses = self.train(whole, 0, self.steps)
        part = self.start()
        half = self.steps // 2
        begun = self.train(part, 0, half)
        saved = [self.through_file(thing.state_dict()) for thing in (part[0].model, part[1], part[2])]
        resumed = self.start()
        resumed[0].model.load_state_dict(saved[0])
        resumed[1].load_state_dict(saved[1])
        resumed[2].load_state_dict(saved[2])
        same(begun + self.train(resumed, half, self.steps), losses, "losses")
        states = [run[0].model.state_dict() for run in (resumed, whole)]
        equal(states[0].values(), states[1].values(), "the model's state")
        same(resumed[1].logs(), whole[1].logs(), "logs")

    def test_state_survives_a_file(self) -> None:
        run = self.start()
        self.train(run, 0, 3)
        before = run[1].state_dict()
        other = self.start()[1]
        other.load_state_dict(self.through_file(before))
        same(other.state_dict(), before, "the state")

    def test_a_foreign_state_is_refused(self) -> None:
        _, method, _ = self.start()
        state = method.state_dict()
        damaged = {"method": state["method"]}
        for wrong in ({**state, "method": "another"}, {**state, "paths": ["elsewhere"]}, damaged):
            refused(MethodError, functools.partial(method.load_state_dict, wrong), f"the state {wrong}")

    def test_a_step_needs_a_penalty(self) -> None:
        if not self.needs_penalty:
            skip("this method's step depends on no penalty")
        for step in (self.start(attach=False)[1].step, self.start()[2].step):
            words = refused(MethodError, step, "a step without penalty()")
            check("penalty" in words, f"the message does not say what is missing: {words}")

    def test_stepping_by_hand_gives_the_same_bit_for_bit(self) -> None:
        attached, by_hand = self.start(), self.start(attach=False)
        losses = self.train(attached, 0, self.steps)
        same(self.train(by_hand, 0, self.steps, by_hand=True), losses, "losses")
        same(by_hand[1].state_dict(), attached[1].state_dict(), "the state")

    def test_an_attached_method_is_not_stepped_by_hand(self) -> None:
        words = refused(MethodError, self.start()[1].step, "step() of an attached method")
        check("attached" in words, f"the message does not say why: {words}")

    def test_an_optimizer_made_too_early_gets_what_it_lacks_or_is_refused(self) -> None:
        relaxation, method, _ = self.start(attach=False)
        trained = [p for r in relaxation.residuals.values() for p in r.parameters() if p.requires_grad]
        if not trained:
            skip("nothing of the residuals trains, so nothing can be missing")
        early = torch.optim.Adam(list(relaxation.strict_parameters().values()), lr=1e-2)
        method.attach(early)
        held = {id(p) for group in early.param_groups for p in group["params"]}
        check(all(id(p) in held for p in trained), "attach leaves parameters of the residuals out")
        self.train((relaxation, method, early), 0, 2)

        relaxation, method, _ = self.start(attach=False)
        stale = torch.optim.SGD(list(relaxation.strict_parameters().values()), lr=1e-2, momentum=0.9)
        self.objective((relaxation, method, stale), 0).backward()
        stale.step()
        words = refused(StaleOptimizerError, lambda: method.attach(stale), "a stale optimizer")
        check(
            "relax" in words and "first" in words, f"the message does not say where, and what to do: {words}"
        )
        by_hand = (relaxation, self.build_method(relaxation), stale)
        refused(StaleOptimizerError, lambda: self.train(by_hand, 0, 4, by_hand=True), "a stale optimizer")

    def test_a_skipped_step_moves_nothing(self) -> None:
        """This is the case under a GradScaler that found infinities."""
        for attach in (True, False):
            run = self.start(attach)
            self.train(run, 0, 2, by_hand=not attach)
            relaxation, method, _ = run
            before = self._driven(method)
            self.objective(run, 2).backward()
            if not attach:
                method.step()  # the optimizer has not stepped
            same(self._driven(method), before, "the state")
            equal([relaxation.gammas()], [before["gammas"]], "the strengths")

    @staticmethod
    def _driven(method: Method) -> dict[str, Any]:
        """The state that steps change, without random states, since a penalty may draw numbers."""
        state = method.state_dict()
        return {**state, "regularizer": state.get("regularizer", {}).get("steps")}

    def test_the_last_attached_method_alone_steps(self) -> None:
        relaxation, first, optimizer = self.start()
        second = self.build_method(relaxation).attach(optimizer)
        before = first.state_dict()
        self.train((relaxation, second, optimizer), 0, 2)
        same({**first.state_dict(), "gammas": before["gammas"]}, before, "the state of the method before")
        third = second.attach(torch.optim.Adam(relaxation.model.parameters(), lr=1e-2))
        check(third is second, "attach does not return the method")

    def test_projection_takes_the_hooks_off(self) -> None:
        relaxation, _, optimizer = run = self.start()
        self.train(run, 0, 2)
        project(relaxation.model)
        optimizer.step()  # no longer needs a penalty
