"""Pages: every figure has marks, nothing in a run becomes code, studies say how far they are, and no control is lost."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import show
from equirelax_lab.cli import main
from equirelax_lab.report import origin, tables
from equirelax_lab.report.failures import DEFINITION
from equirelax_lab.report.page import page_title, write_page
from equirelax_lab.report.runs import gather, journal_inside, journal_of
from equirelax_lab.report.summary import summarise
from equirelax_lab.report.table import in_curves
from made import Make, changed, comparison, journal, result, study

from equirelax.errors import ConfigError

EVIL = '</script><script>console.error("evil")</script><img src=x onerror=console.error(1)>'


class Page(HTMLParser):
    """What a page holds: ids, references to ids, addresses, levels of headings, handlers of events."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.addresses: list[str] = []
        self.levels: list[int] = []
        self.handlers: list[str] = []
        parts = text.split('<figure class="chart"')[1:]
        self.figures = {re.findall(r"<h4[^>]*>(.*?)</h4>", part)[0]: part for part in parts}
        self.count = len(parts)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.handlers += [key for key in found if key.startswith("on")]
        for key, value in found.items():
            if key == "id":
                self.ids.append(str(value))
            elif key in ("aria-labelledby", "aria-describedby") or str(value).startswith("#"):
                self.references.append(str(value).lstrip("#"))
            elif key in ("src", "href", "xlink:href", "action"):
                self.addresses.append(str(value))
        self.references += re.findall(r"url\(#(.*?)\)", " ".join(str(value) for value in found.values()))
        if re.fullmatch(r"h\d", tag):
            self.levels.append(int(tag[1]))


def svg_of(part: str) -> str:
    """The drawing of a figure."""
    return part[part.index("<svg") : part.index("</svg>")]


def written(chapters: Any, out: Path) -> Page:
    count = write_page(out, chapters)
    page = Page(out.read_text(encoding="utf-8"))
    assert page.count == count
    for part in page.figures.values():
        assert re.search(r"<(use|path|image) ", svg_of(part))
    return page


def test_figures_have_marks_text_and_tooltips_and_references_a_target(make: Make, tmp_path: Path) -> None:
    page = written(gather([comparison(make)]), tmp_path / "report.html")
    # test metric, validation, loss, penalty, equivariance; scheduled has five kinds, resilient too
    assert page.count == 5 + 4 + 4
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.references) <= set(page.ids)
    assert all(address.startswith("data:") for address in page.addresses)
    assert page.levels[0] == 1
    assert all(after <= before + 1 for before, after in zip(page.levels, page.levels[1:], strict=False))
    drawing = svg_of(page.figures["Test MSE of the positions x1e-3"])
    assert "<title>scheduled, seed 1: 4.7</title>" in drawing
    assert re.search(r"<text[^>]*>resilient</text>", drawing)
    assert "var(--ink)" in drawing  # the theme of the page sets the colours
    assert not re.search(r"#[0-9a-f]{6}", drawing)
    assert "Layer by layer" not in page.figures
    assert "<image" in svg_of(page.figures["Lie derivative: scheduled"])


