"""Which module breaks equivariance."""

from __future__ import annotations

import dataclasses

from equirelax.audit.table import number, table


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """What one call of one module did.

    Attributes:
        path: the module's path, ``""`` for the model itself; type: its class; call: 0 for its first call in a forward.
        status: see :class:`Localisation`.
        arriving: relative error with which its worst input arrived; ``None`` where it could not be told.
        relative, absolute: the error that the module adds to inputs that are exactly transformed.
        output: relative error of its output as it came.
        inputs, outputs: the action that was taken to explain each tensor.
        note: why something is unknown, or what was assumed.
    """

    path: str
    type: str
    call: int
    status: str
    arriving: float | None
    relative: float | None
    absolute: float | None
    output: float | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Break:
    """The first place where equivariance is lost: the path of the module whose own code does it, and in words."""

    path: str
    type: str
    words: str


@dataclasses.dataclass(frozen=True)
class Localisation:
    """Rows worst first, and the first break."""

    rows: tuple[LayerRow, ...]
    first: Break | None

    def table(self, broken: bool) -> str:
        """The rows as text."""
        return table(["module", "status", "adds"], [[r.path, r.status, number(r.relative or 0.0)] for r in self.rows])
