"""Parameter groups of optimizers: every parameter of the residuals is in one, and gamma in one without weight decay."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from equirelax.errors import EquirelaxWarning, MethodError, StaleOptimizerError
from equirelax.files import did_you_mean
from equirelax.relaxation import Relaxation


def as_optimizers(given: Optimizer | Sequence[Optimizer]) -> tuple[Optimizer, ...]:
    """Make a tuple of one optimizer or several. Wrappers of Accelerate and Lightning are unwrapped.

    Raises:
        MethodError: There is no optimizer, one is given twice, or one is unsupported or not an optimizer.
    """
    several = list(given) if isinstance(given, Iterable) else [given]
    found = tuple(_unwrapped(optimizer) for optimizer in several)
    if not found or len({id(optimizer) for optimizer in found}) != len(found):
        raise MethodError(
            "attach: give an optimizer, or a list of different ones, with which the method steps"
        )
    for optimizer in found:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise MethodError(
                "attach: LBFGS evaluates the loss many times within one step, so the strengths that the penalty "
                "saw do not belong to one point, and it takes a single group, so gamma cannot be exempted from weight "
                "decay. Train with another optimizer; or, for residuals alone, step LBFGS on the projected network"
            )
    return found


def _unwrapped(optimizer: Any) -> Optimizer:
    if isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        return _unwrapped(inner)
    if not isinstance(optimizer, Optimizer):
        raise MethodError(
            f"attach: expected a torch.optim.Optimizer, not a {type(optimizer).__name__}; with an optimizer of another "
            f"kind call method.step() after its step"
        )
    return optimizer


@dataclass
class _Missing:
    """The parameters that no optimizer holds, by name."""

    weights: dict[str, nn.Parameter] = field(default_factory=dict)
    gammas: dict[str, nn.Parameter] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.weights or self.gammas)


@runtime_checkable
class ReadsNetwork(Protocol):
    """An optimizer whose treatment of a parameter depends on its layer, such as `equirelax.optim.Muon`."""

    def read_network(self, model: nn.Module) -> None:
        """Use this network for parameters that are added later, if the optimizer does not know its own network."""


def hold(relaxation: Relaxation, optimizers: Sequence[Optimizer], settings: Mapping[str, Any]) -> None:
    """Make sure that the optimizers hold every trainable parameter of the residuals and do not decay any learnt gamma.

    Args:
        relaxation: The relaxed model.
        optimizers: From `as_optimizers`. Missing parameters go to the first one that can take them.
        settings: Settings of added groups, which replace those of the optimizer's first group.

    Raises:
        StaleOptimizerError: Parameters are missing, and no optimizer can take them safely.
        MethodError: No group has such a setting, or settings are given although no parameter is missing.
    """
    missing = _missing(relaxation, optimizers)
    if not missing and settings:
        raise MethodError(
            f"attach: {', '.join(settings)} would have no effect, because the optimizer already holds every parameter of "
            f"the residuals. Leave it out; or make the optimizer from relaxation.strict_parameters() only"
        )
    for optimizer in optimizers:
        if isinstance(optimizer, ReadsNetwork):
            optimizer.read_network(relaxation.model)
    if missing:
        _add(missing, optimizers, settings)
    for optimizer in optimizers:
        _spare_gammas(relaxation, optimizer)


_MUON = getattr(torch.optim, "Muon", ())  # since torch 2.9


def _missing(relaxation: Relaxation, optimizers: Sequence[Optimizer]) -> _Missing:
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    missing = _Missing()
    for key, residual in relaxation:
        if residual.is_learnt and id(residual.gamma) not in held:
            missing.gammas[f"{key}.gamma"] = residual.gamma
        for name, parameter in residual.map.named_parameters():
            if parameter.requires_grad and id(parameter) not in held:
                missing.weights[f"{key}.{name}"] = parameter
                held.add(id(parameter))
    return missing


def _add(missing: _Missing, optimizers: Sequence[Optimizer], settings: Mapping[str, Any]) -> None:
    reasons = [_closed(optimizer) for optimizer in optimizers]
    chosen = next((o for o, reason in zip(optimizers, reasons, strict=True) if not reason), None)
    if chosen is None:
        raise StaleOptimizerError(_refusal(missing, [reason for reason in reasons if reason]))
    first = _settings(chosen, chosen.param_groups[0])
    unknown = [key for key in settings if key not in first]
    if unknown:
        raise MethodError(
            f"attach: a group of {type(chosen).__name__} has no {unknown[0]!r}; it has {', '.join(first)}."
            f"{did_you_mean(unknown[0], list(first))}"
        )
    group = {**first, **settings}
    if missing.weights:
        _add_group(chosen, missing.weights, group)
    if missing.gammas:
        _add_group(chosen, missing.gammas, _undecayed(group))


def _closed(optimizer: Optimizer) -> str:
    """The reason why no group can be added safely; empty if one can."""
    name = type(optimizer).__name__
    if isinstance(optimizer, _MUON):
        return f"{name} takes matrices only"
    if len(optimizer.state):
        return f"{name} has taken steps"
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        return f"{name} has a learning-rate scheduler, which would not know the new group"
    return ""


def _refusal(missing: _Missing, reasons: list[str]) -> str:
    names = [*missing.weights, *missing.gammas]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    parts = ["*relaxation.residual_parameters().values()"] if missing.weights else []
    parts += ["*relaxation.gamma_parameters().values()"] if missing.gammas else []
    return (
        f"attach: no optimizer holds {shown}, and none can take them any more: {'; '.join(reasons)}. Move the line that "
        f"makes the optimizer after relax(), so that model.parameters() has them, and attach before the scheduler is "
        f"made and before the first step. Or make a second optimizer, "
        f"second = torch.optim.Adam([{', '.join(parts)}]), and attach to [optimizer, second]"
    )


def _parallel(optimizer: Optimizer, group: Mapping[str, Any]) -> list[str]:
    """The entries of a group that have one item per parameter, such as their names, and are not settings that are lists."""
    count, others = len(group["params"]), {"params", *optimizer.defaults}
    return [k for k, v in group.items() if k not in others and isinstance(v, list) and len(v) == count]


def _settings(optimizer: Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the whole group, such as its learning rate."""
    own = {"params", "param_names", *_parallel(optimizer, group)}
    return {key: value for key, value in group.items() if key not in own}


