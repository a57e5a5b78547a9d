"""Group the rows of a comparison into panels: one panel for few rows, else one for the rows that a reader compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from equirelax_lab.report.rows import BASELINE, swept_setting
from equirelax_lab.report.table import Table

MOST_ROWS = 6
"""Most rows in one panel; with more, the figure has several panels."""
MOST_PANELS = 12


@dataclass(frozen=True)
class Facet:
    """A panel.

    Attributes:
        title: What its rows have in common.
        rows: Words for the legend, which leave out what the title says -> row.
    """

    title: str
    rows: dict[str, str]


def facets(table: Table, rows: Sequence[str]) -> list[Facet]:
    """The panels of a figure that has a line for every one of `rows`.

    Panels are made by model and by the value of the swept setting, so that the methods are side by side; else by model only, by
    everything in a row's name except its method, or by method, each with the strict row.

    Args:
        table: The comparison.
        rows: Labels of its rows.
    """
    if len(rows) <= MOST_ROWS:
        return [Facet("", {row: row for row in rows})]
    swept = (
        swept_setting([run.result for several in table.rows.values() for run in several]) or ""
    ).rpartition(".")[2]
    models = {run.result["model"] for several in table.rows.values() for run in several}

    def tags(row: str) -> list[str]:
        return [word for word in row.split()[1:] if word in models]

    ways: list[Callable[[str], list[str]]] = [
        lambda row: tags(row) + [word for word in row.split() if swept and swept in word.split("=")[:-1]],
        tags,
        lambda row: row.split()[1:],
    ]
    for shared in ways:
        found: dict[str, dict[str, str]] = {}
        for row in rows:
            words = shared(row)
            short = " ".join(word for word in row.split() if word not in words)
            found.setdefault(" ".join(words), {})[short] = row
        if 1 < len(found) <= MOST_PANELS and max(map(len, found.values())) <= MOST_ROWS:
            return [Facet(title, own) for title, own in found.items()]
    return _by_method(rows)


def _by_method(rows: Sequence[str]) -> list[Facet]:
    """A panel for every method, or for as many of its rows as fit into one; a single strict row, if any, is in each."""
    strict = [row for row in rows if row.split()[0] == BASELINE]
    beside = {row: row for row in strict} if len(strict) == 1 and len(rows) > 1 else {}
    methods: dict[str, list[str]] = {}
    for row in rows:
        if row not in beside:
            methods.setdefault(row.split()[0], []).append(row)
    found = []
    for method, own in methods.items():
        for start in range(0, len(own), MOST_ROWS):
            some = own[start : start + MOST_ROWS]
            found.append(Facet(some[0] if len(some) == 1 else method, beside | {row: row for row in some}))
    return found
