"""The training loop: batches, the loss with the method's penalty, the backward pass, the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equirelax_lab.data import Samples
from equirelax_lab.tasks.task import Batch
from equirelax_lab.training.assembly import Assembly, build_optimizer, build_scheduler
from equirelax_lab.training.averages import Averages
from equirelax_lab.training.checkpoint import random_states
from equirelax_lab.training.divergence import Divergence, finite_weights
from equirelax_lab.training.evaluation import Evaluation, evaluation_of
from equirelax_lab.training.graph import Gradients, graphed
from equirelax_lab.training.loader import EpochLoader
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.objective import Objective
from equirelax_lab.training.step_sizes import StepSizes

if TYPE_CHECKING:
    from lightning.fabric import Fabric


class Loop:
    """Trains a run's network, one epoch at a time.

    Args:
        assembly: The run's objects; the network moves to the device of `fabric`.
        train: Training samples.
        fabric: Lightning Fabric, launched: devices and ranks.
        machine: How the run executes: the parts of a batch, the precision, and whether steps are captured.

    Attributes:
        completed: Number of completed epochs.
        steps: Optimizer steps taken, over all resumptions.
        averages: Averaged weights; None if `ema` is 0.
        sizes: The size of the optimizer's steps.
        divergence: Checks of losses, gradients and weights.
        gradients: Computes the gradients of a part of a batch.
        on_step: Called after every optimizer step with the number of steps that the epoch has taken.
        fixed_memory: Whether the weights must keep their place in memory, since a CUDA graph may read them there.
        sharing: 1: no other run shares its process.

    Raises:
        ConfigError: `machine.graph` is set, and steps differ in more than the values in their batches.
    """

    def __init__(self, assembly: Assembly, train: Samples, fabric: Fabric, machine: Machine) -> None:
        training, task = assembly.config.training, assembly.task
        self.assembly, self.fabric = assembly, fabric
        self.loader = EpochLoader(
            train,
            task.train_batch,
            training.batch_size,
            assembly.config.seed,
            fabric.global_rank,
            fabric.world_size,
            fabric.device,
            task.smallest_batch,
            machine.accumulate,
            training.drop_last,
        )
        objective = Objective(assembly, self.loader, machine.precision == "bf16-mixed")
        self.objective = fabric.setup_module(objective)
        self.optimizer = build_optimizer(assembly)
        self.scheduler = build_scheduler(assembly.config, self.optimizer)
        self.averages = Averages(assembly.model, training.ema) if training.ema else None
        self.sizes = StepSizes(assembly, self.loader.batches)
        every_step = fabric.world_size == 1 and fabric.device.type == "cpu"
        self.divergence = Divergence(objective, every_step)
        self.completed = self.steps = 0
        self.on_step: Callable[[int], None] = lambda taken: None
        self.fixed_memory, self.sharing = machine.graph, 1
        self.gradients: Gradients = self._gradients
        if machine.graph:
            model = assembly.model
            self.gradients = graphed(
                self._gradients,
                assembly.method,
                [*model.parameters(), *model.buffers()],
                self.loader,
                assembly.config.method,
            )

    def epoch(self) -> dict[str, float]:
        """Train for one epoch.

        Returns:
            Columns train/loss and train/penalty, means over the epoch's steps and over the ranks, and update/....

        Raises:
            NonFiniteError: A loss, gradient or weight is not finite, or the loss exploded.
        """
        number, loader, divergence = self.completed, self.loader, self.divergence
        parameters = list(self.assembly.model.parameters())
        clip = self.assembly.config.training.gradient_clip
        sums: Tensor | float = 0.0
        self.objective.train()
        loader.set_epoch(number)
        for index, batch in enumerate(loader):
            divergence.begin(batch, index, self.steps, number)
            loss, terms = self.gradients(batch, index)
            divergence.check_loss(loss)
            sums = sums + terms
            if not loader.completes(index):
                continue
            divergence.check_gradients(parameters)
            self.sizes.before_step(index // loader.parts)
            if clip:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            self.optimizer.step()  # this includes the method's step
            self.steps += 1
            self.sizes.after_step()
            if self.averages is not None:
                self.averages.update()
            self.on_step(index // loader.parts + 1)
        if self.scheduler is not None:
            self.scheduler.step()
        means = self.fabric.all_reduce(torch.as_tensor(sums) / loader.batches, reduce_op="mean")
        columns = dict(zip(("train/loss", "train/penalty"), torch.as_tensor(means).tolist(), strict=True))
        divergence.check_epoch(columns, finite_weights(self.assembly.model))
        self.completed += 1
        return columns | self.sizes.columns()[0]

    def _gradients(self, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        """Add the gradients of part `index` of the epoch; returns the objective and its terms (see `Objective`)."""
        with self.fabric.no_backward_sync(self.objective, enabled=not self.loader.completes(index)):
            loss, terms = self.objective(batch, index, self.steps)
            if self.loader.begins(index):
                self.optimizer.zero_grad()
            self.fabric.backward(loss)
        return loss.detach(), terms

    def evaluation(self, val: Samples, train: Samples) -> Evaluation:
        """See `epoch_end.Trained`."""
        return evaluation_of(self.assembly, self.averages, val, train)

    def state_dict(self) -> dict[str, Any]:
        """The state that training needs to continue bit for bit: plain data and tensors. Call it between epochs."""
        method, scheduler, averages = self.assembly.method, self.scheduler, self.averages
        return {
            "completed": self.completed,
            "steps": self.steps,
            "weights": self.assembly.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if scheduler is None else scheduler.state_dict(),
            "method": None if method is None else method.state_dict(),
            "averages": None if averages is None else averages.state_dict(),
            "first_loss": self.divergence.first_loss,
            **random_states(self.fabric.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`. Call it last before the next epoch, because it sets torch's random state.

        Raises:
            CheckpointError: The state holds no averaged weights, and the run has some.
        """
        self.completed, self.steps = state["completed"], state["steps"]
        self.assembly.model.load_state_dict(state["weights"])
        if self.assembly.method is not None:
            self.assembly.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if self.averages is not None:
            self.averages.load_state_dict(state["averages"])
        self.divergence.first_loss = state["first_loss"]
        torch.set_rng_state(state["rng"])
        if "cuda_rng" in state and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.fabric.device)
