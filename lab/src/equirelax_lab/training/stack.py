"""Networks whose parameters and buffers are parts of common tensors with a leading member axis, and their states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import CheckpointError, ConfigError

RUNNING = ("running_mean", "running_var")
"""Names of the buffers in which batch norm keeps running statistics: every member has its own."""


class StackError(ConfigError):
    """Runs cannot be trained in one process as a stack; the message says why."""


def stack_networks(template: nn.Module, members: Sequence[nn.Module]) -> dict[str, int | None]:
    """Put the parameters and buffers of all members into those of `template`, and make those of the members views of them.

    Every parameter of `template` gets a leading member axis, so that an optimizer of `template` updates all members
    at once. Buffers that are equal in all members, such as tables of indices, stay single and are shared.

    Args:
        template: A network of the same construction, which from then on can compute only under `torch.vmap`.
        members: The networks. Each computes as before, on its part of the memory.

    Returns:
        The member axis of every buffer by name: 0, or None for a shared one.

    Raises:
        StackError: The networks do not have the same parameters and buffers.
    """
    parameters = [dict(member.named_parameters()) for member in members]
    for name, parameter in template.named_parameters():
        parts = _alike(name, [own.get(name) for own in parameters])
        parameter.data = torch.stack([part.detach() for part in parts])
        for part, view in zip(parts, parameter.data, strict=True):
            part.data = view
    buffers = [dict(member.named_buffers()) for member in members]
    axes: dict[str, int | None] = {}
    for name, buffer in template.named_buffers():
        parts = _alike(name, [own.get(name) for own in buffers])
        shared = name.rpartition(".")[2] not in RUNNING and all(
            torch.equal(parts[0], part) for part in parts[1:]
        )
        axes[name] = None if shared else 0
        buffer.data = parts[0].clone() if shared else torch.stack(parts)
        for index, part in enumerate(parts):
            part.data = buffer.data if shared else buffer.data[index]
    return axes


def average_networks(template: nn.Module, members: Sequence[nn.Module]) -> None:
    """Make the parameters and buffers of the members views of those of `template`, which already has the member axis.

    Args:
        template: A copy of a network that `stack_networks` has stacked.
        members: Copies of the members' networks, in their order.
    """
    for index, member in enumerate(members):
        own = {**dict(member.named_parameters()), **dict(member.named_buffers())}
        for name, whole in (*template.named_parameters(), *template.named_buffers()):
            own[name].data = whole.data if whole.dim() == own[name].dim() else whole.data[index]


def _alike(name: str, parts: Sequence[Tensor | None]) -> list[Tensor]:
    found = [part for part in parts if part is not None]
    if len(found) < len(parts) or any(part.shape != found[0].shape for part in found):
        shapes = [None if part is None else tuple(part.shape) for part in parts]
        raise StackError(f"'{name}' differs between the runs: its shapes are {shapes}.")
    return found


def part_of(state: Any, part: Callable[[Tensor], Tensor]) -> Any:
    """One member's share of a state: its part of every tensor; plain data and zero-dimensional tensors are kept as they are.

    Args:
        state: Dicts and lists of tensors and plain data.
        part: Takes a stacked tensor, and returns the member's part of it.
    """
    if isinstance(state, dict):
        return {key: part_of(value, part) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(part_of(value, part) for value in state)
    if isinstance(state, Tensor):
        return (part(state) if state.dim() else state).detach().clone()
    return state


def joined(states: Sequence[Any], join: Callable[[list[Tensor]], Tensor], where: str = "") -> Any:
    """The state of the stack from its members' states: the inverse of `part_of`.

    Args:
        states: One for each member.
        join: Makes a stacked tensor from the members' tensors.
        where: The path to the states within the whole state, for messages.

    Raises:
        CheckpointError: A part that members share differs.
    """
    first = states[0]
    if isinstance(first, dict) and all(isinstance(s, dict) and s.keys() == first.keys() for s in states):
        return {key: joined([s[key] for s in states], join, f"{where}.{key}") for key in first}
    if isinstance(first, list | tuple) and all(
        isinstance(s, list | tuple) and len(s) == len(first) for s in states
    ):
        return type(first)(
            joined(list(part), join, f"{where}[{i}]") for i, part in enumerate(zip(*states, strict=True))
        )
    if all(isinstance(s, Tensor) for s in states) and first.dim():
        return join(list(states))
    if any(isinstance(s, dict | list | tuple) for s in states) or any(bool(s != first) for s in states):
        raise CheckpointError(
            f"The runs cannot go on as a stack: '{where.lstrip('.')}' of their checkpoints differs. Resume them one at a time."
        )
    return first
