"""What counts as a failed run, and its share, by method and swept value."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.report.archive import read_archive
from equirelax_lab.report.comparison import write_comparison
from equirelax_lab.report.failures import ALL, POOR, any_failed, asked, poor, share_rows, share_table, shares
from equirelax_lab.report.figures import thinned
from equirelax_lab.report.runs import of_config, read_run
from equirelax_lab.tasks.registry import defaults
from test_html import Make, make
from test_report import result
from test_variants import accuracy, changed, of_model

__all__ = ["make"]  # the fixture


def swept(method: str, rates: tuple[float, ...], values: tuple[float, ...]) -> list[dict[str, Any]]:
    """A run of one seed for every learning rate."""
    pairs = zip(rates, values, strict=True)
    return [changed(result(method, 0, value), learning_rate=rate) for rate, value in pairs]


def test_a_run_is_poor_beyond_a_multiple_of_the_best_of_its_network_on_its_data() -> None:
    best = result("ace", 0, 9.0, relaxed=1.0)  # projected counts: that is what ace hands over
    just, above = result("strict", 0, 9.0 * POOR), result("strict", 1, 9.0 * POOR + 0.01)
    assert poor([best, just, above]) == [False, False, True]
    other_data = changed(above, dataset__train=17)
    other_network = changed(above, network__hidden=8)
    other_model = of_model(above, "egnn")
    assert poor([best, other_data, other_network, other_model]) == [False] * 4
    relaxed = result("resilient", 0, 1000.0, relaxed=9.0)
    assert poor([best, relaxed]) == [False, False]
    assert poor([best, result("strict", 0, math.nan), result("strict", 1, math.inf)]) == [False, True, True]
    assert poor([result("strict", 0, math.nan)]) == [True]
    assert poor([]) == []


def test_a_score_is_poor_below_a_fraction_of_the_best() -> None:
    assert poor([accuracy("strict", 0, 50.0), accuracy("ace", 0, 25.0), accuracy("ace", 1, 24.9)]) == [
        False,
        False,
        True,
    ]


def test_shares_by_method_and_swept_value() -> None:
    rates = (1e-4, 1e-3, 1e-2)
    results = [*swept("strict", rates, (30.0, 10.0, 10.0)), *swept("ace", rates, (9.0, 9.0, 9.0))]
    config = defaults("nbody", "segnn", "ace").updated({"learning_rate": 1e-2, "seed": 1})
    found = shares(results, [of_config(config)])
    assert found == {
        "strict": {ALL: (1, 3), 1e-4: (1, 1), 1e-3: (0, 1), 1e-2: (0, 1)},
        "ace": {ALL: (1, 4), 1e-4: (0, 1), 1e-3: (0, 1), 1e-2: (1, 2)},
    }
    head, rows = share_rows(found)
    assert head == ("method", "failed runs", "at 0.0001", "at 0.001", "at 0.01")
    assert rows == [
        ("strict", "1 of 3 (33%)", "1 of 1", "0 of 1", "0 of 1"),
        ("ace", "1 of 4 (25%)", "0 of 1", "0 of 1", "1 of 2"),
    ]
    text = share_table(found)
    assert "| ace | 1 of 4 (25%) | 0 of 1 | 0 of 1 | 1 of 2 |" in text
    assert f"more than {POOR:g} times that of the best run" in text


def test_the_share_is_a_question_where_something_was_swept_or_a_run_was_lost() -> None:
    far_behind = [result("strict", 0, 5.0), result("ace", 0, 50.0)]
    assert any_failed(shares(far_behind, []))
    assert not asked(far_behind, [])
    assert asked(far_behind, [of_config(defaults("nbody", "segnn", "ace"))])
    assert asked(swept("strict", (1e-4, 1e-3, 1e-2), (30.0, 10.0, 10.0)), [])


def test_without_a_failed_run_there_is_no_table() -> None:
    found = shares([result("strict", 0, 5.0), result("ace", 0, 4.0)], [])
    assert found == {"strict": {ALL: (0, 1)}, "ace": {ALL: (0, 1)}}
    assert not any_failed(found)
    assert share_table(found) == ""
    assert shares([], []) == {}


def test_a_comparison_counts_what_ended_without_a_result(make: Make, tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in (make("strict", 0, 5.0), make("ace", 0, 4.0))]
    unfinished = read_run(make("ace", 1, 4.0, finished=False))
    failed = dataclasses.replace(unfinished, status="failed", reason="The loss is nan.")
    text = write_comparison(tmp_path / "out", [*runs, failed])
    written = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    for one in (text, written):
        assert "| ace | 1 of 2 (50%) |" in one
    kept = read_archive(tmp_path / "out").entries
    assert [(entry.status, entry.reason) for entry in kept] == [
        ("finished", ""),
        ("finished", ""),
        ("failed", "The loss is nan."),
    ]
    write_comparison(tmp_path / "out", runs)
    assert "failed" not in (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("among", "most"), [(1, 300), (13, 300), (40, 101), (1000, 51)])
def test_curves_are_thinned_more_where_there_are_many(among: int, most: int) -> None:
    kept = thinned({float(e): 0.0 for e in range(10_000)}, among)
    assert 0.9 * most <= len(kept) <= most + 1
    assert list(kept)[-1] == 9999.0
    assert len(thinned({1.0: 2.0, 5.0: 3.0}, among)) == 2