@pytest.mark.usefixtures("undrawn")
def test_tables_hold_tests_published_numbers_costs_and_settings(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_page(out, gather([comparison(make, epochs=10)]))
    text = out.read_text(encoding="utf-8")
    # differences of resilient (relaxed: 3.5, 3.6, 3.7) to strict (5.0, 5.1, 5.2) are all the same: no test; those of scheduled
    # are -0.5, -0.4, -0.3: t = -0.4 / (0.1 / sqrt 3) = -6.93, p = 0.02, d = -4
    assert "-0.40 ± 0.10" in text
    assert "-0.65 to -0.15" in text
    assert "<td>0.02</td><td>0.02</td><td>-4.00</td><td>3 of 3</td><td>4.9 ± 0.18</td>" in text
    assert "epochs: 1000 → 10" in text
    assert "10 of 1000 epochs" in text
    assert "a CPU, 2 cores, 1 thread(s) a run" in text
    assert re.search(r'<th scope="row">scheduled</th><td>100</td><td>200</td><td>2</td><td>1.00</td>', text)


@pytest.mark.parametrize("scale", [1.0, 0.01, 0.0003, 40.0])
def test_the_page_rounds_as_the_summary_does(make: Make, tmp_path: Path, scale: float) -> None:
    for seed in range(3):
        make("strict", seed, scale * (5.0 + seed / 10))
        folder = make("ace", seed, scale * (4.5 + seed / 3))
    (chapter,) = gather([folder.parent])
    summary = summarise([run.result for run in chapter.finished])
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in tables.main(summary).markdown().splitlines()
    ]
    written = next(cells for cells in lines if cells and cells[0] == "ace")
    shown = next(row for row in tables.tests(summary).rows if row[0] == "ace")
    assert shown[1] == written[1].replace("*", "")
    assert shown[2:5] == tuple(written[2:5])
    difference, _, interval = written[5].partition(" [")
    assert (shown[5], shown[6].replace(" to ", ", ")) == (difference, interval.rstrip("]"))


def test_nothing_in_a_run_becomes_code(make: Make, tmp_path: Path) -> None:
    folder = make("resilient", 0, 4.0, layers=(EVIL.replace(",", ""), "second"))
    stored = json.loads((folder / "result.json").read_text())
    stored["commit"] = stored["hardware"]["cpu"] = stored["scaled_down"] = EVIL
    (folder / "result.json").write_text(json.dumps(stored))
    out = tmp_path / "report.html"
    page = written(gather([folder]), out)
    text = out.read_text(encoding="utf-8")
    assert EVIL not in text
    assert "<img" not in text.partition("<body>")[2]
    assert not page.handlers
    assert "&lt;img" in svg_of(page.figures["Multiplier: resilient"])
    assert show(out, tmp_path / "profile").console == ()