def _copied(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of settings for another group, with tensors cloned, such as a learning rate that is changed in place."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in settings.items()}


def _add_group(optimizer: Optimizer, named: Mapping[str, nn.Parameter], settings: Mapping[str, Any]) -> None:
    """Add a group, with names if the other groups have names."""
    with_names = "param_names" in optimizer.param_groups[0]
    optimizer.add_param_group(
        {**_copied(settings), "params": list(named.items()) if with_names else list(named.values())}
    )


def _undecayed(group: Mapping[str, Any]) -> dict[str, Any]:
    return {**group, "weight_decay": 0.0} if "weight_decay" in group else dict(group)


def _spare_gammas(relaxation: Relaxation, optimizer: Optimizer) -> None:
    """Move learnt strengths from groups with weight decay to separate groups without."""
    names = {id(gamma): f"{key}.gamma" for key, gamma in relaxation.gamma_parameters().items()}
    for group in list(optimizer.param_groups):
        inside = [p for p in group["params"] if id(p) in names]
        if not inside or not group.get("weight_decay", 0):
            continue
        if len(inside) == len(group["params"]):
            group["weight_decay"] = 0.0
            continue
        if reason := _closed(optimizer):
            warnings.warn(
                f"attach: weight decay ({group['weight_decay']}) pulls gamma of {names[id(inside[0])]} and "
                f"{len(inside) - 1} more to 0 in addition to the method, and they can no longer be moved to a group without it: "
                f"{reason}. Attach before the scheduler is made and before the first step",
                EquirelaxWarning,
                stacklevel=4,
            )
            continue
        _move(optimizer, group, set(map(id, inside)))


def _move(optimizer: Optimizer, group: dict[str, Any], chosen: set[int]) -> None:
    """Move parameters (by identity) from a group to a new one with the same settings but no weight decay."""
    settings, parallel = _undecayed(_settings(optimizer, group)), ["params", *_parallel(optimizer, group)]
    taken = [id(p) in chosen for p in group["params"]]
    added = {k: [v for v, here in zip(group[k], taken, strict=True) if here] for k in parallel}
    for key in parallel:
        group[key] = [v for v, here in zip(group[key], taken, strict=True) if not here]
    if "param_names" in added:
        added["params"] = list(zip(added.pop("param_names"), added["params"], strict=True))
    optimizer.add_param_group({**_copied(settings), **added})
