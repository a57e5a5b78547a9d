"""`equirelax perf`: times."""

from __future__ import annotations

import json
from collections.abc import Sequence

from equirelax.cli import options
from equirelax.files import write_text
from equirelax.training.perf import measure, simulation, table

DESCRIPTION = """\
Time a training step of SEGNN at the papers' size, strict and relaxed, and inference before and after
projection.

Needs no data. Times are minima over repetitions, taken in turn in one process after a warm-up; beside each
ratio stands its floor, the same ratio in multiply-adds of matrix products. Close other programs first."""


def main(words: Sequence[str]) -> int:
    """`words` begins with "perf"."""
    parser = options.parser(["perf"], DESCRIPTION)
    parser.add_argument("--model", default="segnn", help="model of the N-body benchmark")
    parser.add_argument("--batch_size", type=int, default=100, help="systems of five bodies in a batch")
    parser.add_argument("--rows", type=int, default=64, help="input rows of the subsampled penalty")
    parser.add_argument(
        "--repetitions", type=int, default=50, help="timed repetitions, after 10 that are not"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument(
        "--simulate", action="store_true", help="also time making the N-body set, on two threads"
    )
    parser.add_argument("-o", "--out", default="runs/perf.json", help="JSON file to write")
    parsed = options.parse(parser, words[1:])
    result = measure(
        model=parsed.model,
        batch_size=parsed.batch_size,
        rows=parsed.rows,
        repetitions=parsed.repetitions,
        threads=parsed.threads,
    )
    if parsed.simulate:
        result["simulation"] = simulation(threads=2)
    write_text(parsed.out, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(table(result))
    print(parsed.out)
    return 0