def test_what_a_page_writes_on_the_console_is_seen_here(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<script>console.error('seen'); undefinedFunction()</script>")
    console = show(page, tmp_path / "profile").console
    assert any("seen" in line for line in console)
    assert any("undefinedFunction" in line for line in console)


def test_unfinished_runs_are_in_the_curves_and_broken_ones_are_named(make: Make, tmp_path: Path) -> None:
    folder = comparison(make)
    make("ace", 0, 4.0, finished=False)
    broken = make("ace", 1, 4.0)
    (broken / "result.json").write_text('{"benchmark": "nbody"')
    lacking = make("ace", 2, 4.0)
    (lacking / "result.json").write_text('{"benchmark": "nbody"}')
    garbled = make("ace", 3, 4.0)
    (garbled / "metrics.csv").write_text("epoch,val/projected\n0,abc\n")
    (chapter,) = gather([folder])
    assert len(chapter.problems) == 3
    assert [
        str(f) in words for f, words in zip((broken, lacking, garbled), chapter.problems, strict=True)
    ] == [True] * 3
    assert [run.name for run in chapter.runs if not run.finished] == ["ace-seed0"]
    page = written([chapter], tmp_path / "report.html")
    assert "<title>ace, projected</title>" in page.figures["Validation: MSE of the positions x1e-3"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Not finished yet" in text
    assert "No run failed" not in text  # which nobody knows of those that cannot be read


@pytest.mark.usefixtures("undrawn")
def test_a_run_alone_finished_or_not(make: Make, tmp_path: Path) -> None:
    for finished in (True, False):
        folder = make("ace", 0, 4.0, finished, parent=str(finished))
        page = written(gather([folder]), tmp_path / "report.html")
        assert page.count == (5 if finished else 3) + 4
    nothing = make("strict", 0, 4.0, parent="nothing")
    (nothing / "metrics.csv").unlink()
    assert written(gather([nothing]), tmp_path / "report.html").count == 2


@pytest.mark.usefixtures("undrawn")
def test_folders_of_comparisons_and_single_runs_become_chapters(make: Make, tmp_path: Path) -> None:
    first, second = comparison(make), comparison(make, parent="other")
    chapters = gather([tmp_path])
    assert [(c.name, len(c.runs)) for c in chapters] == [("comparison", 10), ("other", 10)]
    assert [c.name for c in gather([first, first / "strict-seed0", second / "result.json"][:2])] == [
        "comparison",
        "runs",
    ]
    assert len(gather([first / "strict-seed0", first / "strict-seed0"])[0].runs) == 1
    page = written(chapters, tmp_path / "report.html")
    assert set(page.references) <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)


def test_a_sweep_is_drawn_in_order_of_what_was_swept(make: Make, tmp_path: Path) -> None:
    for value in (1000, 30, 200):
        for method in ("strict", "ace"):
            make(method, 0, 5.0 + value / 1000, dataset__train=value)
    (chapter,) = gather([tmp_path])
    assert [label for label in chapter.labels if "strict" in label] == [
        f"strict train={v}" for v in (30, 200, 1000)
    ]
    page = written([chapter], tmp_path / "report.html")
    swept = page.figures["Test MSE of the positions x1e-3 against train"]
    ticks = re.findall(r"<text[^>]*>(\d+)</text>", svg_of(swept))
    assert ticks[:3] == ["30", "200", "1000"]
    assert "<title>ace, train: 5.20 ± 0.00 at 200</title>" in swept


def test_runs_whose_folders_are_gone_come_from_an_older_summary(make: Make, tmp_path: Path) -> None:
    folder = comparison(make)
    gone = changed(result("ace", 0, 4.0), seed=0)
    kept = json.loads((folder / "strict-seed0" / "result.json").read_text())
    (folder / "summary.json").write_text(json.dumps({"runs": [kept, gone, {"broken": True}]}))
    (chapter,) = gather([folder])
    assert [run.name for run in chapter.runs if not run.rows] == ["ace-seed0"]
    (folder / "summary.json").write_text("{")
    assert len(gather([folder])[0].runs) == 10


def test_errors_say_what_to_name(tmp_path: Path, make: Make) -> None:
    with pytest.raises(ConfigError, match=r"nowhere does not exist: name the folder"):
        gather([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty holds no run: .*config.yaml, result.json or"):
        gather([tmp_path / "empty"])
    folder = make("strict", 0, 4.0)
    (folder / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match="it lacks benchmark"):
        gather([folder])
    stored = changed(result("strict", 0, 4.0), batch_sise=3)
    (folder / "result.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="batch_si"):
        gather([folder])


@pytest.mark.usefixtures("undrawn")
def test_the_command(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = comparison(make)
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)))
    words = [
        "report",
        str(folder),
        "--open",
        "--title",
        "A <title>",
        "--pictures",
        str(tmp_path / "pictures"),
        "--table",
        str(tmp_path / "measures.csv"),
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert opened == [(folder / "report.html").resolve().as_uri()]
    assert "There is no browser here: open file://" in said
    assert "10 runs, 13 figures" in said
    assert "<title>A &lt;title&gt;</title>" in (folder / "report.html").read_text(encoding="utf-8")
    pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert pictures == {f"comparison-{n}.png" for n in ("curves", "layers-scheduled", "layers-resilient")}
    assert (
        "nbody,scheduled,scheduled-seed1,scheduled,segnn,1,test,projected,4.7\n"
        in (tmp_path / "measures.csv").read_text()
    )
    assert main(["report", str(folder), "-o", str(tmp_path / "page.txt")]) == 2
    assert "should end in .html" in capsys.readouterr().err
    assert main(["report", str(folder), "-o", str(folder / "strict-seed0" / "config.yaml" / "a.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["report", str(folder / "strict-seed0" / "metrics.csv")]) == 0
    assert ": 1 run, " in capsys.readouterr().out
    assert (folder / "strict-seed0" / "report.html").exists()


@pytest.mark.usefixtures("undrawn")
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
    assert html.unescape(text).count(DEFINITION) == 2
    assert "No run failed." in text  # of the second grid
    assert set(page.references) <= set(page.ids)


def test_the_share_is_drawn_against_what_was_swept(make: Make, tmp_path: Path) -> None:
    for rate, value in ((0.1, 5.0), (0.01, 20.0), (0.001, 90.0)):
        make("strict", 0, value, learning_rate=rate)
        make("ace", 0, 5.0, learning_rate=rate)
    page = written(gather([tmp_path]), tmp_path / "report.html")
    drawn = page.figures["Failed runs against learning rate"]
    tips = re.findall(r"<title>(.*, learning rate: .*)</title>", drawn)
    rates = ("0.001", "0.01", "0.1")
    assert tips == [
        *(
            f"strict, learning rate: {share} at {rate}"
            for rate, share in zip(rates, (100, 100, 0), strict=True)
        ),
        *(f"ace, learning rate: 0 at {rate}" for rate in rates),
    ]


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_has_only_begun_does_not_cut_the_curves(make: Make, tmp_path: Path) -> None:
    make("ace", 0, 4.0)
    make("ace", 1, 4.0, finished=False)
    (chapter,) = gather([tmp_path])
    assert [run.name for run in in_curves(chapter.by_label()["ace"])] == ["ace-seed0"]
    page = written([chapter], tmp_path / "report.html")
    assert '<th scope="col">10</th>' in page.figures["Training loss"]
    assert "ace-seed1" in {row[0] for row in origin.runs(chapter).rows}


def test_the_equivariance_error_over_training_is_drawn_where_it_was_measured(
    make: Make, tmp_path: Path
) -> None:
    folder = make("ace", 0, 4.0)
    lines = (folder / "metrics.csv").read_text().splitlines()
    more = [",equivariance/relaxed,equivariance/projected", *(f",0.{e + 1},{e}e-16" for e in range(10))]
    (folder / "metrics.csv").write_text("\n".join(a + b for a, b in zip(lines, more, strict=True)) + "\n")
    make("strict", 0, 5.0)  # of a version that did not measure it
    page = written(gather([tmp_path]), tmp_path / "report.html")
    drawn = page.figures["Equivariance error over training"]
    assert "<title>ace, with residuals</title>" in drawn
    assert '<th scope="row">ace, with residuals</th><td>0.1</td><td>0.2</td>' in drawn
    # on a logarithmic axis a zero, as of the first epoch, has no place
    assert '<th scope="row">ace, projected</th><td></td><td>1e-16</td>' in drawn


def test_a_damaged_journal_is_named_and_the_runs_are_shown(make: Make, tmp_path: Path) -> None:
    make("strict", 0, 5.0)
    (tmp_path / "comparison" / "study.json").write_text('{"runs": 3}')
    (chapter,) = gather([tmp_path])
    assert len(chapter.runs) == 1
    assert any("study.json" in words for words in chapter.problems)
    assert chapter.study is None


def test_a_folder_in_which_no_run_can_be_read_is_named(make: Make, tmp_path: Path) -> None:
    make("strict", 0, 5.0)
    lost = tmp_path / "other" / "strict-seed0"
    lost.mkdir(parents=True)
    (lost / "config.yaml").write_text("epochs: 1\n")
    (chapter,) = gather([tmp_path])
    assert any(str(lost) in words for words in chapter.problems)


@pytest.mark.usefixtures("undrawn")
def test_of_many_runs_that_cannot_be_read_the_first_are_named(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(14):
        folder = tmp_path / "many" / f"strict-seed{seed}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("epochs: 1\n")
    words = ["report", str(tmp_path), "--out", str(tmp_path / "page.html")]
    assert main(words) == 2
    assert "4 more" in capsys.readouterr().err
    make("strict", 0, 5.0)
    assert main(words) == 0
    said = capsys.readouterr().err
    assert said.count("config.yaml") == 10
    assert "4 more" in said
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("many/strict-seed") >= 14


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
