"""Write lab/results/verdict/summary.md: for every benchmark strict training, the best strict training, and the best relaxed.

    python docs/tools/verdict.py            write it
    python docs/tools/verdict.py --check    exit code 1 if it would change

The table is also written to lab/results/verdict/tables as CSV and LaTeX.

lab/results/verdict/verdict.yaml names the rows of lab/results that are compared, and the advice. Of several candidates the one
with the least mean validation error is taken, in the projected form; the test error is not used for that. "Better" and "worse"
need six seeds in common, no run that failed, a 95 % interval of the paired difference without zero, learning rates that were
chosen in the same way for every row, and no setting other than the optimiser and its rate in which the two rows differ. Anything
else is not decided.
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import derived
import yaml
from equirelax_lab.report.conclusion import ENOUGH_SEEDS, differing_settings
from equirelax_lab.report.numbers import Numbers
from equirelax_lab.report.rows import TITLE, by_label, in_words, settings
from equirelax_lab.report.runs import Run, read_folder
from equirelax_lab.report.statistics import decimals, interval_text, paired, spread, spread_text
from equirelax_lab.report.weights import by_validation, worst_last
from equirelax_lab.tasks.task import heading

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "lab" / "results"
FOLDER = RESULTS / "verdict"

HEAD = ("benchmark", "strict", "strict, better trained", "best relaxed, projected", "what to do")


class VerdictError(Exception):
    """verdict.yaml names a row that does not exist."""


RAW, AVERAGED, BY_VALIDATION = "", "averaged", "by validation"


@dataclass(frozen=True)
class Row:
    """A row of a comparison, in the projected form.

    Attributes:
        name: In words: "ace, averaged".
        runs: Contents of its result.json files.
        weights: The weights to use: as trained (RAW), their average (AVERAGED), or in every run those of the two with the better
            validation error (BY_VALIDATION).
        failed: Number of runs with the same settings that ended without a result.
    """

    name: str
    runs: Sequence[Mapping[str, Any]]
    weights: str = RAW
    failed: int = 0

    def errors(self, part: str, form: str = "projected") -> dict[int, float]:
        """Seed -> error on "val" or "test"."""
        return {run["seed"]: self._evaluation(run, form)[part][form] for run in self.runs}

    def _evaluation(self, run: Mapping[str, Any], form: str) -> Mapping[str, Any]:
        """The part of a result.json with the errors of the chosen weights."""
        if self.weights == BY_VALIDATION:
            return by_validation(run, form)
        found: Mapping[str, Any] = run["averaged"] if self.weights == AVERAGED else run
        return found

    @property
    def higher_is_better(self) -> bool:
        return bool(self.runs[0]["metric"]["higher_is_better"])

    def numbers(self) -> str:
        """Mean and standard deviation of the test error: "5.61 ± 0.25"."""
        return spread_text(vars(spread(list(self.errors("test").values()))))

    def text(self) -> str:
        """ "5.01 ± 0.12 (ace)", "5.26 ± 0.08 (averaged)", "29.08 ± 0.57 (muon)"."""
        return f"{self.numbers()} ({self.name.removeprefix('strict').strip(' ,-') or 'strict'})"


def read_row(named: str, root: Path = RESULTS) -> Row:
    """The row "folder: label", "folder: label, averaged" or "folder: label, by validation"; the text after " as " is its name in
    the table.

    Raises:
        VerdictError: There is no such row.
    """
    path, _, shown = named.partition(" as ")
    folder, _, rest = path.partition(": ")
    label, _, weights = rest.partition(", ")
    runs, problems = _read(root / folder)
    rows = by_label([run.result for run in runs if run.finished])
    if label not in rows or weights not in (RAW, AVERAGED, BY_VALIDATION):
        raise VerdictError(f"{named!r} is no row of {folder}, which has {', '.join(rows) or problems}.")
    if weights and any(not run.get("averaged") for run in rows[label]):
        raise VerdictError(f"{named!r}: its runs have no averaged weights.")
    own = settings(rows[label][0])
    failed = sum(run.failed and settings(run.result) == own for run in runs)
    return Row(shown or rest, rows[label], weights, failed)


@functools.cache
def _read(folder: Path) -> tuple[Sequence[Run], Sequence[str]]:
    """The runs of a folder, which many rows share, and the problems found."""
    runs, problems, _ = read_folder(folder)
    return runs, problems


def best(candidates: Sequence[Row]) -> Row:
    """The candidate with the best mean validation error; NaN is the worst."""
    sign = -1 if candidates[0].higher_is_better else 1

    def rank(row: Row) -> float:
        return worst_last(sign * statistics.fmean(row.errors("val").values()))

    return min(candidates, key=rank)


def verdict(relaxed: Row, strict: Row, chosen_alike: bool) -> str:
    """ "Relaxed minus better: -0.31 [-1.04, +0.42]; 2 seeds decide nothing", or the decision of more seeds."""
    found = paired(relaxed.errors("test"), strict.errors("test"), relaxed.higher_is_better)
    if found is None:
        return "Not decided: no seeds in common"
    digits = decimals(statistics.fmean(strict.errors("test").values()))
    interval = interval_text(found.to_dict(), digits)
    numbers = f"Relaxed minus better: {found.mean:+.{digits}f}" + (f" [{interval}]" if interval else "")
    if found.interval is None or found.count < ENOUGH_SEEDS:
        return f"{numbers}; {found.count} seed{'s decide' if found.count > 1 else ' decides'} nothing"
    low, high = found.interval
    if low <= 0 <= high:
        decided = "not decided"
    elif failed := relaxed.failed + strict.failed:
        decided = f"not decided, for {failed} more failed"
    elif not chosen_alike:
        decided = "not decided, for rates were not chosen alike"
    elif differing_settings(relaxed.runs[0], strict.runs[0]).keys() - {"optimizer", "learning_rate"}:
        decided = "not decided, for the two differ in more than the method"
    else:
        decided = "better" if (low > 0) == relaxed.higher_is_better else "worse"
    return f"{numbers} in {found.count} seeds: {decided}"


def differing(strict: Row, relaxed: Row) -> str:
    """Settings in which the two differ: "learning rate 0.0018 (strict), 0.0009 (ace)"; empty if there are none."""
    found = differing_settings(strict.runs[0], relaxed.runs[0])
    return ", ".join(
        f"{in_words(key)} {ours} ({strict.name}), {theirs} ({relaxed.name})"
        for key, (ours, theirs) in found.items()
    )


RULE = (
    "Mean ± standard deviation of the test error over seeds. Of several rows the one with the best validation error is "
    "shown. The last column has the best relaxed minus the better strict one, seed by seed, with a 95 % interval; a "
    f"difference is decided with {ENOUGH_SEEDS} seeds or more and no failed run, an interval without zero, learning rates chosen "
    "for every row alike, and no further setting in which the two differ."
)


def files(listed: Sequence[Mapping[str, Any]], folder: Path) -> dict[Path, str]:
    """The files in the folder of the verdict for the entries of verdict.yaml."""
    lines, differences, sizes = [], [], []
    for one in listed:
        strict = read_row(one["strict"])
        candidates = [strict, *(read_row(name) for name in one.get("better_trained", ()))]
        better, relaxed = best(candidates), best([read_row(name) for name in one["relaxed"]])
        cells = (
            f"{one['benchmark']}, {heading(strict.runs[0]['metric'])}",
            strict.numbers(),
            better.text() if len(candidates) > 1 else "not run",
            relaxed.text(),
            f"{one['do']} {verdict(relaxed, better, one['rates_chosen_alike'])}.",
        )
        lines.append(cells)
        if found := differing(better, relaxed):
            differences.append(f"{one['benchmark']}: {found}")
        named = (one["strict"], *one.get("better_trained", ()), *one["relaxed"])
        folders = dict.fromkeys(f"`lab/results/{name.partition(': ')[0]}`" for name in named)
        size = strict.runs[0]["scaled_down"] or "the paper's size"
        sizes.append(f"- {one['benchmark']}: {size} ({', '.join(folders)})")
    differing_line = f"**{TITLE}** (better strict, best relaxed): {'; '.join(differences) or 'none'}."
    table = Numbers("Verdict", HEAD, tuple(lines))
    blocks = [
        "# Does relaxing pay?",
        table.markdown().rstrip(),
        differing_line,
        RULE,
        "What was run of the papers' settings:",
    ]
    text = "\n\n".join([*blocks, "\n".join(sizes)]) + "\n"
    return derived.with_tables(folder / "summary.md", text, table)


def main(words: Sequence[str]) -> int:
    """Write the table, or with --check only compare."""
    if list(words) not in ([], ["--check"]):
        print(__doc__)
        return 2
    listed = yaml.safe_load((FOLDER / "verdict.yaml").read_text(encoding="utf-8"))
    try:
        found = files(listed, FOLDER)
    except VerdictError as error:
        print(f"verdict.yaml: {error}", file=sys.stderr)
        return 2
    if words:
        stale = derived.stale(found)
        for path in stale:
            print(f"{path.relative_to(ROOT)} differs from the results: python docs/tools/verdict.py")
        return int(bool(stale))
    derived.write(found)
    print(found[FOLDER / "summary.md"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
