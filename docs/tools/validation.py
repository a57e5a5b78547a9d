"""Compare the arms of an exploration only by validation errors; test errors are not read.

    python docs/tools/validation.py runs/nbody-exploration [--out FILE]

The folder contains a folder for every arm, with runs or an archive of runs. An arm has one run per seed, and rows of a folder
that differ in a setting are separate arms. An arm is measured by the least projected validation error over the evaluations, of
the better of raw and averaged weights. Unfinished runs count in no mean.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from equirelax_lab.report.rows import BASELINE, labels
from equirelax_lab.report.runs import Run, comparison_folders, read_folder
from equirelax_lab.report.statistics import interval_text, paired, spread, spread_text
from equirelax_lab.training.dynamics import first_lag

FORMS = {"raw": "val/projected", "averaged": "averaged/projected"}
END = 0.1
"""Share of the epochs over which the losses on training data are averaged, at the end."""
NOTE = """\
Projected validation error, mean ± standard deviation over the finished seeds: the least over the evaluations of a run, of the raw
and of the averaged weights, and the better of both. *Minus strict*: seed by seed, with a 95 % interval. Losses on 500 training
samples, means over the last tenth of the epochs, x1e-3. *Lags*: the epoch at which the projected network first lags by the rule
of `equirelax.methods.lags`, seed by seed. An exploration chooses what is tested with new seeds, and is no evidence."""


def least(run: Run, column: str) -> float:
    """The least value of a column; NaN if it has none."""
    return min(run.series(column).values(), default=math.nan)


def errors(runs: Sequence[Run]) -> dict[str, dict[int, float]]:
    """raw, averaged, best -> seed -> error."""
    found = {
        form: {int(run.result["seed"]): least(run, column) for run in runs} for form, column in FORMS.items()
    }
    best = {seed: min(raw, found["averaged"][seed]) for seed, raw in found["raw"].items()}
    return {**found, "best": best}


def at_the_end(run: Run, column: str) -> float:
    """The mean of a column over the last epochs, in thousandths."""
    values = run.series(column)
    last = [value for epoch, value in values.items() if epoch > (1 - END) * max(values)]
    return 1e3 * sum(last) / len(last)


def table(arms: Mapping[str, Sequence[Run]]) -> str:
    """The arms in order, each with the results of its finished runs and the progress of the others."""
    finished = {name: [run for run in runs if run.finished] for name, runs in arms.items()}
    baseline = errors(finished[BASELINE])["best"] if finished.get(BASELINE) else {}
    head = (
        "arm",
        "seeds",
        "raw",
        "averaged",
        "better of both",
        "minus strict",
        "by seed",
        "training loss projected",
        "relaxed",
        "lags",
    )
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, runs in finished.items():
        if not runs:
            continue
        found = errors(runs)
        spreads = [spread(list(found[form].values())).__dict__ for form in ("raw", "averaged", "best")]
        difference = paired(found["best"], baseline) if name != BASELINE else None
        compared = None if difference is None else difference.to_dict()
        interval = interval_text(compared, 2)
        ends = ([at_the_end(run, f"fit/{form}") for run in runs] for form in ("projected", "relaxed"))
        cells = [
            name,
            str(len(runs)),
            *map(spread_text, spreads),
            "" if compared is None else f"{compared['mean']:+.2f}" + (f" [{interval}]" if interval else ""),
            " ".join(f"{seed}: {value:.2f}" for seed, value in sorted(found["best"].items())),
            *(f"{spread(values).mean:.2f}" for values in ends),
            ", ".join(str(first_lag(run.rows) or "no") for run in runs),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def left(arms: Mapping[str, Sequence[Run]]) -> str:
    """The unfinished runs, with the best validation error so far."""
    lines = [
        f"- {name}, seed {run.result['seed']}: epoch {len(run.rows)}"
        + (
            f", {min(least(run, column) for column in FORMS.values()):.2f} so far"
            if run.series(FORMS["raw"])
            else ""
        )
        for name, runs in arms.items()
        for run in runs
        if not run.finished
    ]
    return "\n".join(["Not finished:", "", *lines]) if lines else "All runs that were begun are finished."


def main(words: Sequence[str] | None = None) -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(words)
    arms: dict[str, list[Run]] = {}
    for folder in comparison_folders(given.folder):
        runs = read_folder(folder)[0]
        place = folder.relative_to(given.folder).as_posix().removeprefix(".")
        named = labels([run.result for run in runs])
        for run, label in zip(runs, named, strict=True):
            name = " ".join(filter(None, (place, label))) if len(set(named)) > 1 or not place else place
            arms.setdefault(name, []).append(run)
    for name, runs in arms.items():
        if len({run.result["seed"] for run in runs}) < len(runs):
            parser.error(f"{name} has two runs of one seed")
        if runs[0].result["metric"].get("higher_is_better"):
            parser.error(f"{name}: the least error counts here, and of this metric higher values are better")
    arms = {name: arms[name] for name in sorted(arms, key=lambda name: (name != BASELINE, name))}
    hours = sum(float(run.rows[-1]["seconds"]) for runs in arms.values() for run in runs if run.rows) / 3600
    text = (
        "\n\n".join(
            [
                "# By validation",
                table(arms),
                NOTE,
                left(arms),
                f"Hours of runs by the clock, on cores that others used too: {hours:.1f}.",
            ]
        )
        + "\n"
    )
    if given.out is None:
        print(text)
    else:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
