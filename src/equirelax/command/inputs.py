"""Read from a command line how inputs and outputs transform, and draw random inputs accordingly."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from equirelax.errors import ConfigError, RepresentationError
from equirelax.files import did_you_mean
from equirelax.symmetry import (
    GridField,
    Group,
    On,
    Representation,
    TensorAction,
    from_irreps,
    positions,
    pseudovector,
    regular,
    sign,
    trivial,
    vector,
)

NAMED: dict[str, Callable[[Group], Representation]] = {
    "trivial": trivial,
    "vector": vector,
    "positions": positions,
    "pseudovector": pseudovector,
    "sign": sign,
    "regular": regular,
}
"""Names that may replace an irrep if the group is given."""
INVARIANT = "invariant"
"""The name for a tensor of any size that no group element changes."""

_ENTRY = re.compile(
    r"(?:(?P<name>[^\W\d]\w*)=)?(?P<rep>[^@:=]+)(?:@(?P<where>grid|-?\d+(?:,-?\d+)?))?(?::(?P<sizes>\d+(?:,\d+)*))?"
)
_TERM = re.compile(r"(?:(?P<copies>\d+)x)?(?P<block>\d+[eoy]|[a-z]+)")
HOW = "write it as in 2x0e+1x1o, 4xvector@-2:8,3,4, pos=positions or invariant:8,5"


@dataclasses.dataclass(frozen=True)
class Entry:
    """The description of one tensor by `--in` or `--out`.

    Attributes:
        text: The text as it was written.
        name: The name of the tensor in a mapping; None in a list of arguments.
        action: How it transforms; None for an invariant of any size.
        sizes: The tensor's shape; None if it follows from the representation.
    """

    text: str
    name: str | None
    action: Representation | TensorAction | None
    sizes: tuple[int, ...] | None

    @classmethod
    def read(cls, text: str, group: Group | None, flag: str) -> Entry:
        """Read an entry ``[NAME=]REPRESENTATION[@AXIS][:SIZES]``.

        Args:
            text: The entry.
            group: The group of the representation; None: irreps belong to O(3), and other names are rejected.
            flag: The flag for messages.

        Raises:
            ConfigError: The entry cannot be read.
        """
        match = _ENTRY.fullmatch(text.replace(" ", ""))
        if match is None:
            raise ConfigError(f"{flag} '{text}' cannot be read: {HOW}.")
        where, sizes = match["where"], match["sizes"]
        shape = None if sizes is None else tuple(int(size) for size in sizes.split(","))
        if match["rep"] == INVARIANT:
            if where is not None:
                raise ConfigError(f"{flag} '{text}': an invariant has no axis.")
            return cls(text, match["name"], None, shape)
        try:
            rep = _representation(match["rep"], group)
            action: Representation | TensorAction = rep
            if where == "grid":
                action = GridField(rep)
            elif where is not None:
                axes = tuple(int(axis) for axis in where.split(","))
                action = On(rep, axes if len(axes) == 2 else axes[0])
        except RepresentationError as error:
            raise ConfigError(f"{flag} '{text}': {error}") from error
        return cls(text, match["name"], action, shape)


def _representation(text: str, group: Group | None) -> Representation:
    """Read a sum of irreps and named representations."""
    found = []
    for term in text.split("+"):
        match = _TERM.fullmatch(term)
        known = [*NAMED, INVARIANT]
        if match is None or (match["block"].isalpha() and match["block"] not in NAMED):
            near = did_you_mean(term if match is None else match["block"], known)
            raise RepresentationError(
                f"'{term}' is not a representation.{near} Known are irreps such as 1o, and {', '.join(known)}."
            )
        block, copies = match["block"], int(match["copies"] or 1)
        if not block.isalpha():
            found.append(from_irreps(f"{copies}x{block}", group))
        elif group is None:
            raise RepresentationError(f"give the group of {block}, as in --group 'O(3)'.")
        else:
            found.append(copies * NAMED[block](group))
    total = found[0]
    for rep in found[1:]:
        total = total + rep
    return total


def tree(entries: Sequence[Entry], flag: str) -> Any:
    """The representations of several entries: a single one, a tuple, or a mapping if they are named.

    Raises:
        ConfigError: Only some of the entries are named, or two have the same name.
    """
    return _gathered(entries, [entry.action for entry in entries], flag)


def _gathered(entries: Sequence[Entry], values: Sequence[Any], flag: str) -> Any:
    names = [entry.name for entry in entries if entry.name is not None]
    if not names:
        return values[0] if len(values) == 1 else tuple(values)
    if len(names) < len(entries):
        raise ConfigError(f"{flag}: name all tensors, as in {flag} {names[0]}=..., or none of them.")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{flag}: the name '{name}' is given twice.")
    return dict(zip(names, values, strict=True))


class Draws:
    """Draws tensors with normally distributed entries, in float64.

    Args:
        rows: Number of rows of a tensor without given sizes, whose shape is (rows, size of the representation).
        seed: The seed. Numbers are drawn on the CPU, so that they are the same for every device.
        device: The device of the tensors.
    """

    def __init__(self, rows: int, seed: int, device: torch.device) -> None:
        self.rows, self.device = rows, device
        self.generator = torch.Generator().manual_seed(seed)

    def tensor(
        self, action: Representation | TensorAction | None, sizes: tuple[int, ...] | None, name: str
    ) -> Tensor:
        """Draw one tensor. Messages call it `name`.

        Raises:
            ConfigError: Its sizes must be given.
        """
        if sizes is None:
            sizes = self._sizes(action, name)
        return torch.randn(sizes, generator=self.generator, dtype=torch.float64).to(self.device)

    def _sizes(self, action: Representation | TensorAction | None, name: str) -> tuple[int, ...]:
        last = On(action) if isinstance(action, Representation) else action
        if isinstance(last, On) and last.axis == -1:
            return self.rows, last.representation.dim
        if action is None:
            example = f"{self.rows},5"
        else:
            example = "2,3,32,32" if isinstance(action, GridField) else f"{self.rows},3,16"
        raise ConfigError(f"{name}: give all sizes of the tensor after a colon, as in --in '...:{example}'.")


def drawn(entries: Sequence[Entry], draws: Draws, flag: str) -> Any:
    """Draw a sample for entries of the command line. `flag` is for messages.

    Raises:
        ConfigError: The sizes of a tensor must be given, or only some of the entries are named.
    """
    values = [draws.tensor(entry.action, entry.sizes, f"{flag} '{entry.text}'") for entry in entries]
    return _gathered(entries, values, flag)


def drawn_like(reps: Any, draws: Draws) -> Any:
    """Draw a sample for the representations that a network itself declares, with the same structure.

    Raises:
        ConfigError: An input's shape does not follow from its representation.
    """
    if isinstance(reps, Mapping):
        return {key: drawn_like(value, draws) for key, value in reps.items()}
    if isinstance(reps, tuple):
        return tuple(drawn_like(value, draws) for value in reps)
    return draws.tensor(reps, None, "the network's own input")
