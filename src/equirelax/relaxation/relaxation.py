"""The handle over all residuals of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import CheckpointError, PlacementError, RelaxationStateError
from equirelax.files import did_you_mean
from equirelax.relaxation.layers import families
from equirelax.relaxation.memory import memory_of
from equirelax.relaxation.placements.placement import Placement, own_modules, rows
from equirelax.relaxation.residual import Residual
from equirelax.relaxation.summary import Summary

PLACEMENT = "_equirelax_placement"


class Relaxation:
    """All residuals of one relaxed model: iterate, summarise, switch off, group for an optimizer.

    Made by `equirelax.relax` or, for a copy of a relaxed model, by `equirelax.relaxation_of`.
    It holds no state of its own: everything lives in the model.

    Attributes:
        model: the relaxed model.
        residuals: key of the residual (path of its module, and ":slot" where a module has several)
            -> `Residual`, in model order.
        placement: what chose them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.residuals: dict[str, Residual] = {}
        for _, module in model.named_modules():
            if isinstance(module, Residual):
                self.residuals[module.site.key] = module
        holders = [m for m in model.modules() if PLACEMENT in m.__dict__]
        if not self.residuals or not holders:
            raise RelaxationStateError(
                f"{type(model).__name__} is not relaxed: call equirelax.relax(model) first"
            )
        self.root: nn.Module = holders[0]
        self.placement: Placement = self.root.__dict__[PLACEMENT]

    def __iter__(self) -> Iterator[tuple[str, Residual]]:
        return iter(self.residuals.items())

    def __len__(self) -> int:
        return len(self.residuals)

    def __getitem__(self, key: str) -> Residual:
        if key not in self.residuals:
            raise PlacementError(
                f"no residual {key!r}.{did_you_mean(key, list(self.residuals))} There are "
                f"{', '.join(self.residuals)}"
            )
        return self.residuals[key]

    def __repr__(self) -> str:
        return f"Relaxation({len(self)} residuals on {type(self.root).__name__}: {', '.join(self.residuals)})"

    def summary(self) -> Summary:
        """Every module of the model: relaxed, skipped or unknown, and why; and the memory that training takes."""
        memory = memory_of(self.strict_parameters().values(), self.residuals.values())
        return Summary(rows(self.root, self.placement.survey(self.root)), memory)

    @contextlib.contextmanager
    def strict(self) -> Iterator[nn.Module]:
        """Within it the residuals are off: the model computes what it would after
        `project(model, mode="drop")`.
        """
        before = {key: residual.enabled for key, residual in self}
        try:
            self.enable(False)
            yield self.model
        finally:
            for key, residual in self:
                residual.enabled = before[key]

    def enable(self, on: bool = True) -> None:
        """Switch every residual on or off."""
        for residual in self.residuals.values():
            residual.enabled = on

    def set_gamma(self, value: float) -> None:
        """Set every strength."""
        for residual in self.residuals.values():
            residual.set_gamma(value)

    def gammas(self) -> Tensor:
        """The strengths, detached, of shape (residuals,)."""
        return torch.cat([residual.gamma.detach() for residual in self.residuals.values()])

    def residual_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the residuals' maps, strengths left out: `"<key>.<name>"` -> parameter."""
        return {f"{key}.{name}": p for key, residual in self for name, p in residual.map.named_parameters()}

    def gamma_parameters(self) -> dict[str, nn.Parameter]:
        """The strengths that are learnt: key -> parameter."""
        return {key: residual.gamma for key, residual in self if residual.is_learnt}

    def strict_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the author's own: path -> parameter, each once."""
        return {
            f"{path}.{name}" if path else name: parameter
            for path, module in own_modules(self.model)
            for name, parameter in module.named_parameters(recurse=False)
        }

    def parameter_groups(self, weight_decay: float | None = None) -> list[dict[str, Any]]:
        """Groups for an optimizer, each with its "name": strict, residual and gamma (which is never decayed).

        Args:
            weight_decay: of the strict and residual groups; None leaves the optimizer's default.
        """
        decay = {} if weight_decay is None else {"weight_decay": weight_decay}
        groups: list[dict[str, Any]] = [
            {"name": "strict", "params": list(self.strict_parameters().values()), **decay},
            {"name": "residual", "params": list(self.residual_parameters().values()), **decay},
        ]
        gammas = [residual.gamma for _, residual in self]
        groups.append({"name": "gamma", "params": gammas, "weight_decay": 0.0})
        return groups

    def _prefixes(self) -> tuple[str, ...]:
        return tuple(f"{path}." for path, module in self.root.named_modules() if isinstance(module, Residual))

    def strict_state_dict(self) -> dict[str, Any]:
        """The state dict that the author's unrelaxed model would have:
        its keys, no others. Tensors are not copied.
        """
        prefixes = self._prefixes()
        return {k: v for k, v in self.root.state_dict().items() if not k.startswith(prefixes)}

    def load_strict(self, state: Mapping[str, Any]) -> None:
        """Load a state dict of the author's unrelaxed model,
        such as a pretrained one; residuals stay as they are.

        Raises:
            CheckpointError: for missing or unexpected keys.
        """
        derived = derived_keys(self.root)
        own = {key: value for key, value in self.strict_state_dict().items() if key not in derived}
        state = {key: value for key, value in state.items() if key not in derived}
        missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
        if missing or unexpected:
            raise CheckpointError(
                f"the state dict does not fit {type(self.root).__name__}: missing {missing[:5]}, unexpected "
                f"{unexpected[:5]}{did_you_mean(unexpected[0], list(own)) if unexpected else ''}"
            )
        try:
            self.root.load_state_dict(dict(state), strict=False)
        except RuntimeError as error:
            raise CheckpointError(
                f"the state dict does not fit {type(self.root).__name__}: {error}"
            ) from error
        refresh(self.root)


def derived_keys(model: nn.Module) -> set[str]:
    """Keys of buffers that layers compute from their parameters, and that come and go with the training mode."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for family in families().values()
        if family.matches(module)
        for name in family.derived(module)
    }


def refresh(model: nn.Module) -> None:
    """Have every layer compute such buffers again."""
    for module in model.modules():
        for family in families().values():
            if family.matches(module):
                family.refresh(module)
