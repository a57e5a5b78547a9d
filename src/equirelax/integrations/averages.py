"""Averaged copies of a network's weights, such as an exponential moving average, for a network that is relaxed.

Averages pair their weights with `network.parameters()` by position. If a copy was made before the network was relaxed, the
positions no longer fit. A copy of the whole network is relaxed in the same way, NequIP's EMAWeights sees only the author's
parameters, and unknown averages are rejected.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from equirelax.errors import RelaxationStateError
from equirelax.relaxation import Relaxation
from equirelax.relaxation.attach import attach
from equirelax.relaxation.entries import own_modules
from equirelax.relaxation.residual import Residual


def held_modules(owners: Mapping[str, object]) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, module) for every module that the owners hold as an attribute, or in a list or tuple attribute.

    Args:
        owners: Name -> LightningModule or callback.
    """
    for name, owner in owners.items():
        values = {**vars(owner), **vars(owner).get("_modules", {})}
        for attribute, value in values.items():
            for one in value if isinstance(value, list | tuple) else (value,):
                if isinstance(one, nn.Module):
                    yield f"{name}.{attribute}", one


@dataclass(frozen=True)
class Copy:
    """A module of the network's class, with the author's parameters by name and shape.

    Args:
        name: The name of its owner, and its path there.
        network: The module.
        is_average: Whether it is inside an `AveragedModel`, or inside a copy of the whole module, as in Lightning's averages.
    """

    name: str
    network: nn.Module
    is_average: bool


def copies_of(network: nn.Module, owners: Mapping[str, object], module: nn.Module) -> list[Copy]:
    """Find the modules of the owners that look like copies of the network.

    Args:
        network: The network, relaxed or not.
        owners: Name -> LightningModule or callback.
        module: The module around the network.
    """
    own, inside, found = _shapes(network), set(network.modules()), []
    for name, held in held_modules(owners):
        averages: list[str] = []
        for path, candidate in held.named_modules():
            if isinstance(candidate, AveragedModel) or type(candidate) is type(module):
                averages.append(f"{path}." if path else "")
            if candidate not in inside and type(candidate) is type(network) and _shapes(candidate) == own:
                inside.update(candidate.modules())
                known = any(path.startswith(prefix) for prefix in averages)
                found.append(Copy(f"{name}.{path}" if path else name, candidate, known))
    return found


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {
        f"{path}.{name}": parameter.shape
        for path, module in own_modules(network)
        for name, parameter in module.named_parameters(recurse=False)
    }


def relax_alike(copy: Copy, relaxation: Relaxation) -> Relaxation:
    """Give a copy the residuals of the network, with their values and strengths but not trainable, and return its handle.

    A copy of the relaxed network already has them, and is left as it is.

    Raises:
        RelaxationStateError: The copy is relaxed in another way; or it is not known to be an average and has other weights,
            so that it may be a separate network.
    """
    network = copy.network
    if any(isinstance(module, Residual) for module in network.modules()):
        handle = Relaxation(network)
    else:
        if not copy.is_average and not _same_weights(network, relaxation):
            raise RelaxationStateError(
                f"{copy.name} ({type(network).__name__}) looks like a copy of the network with other weights: an average would "
                f"have to be relaxed in the same way, and a separate network must not be. If it is the latter, say so with "
                f"others=({copy.name.partition('.')[2]!r},); average with torch.optim.swa_utils.AveragedModel"
            )
        for root, placement in relaxation.placements.items():
            attach(network.get_submodule(root), placement)
        handle = Relaxation(network)
        for key in set(handle.residuals) & set(relaxation.residuals):
            handle[key].load_state_dict(relaxation[key].state_dict())
            handle[key].requires_grad_(False)
    if list(handle.residuals) != list(relaxation.residuals):
        raise RelaxationStateError(
            f"{copy.name} is a copy of {type(network).__name__} with other residuals than the network ({len(handle)} and "
            f"{len(relaxation)}), so that an average would pair wrong weights: make it of the relaxed network"
        )
    return handle


def _same_weights(network: nn.Module, relaxation: Relaxation) -> bool:
    own = relaxation.strict_parameters()
    return all(torch.equal(p.to(own[name]), own[name]) for name, p in network.named_parameters())


