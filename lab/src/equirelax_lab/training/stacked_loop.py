"""The training loop of a stack: runs that differ only in the seed, with every step one computation for all of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from equirelax.errors import EquirelaxError, NonFiniteError
from equirelax_lab.tasks.methods import build_method
from equirelax_lab.tasks.task import Batch
from equirelax_lab.training.assembly import Assembly, build_optimizer, build_scheduler
from equirelax_lab.training.averages import Averages
from equirelax_lab.training.folder import differences
from equirelax_lab.training.graph import Gradients, graphed
from equirelax_lab.training.loader import EpochLoader
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.member import Member
from equirelax_lab.training.objective import Objective
from equirelax_lab.training.stack import StackError, average_networks, joined, part_of, stack_networks
from equirelax_lab.training.stacked_evaluation import StackedEvaluation
from equirelax_lab.training.step_sizes import StepSizes

if TYPE_CHECKING:
    from lightning.fabric import Fabric

OPTIMIZERS = ("adam", "adamw", "sgd")
"""Optimizers that update every entry independently, so that a stacked tensor changes as its parts would."""

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
"""Modules whose random numbers would differ from those of single runs."""


class StackedLoop:
    """Trains the networks of a stack, one epoch at a time.

    One further assembly, the template, holds the stacked tensors: its parameters have a leading member axis, its optimizer
    and its method update them elementwise, and its network computes the loss and the penalty of all members under
    `torch.vmap`. The members' own networks are views of the same memory. Their methods take over the template's state before
    something reads them.

    Args:
        members: The runs, whose assemblies are not trained yet.
        template: An assembly of the same settings, whose weights are overwritten.
        fabric: Lightning Fabric, launched, of one device.
        machine: How it executes.

    Attributes:
        completed: Number of completed epochs.
        steps: Optimizer steps taken, over all resumptions.
        gradients: Computes the gradients of a stacked batch.
        evaluation: Measures all members at once, on a GPU.
        on_step: Called after every optimizer step with the number of steps that the epoch has taken.

    Raises:
        StackError: The runs cannot be stacked; the message says why.
    """

    def __init__(
        self, members: Sequence[Member], template: Assembly, fabric: Fabric, machine: Machine
    ) -> None:
        self.members, self.fabric = members, fabric
        first = members[0]
        self.loader = first.loader
        _check_alike([member.assembly for member in members])
        if reason := obstacle(template, self.loader):
            raise StackError(reason)
        template.model.to(fabric.device)
        # Built before the weights are stacked, since it groups parameters by their number of axes.
        self.optimizer = build_optimizer(template)
        self._axes = stack_networks(template.model, [member.assembly.model for member in members])
        self.template = _with_method(template, self.optimizer, self.loader.batches)
        self.scheduler = build_scheduler(template.config, self.optimizer)
        self.objective = Objective(self.template, self.loader, machine.precision == "bf16-mixed")
        self.averages = self._averages()
        self.sizes = StepSizes(self.template, self.loader.batches, len(members))
        self.completed = self.steps = 0
        self.on_step: Callable[[int], None] = lambda taken: None
        self.gradients: Gradients = self._gradients
        if machine.graph:
            model = template.model
            tensors = [*model.parameters(), *model.buffers()]
            self.gradients = graphed(
                self._gradients, self.template.method, tensors, self.loader, template.config.method
            )
        self._terms: Mapping[str, Mapping[str, Tensor]] = {}
        self._tables = Tables()
        self._tried = False
        networks = {"trained": template.model}
        if self.averages is not None:
            networks["averaged"] = self.averages.model
        self.evaluation = StackedEvaluation(networks, self._axes)
        for index, member in enumerate(members):
            member.shared_state = functools.partial(self._state_of, index)
            member.sharing = len(members)
            if fabric.device.type == "cuda":  # it gains nothing on a CPU
                member.in_stack = self.evaluation.join

    def epoch(self) -> list[dict[str, float]]:
        """Train all members for one epoch.

        A member whose numbers are not finite gets a `failure`. The others continue, unaffected by its numbers.

        Returns:
            The columns of every member, as `Loop.epoch` returns them; {} for one that has failed.

        Raises:
            StackError: The first step cannot be computed for all members at once.
        """
        count, clip = len(self.members), self.template.config.training.gradient_clip
        parameters = list(self.template.model.parameters())
        sums: Tensor | float = 0.0
        self.objective.train()
        for member in self.members:
            member.loader.set_epoch(self.completed)
            member.assembly.model.train()
        for index, batches in enumerate(zip(*(member.loader for member in self.members), strict=True)):
            for member, batch in zip(self.members, batches, strict=True):
                member.divergence.begin(batch, index, self.steps, self.completed)
            losses, terms = self._tried_gradients(self.stacked(batches), index)
            for member, loss in zip(self.members, losses, strict=True):
                self._guard(member, functools.partial(member.divergence.check_loss, loss))
            sums = sums + terms
            self._check_gradients(parameters)
            self.sizes.before_step(index)
            if clip:
                clip_members(parameters, count, clip)
            self.optimizer.step()  # this includes the method's step
            self.steps += 1
            self.sizes.after_step()
            if self.averages is not None:
                self.averages.update()
            self.on_step(index + 1)
        if self.scheduler is not None:
            self.scheduler.step()
        self.evaluation.forget()
        self.completed += 1
        sizes, means = self.sizes.columns(), (torch.as_tensor(sums) / self.loader.batches).tolist()
        columns = [dict(zip(("train/loss", "train/penalty"), mean, strict=True)) for mean in means]
        finite = finite_members(parameters, count)
        for member, own, weights in zip(self.members, columns, finite, strict=True):
            member.completed, member.steps = self.completed, self.steps
            self._guard(member, functools.partial(member.divergence.check_epoch, own, weights))
        self._follow(range(count))
        return [own | size for own, size in zip(columns, sizes, strict=True)]

    def _guard(self, member: Member, check: Callable[[], None]) -> None:
        """Record that a member has failed if `check` raises, and where the failure began."""
        if member.failure:
            return
        try:
            check()
        except NonFiniteError as error:
            self._follow([self.members.index(member)])
            member.failure = f"{error}{member.divergence.origin()}"

    def _check_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Check the gradients of all members by a sum for each; entries are checked only if a sum overflows."""
        if not self.members[0].divergence.every_step:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        sums = torch.stack([g.reshape(len(self.members), -1).abs().sum(1) for g in gradients]).sum(0)
        for index in (~torch.isfinite(sums)).nonzero().flatten().tolist():
            member = self.members[index]
            if member.failure:
                continue
            own = list(member.assembly.model.parameters())
            for mine, whole in zip(own, parameters, strict=True):
                mine.grad = None if whole.grad is None else whole.grad[index]
            self._guard(member, functools.partial(member.divergence.check_gradients, own))
            for mine in own:
                mine.grad = None

    def stacked(self, batches: Sequence[Batch]) -> Batch:
        """The members' batches with a leading member axis. Tables of whole numbers that are equal, such as the edges of
        graphs, stay single: that is faster, and some networks read their values.

        Raises:
            StackError: The batches have different shapes.
        """
        whole: Batch = {}
        for name, first in batches[0].items():
            parts = [batch[name] for batch in batches]
            if any(part.shape != first.shape for part in parts):
                shapes = sorted({tuple(part.shape) for part in parts})
                raise StackError(
                    f"their batches differ in shape: '{name}' is {' and '.join(map(str, shapes))} in step {self.steps + 1}."
                )
            whole[name] = first if self._tables.alike(name, parts) else torch.stack(parts)
        return whole

    def _tried_gradients(self, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        """`gradients`; at the first call, an error is a reason not to stack."""
        if self._tried:
            return self.gradients(batch, index)
        try:
            found = self.gradients(batch, index)
        except (RuntimeError, ValueError, TypeError, EquirelaxError) as error:
            if isinstance(error, StackError):
                raise
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise StackError(
                    f"the GPU's memory does not hold {len(self.members)} of these networks: choose a smaller --stack."
                ) from error
            raise StackError(
                f"its training step cannot be computed for several networks at once: {_first_line(error)}"
            ) from error
        self._tried = True
        return found

    def _gradients(self, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        """Set the gradients of all members; returns their objectives (members,) and terms (members, 2)."""
        model, method = self.template.model, self.template.method
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        axes = {name: self._axes.get(name, 0) for name in own}
        vectors = (
            {}
            if method is None
            else {k: _by_member(v, len(self.members)) for k, v in method.state_vectors().items()}
        )
        batch_axes = {name: None if name in self._tables.shared else 0 for name in batch}

        def objective(
            weights: dict[str, Tensor], vectors: dict[str, Tensor], batch: Batch
        ) -> tuple[Tensor, Tensor, Any]:
            named = {f"model.{name}": value for name, value in weights.items()}
            if method is None:
                value, terms = functional_call(self.objective, named, (batch, index, self.steps))
                return value, terms, {}
            with method.mapped(vectors):
                value, terms = functional_call(self.objective, named, (batch, index, self.steps))
                return value, terms, {} if method.regularizer is None else method.regularizer.terms

        mapped = torch.vmap(objective, in_dims=(axes, 0, batch_axes), randomness="error")
        values, terms, self._terms = mapped(own, vectors, batch)
        self.optimizer.zero_grad()
        values.sum().backward()
        if method is not None:
            method.replayed()
        return values.detach(), terms

    def _averages(self) -> Averages | None:
        """The average of the stacked weights; its parts are the members' averaged networks."""
        decay = self.template.config.training.ema
        if not decay:
            return None
        averages = Averages(self.template.model, decay)
        average_networks(averages.model, [m.averages.model for m in self.members if m.averages is not None])
        return averages

    def _state_of(self, index: int) -> dict[str, Any]:
        """The member's share of the optimizer's, the scheduler's and the method's state, as a single run saves it."""
        return {
            "optimizer": part_of(self.optimizer.state_dict(), lambda whole: whole[index]),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "method": self._method_state(index, self._whole_method()),
        }

    def _whole_method(self) -> dict[str, Any]:
        """The state of the method of all members; {} without one."""
        return {} if self.template.method is None else self.template.method.state_dict()

    def _method_state(self, index: int, whole: dict[str, Any]) -> dict[str, Any] | None:
        """The member's part of `whole`."""
        own = self.members[index].assembly.method
        if own is None:
            return None
        regularizer = whole.get("regularizer")
        state = {key: value for key, value in whole.items() if key != "regularizer"}
        state = part_of(state, lambda whole: _by_member(whole, len(self.members))[index])
        if regularizer is not None and own.regularizer is not None:  # the generators are the members' own
            state["regularizer"] = {**own.regularizer.state_dict(), "steps": regularizer["steps"]}
        return state  # type: ignore[no-any-return]

    def _follow(self, indices: Iterable[int]) -> None:
        """Copy the state of the stack's method and averages to the members' own."""
        whole = self._whole_method()
        for index in indices:
            member = self.members[index]
            method = member.assembly.method
            if method is not None:
                method.load_state_dict(self._method_state(index, whole) or {})
                if method.regularizer is not None:
                    method.regularizer.terms = {
                        key: {name: value[index].detach() for name, value in own.items()}
                        for key, own in self._terms.items()
                    }
            if member.averages is not None and self.averages is not None:
                member.averages.steps = self.averages.steps

    def load_state_dicts(self, states: Sequence[dict[str, Any]]) -> None:
        """Continue from the members' states, saved by single runs or stacks.

        Raises:
            CheckpointError: A state does not fit, or the states are of different steps.
        """
        for member, state in zip(self.members, states, strict=True):
            member.load_state_dict(state)
        self.completed = joined([state["completed"] for state in states], torch.stack, "completed")
        self.steps = joined([state["steps"] for state in states], torch.stack, "steps")
        self.optimizer.load_state_dict(joined([s["optimizer"] for s in states], torch.stack, "optimizer"))
        if self.scheduler is not None:
            self.scheduler.load_state_dict(joined([s["scheduler"] for s in states], torch.stack, "scheduler"))
        method = self.template.method
        if method is not None:
            own = [dict(state["method"]) for state in states]
            regularizers = [state.pop("regularizer", None) for state in own]
            whole = joined(own, lambda parts: torch.stack(parts, 1).reshape(-1, 1), "method")
            if regularizers[0] is not None:
                steps = joined(
                    [state["steps"] for state in regularizers], torch.stack, "method.regularizer.steps"
                )
                whole["regularizer"] = {"steps": steps, "generator": None}
            method.load_state_dict(whole)
        if self.averages is not None:
            self.averages.steps = joined(
                [s["averages"]["steps"] for s in states], torch.stack, "averages.steps"
            )
        self._follow(range(len(self.members)))


class Tables:
    """Finds the tensors of a batch that are tables that are the same for all members.

    On a GPU, comparing tensors waits for the device. It is done once for the same tensors, and not repeated for tensors that
    have differed.

    Attributes:
        shared: The names of the tables that are the same in the present step.
    """

    def __init__(self) -> None:
        self.shared: set[str] = set()
        self._differ: set[str] = set()
        self._compared: dict[str, list[Tensor]] = {}

    def alike(self, name: str, parts: list[Tensor]) -> bool:
        """Whether a tensor is the same in the batches of all members."""
        before = self._compared.get(name, [])
        known = len(before) == len(parts) and all(a is b for a, b in zip(before, parts, strict=True))
        if name not in self._differ and not known and not _same(parts):
            self._differ.add(name)
            self.shared.discard(name)
        elif name not in self._differ:
            self.shared.add(name)
            self._compared[name] = parts
        return name in self.shared


def _same(parts: Sequence[Tensor]) -> bool:
    first, *others = parts
    if others and all(part is first for part in others):
        return True
    return not first.is_floating_point() and all(torch.equal(first, part) for part in others)


def obstacle(assembly: Assembly, loader: EpochLoader) -> str:
    """Why a run cannot be part of a stack, in words; empty if no reason is known."""
    config, method = assembly.config, assembly.method
    if loader.world > 1:
        return f"{loader.world} processes share its batches: choose --devices 1"
    if loader.parts > 1:
        return f"its batches come in {loader.parts} parts: choose --accumulate 1"
    if config.training.optimizer not in OPTIMIZERS:
        return f"the optimizer {config.training.optimizer} does not move every number by itself: choose {', '.join(OPTIMIZERS)}"
    for path, module in assembly.model.named_modules():
        if isinstance(module, DROPOUTS) and module.p > 0:
            return f"'{path}' ({type(module).__name__}) draws at random in every step: set dropout to 0"
    return "" if method is None else method.stack_obstacle()


def clip_members(parameters: Sequence[Tensor], members: int, largest: float) -> None:
    """Clip the gradients of every member separately, as `torch.nn.utils.clip_grad_norm_` does.

    Args:
        parameters: Stacked parameters.
        members: Length of their first axis.
        largest: The largest norm allowed.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(g.reshape(members, -1), dim=1) for g in gradients])
    factors = (largest / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *(1,) * (gradient.dim() - 1)).to(gradient.dtype))


def finite_members(parameters: Sequence[Tensor], members: int) -> list[bool]:
    """Whether all weights of each member are finite; synchronises with the device once."""
    flags = [torch.isfinite(p.detach()).reshape(members, -1).all(1) for p in parameters]
    return torch.stack(flags).all(0).tolist()  # type: ignore[no-any-return]


def _check_alike(assemblies: Sequence[Assembly]) -> None:
    """Raise `StackError` unless the runs differ only in the seed."""
    first = assemblies[0].config.to_dict()
    for assembly in assemblies[1:]:
        lines = differences({**first, "seed": None}, {**assembly.config.to_dict(), "seed": None})
        if lines:
            raise StackError(f"runs of a stack differ in the seed alone, but {'; '.join(lines)}.")


def _with_method(template: Assembly, optimizer: torch.optim.Optimizer, steps: int) -> Assembly:
    """The template with a method that is made for its stacked strengths, and steps with its optimizer."""
    if template.method is None or template.relaxation is None:
        return template
    method = build_method(template.relaxation, template.config, steps)
    return dataclasses.replace(template, method=method.attach(optimizer))


def _by_member(vector: Tensor, members: int) -> Tensor:
    """A method's stacked vector (residuals * members, 1), rearranged with the members first: (members, residuals)."""
    return vector.reshape(-1, members).t()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
