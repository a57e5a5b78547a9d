"""Comparisons that a study named before its runs: differences, Holm's correction, and what decides."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doc_pages import ROOT

sys.path.insert(0, str(ROOT / "docs" / "tools"))
import comparisons
from equirelax_lab.tasks.registry import defaults
from verdict import AVERAGED, BY_VALIDATION, Row, VerdictError


def row(method: str, errors: dict[int, float], failed: int = 0, **settings: Any) -> Row:
    other = {seed: 1e3 for seed in errors}
    form, not_deployed = ("relaxed", "projected") if method == "resilient" else ("projected", "relaxed")
    runs: list[dict[str, Any]] = [
        {
            "seed": seed,
            "method": method,
            "metric": {"higher_is_better": False},
            "test": {form: error, not_deployed: other[seed]},
            "val": {form: 3.0},
            "averaged": {
                "val": {form: 2.0 if seed % 2 else 4.0},
                "test": {form: error - 2, not_deployed: other[seed]},
            },
            "config": defaults("nbody", "egnn", "strict").updated(settings).to_dict(),
        }
        for seed, error in errors.items()
    ]
    return Row(method, runs, failed=failed)


SIX = {seed: 5.0 + 0.01 * seed for seed in range(6)}
ROWS = {
    "a: strict": row("strict", SIX),
    "a: resilient": row("resilient", {seed: e - 1 - 0.1 * (-1) ** seed for seed, e in SIX.items()}),
    "a: worse": row("scheduled", {seed: e + 1 + 0.1 * (-1) ** seed for seed, e in SIX.items()}),
    "a: near": row("ace", {seed: e + 0.3 + 0.35 * (-1) ** (seed // 2) for seed, e in SIX.items()}),
    "a: few": row("swing", {seed: SIX[seed] - 1 - 0.01 * seed for seed in range(5)}),
    "a: others": row("rpp", {99: 1.0}),
    "a: level": row("ace", {seed: e - 1 for seed, e in SIX.items()}),
    "a: faster": row("ace", {seed: e - 1 - 0.01 * seed for seed, e in SIX.items()}, learning_rate=0.5),
    "a: broken": row("ace", {seed: e - 1 - 0.01 * seed for seed, e in SIX.items()}, failed=2),
}
ROWS["a: resilient, averaged"] = replace(ROWS["a: resilient"], weights=AVERAGED)
ROWS["a: resilient, by validation"] = replace(ROWS["a: resilient"], weights=BY_VALIDATION)
ROWS["a: about equal"] = row("ace", {seed: e + 0.01 + 0.05 * (-1) ** seed for seed, e in SIX.items()})


@pytest.fixture(autouse=True)
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparisons, "read_row", lambda name, folder: ROWS[name])


def decided(*firsts: str, margin: tuple[float, ...] = ()) -> list[list[str]]:
    pairs = [(first, "a: strict", *margin) for first in firsts]
    return [list(line) for line in comparisons.compare(pairs, Path())[0].rows]


def test_the_form_that_is_deployed_decides() -> None:
    better, worse = decided("a: resilient", "a: worse")
    assert (better[2], better[4], better[-1]) == ("-1.00", "6 of 6", "better")
    assert (worse[2], worse[4], worse[-1]) == ("+1.00", "0 of 6", "worse")


def test_fewer_than_six_seeds_decide_nothing() -> None:
    [few] = decided("a: few")
    assert float(few[-2]) < 1e-3
    assert few[-1] == "undecided"


def test_p_is_corrected_for_the_number_of_pairs() -> None:
    [alone] = decided("a: near")
    among = decided("a: near", "a: worse", "a: resilient")
    assert float(among[0][-2]) == pytest.approx(
        float(alone[-2]), rel=0.1
    )  # the largest of three is not multiplied
    twice = decided("a: near", "a: near")
    assert float(twice[0][-2]) == pytest.approx(min(1.0, 2 * float(alone[-2])), rel=0.1)


def test_a_pair_without_a_p_counts_in_the_correction() -> None:
    [alone] = decided("a: near")
    pair, without = decided("a: near", "a: level")
    assert without[-2:] == ["", "undecided"]
    assert float(pair[-2]) == pytest.approx(min(1.0, 2 * float(alone[-2])), rel=0.1)


def test_averaged_weights_are_those_of_the_row_that_says_so() -> None:
    [averaged] = decided("a: resilient, averaged")
    assert averaged[2] == "-3.00"


def test_weights_may_be_chosen_by_validation() -> None:
    [chosen] = decided("a: resilient, by validation")
    assert chosen[1] == "-1.10 -2.90 -1.10 -2.90 -1.10 -2.90"


@pytest.mark.parametrize(
    ("first", "margin", "words"),
    [
        ("a: about equal", (), "undecided"),
        ("a: about equal", (0.25,), "level"),
        ("a: about equal", (0.05,), "undecided"),  # the interval is wider
        ("a: worse", (2.0,), "worse"),  # a difference that is seen is not called level
        ("a: few", (9.0,), "undecided"),
    ],
)
def test_level_needs_a_margin_named_beforehand(first: str, margin: tuple[float, ...], words: str) -> None:
    assert decided(first, margin=margin)[0][-1] == words


def test_failed_runs_leave_a_pair_undecided() -> None:
    [broken] = decided("a: broken")
    assert float(broken[-2]) < 1e-3
    assert broken[-1].startswith("undecided (2")


def test_settings_that_differ_stand_below_the_table() -> None:
    line = comparisons.compare([("a: resilient", "a: strict"), ("a: faster", "a: strict")], Path())[1]
    assert "a: faster minus a: strict: learning rate 0.5 instead of " in line
    assert "a: resilient" not in line
    assert comparisons.compare([("a: resilient", "a: strict")], Path())[1].endswith(": none.")


def test_rows_without_a_common_seed_are_an_error() -> None:
    with pytest.raises(VerdictError, match="a: others"):
        decided("a: others")


def test_the_table_is_written_as_csv_and_latex_too_and_a_check_names_what_is_stale(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "comparisons.yaml").write_text('- ["a: resilient", "a: strict"]\n')
    monkeypatch.setattr(comparisons, "RESULTS", tmp_path)
    monkeypatch.setattr(comparisons, "ROOT", tmp_path)
    assert comparisons.main(["--check"]) == 1
    assert comparisons.main([]) == 0
    assert "better" in (tmp_path / "comparisons.md").read_text()
    assert (tmp_path / "tables/comparisons.csv").read_text().splitlines()[1].endswith(",better")
    assert comparisons.main(["--check"]) == 0
    latex = tmp_path / "tables/comparisons.tex"
    latex.write_text(latex.read_text().replace("better", "worse"))
    capsys.readouterr()
    assert comparisons.main(["--check"]) == 1
    assert "comparisons.tex" in capsys.readouterr().out
