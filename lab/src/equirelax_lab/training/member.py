"""One run of a stack, with the parts that it does not share: its network, batches, checks and random state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from equirelax_lab.data import Samples
from equirelax_lab.training.assembly import Assembly
from equirelax_lab.training.averages import Averages
from equirelax_lab.training.checkpoint import random_states
from equirelax_lab.training.divergence import Divergence
from equirelax_lab.training.evaluation import Evaluation, evaluation_of
from equirelax_lab.training.loader import EpochLoader
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.objective import Objective

if TYPE_CHECKING:
    from lightning.fabric import Fabric


class Member:
    """A run of a stack, which looks like a single run's loop to the end of an epoch (`epoch_end.Trained`).

    Make it right after its assembly: it takes over torch's random state, which validation and audits of this run use.

    Args:
        assembly: The run's objects; the network moves to the device of `fabric`.
        train: Training samples, on that device. Members with the same data share them.
        fabric: Lightning Fabric, launched.
        machine: How it executes.

    Attributes:
        completed: Number of completed epochs.
        steps: Optimizer steps taken, over all resumptions.
        averages: Averaged weights, which the stack updates; None if `ema` is 0.
        fixed_memory: True: its weights are part of the stack's memory and must stay there.
        sharing: Number of runs in its stack.
        failure: Why it cannot continue; empty while it trains.
        random_state: Its own random state of torch, outside of training.
        shared_state: Returns its share of the stack's state: optimizer, scheduler, method.
        in_stack: Makes its evaluation a part of the stack's, which computes for all members at once.
    """

    fixed_memory = True

    def __init__(self, assembly: Assembly, train: Samples, fabric: Fabric, machine: Machine) -> None:
        self.random_state = torch.get_rng_state()
        training, task = assembly.config.training, assembly.task
        self.assembly, self.fabric = assembly, fabric
        assembly.model.to(fabric.device)
        self.loader = EpochLoader(
            train,
            task.train_batch,
            training.batch_size,
            assembly.config.seed,
            device=fabric.device,
            smallest=task.smallest_batch,
            drop_last=training.drop_last,
        )
        objective = Objective(assembly, self.loader, machine.precision == "bf16-mixed")
        self.divergence = Divergence(objective, every_step=fabric.device.type == "cpu")
        self.averages = Averages(assembly.model, training.ema) if training.ema else None
        self.completed = self.steps = 0
        self.sharing = 1
        self.failure = ""
        self.shared_state: Callable[[], dict[str, Any]] = dict
        self.in_stack: Callable[[Evaluation], Evaluation] = lambda own: own

    @contextlib.contextmanager
    def own_randomness(self) -> Iterator[None]:
        """Context in which torch's random state is that of this run, as if it were alone."""
        torch.set_rng_state(self.random_state)
        try:
            yield
        finally:
            self.random_state = torch.get_rng_state()

    def evaluation(self, val: Samples, train: Samples) -> Evaluation:
        """See `epoch_end.Trained`."""
        return self.in_stack(evaluation_of(self.assembly, self.averages, val, train))

    def state_dict(self) -> dict[str, Any]:
        """The state of a single run's loop, so that the run can continue alone or in a stack; call it in `own_randomness`."""
        averages = None
        if self.averages is not None:
            averages = self.averages.state_dict()
            averages["model"] = _copied(averages["model"])
        return {
            "completed": self.completed,
            "steps": self.steps,
            "weights": _copied(self.assembly.model.state_dict()),
            **self.shared_state(),
            "averages": averages,
            "first_loss": self.divergence.first_loss,
            **random_states(self.fabric.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the part that belongs only to this run; `StackedLoop.load_state_dicts` loads the rest.

        Raises:
            CheckpointError: The state holds no averaged weights, and the run has some.
        """
        self.completed, self.steps = state["completed"], state["steps"]
        self.assembly.model.load_state_dict(state["weights"])
        if self.averages is not None:
            self.averages.load_state_dict(state["averages"])
        self.divergence.first_loss = state["first_loss"]
        self.random_state = state["rng"]


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of a state dict: a view into the stack's memory would be saved with all of that memory."""
    return {key: value.clone() for key, value in state.items()}
