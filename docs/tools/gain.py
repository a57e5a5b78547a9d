"""Compare the gain of relaxing with the symmetry score of the strict networks, run by run.

    python docs/tools/gain.py runs/plumes-gain SCORES/symmetry_score.json --out lab/results/symmetry-score/gain

The folder holds finished runs of strict and of relaxed methods over several seeds and values of one swept setting, or an archive
of them. SCORES is what `equirelax symmetry --score` wrote for the strict ones. The gain of a relaxed run is 1 - its test error
over that of the strict run of the same seed and value. Writes gain.md and gain.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from equirelax_lab.report.drawing import styled, write_png
from equirelax_lab.report.looks import COLOURS, INK, MARKERS, SOFT
from equirelax_lab.report.rows import BASELINE, settings, swept_setting
from equirelax_lab.report.runs import read_folder
from equirelax_lab.report.statistics import interval_text, paired, spread
from matplotlib.figure import Figure as Canvas
from scipy.stats import spearmanr

FORMS = {"relaxed": "deployed", "projected": "projected"}
"""Form of a relaxed network -> its description."""
DRAWS = 10_000
"""Number of draws of the seeds, with replacement, for an interval."""
DIGITS = 6
"""Decimals of r: if the examples cancel exactly, r is -1/(n - 1) up to rounding, which must not affect ranks."""
NOTE = """\
r: over all layers, of the strict network; mean ± standard deviation over seeds. Gain: 1 - the relaxed network's test error
({metric}) over that of the strict network of the same seed, in per cent, with the 95 % interval of the mean over the {seeds}
seeds (Student's t) where there are several; *deployed* with its residuals, *projected* without them. Rank correlation:
Spearman's, of gain and r over all {pairs} pairs of seed and {key}, with a 95 % interval from drawing the seeds with replacement
10,000 times."""

Place = tuple[int, float]
"""Seed and value of the swept setting."""
Gains = dict[tuple[str, str], dict[Place, float]]
"""Method and form -> place -> gain."""
Correlation = tuple[float, float, float]
"""The value of a correlation, and the ends of an interval."""


def scores_at(scores: Mapping[str, Any], key: str) -> dict[Place, float]:
    """Place -> r over all layers, from the content of symmetry_score.json."""
    found = {}
    for one in scores["runs"]:
        own = settings({"method": one["config"]["method"], "config": one["config"]})
        found[int(one["config"]["seed"]), float(own[key])] = round(one["whole"]["ratio"], DIGITS)
    return found


def gains(results: Sequence[Mapping[str, Any]], key: str) -> Gains:
    """The gain of every relaxed run in both forms.

    Raises:
        ValueError: Higher values are better, two runs of a method have one place, or a relaxed run has no strict one.
    """
    errors: dict[str, dict[Place, Mapping[str, float]]] = {BASELINE: {}}
    for result in results:
        place = int(result["seed"]), float(settings(result)[key])
        of_method = errors.setdefault(result["method"], {})
        if result["metric"]["higher_is_better"]:
            raise ValueError(f"{result['metric']['name']} is no error: higher values are better")
        if place in of_method:
            raise ValueError(f"{result['method']} has two runs of seed {place[0]}, {key} {place[1]:g}")
        of_method[place] = result["test"]
    strict, found = errors.pop(BASELINE), Gains()
    for method, of_method in errors.items():
        for place, test in of_method.items():
            if place not in strict:
                raise ValueError(f"there is no strict run of seed {place[0]}, {key} {place[1]:g}")
            for form in FORMS:
                gain = 1 - float(test[form]) / float(strict[place]["projected"])
                found.setdefault((method, form), {})[place] = gain
    return found


def correlation(gain: Mapping[Place, float], r: Mapping[Place, float]) -> Correlation | None:
    """Spearman's rank correlation, and the ends of its 95 % interval from drawing seeds with replacement; None for one seed."""
    seeds = sorted({seed for seed, _ in gain})
    if len(seeds) < 2:
        return None
    of_seed = [[place for place in sorted(gain) if place[0] == seed] for seed in seeds]
    generator = np.random.default_rng(0)

    def of(places: Sequence[Place]) -> float:
        return float(spearmanr([gain[place] for place in places], [r[place] for place in places]).statistic)

    drawn = [
        of([place for index in generator.integers(len(seeds), size=len(seeds)) for place in of_seed[index]])
        for _ in range(DRAWS)
    ]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return of(sorted(gain)), float(low), float(high)


def table(found: Gains, r: Mapping[Place, float], key: str) -> str:
    """A row for every value of the swept setting: r, and the gain of every method and form."""
    head = [key, "r", *(f"{method}, {FORMS[form]} (%)" for method, form in found)]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for value in sorted({value for _, value in r}):
        own = spread([score for (_, at), score in r.items() if at == value])
        cells = [f"{value:g}", f"{own.mean:.4f} ± {own.std or 0:.4f}"]
        for several in found.values():
            percent = {seed: 100 * gain for (seed, at), gain in several.items() if at == value}
            compared = paired(percent, dict.fromkeys(percent, 0.0))
            interval = interval_text(None if compared is None else compared.to_dict(), 1)
            cells.append(
                "not run"
                if compared is None
                else f"{compared.mean:+.1f} " + (f"[{interval}]" if interval else "(one seed)")
            )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def correlations_table(correlations: Mapping[tuple[str, str], Correlation]) -> str:
    """A row for every method and form."""
    lines = ["| gain of | rank correlation with r | 95 % interval |", "| --- | ---: | --- |"]
    for (method, form), (value, low, high) in correlations.items():
        lines.append(f"| {method}, {FORMS[form]} | {value:+.2f} | {low:+.2f} to {high:+.2f} |")
    return "\n".join(lines)


def draw(
    path: Path,
    found: Gains,
    r: Mapping[Place, float],
    correlations: Mapping[tuple[str, str], Correlation],
    key: str,
    again: str,
) -> None:
    """Write a PNG: gain against r, a panel for every method and form of several seeds, a colour for every swept value."""
    values = sorted({value for _, value in r})
    with styled():
        figure = Canvas(figsize=(4.6 * len(correlations), 3.6), layout="constrained")
        panels = figure.subplots(1, len(correlations), squeeze=False)[0]
        for panel, ((method, form), ranked) in zip(panels, correlations.items(), strict=True):
            several = found[method, form]
            for index, value in enumerate(values):
                places = [place for place in several if place[1] == value]
                panel.plot(
                    [r[place] for place in places],
                    [100 * several[place] for place in places],
                    linestyle="none",
                    marker=MARKERS[index % len(MARKERS)],
                    color=[*COLOURS[1:], INK][index % len(COLOURS)],
                    label=f"{key} {value:g}",
                )
            panel.axhline(0, color=SOFT, linewidth=0.6)
            rank, low, high = ranked
            panel.set_title(
                f"{method}, {FORMS[form]}: rank correlation {rank:+.2f} [{low:+.2f}, {high:+.2f}]", fontsize=8
            )
            panel.set_xlabel("r of the strict network")
        panels[0].set_ylabel("gain over strict (%)")
        panels[0].legend(fontsize=7)
        write_png(path, figure, again)


def main(words: Sequence[str] | None = None) -> None:
    """Write the tables and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(words)
    results = [run.result for run in read_folder(given.folder)[0] if run.finished]
    swept = swept_setting(results)
    if swept is None:
        parser.error(f"{given.folder}: its runs differ in no one number that takes three values or more")
    key = swept.rpartition(".")[2]
    try:
        found = gains(results, swept)
    except ValueError as error:
        parser.error(f"{given.folder}: {error}")
    r = scores_at(json.loads(given.scores.read_text(encoding="utf-8")), swept)
    lacking = sorted({place for several in found.values() for place in several} - r.keys())
    if lacking:
        parser.error(
            f"{given.scores} has no score of the strict run of seed {lacking[0][0]}, {key} {lacking[0][1]:g}"
        )
    ranked = {row: correlation(several, r) for row, several in found.items()}
    correlations = {row: value for row, value in ranked.items() if value is not None}
    again = f"python docs/tools/gain.py {given.folder} {given.scores} --out {given.out}"
    note = NOTE.format(
        metric=results[0]["metric"]["name"], seeds=len({seed for seed, _ in r}), pairs=len(r), key=key
    )
    parts = [
        "# What relaxing gains, against the score",
        table(found, r, key),
        note,
        correlations_table(correlations),
        f"Written by `{again}`, commit of the runs {results[0]['commit'][:7]}.",
    ]
    (given.out / "gain.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    draw(given.out / "gain.png", found, r, correlations, key, again)


if __name__ == "__main__":
    main()
