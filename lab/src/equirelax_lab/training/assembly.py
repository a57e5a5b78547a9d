"""From settings to the objects of a run: task, model, relaxation, method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from equirelax.errors import ConfigError
from equirelax.methods.base import Method
from equirelax.optim import Muon
from equirelax.optim.matrices import NORM
from equirelax.relaxation import Relaxation, Residual, relax
from equirelax_lab.tasks.methods import Following, build_method, build_wrapper, is_strict, is_wrapper
from equirelax_lab.tasks.registry import build_task, check_optimizer
from equirelax_lab.tasks.settings import RunConfig, Training
from equirelax_lab.tasks.symmetry_score import HeldOut
from equirelax_lab.tasks.task import NO_PLACEMENT, Task
from equirelax_lab.training.memory import fitting


@dataclass
class Assembly:
    """The objects of a run.

    A strict run has neither a relaxation nor a method: its model is the author's, unchanged. The run of a wrapper
    (Equi-Tuning, Equi-Adapt) has neither, and its model is the wrapped one. REMUL has a method without a relaxation on
    networks that have nothing to relax.

    Attributes:
        config: The run's settings.
        task: Data, loss and metric.
        model: The network, relaxed or wrapped.
        relaxation: The handle on its residuals.
        method: The method that controls the residuals' strengths.
        strict_parameters: Number of the author's parameters.
        relaxed_parameters: Number of all parameters.
    """

    config: RunConfig
    task: Task
    model: nn.Module
    relaxation: Relaxation | None
    method: Method | None
    strict_parameters: int
    relaxed_parameters: int

    @property
    def deploys_relaxed(self) -> bool:
        """Whether the method deploys the relaxed model (resilient), which selection then compares."""
        return self.method is not None and self.method.deploys_relaxed


def assemble(config: RunConfig, root: Path | None = None, steps_per_epoch: int = 1) -> Assembly:
    """Build everything that `config` describes. The weights come from torch's global generator, which is seeded here.

    Residuals are drawn after the model's weights, so that all runs of one seed start from the same strict network.

    Args:
        config: The run's settings.
        root: Data root; None takes EQUIRELAX_DATA or the user's cache folder.
        steps_per_epoch: Optimizer steps in an epoch, for schedules.

    Raises:
        ConfigError: The settings cannot be combined, or this machine's memory cannot hold the network.
    """
    with fitting(config):
        return _assemble(config, root, steps_per_epoch)


def _assemble(config: RunConfig, root: Path | None, steps_per_epoch: int) -> Assembly:
    check_optimizer(config)
    torch.manual_seed(config.seed)
    task = build_task(config, root)
    model = task.build_model()
    strict = count_parameters(model)
    if is_strict(config.method):
        return Assembly(config, task, model, None, None, strict, strict)
    if is_wrapper(config.method):
        kinds = task.representations()
        wrapped = build_wrapper(model, config.strength, kinds.inputs, kinds.output, kinds.group)
        return Assembly(config, task, wrapped, None, None, strict, count_parameters(wrapped))
    relaxation = None if config.residual.placement == NO_PLACEMENT else relax(model, task.placement())
    found: nn.Module | Relaxation = model if relaxation is None else relaxation
    measure = None
    if isinstance(config.strength, Following):
        measure = HeldOut(task, config.strength.examples)
    method = build_method(found, config, steps_per_epoch, measure)
    return Assembly(config, task, model, relaxation, method, strict, count_parameters(model))


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, including learnt strengths but not those that a schedule or a rule sets."""
    fixed = {id(m.gamma) for m in model.modules() if isinstance(m, Residual) and not m.is_learnt}
    return sum(p.numel() for p in model.parameters() if id(p) not in fixed)


def build_optimizer(assembly: Assembly) -> torch.optim.Optimizer:
    """Make the configured optimizer of weights, residuals and strengths, and attach the method to it.

    Make the scheduler afterwards: attaching puts learnt strengths into a separate group, without weight decay.
    """
    optimizer = _build_optimizer(assembly)
    if assembly.method is not None:
        assembly.method.attach(optimizer)
    return optimizer


def _build_optimizer(assembly: Assembly) -> torch.optim.Optimizer:
    settings, model = assembly.config.training, assembly.model
    parameters: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if not settings.decay_biases:
        parameters = _without_biases(model)
    if settings.residual_rate != 1.0 and assembly.relaxation is not None:
        slow = {id(p) for p in assembly.relaxation.residual_parameters().values()}
        parameters = _apart(parameters, slow, settings.learning_rate * settings.residual_rate)
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=settings.momentum, weight_decay=decay)
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    if settings.optimizer == "muon":
        return Muon(
            model,
            rate,
            params=parameters,
            momentum=settings.muon_momentum,
            rms=settings.muon_rms,
            weight_decay=decay,
        )
    raise ConfigError(f"Unknown optimizer '{settings.optimizer}'; choose adam, adamw, sgd or muon.")


def _without_biases(model: nn.Module) -> list[dict[str, Any]]:
    """The parameters in two groups; the group of biases and norm layers has no weight decay.

    The names and the class of the layer decide, not the number of dimensions: linear layers of steerable features keep their
    weights in one dimension.
    """
    modules = dict(model.named_modules())
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for path, parameter in model.named_parameters():
        layer, _, name = path.rpartition(".")
        if isinstance(modules[layer], nn.ParameterList):
            layer, _, name = layer.rpartition(".")
        plain = "bias" in name or NORM.search(type(modules[layer]).__name__)
        (others if plain else decayed).append(parameter)
    groups = ({"params": decayed}, {"params": others, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def _apart(groups: list[dict[str, Any]], chosen: set[int], rate: float) -> list[dict[str, Any]]:
    """The groups, with the chosen parameters (by identity) in separate groups that have another learning rate."""
    rest = [{**group, "params": [p for p in group["params"] if id(p) not in chosen]} for group in groups]
    own = [
        {**group, "params": [p for p in group["params"] if id(p) in chosen], "lr": rate} for group in groups
    ]
    return [group for group in (*rest, *own) if group["params"]]


def build_scheduler(
    config: RunConfig, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """The configured schedule of the learning rate over epochs; None keeps it constant.

    With a warm-up of w epochs, the learning rate of epoch k < w is (k + 1) / w of the schedule's.
    """
    settings = config.training
    if settings.schedule == "constant" and not settings.warmup_epochs:
        return None

    def factor(epoch: int) -> float:
        rising = min((epoch + 1) / settings.warmup_epochs, 1.0) if settings.warmup_epochs else 1.0
        return rising * _decay(settings, epoch)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _decay(settings: Training, epoch: int) -> float:
    """The learning rate of an epoch as a fraction of the largest one, without the warm-up."""
    if settings.schedule == "step":
        return float(settings.step_factor ** (epoch // settings.step_epochs))
    if settings.schedule == "milestones":
        # rounded: 0.56 * 25 is 14.000000000000002
        passed = sum(epoch >= round(share * settings.epochs, 9) for share in settings.milestones)
        return float(settings.step_factor**passed)
    if settings.schedule == "cosine":
        last = settings.final_learning_rate / settings.learning_rate
        start = settings.hold * settings.epochs
        length = settings.restart_epochs or settings.epochs - start
        progress = max(epoch - start, 0.0) % length / length
        return last + (1 - last) * (1 + math.cos(math.pi * progress)) / 2
    return 1.0