class StrictAverage:
    """Shows only the author's parameters to an average that pairs by position, and keeps a separate average of the residuals.

    The average is NequIP's `EMAWeights`, with its buffers, `update_parameters(model)` after every step, and
    `swap_parameters(model)` before and after an evaluation. Its buffers, and so the keys of a checkpoint, stay the author's.

    Args:
        average: The average. Its two functions are replaced until `remove`.
        relaxation: The relaxed network.
    """

    FUNCTIONS = ("update_parameters", "swap_parameters")

    def __init__(self, average: Any, relaxation: Relaxation) -> None:
        self._average = average
        self._inside = nn.ParameterList(
            p for residual in relaxation.residuals.values() for p in residual.parameters()
        )
        self.beside = type(average)(self._inside, decay=average.decay)
        self.beside.update_parameters(self._inside)
        self.beside.num_updates = average.num_updates
        self._update, self._swap = average.update_parameters, average.swap_parameters
        average.update_parameters, average.swap_parameters = self.update_parameters, self.swap_parameters

    def is_of(self, module: nn.Module) -> bool:
        """Whether this object wraps the given average."""
        return self._average is module

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether a module is such an average."""
        return type(module).__name__ == "EMAWeights" and all(
            hasattr(module, f) for f in StrictAverage.FUNCTIONS
        )

    def update_parameters(self, model: nn.Module) -> None:
        """Update the averages of the author's weights and of the residuals."""
        self._update(_Own(model))
        self._follow().update_parameters(self._inside)

    def swap_parameters(self, model: nn.Module) -> None:
        """Exchange weights and averages of the author's parameters and of the residuals."""
        self._swap(_Own(model))
        self._follow().swap_parameters(self._inside)

    def remove(self) -> None:
        """Restore the functions of the average."""
        for name in self.FUNCTIONS:
            vars(self._average).pop(name, None)

    def _follow(self) -> Any:
        first = next(self._inside.parameters())
        return self.beside.to(device=first.device, dtype=first.dtype)


class _Own:
    """A model's parameters without those of its residuals."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def parameters(self) -> list[nn.Parameter]:
        """Return the author's parameters, each once, in the model's order."""
        listed = (p for _, module in own_modules(self._model) for p in module.parameters(recurse=False))
        return list({id(p): p for p in listed}.values())


def refuse_unknown(network: nn.Module, owners: Mapping[str, object], known: Iterable[nn.Module]) -> None:
    """Reject an object that looks like an average by position: it holds one tensor, in its shape, per author's parameter.

    Args:
        network: The relaxed network.
        owners: Name -> LightningModule or callback.
        known: Averages that are already handled, and copies.

    Raises:
        RelaxationStateError: There is such an object, which the message names.
    """
    own = _Own(network).parameters()
    wanted, identities = [p.shape for p in own], {id(p) for p in own}
    if len(wanted) < 2:
        return
    settled = {inside for module in (*known, network) for inside in module.modules()}

    def same(tensors: Iterable[Any]) -> bool:
        listed = list(tensors)
        return (
            all(isinstance(t, Tensor) for t in listed)
            and [t.shape for t in listed] == wanted
            and not any(id(t) in identities for t in listed)
        )

    for name, module in held_modules(owners):
        for path, candidate in module.named_modules():
            apart = settled.isdisjoint(candidate.modules())
            if apart and (same(candidate.parameters()) or same(candidate.buffers())):
                _refuse(f"{name}.{path}" if path else name, candidate)
    for name, owner in owners.items():
        for attribute, value in vars(owner).items():
            if isinstance(value, list | tuple):
                if same(value):
                    _refuse(f"{name}.{attribute}", value)
            elif not isinstance(value, nn.Module):
                for inner, held in getattr(value, "__dict__", {}).items():
                    if isinstance(held, list | tuple) and same(held):
                        _refuse(f"{name}.{attribute}.{inner}", value)


def _refuse(name: str, found: object) -> None:
    raise RelaxationStateError(
        f"{name} ({type(found).__name__}) holds a tensor for every parameter that the network had before it was relaxed, as an "
        f"average that pairs by position does: it would pair wrong weights. Average with torch.optim.swa_utils.AveragedModel or "
        f"Lightning's WeightAveraging, whose copy is relaxed with the network; or make it in on_fit_start, of the relaxed network"
    )
