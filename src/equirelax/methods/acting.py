"""Group elements acting on the arguments and outputs of a model, for modules that stand around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry import SO, Group, O, Representation, TensorAction

Kind = Representation | TensorAction | None
"""How one tensor transforms; None: not at all."""


def act(g: Tensor, value: Tensor, kind: Kind) -> Tensor:
    """rho(g) value, for one g (n, n), or a batch (b, n, n) along the first axis of `value`."""
    if kind is None:
        return value
    return kind.apply(g, value)


def act_on_all(g: Tensor, values: tuple[Any, ...], kinds: tuple[Kind, ...]) -> tuple[Any, ...]:
    """`act` on every argument that transforms; the others pass as they are.

    Raises:
        RepresentationError: another number of arguments than of representations.
    """
    if len(values) != len(kinds):
        raise RepresentationError(
            f"the model is called with {len(values)} arguments, and in_rep tells of {len(kinds)}: give one "
            f"representation, On, GridField or None for every positional argument"
        )
    return tuple(v if k is None else act(g, v, k) for v, k in zip(values, kinds, strict=True))


def act_on_output(g: Tensor, output: Any, kinds: tuple[Kind, ...]) -> Any:
    """`act` on an output, or on every entry of one that is a tuple or list (which comes back as a tuple).

    Raises:
        RepresentationError: it is something else, or has another number of entries.
    """
    if isinstance(output, Tensor):
        return act_on_all(g, (output,), kinds)[0]
    if not isinstance(output, (tuple, list)) or len(output) != len(kinds):
        size = f" of {len(output)}" if isinstance(output, (tuple, list)) else ""
        raise RepresentationError(
            f"the model returned a {type(output).__name__}{size}; expected a tensor, or as many as "
            f"out_rep tells of: {len(kinds)}"
        )
    return act_on_all(g, tuple(output), kinds)


def as_kinds(reps: Any, what: str) -> tuple[Kind, ...]:
    """One representation, On, GridField or None, or a tuple or list of them, as a tuple.

    Raises:
        RepresentationError: something else was given.
    """
    kinds = tuple(reps) if isinstance(reps, (tuple, list)) else (reps,)
    for kind in kinds:
        if not (kind is None or isinstance(kind, (Representation, TensorAction))):
            raise RepresentationError(
                f"{what} holds a {type(kind).__name__}; expected a Representation, On(representation, axis), "
                "GridField(representation) or None for every tensor"
            )
    return kinds


def group_of(*kinds: Kind) -> Group:
    """The group of the first representation.

    Raises:
        RepresentationError: there is none.
    """
    for kind in kinds:
        if kind is not None:
            return kind.group
    raise RepresentationError("nothing transforms: in_rep and out_rep are all None; say how the input does")


def inverse(g: Tensor, group: Group) -> Tensor:
    """g^-1 for elements (..., n, n): the transpose in SO(n) and O(n)."""
    return g.mT if isinstance(group, (SO, O)) or group.order is not None else torch.linalg.inv(g)
