"""Groups by their written names."""

from __future__ import annotations

import re
from collections.abc import Callable

from equirelax.errors import RepresentationError
from equirelax.files import did_you_mean
from equirelax.symmetry.finite import Cyclic, Dihedral, Symmetric
from equirelax.symmetry.group import Group
from equirelax.symmetry.lie import SE, SO, E, Lorentz, O, Scaling

_WITH_SIZE: dict[str, Callable[[int], Group]] = {
    "SO": SO, "O": O, "SE": SE, "E": E, "C": Cyclic, "D": Dihedral, "S": Symmetric
}  # fmt: skip
_WITHOUT: dict[str, Callable[[], Group]] = {"Scaling": Scaling, "Lorentz": Lorentz, "SO+(1,3)": Lorentz}


def parse(name: str) -> Group:
    """The group called `name`: `SO(3)` or `SO3`, `O(2)`, `SE(3)`, `E(3)`, `C4`, `D4`, `S5`, `Scaling`,
    `Lorentz`.

    Raises:
        RepresentationError: no group is called so.
    """
    if name in _WITHOUT:
        return _WITHOUT[name]()
    match = re.fullmatch(r"([A-Z]+)(?:\((\d+)\)|_?(\d+))", name)
    if match and match[1] in _WITH_SIZE:
        return _WITH_SIZE[match[1]](int(match[2] or match[3]))
    examples = ["SO(2)", "O(2)", "SO(3)", "O(3)", "SE(3)", "E(3)", "C4", "D4", "S5", *_WITHOUT]
    raise RepresentationError(
        f"Unknown group {name!r}.{did_you_mean(name, examples)} Known names look like {', '.join(examples)}."
    )
