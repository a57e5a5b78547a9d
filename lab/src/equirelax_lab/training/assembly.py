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
from equirelax.relaxation import Relaxation, Residual, relax
from equirelax_lab.tasks.methods import build_method, build_wrapper, is_strict, is_wrapper
from equirelax_lab.tasks.registry import build_task, check_optimizer
from equirelax_lab.tasks.settings import RunConfig, Training
from equirelax_lab.tasks.task import NO_PLACEMENT, Task
from equirelax_lab.training.memory import fitting


@dataclass
class Assembly:
    """What a run works with, and the number of parameters without and with the relaxation.

    A strict run has neither relaxation nor method: its model is the author's own, untouched. A wrapper's
    (Equi-Tuning, Equi-Adapt) has none either: its model is the wrapped one. REMUL has a method without a
    relaxation on networks with nothing to relax."""

    config: RunConfig
    task: Task
    model: nn.Module
    relaxation: Relaxation | None
    method: Method | None
    strict_parameters: int
    relaxed_parameters: int

    @property
    def deploys_relaxed(self) -> bool:
        """Whether the method hands over the relaxed model (resilient), so that selection looks at it."""
        return self.method is not None and self.method.deploys_relaxed


def assemble(config: RunConfig, root: Path | None = None, steps_per_epoch: int = 1) -> Assembly:
    """Build everything that `config` describes; weights come from torch's global generator, which is seeded
    here.

    A method draws its residuals after the model's weights, so runs of one seed start from the same strict
    network.

    Args:
        config: The run's settings.
        root: Data root; None takes EQUIRELAX_DATA or the user's cache folder.
        steps_per_epoch: Optimiser steps of an epoch, for schedules.

    Raises:
        ConfigError: settings that do not go together, or sizes that this machine's memory cannot hold.
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
    method = build_method(model if relaxation is None else relaxation, config, steps_per_epoch)
    return Assembly(config, task, model, relaxation, method, strict, count_parameters(model))


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, learnt strengths included, those that a schedule or a rule sets left out."""
    fixed = {id(m.gamma) for m in model.modules() if isinstance(m, Residual) and not m.is_learnt}
    return sum(p.numel() for p in model.parameters() if id(p) not in fixed)


def build_optimizer(assembly: Assembly) -> torch.optim.Optimizer:
    """The configured optimiser over weights, residuals and strengths, with which the method steps from here on.

    Make the scheduler afterwards: learnt strengths get a group of their own, without weight decay.
    """
    optimizer = _build_optimizer(assembly.config.training, assembly.model)
    if assembly.method is not None:
        assembly.method.attach(optimizer)
    return optimizer


def _build_optimizer(settings: Training, model: nn.Module) -> torch.optim.Optimizer:
    parameters: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if not settings.decay_biases:
        parameters = _without_biases(parameters[0]["params"])
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


def _without_biases(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """The parameters in two groups, that of those of one dimension without weight decay."""
    matrices = {"params": [p for p in parameters if p.dim() > 1]}
    biases = {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0}
    return [group for group in (matrices, biases) if group["params"]]


def build_scheduler(
    config: RunConfig, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """The configured course of the learning rate over epochs; None keeps it constant.

    With a warm-up of w epochs, epoch k < w has (k + 1) / w of the course's value.
    """
    settings = config.training
    if settings.schedule == "constant" and not settings.warmup_epochs:
        return None

    def factor(epoch: int) -> float:
        rising = min((epoch + 1) / settings.warmup_epochs, 1.0) if settings.warmup_epochs else 1.0
        return rising * _course(settings, epoch)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _course(settings: Training, epoch: int) -> float:
    """The learning rate of an epoch over its full size, without the warm-up."""
    if settings.schedule == "step":
        return float(settings.step_factor ** (epoch // settings.step_epochs))
    if settings.schedule == "milestones":
        passed = sum(epoch >= share * settings.epochs for share in settings.milestones)
        return float(settings.step_factor**passed)
    if settings.schedule == "cosine":
        last = settings.final_learning_rate / settings.learning_rate
        return last + (1 - last) * (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
    return 1.0
