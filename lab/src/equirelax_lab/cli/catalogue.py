"""`equirelax list`: benchmarks, models, methods, placements and data."""

from __future__ import annotations

from collections.abc import Sequence

import equirelax_lab.placements  # noqa: F401  (registers those of the laboratory)
from equirelax.relaxation import placements
from equirelax_lab.cli import options
from equirelax_lab.data import data_root, status
from equirelax_lab.tasks.registry import TASKS


def main(words: Sequence[str]) -> int:
    """`words` begins with "list"."""
    parser = options.parser(
        ["list"], "Benchmarks with their models, methods, placements, and data sets with where they are."
    )
    parser.add_argument("--data", help=options.DATA)
    parsed = options.parse(parser, words[1:])
    lines = ["benchmarks:"]
    for name, task in TASKS.items():
        lines.append(f"  {name}  {task.title}; metric: {task.metric.heading}")
        lines += [f"      --model {model}  {text}" for model, text in task.models.items()]
    lines += [
        "",
        options.methods_text(),
        "",
        "placements:",
        f"  {', '.join(placements.names())}",
        "",
        "data:",
    ]
    lines[-1] = f"data (root {data_root(parsed.data)}):"
    for row in status(parsed.data):
        place = f"there: {row.location}" if row.available else f"missing; to get it: {row.how_to_get}"
        lines.append(f"  {row.name}  {row.description}\n      {place}")
    print("\n".join(lines))
    return 0
