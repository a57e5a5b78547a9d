"""Pages of studies: how far they are, what failed and why, and curves that a run which has only begun does not cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.report import tables
from equirelax_lab.report.failures import DEFINITION
from equirelax_lab.report.page import page_title
from equirelax_lab.report.runs import gather, journal_inside, journal_of
from test_html import Make, make, written

__all__ = ["make"]  # the fixture


def journal(folder: Path, **states: tuple[str, str]) -> None:
    """A study.json in `folder`: path of a run with __ for / and _ for - -> status and reason."""
    runs: dict[str, Any] = {
        name.replace("__", "/").replace("_", "-"): {"status": status, "attempts": 1, "reason": reason}
        for name, (status, reason) in states.items()
    }
    content = {"name": "study", "title": "A <question> & its answer", "small": True, "runs": runs}
    (folder / "study.json").write_text(json.dumps(content))


def study(make: Make, tmp_path: Path) -> Path:
    """Two grids: one with a finished, a running, a diverged run and one that never began; one that is finished."""
    make("strict", 0, 5.0, parent="first")
    make("strict", 1, 12.0, parent="first")
    make("ace", 0, 4.0, parent="first")
    make("ace", 1, 4.0, finished=False, parent="first")
    make("resilient", 0, 4.0, finished=False, parent="first")
    make("strict", 0, 5.0, parent="second")
    journal(
        tmp_path,
        first__strict_seed0=("finished", ""),
        first__strict_seed1=("finished", ""),
        first__ace_seed0=("finished", ""),
        first__ace_seed1=("running", ""),
        first__resilient_seed0=("failed", "The loss is nan."),
        first__resilient_seed1=("failed", "cutoff is <script>"),
        second__strict_seed0=("finished", ""),
        second__ace_seed0=("waiting", ""),
    )
    return tmp_path


def test_a_study_says_how_far_it_is_and_what_failed_why(make: Make, tmp_path: Path) -> None:
    chapters = gather([study(make, tmp_path)])
    assert [chapter.name for chapter in chapters] == ["first", "second"]
    assert page_title(chapters) == "A <question> & its answer"
    first = chapters[0]
    assert [(run.name, run.reason) for run in first.failed] == [("resilient-seed0", "The loss is nan.")]
    assert first.problems == ("resilient-seed1 failed before it could begin: cutoff is <script>",)
    out = tmp_path / "report.html"
    page = written(chapters, out)
    text = out.read_text(encoding="utf-8")
    assert "<h1>A &lt;question&gt; &amp; its answer</h1>" in text
    assert "How far the study is: A &lt;question&gt; &amp; its answer (the small variant)" in text
    assert '<th scope="row">first</th><td>3</td><td>1</td><td>0</td><td>2</td>' in text
    assert '<th scope="row">second</th><td>1</td><td>0</td><td>1</td><td>0</td>' in text
    assert "resilient-seed0 failed for good: The loss is nan." in text
    assert "where no seed is finished: ace-seed1." in text
    assert "cutoff is &lt;script&gt;" in text
    # strict seed 1 is at 12, more than twice the 4 of ace; resilient ended without a result
    assert '<th scope="row">strict</th><td>1 of 2 (50%)</td>' in text
    assert '<th scope="row">resilient</th><td>1 of 1 (100%)</td>' in text
    assert DEFINITION.replace("'", "&#x27;") in text
    assert "No run failed." in text  # of the second grid
    assert set(page.references) <= set(page.ids)


def test_the_share_is_drawn_against_what_was_swept(make: Make, tmp_path: Path) -> None:
    for rate, value in ((0.1, 5.0), (0.01, 20.0), (0.001, 90.0)):
        make("strict", 0, value, learning_rate=rate)
        make("ace", 0, 5.0, learning_rate=rate)
    page = written(gather([tmp_path]), tmp_path / "report.html")
    drawn = next(one for one in page.figures if "failed" in one["layout"]["yaxis"]["title"]["text"])
    assert [(t["name"], t["x"], t["y"]) for t in drawn["data"]] == [
        ("strict", [0.001, 0.01, 0.1], [100.0, 100.0, 0.0]),
        ("ace", [0.001, 0.01, 0.1], [0.0, 0.0, 0.0]),
    ]
    assert drawn["layout"]["xaxis"]["tickvals"] == [0.001, 0.01, 0.1]
    assert drawn["layout"]["xaxis"]["type"] == "log"


def test_a_run_that_has_only_begun_does_not_cut_the_curves(make: Make, tmp_path: Path) -> None:
    make("ace", 0, 4.0)
    make("ace", 1, 4.0, finished=False)
    (chapter,) = gather([tmp_path])
    assert [run.name for run in chapter.in_curves()["ace"]] == ["ace-seed0"]
    page = written([chapter], tmp_path / "report.html")
    losses = next(one for one in page.figures if one["layout"]["yaxis"]["title"]["text"] == "training loss")
    assert losses["data"][0]["x"] == list(range(1, 11))
    assert "ace-seed1" in {row[0] for row in tables.runs(chapter).rows}


def test_many_labels_have_a_figure_for_every_method(make: Make, tmp_path: Path) -> None:
    for number in range(5):
        for method in ("strict", "ace"):
            make(method, 0, 5.0, learning_rate=0.01 * (number + 1))
    out = tmp_path / "report.html"
    page = written(gather([tmp_path]), out)
    text = out.read_text(encoding="utf-8")
    for method in ("strict", "ace"):
        assert f"Validation: MSE of the positions x1e-3: {method}</h4>" in text
        assert f"Training loss: {method}</h4>" in text
    fives = [
        one for one in page.figures if one["layout"]["yaxis"]["title"]["text"].startswith("training loss")
    ]
    assert [len(one["data"]) for one in fives] == [5, 5]


def test_the_equivariance_error_over_training_is_drawn_where_it_was_measured(
    make: Make, tmp_path: Path
) -> None:
    folder = make("ace", 0, 4.0)
    lines = (folder / "metrics.csv").read_text().splitlines()
    more = [",equivariance/relaxed,equivariance/projected", *(f",0.{e + 1},{e}e-16" for e in range(10))]
    (folder / "metrics.csv").write_text("\n".join(a + b for a, b in zip(lines, more, strict=True)) + "\n")
    make("strict", 0, 5.0)  # of a version that did not measure it
    page = written(gather([tmp_path]), tmp_path / "report.html")
    (drawn,) = [one for one in page.figures if one["layout"]["yaxis"]["title"]["text"] == "relative error"]
    assert [(t["name"], len(t["x"])) for t in drawn["data"]] == [
        ("ace, as trained", 10),
        ("ace, projected", 9),
    ]
    assert drawn["layout"]["yaxis"]["type"] == "log"  # where a zero, as of the first epoch, has no place
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("Equivariance error over training</h4>") == 1


def test_a_damaged_journal_is_named_and_the_runs_are_shown(make: Make, tmp_path: Path) -> None:
    make("strict", 0, 5.0)
    (tmp_path / "comparison" / "study.json").write_text('{"runs": 3}')
    (chapter,) = gather([tmp_path])
    assert len(chapter.runs) == 1
    assert any("study.json" in words for words in chapter.problems)
    assert chapter.study is None


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_journal_is_found_from_within_the_study(tmp_path: Path, depth: int) -> None:
    journal(tmp_path, grid__strict_seed0=("failed", "why"))
    folder = tmp_path / "grid" / "strict-seed0"
    folder.mkdir(parents=True)
    place = (tmp_path, tmp_path / "grid", folder)[depth]
    found = journal_of(place)
    assert found is not None
    assert journal_inside(found, folder.parent)["strict-seed0"]["reason"] == "why"
    assert journal_inside(found, tmp_path / "elsewhere") == {}
    assert journal_of(tmp_path.parent) is None
