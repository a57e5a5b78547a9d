"""Write comparisons.md beside every comparisons.yaml in lab/results: the comparisons that a study named before its runs.

The table is also written to the folder tables as CSV and LaTeX.

    python docs/tools/comparisons.py            write them
    python docs/tools/comparisons.py --check    exit code 1, and the files' names, if something would change

comparisons.yaml is a list of pairs ["folder: row", "folder: row"], of folders beside it. "folder: row, averaged" takes the
averaged weights, and "folder: row, by validation" takes, in every run, the raw or the averaged ones, whichever validation
prefers. Each comparison is the difference of the two rows' test errors, seed by seed, in the form that the method deploys.
"Better" and "worse" need six seeds in common, no run that failed, and a paired t test below 0.05 after Holm's correction for all
pairs of the file. A pair may have a number as its third item, a margin that was named beforehand: "level" needs as many seeds
and a 95 % interval within plus or minus the margin. Anything else is undecided. Below the table are listed the settings, other
than the method, in which the two rows of a pair differ.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import derived
import yaml
from equirelax_lab.report.conclusion import ALPHA, ENOUGH_SEEDS, differing_settings
from equirelax_lab.report.numbers import Numbers
from equirelax_lab.report.rows import TITLE, in_words, shown
from equirelax_lab.report.statistics import Paired, decimals, holm, interval_text, paired
from equirelax_lab.report.table import headline
from verdict import RESULTS, ROOT, Row, VerdictError, read_row

HEAD = ("difference", "by seed", "mean", "95 % interval", "better seeds", "p, corrected", "decided")


def errors(row: Row) -> dict[int, float]:
    """Seed -> test error in the form that the method deploys."""
    return row.errors("test", headline(row.runs[0]["method"]))


def decision(found: Paired, p: float, higher_is_better: bool, failed: int, margin: float | None) -> str:
    """ "better", "worse", "level" or "undecided", for the first row compared with the second.

    Args:
        found: The differences.
        p: The corrected p value of the paired t test.
        higher_is_better: Whether a larger value wins.
        failed: Number of runs of the two rows that ended without a result.
        margin: The largest difference that counts as none; None if no margin was named.
    """
    if failed:
        return f"undecided ({failed} more failed)"
    if found.count < ENOUGH_SEEDS or found.interval is None:
        return "undecided"
    if p < ALPHA:
        return "better" if (found.mean > 0) == higher_is_better else "worse"
    level = margin is not None and -margin <= found.interval[0] and found.interval[1] <= margin
    return "level" if level else "undecided"


def compare(pairs: Sequence[Sequence[Any]], folder: Path) -> tuple[Numbers, str]:
    """Compare all pairs of rows.

    Args:
        pairs: The items of comparisons.yaml.
        folder: The folder that contains it.

    Returns:
        A table of the differences, and a line with the settings in which pairs differ.

    Raises:
        VerdictError: A row does not exist.
    """
    rows = [(read_row(first, folder), read_row(second, folder)) for first, second, *_ in pairs]
    found = [paired(errors(ours), errors(theirs), ours.higher_is_better) for ours, theirs in rows]
    # a pair without a p still belongs to the family
    corrected = holm({str(k): 1.0 if one is None or one.p is None else one.p for k, one in enumerate(found)})
    lines, differences = [], []
    for k, ((first, second, *margin), (ours, theirs), one) in enumerate(zip(pairs, rows, found, strict=True)):
        if one is None:
            raise VerdictError(f"{first!r} and {second!r} have no seed in common.")
        digits, p = decimals(statistics.fmean(errors(theirs).values())), corrected[str(k)]
        seeds = sorted(errors(ours).keys() & errors(theirs).keys())
        cells = (
            f"{first} minus {second}",
            " ".join(f"{errors(ours)[seed] - errors(theirs)[seed]:+.{digits}f}" for seed in seeds),
            f"{one.mean:+.{digits}f}",
            interval_text(one.to_dict(), digits),
            f"{one.wins} of {one.count}",
            "" if one.p is None else f"{p:.2g}",
            decision(one, p, ours.higher_is_better, ours.failed + theirs.failed, *margin or [None]),
        )
        lines.append(cells)
        if words := differing_settings(ours.runs[0], theirs.runs[0]):
            listed = (
                f"{in_words(key)} {shown(own)} instead of {shown(its)}" for key, (own, its) in words.items()
            )
            differences.append(f"{first} minus {second}: {', '.join(listed)}")
    return Numbers("Comparisons", HEAD, tuple(lines)), f"**{TITLE}**: {'; '.join(differences) or 'none'}."


def files(path: Path) -> dict[Path, str]:
    """The files that belong beside a comparisons.yaml."""
    table, differing = compare(yaml.safe_load(path.read_text(encoding="utf-8")), path.parent)
    text = f"# Comparisons named before the runs\n\n{table.markdown()}\n{differing}\n"
    return derived.with_tables(path.with_suffix(".md"), text, table)


def main(words: Sequence[str]) -> int:
    """Write the tables, or with --check only compare."""
    if list(words) not in ([], ["--check"]):
        print(__doc__)
        return 2
    stale: list[Path] = []
    for path in sorted(RESULTS.glob("**/comparisons.yaml")):
        try:
            found = files(path)
        except VerdictError as error:
            print(f"{path.relative_to(ROOT)}: {error}", file=sys.stderr)
            return 2
        if words:
            stale += derived.stale(found)
        else:
            derived.write(found)
            print(found[path.with_suffix(".md")])
    for path in stale:
        print(f"{path.relative_to(ROOT)} differs from the results: python docs/tools/comparisons.py")
    return int(bool(stale))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
