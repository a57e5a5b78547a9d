"""What a relaxation touched, module by module, and why."""

from __future__ import annotations

from dataclasses import dataclass

from equirelax.relaxation.memory import Memory

RELAXED, SKIPPED, UNKNOWN = "relaxed", "skipped", "unknown"


@dataclass(frozen=True)
class Row:
    """One module of the model.

    Args:
        path: of the module ("" is the model itself); with ":slot" where a module has several residuals.
        type: name of the module's class.
        status: "relaxed", "skipped" or "unknown" (it has parameters of its own,
            and no layer family knows it).
        reason: why.
        shape: (out_dim, in_dim) of the residual, where there is one.
        parameters: that the residual adds, its gamma left out.
        relaxes: the group that the residual breaks.
    """

    path: str
    type: str
    status: str
    reason: str = ""
    shape: tuple[int, int] | None = None
    parameters: int = 0
    relaxes: str = ""


@dataclass(frozen=True)
class Summary:
    """The rows of a relaxation, and the memory that training it takes; `str()` is a table."""

    rows: tuple[Row, ...]
    memory: Memory

    def with_status(self, status: str) -> tuple[Row, ...]:
        """The rows that are "relaxed", "skipped" or "unknown"."""
        return tuple(row for row in self.rows if row.status == status)

    @property
    def parameters(self) -> int:
        """Parameters that the residuals add, strengths left out."""
        return sum(row.parameters for row in self.rows)

    def __str__(self) -> str:
        header = ("module", "type", "status", "residual", "parameters", "relaxes", "why")
        lines = [header]
        for row in self.rows:
            shape = f"{row.shape[1]} -> {row.shape[0]}" if row.shape else ""
            count = f"{row.parameters:,}" if row.shape else ""
            lines.append((row.path or "(model)", row.type, row.status, shape, count, row.relaxes, row.reason))
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        text = [
            "  ".join(
                cell.rjust(w) if i == 4 else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        text.insert(1, "  ".join("-" * w for w in widths))
        counts = [f"{len(self.with_status(s))} {s}" for s in (RELAXED, SKIPPED, UNKNOWN)]
        added = f"{', '.join(counts)}; the residuals add {self.parameters:,} parameters"
        return "\n".join([*text, added, str(self.memory)])
