"""Figures: methods look alike everywhere, long curves are thinned, and files hold what was drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from equirelax_lab.report import figures, tables
from equirelax_lab.report.drawing import png, power, spans, thinned
from equirelax_lab.report.runs import Run
from equirelax_lab.report.table import Table, common, final_size, mean
from made import accuracy, changed, result
from PIL import Image

ROWS = (
    {
        "epoch": "0",
        "val/projected": "9",
        "val/relaxed": "8",
        "gamma/a": "9",
        "gamma/b": "9",
        "multiplier/a": "0",
    },
    {
        "epoch": "1",
        "val/projected": "7",
        "val/relaxed": "6",
        "gamma/a": "-0.5",
        "gamma/b": "1.5",
        "multiplier/a": "0.2",
    },
)


@pytest.mark.parametrize(("among", "most"), [(1, 300), (13, 300), (40, 101), (1000, 51)])
def test_curves_are_thinned_more_where_there_are_many(among: int, most: int) -> None:
    kept = thinned({float(e): 0.0 for e in range(10_000)}, among)
    assert 0.9 * most <= len(kept) <= most + 1
    assert list(kept)[-1] == 9999.0
    assert len(thinned({1.0: 2.0, 5.0: 3.0}, among)) == 2


def test_numbers_on_logarithmic_axes() -> None:
    assert [power(value) for value in (0.05, 1.0, 2000.0, 1e-5, 2e-7, 1e16)] == [
        *("0.05", "1", "2000", "10⁻⁵", "2·10⁻⁷", "10¹⁶"),
    ]  # fmt: skip
    assert [spans(values) for values in ([1.0, 11.0], [1.0, 9.0], [0.0, 11.0], [])] == [
        "log",
        *["linear"] * 3,
    ]


def test_means_are_over_the_epochs_that_all_seeds_have() -> None:
    several = [{1: 1.0, 2: 2.0, 3: 3.0}, {2: 4.0, 3: 5.0}]
    assert common(several) == [2, 3]
    assert mean(several) == {2: 3.0, 3: 4.0}
    assert mean([]) == {}


def test_the_size_at_the_end_is_the_mean_over_residuals() -> None:
    run = Run("", result("ace", 0, 1.0), ROWS, "finished")
    assert final_size(run, "gamma") == pytest.approx(1.0)
    assert final_size(run, "slack") is None
    assert final_size(Run("", result("ace", 0, 1.0), (), "finished"), "gamma") is None


def test_pictures_are_files_of_few_colours_that_hold_every_figure(tmp_path: Path) -> None:
    runs = [
        Run(
            "",
            changed(accuracy(method, seed, 50.0 + size), dataset__train=size),
            ROWS if method == "ace" else ROWS[:0],
            "finished",
        )
        for method, rows in (("strict", ()), ("ace", ROWS))
        for seed in (0, 1)
        for size in (1, 2, 3)
    ]
    table, metric = Table(runs), runs[0].result["metric"]
    assert [figure.title for figure in figures.sweeps(runs, metric)] == [
        "Test accuracy (%) against train",
        "Mean |multiplier| at the end against train",
        "Mean |gamma| at the end against train",
    ]
    assert figures.sweeps(runs[:1], metric) == []
    (under,) = figures.further_conditions(tables.levels(table), metric)
    curves = figures.curves_picture(table, metric)
    assert sum(figure.title.endswith("a line for every residual and seed") for figure in curves) == 3
    png(
        tmp_path / "all.png",
        [curves[0], curves[-1], under, figures.sweeps(runs, metric)[0]],
        "A <title> of $100",
    )
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.mode == "P"
        assert picture.width > 1000
        colours = picture.convert("RGB").getcolors(256)
        assert colours is not None
        assert len(colours) > 30
