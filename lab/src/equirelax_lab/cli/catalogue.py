"""`equirelax list`: benchmarks, models, methods, placements and data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import equirelax_lab.placements  # noqa: F401  (registers those of the laboratory)
from equirelax.relaxation import placements
from equirelax_lab.cli import options
from equirelax_lab.cli.help import columns, filled, rows
from equirelax_lab.data import data_root, smoke, status
from equirelax_lab.data.root import DataStatus, named_root
from equirelax_lab.tasks.registry import TASKS

DESCRIPTION = """List the benchmarks with their models, the methods, the placements, and the data sets with their locations.

example:
  equirelax list --data my-data"""


def main(words: Sequence[str]) -> int:
    """`words` begins with "list"."""
    parser = options.parser(["list"], DESCRIPTION)
    parser.add_argument("--data", help=options.DATA)
    parsed = options.parse(parser, words[1:])
    named_root(parsed.data)
    lines = ["benchmarks:"]
    for name, task in TASKS.items():
        lines.append(f"  {name}: {task.title}; metric: {task.metric.heading}")
        lines += rows([(f"--model {model}", text) for model, text in task.models.items()], indent=6)
    root = data_root(parsed.data)
    missing = "" if root.is_dir() else ", which does not exist yet"
    lines += ["", options.methods_text(), "", "placements:", f"  {', '.join(placements.names())}", ""]
    lines.append(f"data (root {root}{missing}):")
    for row in status(parsed.data):
        lines.append(f"  {row.name}: {row.description}")
        lines += (f"      {place}" for place in _places(row, parsed.data))
    print(filled("\n".join(lines), columns()))
    return 0


def _places(row: DataStatus, root: str | None) -> Iterator[str]:
    """Describe where a data set is, or how to get it.

    Smoke plumes may have several sets, which differ in the flags that made them.
    """
    if not row.available:
        yield f"missing; to get it: {row.how_to_get}"
    elif row.name != "smoke":
        yield f"there: {row.location}"
    else:
        sets = smoke.made(root)
        yield from (
            f"there: {place} {settings.flags and f'({settings.flags})'}" for place, settings in sets.items()
        )
        if not sets:
            yield f"not finished; to continue: {row.how_to_get}"
