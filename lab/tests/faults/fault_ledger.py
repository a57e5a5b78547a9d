"""The count of faults, as a file and as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from equirelax_lab.training import provenance

from equirelax.files import write_text

COUNTS, TABLE = "summary.json", "summary.md"
NOTE = """Every fault was made to happen, by `make faults`. Survived: the work went on, or bad input was refused by an error that
names it, and no file was left half-written. Lost: anything else."""


class Ledger:
    """Faults by name, as [tried, survived]."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}

    def note(self, fault: str, survived: bool, times: int = 1) -> None:
        """One fault (or `times` of a kind) was tried; `fault` in words, such as "kill -9 during a run"."""
        tried = self.counts.setdefault(fault, [0, 0])
        tried[0] += times
        tried[1] += times * survived

    def write(self, folder: Path) -> None:
        """Write the counts and their table; faults that were not tried keep their old counts."""
        path = folder / COUNTS
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        origin = {
            "commit": provenance.commit(),
            "hardware": provenance.hardware(),
            "versions": provenance.versions(),
        }
        for fault, (tried, survived) in self.counts.items():
            found[fault] = {"tried": tried, "survived": survived, "lost": tried - survived, **origin}
        write_text(path, json.dumps(dict(sorted(found.items())), indent=2) + "\n")
        rows = [
            f"| {fault} | {row['tried']} | {row['survived']} | {row['lost']} |"
            for fault, row in sorted(found.items())
        ]
        head = ["| fault | tried | survived | lost |", "| --- | --- | --- | --- |"]
        write_text(folder / TABLE, "\n".join(["# Faults", "", NOTE, "", *head, *rows]) + "\n")
