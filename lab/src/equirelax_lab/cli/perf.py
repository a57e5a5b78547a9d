"""`equirelax perf`: times training steps and inference."""

from __future__ import annotations

import json
from collections.abc import Sequence

from equirelax.errors import ConfigError
from equirelax.files import write_text
from equirelax.settings import COUNT, JOBS, check
from equirelax_lab.cli import options
from equirelax_lab.cli.terminal import show
from equirelax_lab.training.perf_subjects import SUBJECTS

DESCRIPTION = """\
Time a training step at the papers' sizes, strict and relaxed, and inference before and after projection.

No data is needed. Times are minima over repetitions, taken in turn in one process after a warm-up. Each time is shown with
the arithmetic of its matrix products, and each ratio of times with its floor, the same ratio of multiply-adds. Close
other programs first.

examples:
  equirelax perf
  equirelax perf modelnet40 --model vn-dgcnn
  equirelax perf --stack 1 8"""


def main(words: Sequence[str]) -> int:
    """Run the command; `words` begins with "perf"."""
    parser = options.parser(["perf"], DESCRIPTION)
    parser.add_argument("benchmark", nargs="?", default="nbody", help=" or ".join(SUBJECTS))
    models = "; ".join(f"{name}: {', '.join(timed.models)}" for name, timed in SUBJECTS.items())
    parser.add_argument(
        "--model", default=None, help=f"model of the benchmark, by default the first ({models})"
    )
    parser.add_argument("--batch_size", type=int, default=None, help="samples in a batch")
    parser.add_argument("--rows", type=int, default=None, help="input rows of the subsampled penalty")
    parser.add_argument("--repetitions", type=int, default=None, help="timed repetitions, after the warm-up")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch")
    parser.add_argument(
        "--simulate", action="store_true", help="also time the simulation of the N-body set, on two threads"
    )
    parser.add_argument(
        "--stack",
        type=int,
        nargs="*",
        default=None,
        metavar="N",
        help="time stacks of N runs and one run, and print how many fit into memory (without a number: 1, 8 and 64)",
    )
    parser.add_argument("-o", "--out", default="runs/perf.json", help="JSON file to write")
    parsed = options.parse(parser, words[1:], batch_size=COUNT, rows=COUNT, repetitions=COUNT, threads=JOBS)
    for count in parsed.stack or ():
        check(count, COUNT, "--stack")
    # Imported here because training code is slow to import, and help need not wait for it.
    from equirelax_lab.training.perf import measure, simulation, table

    if parsed.stack is not None:
        return _stack(parsed)
    result = measure(
        parsed.benchmark,
        parsed.model,
        batch_size=parsed.batch_size,
        rows=parsed.rows,
        repetitions=parsed.repetitions,
        threads=parsed.threads,
    )
    if parsed.simulate:
        result["simulation"] = simulation(threads=2)
    write_text(parsed.out, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    show(table(result))
    print(parsed.out)
    return 0


def _stack(parsed: options.Namespace) -> int:
    """Run `--stack`: time stacks of runs instead of kinds of steps."""
    for name in ("rows", "simulate"):
        if parsed[name]:
            raise ConfigError(f"--{name} is not for --stack: leave one of them out.")
    from equirelax_lab.training.perf_stack import MEMBERS, measure_stack, table

    result = measure_stack(
        parsed.benchmark,
        parsed.model,
        parsed.stack or MEMBERS,
        batch_size=parsed.batch_size,
        repetitions=parsed.repetitions,
        threads=parsed.threads,
    )
    write_text(parsed.out, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    show(table(result))
    print(parsed.out)
    return 0
