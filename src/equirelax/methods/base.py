"""The base class of methods: a method adds a penalty to the loss, drives the strengths, and steps with the optimizer."""

from __future__ import annotations

import contextlib
import html
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from equirelax import settings as checking
from equirelax.errors import EquirelaxError, EquirelaxWarning, MethodError
from equirelax.files import did_you_mean
from equirelax.methods.attachment import Attachment
from equirelax.methods.groups import as_optimizers, hold
from equirelax.methods.unrelaxed import Unrelaxed
from equirelax.methods.watch import IdleWatch, ParameterWatch
from equirelax.relaxation import Relaxation
from equirelax.relaxation.regularizers import Regularizer
from equirelax.relaxation.residual import drivers_of, enrol
from equirelax.relaxation.terms.precision import whole
from equirelax.settings import FINITE, within

FORGOTTEN = 2  # `penalty` warns after this many changes of the weights without a step of the method


class Method(ABC):
    """Base class of all methods.

    Relax the model, make the optimizer, make the method and attach it. Then one line of the loop changes:

        relaxation = er.relax(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        method = er.ACE(relaxation, dual_lr=8e-4).attach(optimizer)

        loss = criterion(model(x), y) + method.penalty()
        optimizer.zero_grad(); loss.backward(); optimizer.step()     the method steps with it

    A loop for every method, including those that weight the loss itself, is

        loss = method.objective(criterion(model(x), y), lambda: criterion(model(g x), g y))

    A method takes as many steps as its optimizer. A step that a `torch.amp.GradScaler` skips does not count: it moves no
    multiplier, slack or schedule, so that a schedule over T steps ends late by the number of skipped steps.
    (With the triangle and s skipped steps the last gamma is 2 s / (T - 1) instead of 0, and `project` removes it.)

    Every method has a dataclass of settings, `Settings`, and takes either its fields by name or an instance:

        er.ACE(relaxation, dual_lr=8e-4)
        er.ACE(relaxation, er.ACE.Settings(dual_lr=8e-4))

    A subclass checks its arguments before `super().__init__`, which ends the method that currently drives the residuals.

    Residuals that `Strict` switched off are switched on again, and their weights train.

    Args:
        relaxation: The relaxed model. An earlier method that was made for it ends.
        settings: The method's settings. None takes them from `fields`.
        regularizer: Optional regulariser of the residuals (Lie derivative and norm), added to `penalty()`.
        fields: Settings by name, which replace those of `settings`.

    Attributes:
        settings: The method's settings.
        name: The name under which the method is registered.
        description: A description in one line.
        deploys_relaxed: Whether the model is used with its residuals (True) or projected (False).
        capturable: Whether a CUDA graph can capture the method's part of the loss; see `capture_obstacle`.
        stackable: Whether several models can be trained in one stack; see `stack_obstacle`.

    Raises:
        MethodError: The model was projected, a setting is unknown, missing or out of range, or `relaxation` or `regularizer` is
            something else.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(checking.Settings):
        """The empty settings, from which methods derive theirs."""

        error: ClassVar[type[EquirelaxError]] = MethodError

    @dataclass(frozen=True, kw_only=True)
    class FixedStrength(Settings):
        """Settings of methods with fixed strengths.

        Attributes:
            gamma: The fixed strength of every residual.
        """

        gamma: float = within(FINITE, 1.0)

    name: ClassVar[str] = ""
    description: ClassVar[str] = ""
    deploys_relaxed: ClassVar[bool] = False
    capturable: ClassVar[bool] = False
    stackable: ClassVar[bool] = False
    settings: Settings

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__signature__ = checking.signature_of(cls.__init__, cls.Settings)  # type: ignore[attr-defined]

    def __init__(
        self,
        relaxation: Relaxation,
        settings: Settings | None = None,
        *,
        regularizer: Regularizer | None = None,
        **fields: Any,
    ) -> None:
        self.settings = type(self).Settings.given(settings, fields)
        self._check_handle(relaxation)
        if not isinstance(regularizer, Regularizer | None):
            raise MethodError(
                f"{type(self).__name__}: the regularizer is {checking.shown(regularizer)}; expected an object such as "
                f"equirelax.relaxation.regularizers.LieDerivative(relaxation)"
            )
        self.relaxation = relaxation
        self._check_present()
        self.regularizer = regularizer
        self._watch = ParameterWatch(relaxation)
        self._idle = IdleWatch(relaxation)
        self._attachment: Attachment | None = None
        self._begun = self._skipped = self._mapped = False
        self._ended = ""
        self._enrol()
        for residual in relaxation.residuals.values():
            if not residual.enabled:
                residual.enabled = True
                residual.map.requires_grad_(True)
        if regularizer is not None:
            regularizer.keep()

    def attach(self, optimizer: Optimizer | Sequence[Optimizer], **group: Any) -> Self:
        """Step with an optimizer, or with several: the method steps whenever all of them have stepped.

        Parameters of the residuals that the optimizer lacks are added to it as a group. An optimizer that was made after
        `relax` from `model.parameters()` lacks none. Learnt strengths in a group with weight decay move to a separate
        group without. If the optimizer has taken steps or has a learning-rate scheduler, they cannot move: a warning says that
        weight decay pulls at them.

        A second `attach` replaces the first. Making another method on the same relaxation ends this one, and so does
        `project`: to go back, make a new one. A copied or unpickled optimizer loses its hooks: attach the copied method to
        it. Load the state of an optimizer after attaching, since its groups must match the saved ones.

        Args:
            optimizer: Any torch optimizer except LBFGS, or a list of them. Wrappers of Accelerate and Lightning are unwrapped.
            group: Settings of an added group, such as `lr`; by default those of the optimizer's first group.

        Returns:
            This method.

        Raises:
            StaleOptimizerError: parameters are missing and no group can be added safely any more, because the optimizer
                has taken steps, a learning-rate scheduler was made for it, or it accepts only matrices (Muon).
            MethodError: the optimizer is not supported, a setting is unknown or would have no effect, the
                model was projected, or another method took over.
        """
        self._check_present()
        self._check_not_ended()
        optimizers = as_optimizers(optimizer)
        hold(self.relaxation, optimizers, group)
        self._unhook()
        self._enrol()
        if self.regularizer is not None:
            self.regularizer.keep()
        self._attachment = Attachment(optimizers, self._stepped)
        return self

    @property
    def paths(self) -> list[str]:
        """Paths of the relaxed modules in the model's order, which is the order of all per-residual vectors."""
        return list(self.relaxation.residuals)

    def objective(
        self, task: Tensor, moved: Callable[[], Tensor] | None = None, *, last: bool = True
    ) -> Tensor:
        """The scalar to minimise; here `task + penalty()`.

        A batch split into micro-batches gives the same gradients as the whole batch. `task` (and `moved`) is then the
        micro-batch's share of the batch's loss, so that the shares add up to it. `last` marks the last micro-batch, which adds
        the penalty for all of them.

        Args:
            task: The task's loss on the batch, a scalar.
            moved: A function that returns the task's loss on a transformed batch: every sample, with its target, is moved by
                a separate, newly drawn group element. Only methods that need it (REMUL) call it.
            last: Whether an optimizer step follows.

        Raises:
            MethodError: the method needs `moved` and it is not given.
        """
        return task + self.penalty() if last else task

    def penalty(self) -> Tensor:
        """The term to add to the loss, a scalar. Call it after the forward pass(es).

        With gradient accumulation, call it once, with the last micro-batch: it reads the inputs kept from all of them, and
        adds up the regulariser's sums before it takes roots. If it is called for every micro-batch, the terms add up as they
        are, and the calls count as one step. Under `torch.no_grad` it has no side effects, and returns only the part of the
        multipliers or the schedule.

        Warns:
            EquirelaxWarning: the residuals' weights have changed twice since the method stepped: it is not attached to the
                optimizer that trains them, and `step()` is not called.

        Raises:
            MethodError: the model was projected, or another method took over; the method is a copy that is not attached;
                or `step()` is called before the optimizer's step.
        """
        if not torch.is_grad_enabled():
            return self._term()
        if self._mapped:
            return self._all_terms()
        self._check_alive()
        if self._attachment is None:
            self._watch.begin()
        self._check_idle()
        self._begun, self._skipped = True, False
        self._observe()
        return self._all_terms()

    def _all_terms(self) -> Tensor:
        """The sum of the method's own part of the loss and the regulariser's."""
        term = self._term()
        return term if self.regularizer is None else term + self._regularizer_weight() * self.regularizer()

    @contextlib.contextmanager
    def mapped(self, vectors: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Let `penalty()` work in a function that `torch.func.vmap` maps over the members of a stack.

        Enter this context inside the mapped function, around the forward pass and `penalty()`: hooks keep inputs of the
        forward pass, which are tensors of the transform and must not outlive it. `penalty()` does not count as a step. After
        the map, call `replayed()` once, before the optimizer's step.

        Args:
            vectors: The mapped member's values for `state_vectors()`. None leaves them as they are.

        Raises:
            MethodError: The method has no vector of that name.
        """
        own, residuals = self.state_vectors(), self.relaxation.residuals.values()
        others = {} if vectors is None else vectors
        if unknown := sorted(others.keys() - own.keys()):
            raise MethodError(
                f"{type(self).__name__} has no vector {unknown[0]!r}.{did_you_mean(unknown[0], list(own))} It has "
                f"{', '.join(own) or 'none'}"
            )
        noted = {} if self.regularizer is None else self.regularizer.terms
        for residual in residuals:
            residual.mapped = True
        self._mapped = True
        vars(self).update(others)
        if self.regularizer is not None:
            self.regularizer.terms = {}
        try:
            yield
        finally:
            vars(self).update({name: own[name] for name in others})
            self._mapped = False
            for residual in residuals:
                residual.mapped = False
            if self.regularizer is not None:
                self.regularizer.forget()
                self.regularizer.terms = noted

    def state_vectors(self) -> dict[str, Tensor]:
        """The tensors (n,) of the method's state, with one entry per residual: attribute name -> tensor."""
        return {}

    def stack_obstacle(self) -> str:
        """The reason why models with separate weights cannot be trained in one stack; empty if they can.

        A stack computes the steps of several training runs at once, with `torch.func.vmap`. A method declares by `stackable`
        that it supports this: its computation is then the same for every member, except for the values in tensors.
        """
        if not self.stackable:
            return "it decides by numbers of the training, or draws at random, what a step computes"
        return "" if self.regularizer is None else self.regularizer.stack_obstacle()

    def capture_obstacle(self) -> str:
        """The reason why a CUDA graph cannot capture the method's part of the loss; empty if it can.

        A graph replays the kernels of one step: it reads the tensors again, but every decision that Python made at capture is
        fixed. A method declares by `capturable` that it supports this: its tensors then keep their memory from step to step.
        """
        if not self.capturable:
            return "it decides in Python, or draws at random, what a step computes"
        return "" if self.regularizer is None else self.regularizer.capture_obstacle()

    def replayed(self) -> None:
        """Record the replay of a CUDA graph that holds a forward pass and `objective()`. Call it before the optimizer's step.

        Raises:
            MethodError: The model was projected, or another method took over.
        """
        self._check_alive()
        if self._attachment is None:
            self._watch.begin()
        self._begun, self._skipped = True, False
        for residual in self.relaxation.residuals.values():
            residual.called = True
        self._observe()

    def step(self) -> None:
        """Take one step of a method that is not attached to an optimizer.

        Call it after every step of the optimizer. If that step was skipped (as under a `GradScaler`), nothing moves.

        Raises:
            MethodError: the method is attached, `penalty()` was not called before, or another method took over.
            StaleOptimizerError: the optimizer does not train a residual or its gamma.
        """
        self._check_not_ended()
        if self._attachment is not None:
            raise MethodError(
                f"{type(self).__name__} is attached to its optimizer and steps with it: leave method.step() out"
            )
        if self._watch.end():
            self._stepped()
        else:
            self._skip()

    def skip(self) -> None:
        """Skip a step, for example for a batch whose loss is not finite. Call it in place of `penalty()`:

            if not torch.isfinite(task):
                method.skip()
                continue

        The inputs that the residuals have kept since the last `penalty()`, from all micro-batches, do not enter the next
        one. If the attached optimizers step before that, the method does not move.
        """
        self._skipped = True
        self._skip()
        if self.regularizer is not None:
            self.regularizer.forget()

    def _stepped(self) -> None:
        """Advance the method after its optimizers have stepped."""
        if self._skipped:
            self._skipped = False
            return
        if not self._begun:
            raise MethodError(
                f"the optimizer of {type(self).__name__} stepped without method.penalty() before it; every step needs "
                f"one: loss = criterion(model(x), y) + method.penalty()"
            )
        self._begun = False
        self._advance()
        if self.regularizer is not None:
            self.regularizer.advance()
        self._idle.step()
        self.relaxation.after_step()

    def _enrol(self) -> None:
        """Take over the residuals, and end every other method that drives any of them."""
        residuals = self.relaxation.residuals.values()
        for former in drivers_of(residuals):
            if former is not self and isinstance(former, Method):
                name = type(former).__name__
                former._end(f"{type(self).__name__} took over its residuals; to go back, make a new {name}")
        enrol(self, residuals)

    def forgotten(self) -> str:
        """A message if the residuals' weights changed but the method never stepped; else an empty string."""
        if self._idle.stepped or not self._begun or not self._idle.look():
            return ""
        return _never_stepped(self, "never stepped")

    def detach(self) -> None:
        """Stop stepping permanently, because residuals are removed."""
        self._end(
            "residuals of its model were removed; make a new method from er.relaxation_of(model), or relax again"
        )

    def _end(self, why: str) -> None:
        """Stop stepping and keeping inputs, permanently. A method that has already ended is left as it is."""
        if self._ended:
            return
        self._unhook()
        if self.regularizer is not None:
            self.regularizer.stop()
        self._ended = why

    def _unhook(self) -> None:
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    @classmethod
    def _check_handle(cls, relaxation: object) -> None:
        """Raise unless `relaxation` is the handle of a model."""
        if not isinstance(relaxation, Relaxation):
            raise MethodError(
                f"{cls.__name__}: the relaxation is a {type(relaxation).__name__}; expected what equirelax.relax(model) "
                f"returns, or equirelax.relaxation_of(model)"
            )

    def _check_present(self) -> None:
        """Raise unless every residual is still in the model."""
        attached = {id(module) for module in self.relaxation.model.modules()}
        gone = [key for key, residual in self.relaxation.residuals.items() if id(residual) not in attached]
        if gone or not (self.relaxation.residuals or isinstance(self.relaxation, Unrelaxed)):
            raise MethodError(
                f"the model has no residual at {', '.join(gone[:5]) or 'all'} any more: it was projected. "
                f"Relax it again, and make the method from what relax() returns"
            )

    def _check_not_ended(self) -> None:
        if self._ended:
            raise MethodError(f"{type(self).__name__}: {self._ended}")

    def _check_alive(self) -> None:
        """Raise if the method no longer drives anything."""
        self._check_not_ended()
        if self._attachment is not None and self._attachment.lost:
            raise MethodError(
                f"this {type(self).__name__} is a copy, and optimizers lose their hooks when they are copied or unpickled: "
                f"attach it to the optimizer that trains the copy, method.attach(optimizer)"
            )

    def _check_idle(self) -> None:
        """Warn if the weights change but the method does not step."""
        # of several optimizers some may step more often than others
        ahead = () if self._attachment is None or self._attachment.stuck else self._attachment.ahead
        if self._idle.changes < FORGOTTEN <= self._idle.look(ahead):
            what = "no longer steps" if self._idle.stepped else "has not stepped yet"
            warnings.warn(_never_stepped(self, what), EquirelaxWarning, stacklevel=4)

    def logs(self) -> dict[str, dict[str, float]]:
        """Path -> {"gamma": value, ...}. Waits for the device.

        In addition to gamma there are the values that the method has, such as "multiplier", "effective_multiplier" and
        "slack" (see the method), and "lie" and "norm", the regulariser's sums (before roots and weights) in its last call.
        """
        gammas = self._gammas().detach().tolist()
        rows = {path: {"gamma": gamma} for path, gamma in zip(self.paths, gammas, strict=True)}
        for key, vector in self._vectors().items():
            for path, value in zip(self.paths, vector.tolist(), strict=True):
                rows[path][key] = value
        if self.regularizer is not None:
            # its keys are those of its own handle, which may be of a part of the model
            read = self.regularizer.relaxation.residuals
            paths = {residual: path for path, residual in self.relaxation.residuals.items()}
            for key, terms in self.regularizer.terms.items():
                if key in read and read[key] in paths:
                    rows[paths[read[key]]].update({name: float(value) for name, value in terms.items()})
        return rows

    def scalars(self) -> dict[str, float]:
        """Values of the whole method for logs, such as REMUL's weights. Waits for the device."""
        return {}

    def _repr_html_(self) -> str:
        """A table of `logs()`, for notebooks."""
        rows = self.logs()
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("residual", *columns))
        body = []
        for path, row in rows.items():
            cells = "".join(f"<td>{row[name]:.4g}</td>" if name in row else "<td></td>" for name in columns)
            body.append(f"<tr><td>{html.escape(path or '(model)')}</td>{cells}</tr>")
        numbers = ", ".join(f"{html.escape(name)} = {value:.4g}" for name, value in self.scalars().items())
        title = f"<b>{type(self).__name__}</b>" + (f": {numbers}" if numbers else "")
        return f"<p>{title}</p><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain Python, for `torch.save` and `torch.load(weights_only=True)`.

        Call it between steps. It contains the strengths, although the model's state does too, because constructing a method
        resets them. It does not contain settings (learning rates, number of steps): those of the constructor apply.
        """
        gammas = self.relaxation.gammas()
        state: dict[str, Any] = {"method": self.name, "paths": self.paths, "gammas": gammas, **self._state()}
        if self.regularizer is not None:
            state["regularizer"] = self.regularizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`. Nothing changes if the state does not fit.

        Raises:
            MethodError: the state is damaged or of another method or model, or another method took over.
            PenaltyError: the state of the regularizer is damaged.
        """
        self._check_not_ended()
        if state.get("method") != self.name:
            raise MethodError(
                f"the state is of method {state.get('method')!r}, this is {self.name!r}; "
                f"build the method it was saved from"
            )
        if state.get("paths") != self.paths:
            raise MethodError(_paths_differ(list(state.get("paths") or []), self.paths))
        missing = {"gammas", *self._state()} - state.keys()
        if self.regularizer is not None and "regularizer" not in state:
            missing.add("regularizer")
        if missing:
            raise MethodError(
                f"the state of method {self.name!r} lacks {sorted(missing)}; is the file damaged?"
            )
        expected = tuple(self.relaxation.gammas().shape)
        if tuple(state["gammas"].shape) != expected:
            raise MethodError(
                f"the state has strengths of shape {tuple(state['gammas'].shape)}; expected {expected}, one per residual"
            )
        if self.regularizer is not None:
            self.regularizer.check_state(state["regularizer"])
        self._load(state)
        residuals = self.relaxation.residuals.values()
        if residuals:
            parts = state["gammas"].split([len(residual.gamma) for residual in residuals])
            for residual, gamma in zip(residuals, parts, strict=True):
                with torch.no_grad():
                    residual.gamma.copy_(gamma)
        self._apply()
        if self.regularizer is not None:
            self.regularizer.load_state_dict(state["regularizer"])
            self.regularizer.forget()
        self._begun = self._skipped = False
        self._watch.forget()
        self._idle.step()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not self._ended:
            enrol(self, self.relaxation.residuals.values())
        # copied residuals keep no inputs until a method asks for them; a method that lost its optimizers asks when it is attached
        if self._attachment is None and not self._ended and self.regularizer is not None:
            self.regularizer.keep()

    @abstractmethod
    def _term(self) -> Tensor:
        """The method's own part of the loss, a scalar."""

    @abstractmethod
    def _advance(self) -> None:
        """Take one step."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """The method's own state."""

    @abstractmethod
    def _load(self, state: dict[str, Any]) -> None:
        """Load the method's own state, after checking all of it."""

    def _apply(self) -> None:  # noqa: B027 - most methods prescribe no strengths
        """Set the strengths that the method prescribes for the next step."""

    def _skip(self) -> None:  # noqa: B027 - most methods have nothing to forget
        """Forget the values recorded for a step that the optimizer seems to have skipped."""

    def _observe(self) -> None:  # noqa: B027 - most methods have nothing to note
        """Record the values at time t that the step needs; called at every `penalty()` with gradients."""

    def _vectors(self) -> dict[str, Tensor]:
        """Per-residual vectors (n,) for the logs."""
        return {}

    def _regularizer_weight(self) -> float:
        """Factor on the regulariser."""
        return 1.0

    def _gammas(self) -> Tensor:
        """All strengths (n,), with gradients, in float32 or better, on the first residual's device."""
        gammas = [whole(residual.gamma) for residual in self.relaxation.residuals.values()]
        if not gammas:
            return self.relaxation.gammas()
        dtype = torch.promote_types(gammas[0].dtype, torch.float32)
        return torch.cat([g.to(device=gammas[0].device, dtype=dtype) for g in gammas])


def _never_stepped(method: Method, what: str) -> str:
    name = type(method).__name__
    if method._attachment is None:
        advice = (
            f"Attach it, method = {name}(...).attach(optimizer), or call method.step() after optimizer.step()"
        )
    elif method._attachment.ahead:
        advice = (
            "It steps when all of the optimizers to which it is attached have stepped, and one has not: attach it to "
            "those that train the model"
        )
    else:
        advice = "Attach it to the optimizer that trains the model now: method.attach(optimizer)"
    return f"{name} {what}, although the weights of its residuals train: it has no effect. {advice}"


def _paths_differ(saved: list[str], here: list[str]) -> str:
    only_saved = [p for p in saved if p not in here]
    only_here = [p for p in here if p not in saved]
    if not only_saved and not only_here:
        return "the state has the same residuals in another order; it is of another model"
    return (
        f"the state is of a model with other residuals: only in the state {only_saved[:5]}, only here "
        f"{only_here[:5]} ({len(saved)} and {len(here)} in all); "
        f"relax the model with the placement it was saved with"
    )
