"""Actions of group elements on the arguments and outputs of a model, for modules that wrap it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry import Group, Representation, TensorAction, as_representation
from equirelax.symmetry.given import is_given

Kind = Representation | TensorAction | None
"""How one tensor transforms; None: it does not."""


def act(g: Tensor, value: Tensor, kind: Kind) -> Tensor:
    """rho(g) value, for one g (n, n), or a batch (b, n, n) along the first axis of `value`."""
    if kind is None:
        return value
    return kind.apply(g, value)


def act_on_all(g: Tensor, values: tuple[Any, ...], kinds: tuple[Kind, ...]) -> tuple[Any, ...]:
    """Apply `act` to every argument that transforms. The others are returned unchanged.

    Raises:
        RepresentationError: The numbers of arguments and of representations differ.
    """
    if len(values) != len(kinds):
        raise RepresentationError(
            f"the model is called with {len(values)} arguments, but in_rep describes {len(kinds)}: give one "
            f"representation, On, GridField or None for every positional argument"
        )
    return tuple(v if k is None else act(g, v, k) for v, k in zip(values, kinds, strict=True))


def act_on_output(g: Tensor, output: Any, kinds: tuple[Kind, ...]) -> Any:
    """Apply `act` to an output, or to every entry of a tuple or list (which is returned as a tuple).

    Raises:
        RepresentationError: The output is something else, or its number of entries differs from that of `kinds`.
    """
    if isinstance(output, Tensor):
        return act_on_all(g, (output,), kinds)[0]
    if not isinstance(output, (tuple, list)) or len(output) != len(kinds):
        size = f" of {len(output)}" if isinstance(output, (tuple, list)) else ""
        raise RepresentationError(
            f"the model returned a {type(output).__name__}{size}; expected a tensor, or as many as "
            f"out_rep describes: {len(kinds)}"
        )
    return act_on_all(g, tuple(output), kinds)


def as_kinds(reps: Any, what: str) -> tuple[Kind, ...]:
    """Make a tuple of representations from anything that `as_representation` takes, None, or a tuple or list of these.

    Raises:
        RepresentationError: `reps` is something else.
    """
    several = isinstance(reps, (tuple, list)) and not is_given(reps)  # e3nn's Irreps are a tuple too
    try:
        return tuple(
            None if rep is None else as_representation(rep) for rep in (reps if several else (reps,))
        )
    except RepresentationError as error:
        raise RepresentationError(
            f"{what}: {error} None stands for a tensor that no element changes."
        ) from error


def group_of(*kinds: Kind) -> Group:
    """The group of the first representation.

    Raises:
        RepresentationError: There is none.
    """
    for kind in kinds:
        if kind is not None:
            return kind.group
    raise RepresentationError(
        "nothing transforms: in_rep and out_rep are all None; say how the input transforms"
    )
