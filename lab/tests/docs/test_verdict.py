"""The verdict table: what the results say, chosen by validation, and decided by its rule alone."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from doc_pages import ROOT

sys.path.insert(0, str(ROOT / "docs" / "tools"))
import verdict
from equirelax_lab.tasks.registry import defaults


def row(
    name: str,
    test: Mapping[int, float],
    val: float = 1.0,
    higher: bool = False,
    failed: int = 0,
    **settings: Any,
) -> Any:
    runs = [
        {
            "seed": seed,
            "metric": {"higher_is_better": higher},
            "val": {"projected": val},
            "test": {"projected": error},
            "config": defaults("nbody", "egnn", "strict").updated(settings).to_dict(),
        }
        for seed, error in test.items()
    ]
    return verdict.Row(name, runs, failed=failed)


SIX = {seed: 5.0 + 0.01 * seed for seed in range(6)}


def shifted(by: float, seeds: int = 6) -> dict[int, float]:
    """Errors that differ from SIX by about `by`, not by the same in every seed."""
    return {seed: SIX[seed] + by * (1 + 0.1 * (-1) ** seed) for seed in range(seeds)}


def test_the_table_is_what_the_results_say() -> None:
    listed = yaml.safe_load((ROOT / "lab/results/verdict/verdict.yaml").read_text(encoding="utf-8"))
    folder = ROOT / "lab/results/verdict"
    found = verdict.files(listed, folder)
    assert {path.relative_to(folder).as_posix() for path in found} == {
        "summary.md",
        "tables/verdict.csv",
        "tables/verdict.tex",
    }
    for path, text in found.items():
        assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("relaxed", "alike", "higher", "decided"),
    [
        (shifted(-1.0), True, False, "-1.00 [-1.11, -0.89] in 6 seeds: better"),
        (shifted(+1.0), True, False, "+1.00 [+0.89, +1.11] in 6 seeds: worse"),
        (shifted(+1.0), True, True, "+1.00 [+0.89, +1.11] in 6 seeds: better"),
        (shifted(-1.0), True, True, "-1.00 [-1.11, -0.89] in 6 seeds: worse"),
        (shifted(-1.0, 5), True, False, "-1.02 [-1.16, -0.88]; 5 seeds decide nothing"),
        (shifted(-1.0, 1), True, False, "-1.10; 1 seed decides nothing"),
        (
            shifted(-1.0),
            False,
            False,
            "-1.00 [-1.11, -0.89] in 6 seeds: not decided, for rates were not chosen alike",
        ),
        (
            {seed: SIX[seed] + (-1) ** seed for seed in SIX},
            True,
            False,
            "+0.00 [-1.15, +1.15] in 6 seeds: not decided",
        ),
    ],
)
def test_what_is_decided(relaxed: dict[int, float], alike: bool, higher: bool, decided: str) -> None:
    strict = row("strict", SIX, higher=higher)
    assert (
        verdict.verdict(row("ace", relaxed, higher=higher), strict, alike)
        == f"Relaxed minus better: {decided}"
    )


@pytest.mark.parametrize(
    ("relaxed", "decided"),
    [
        (row("ace", shifted(-1.0), failed=1), "not decided, for 1 more failed"),
        (row("ace", shifted(-1.0), augment=True), "not decided, for the two differ in more than the method"),
        (row("ace", shifted(-1.0), augment=False, learning_rate=0.5, optimizer="muon"), "better"),
    ],
)
def test_failed_runs_and_other_settings_decide_nothing(relaxed: Any, decided: str) -> None:
    assert verdict.verdict(relaxed, row("strict", SIX, augment=False), True).endswith(
        f"in 6 seeds: {decided}"
    )


def test_other_seeds_decide_nothing() -> None:
    assert "no seeds in common" in verdict.verdict(row("ace", {9: 1.0}), row("strict", SIX), True)


def test_validation_chooses_whatever_the_test_error() -> None:
    rows = [row("a", {0: 1.0}, val=3.0), row("b", {0: 9.0}, val=2.0)]
    assert verdict.best(rows).name == "b"
    rows = [row("a", {0: 1.0}, val=3.0, higher=True), row("b", {0: 9.0}, val=2.0, higher=True)]
    assert verdict.best(rows).name == "a"


def test_weights_by_validation_are_chosen_run_by_run() -> None:
    pairs = {0: ((3.0, 30.0), (2.0, 20.0)), 1: ((2.0, 21.0), (3.0, 31.0)), 2: ((math.nan, 1.0), (9.0, 90.0))}
    runs: list[dict[str, Any]] = [
        {
            "seed": seed,
            "metric": {"higher_is_better": False},
            "val": {"projected": raw[0]},
            "test": {"projected": raw[1]},
            "averaged": {"val": {"projected": averaged[0]}, "test": {"projected": averaged[1]}},
        }
        for seed, (raw, averaged) in pairs.items()
    ]
    assert verdict.Row("ace", runs, verdict.BY_VALIDATION).errors("test") == {0: 20.0, 1: 21.0, 2: 90.0}
    assert verdict.Row("ace", runs, verdict.AVERAGED).errors("test") == {0: 20.0, 1: 31.0, 2: 90.0}
    assert verdict.Row("ace", runs).errors("test") == {0: 30.0, 1: 21.0, 2: 1.0}
    higher = [{**run, "metric": {"higher_is_better": True}} for run in runs]
    assert verdict.Row("ace", higher, verdict.BY_VALIDATION).errors("test") == {0: 30.0, 1: 31.0, 2: 90.0}


@pytest.mark.parametrize("higher", [False, True])
def test_a_row_whose_validation_is_nan_is_not_the_best(higher: bool) -> None:
    rows = [row("nan", {0: 1.0}, val=math.nan, higher=higher), row("b", {0: 9.0}, val=2.0, higher=higher)]
    assert verdict.best(rows).name == verdict.best(rows[::-1]).name == "b"


@pytest.mark.parametrize(
    "named", ["nbody-long/matched: ace2", "nbody-long/matched: ace, best", "nbody: ace, averaged"]
)
def test_rows_that_are_not_there_are_named(named: str) -> None:
    with pytest.raises(verdict.VerdictError, match=named):
        verdict.read_row(named)


def test_check_finds_a_stale_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "verdict.yaml").write_text("[]")
    monkeypatch.setattr(verdict, "FOLDER", tmp_path)
    monkeypatch.setattr(verdict, "ROOT", tmp_path)
    assert verdict.main(["--check"]) == 1
    assert verdict.main([]) == 0
    assert verdict.main(["--check"]) == 0
    assert verdict.main(["--wrong"]) == 2
