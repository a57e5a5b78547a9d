"""Figures: few points are marked, many rows have panels, long curves are thinned, and files hold what was drawn."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from equirelax_lab.report import sweeps
from equirelax_lab.report.axes import RoundLocator, epochs, full, power, spans
from equirelax_lab.report.curves import validation
from equirelax_lab.report.drawing import png, styled, svg
from equirelax_lab.report.facets import MOST_PANELS, MOST_ROWS, facets
from equirelax_lab.report.lines import thinned
from equirelax_lab.report.looks import METHODS
from equirelax_lab.report.pictures import pictures
from equirelax_lab.report.runs import Run
from equirelax_lab.report.table import Table, common, final_size, mean
from made import accuracy, changed, result
from matplotlib.figure import Figure
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
    assert [figure.title for figure in sweeps.sweeps(runs, metric)] == [
        "Test accuracy (%) against train",
        "Mean |multiplier| at the end against train",
        "Mean |gamma| at the end against train",
    ]
    assert sweeps.sweeps(runs[:1], metric) == []
    found = pictures(table, runs, metric)
    assert list(found) == ["curves", "sweep", "conditions"]
    assert [figure.title for figure in found["curves"][0]] == [
        "Validation: accuracy (%)",
        "Strength gamma: a line for every residual and seed",
    ]
    assert sweeps.further_conditions({}, metric) is None
    drawn = [figures[0] for figures, _ in found.values()]
    png(tmp_path / "all.png", [*drawn, found["curves"][0][1]], "A <title> of $100", 2, "equirelax it again")
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.mode == "P"
        assert picture.width > 1000
        colours = picture.convert("RGB").getcolors(256)
        assert colours is not None
        assert len(colours) > 30


def curves_of(methods: tuple[str, ...], **settings: tuple[float, ...]) -> Table:
    """A run of every method at every value of one setting; each has two epochs of metrics."""
    ((key, values),) = settings.items()
    return Table(
        [
            Run("", changed(result(method, 0, 5.0), **{key: value}), ROWS, "finished")
            for method in methods
            for value in values
        ]
    )


def test_rows_share_a_panel_while_they_are_few_and_then_by_what_was_swept() -> None:
    few = curves_of(("strict", "ace"), learning_rate=(0.1, 0.2, 0.3))
    assert [one.title for one in facets(few, list(few.rows))] == [""]
    many = curves_of(("strict", "scheduled", "ace"), learning_rate=(0.1, 0.2, 0.3))
    found = facets(many, list(many.rows))
    assert [one.title for one in found] == [f"learning_rate=0.{n}" for n in (1, 2, 3)]
    assert list(found[1].rows) == ["strict", "scheduled", "ace"]
    assert found[1].rows["ace"] == "ace learning_rate=0.2"
    figure = validation(many, result("ace", 0, 5.0)["metric"])
    assert figure is not None
    drawn = svg(figure, "f")
    assert re.findall(r"<text[^>]*>(learning_rate=0.\d)</text>", drawn) == [one.title for one in found]
    lines = re.findall(
        r"<title>ace learning_rate=\S+ projected</title>.*?stroke: (var\(--\w+\))", drawn, flags=re.DOTALL
    )
    assert lines == [f"var(--{METHODS['ace'].variable})"] * 3


def test_rows_of_different_methods_have_a_panel_each_beside_strict() -> None:
    methods = ("strict", "scheduled", "ace", "resilient", "remul", "rpp", "ace-pi")
    table = curves_of(methods, learning_rate=(0.1,))
    found = facets(table, list(table.rows))
    assert [one.title for one in found] == list(methods[1:])
    assert all(list(one.rows) == ["strict", one.title] for one in found)
    assert [one for panel in facets(table, [f"ace n={n}" for n in range(40)]) for one in panel.rows] == [
        f"ace n={n}" for n in range(40)
    ]


def test_no_panel_has_more_rows_than_can_be_told_apart() -> None:
    table = curves_of(("strict", "ace"), learning_rate=tuple(0.1 * n for n in range(1, 2 * MOST_PANELS)))
    found = facets(table, list(table.rows))
    assert max(len(one.rows) for one in found) <= MOST_ROWS
    assert [row for one in found for row in one.rows.values()] == list(table.rows)


def test_a_single_validation_is_seen_in_both_states() -> None:
    run = Run("", result("ace", 0, 5.0), ROWS[:1], "finished")
    figure = validation(Table([run]), run.result["metric"])
    assert figure is not None
    drawn = svg(figure, "f")
    first, second = (
        drawn.split(f"<title>ace, {state}</title>")[1] for state in ("projected", "with residuals")
    )
    for part in (first, second):
        assert "<use " in part.split("</g>\n   </g>")[0]  # a marker


def test_numbers_on_axes_are_whole_and_full() -> None:
    assert [full(v) for v in (5e-05, 0.00016, 0.5, 3, 20000.0, 1.5e-9, 1e12)] == [
        *("0.00005", "0.00016", "0.5", "3", "20000", "1.5e-09", "1e+12"),
    ]  # fmt: skip
    with styled():
        for low, high in ((4.8, 60.0), (0.15, 0.6), (1e-16, 1.0), (90.0, 130.0)):
            inside = [v for v in RoundLocator().tick_values(low, high) if low <= v <= high]
            assert 2 <= len(inside) <= 7, (low, high)


@pytest.mark.parametrize(("last", "shown"), [(1, ["1"]), (2, ["1", "2"]), (40, ["10", "20", "30", "40"])])
def test_epochs_are_whole(last: int, shown: list[str]) -> None:
    panel = Figure().subplots()
    panel.plot([1, last], [0.0, 1.0])
    epochs(panel)
    low, high = panel.get_xlim()
    found = [value for value in panel.get_xticks() if low <= value <= high]
    assert [f"{value:g}" for value in found if value] == shown
