"""Reports: every figure has data, nothing in a run becomes code, the page loads without a word on the console."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import DARK, show
from equirelax_lab.cli import main
from equirelax_lab.report import tables
from equirelax_lab.report.page import write_page
from equirelax_lab.report.runs import gather
from equirelax_lab.report.summary import summarise, table
from test_report import result
from test_variants import changed

from equirelax.errors import ConfigError

EVIL = '</script><script>console.error("evil")</script><img src=x onerror=console.error(1)>'
Make = Callable[..., Path]


def metrics(epochs: int, layers: tuple[str, ...], kinds: tuple[str, ...]) -> str:
    """A metrics.csv: validation in every second epoch, each kind for each layer."""
    columns = ["epoch", "seconds", "train/loss", "train/penalty", "val/projected", "val/relaxed"]
    lines = [",".join([*columns, *(f"{kind}/{layer}" for kind in kinds for layer in layers)])]
    for e in range(epochs):
        val = [f"{9 - e}", f"{8.5 - e}"] if e % 2 else ["", ""]
        row = [str(e), str(2.0 * (e + 1)), str(1 / (e + 1)), "0.1" if kinds else "0", *val]
        lines.append(",".join([*row, *(str((i + 1) * 0.5**e) for i in range(len(kinds) * len(layers)))]))
    return "\n".join(lines) + "\n"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A function (method, seed, value, finished=True, parent="comparison", layers=...) -> folder of a run."""

    def run(
        method: str,
        seed: int,
        value: float,
        finished: bool = True,
        parent: str = "comparison",
        layers: tuple[str, ...] = ("first", "second"),
        **settings: Any,
    ) -> Path:
        kinds = {"strict": (), "scheduled": ("gamma", "lie", "norm", "weight")}
        one = changed(result(method, seed, value, value - 0.5), seed=seed, **settings)
        name = "-".join([method, *map(str, settings.values()), f"seed{seed}"])
        folder = tmp_path / parent / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(one["config"]))
        own = kinds.get(method, ("gamma", "multiplier", "slack", "weight"))
        (folder / "metrics.csv").write_text(metrics(10 if finished else 5, layers, own))
        if finished:
            (folder / "result.json").write_text(json.dumps(one))
        return folder

    return run


def comparison(make: Make, **more: Any) -> Path:
    """Three methods with three seeds each."""
    for seed in range(3):
        make("strict", seed, 5.0 + seed / 10, **more)
        make("scheduled", seed, 4.5 + seed / 5, **more)
        make("resilient", seed, 4.0 + seed / 10, **more)
    return make("strict", 3, 5.0, **more).parent


class Page(HTMLParser):
    """What a page holds: figures' data, scripts, ids, references to ids, addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.figures: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.addresses: list[str] = []
        self.levels: list[int] = []
        self.handlers: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._inside = tag == "script" and found.get("type") == "application/json"
        self.handlers += [key for key in found if key.startswith("on")]
        for key, value in found.items():
            if key == "id":
                self.ids.append(str(value))
            elif key in ("aria-labelledby", "aria-describedby") or (
                key == "href" and str(value).startswith("#")
            ):
                self.references.append(str(value).lstrip("#"))
            elif key in ("src", "href", "action"):
                self.addresses.append(str(value))
        if re.fullmatch(r"h\d", tag):
            self.levels.append(int(tag[1]))

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.figures.append(json.loads(data))
            self._inside = False


def numbers_in(trace: dict[str, Any]) -> list[float]:
    values = trace["z"] if trace["type"] == "heatmap" else [trace["x"], trace["y"]]
    return [v for row in values for v in row if isinstance(v, int | float)]


def written(chapters: Any, out: Path) -> Page:
    count = write_page(out, chapters)
    page = Page(out.read_text(encoding="utf-8"))
    assert len(page.figures) == count
    return page


def drawn(dom: str, count: int) -> list[str]:
    """The figures of a page in a browser, all of which must hold marks."""
    parts = dom.split('<figure class="chart"')[1:]
    assert len(parts) == count
    for part in parts:
        assert 'data-drawn="yes"' in part
        assert re.search(r'class="(?:point|js-line|js-fill|hm)"', part), part[:300]
    return parts


def test_every_figure_has_data_that_plotly_takes_and_every_reference_a_target(
    make: Make, tmp_path: Path
) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    page = written(gather([comparison(make)]), tmp_path / "report.html")
    # test metric, validation, loss, penalty, equivariance; scheduled has four kinds, resilient too, two figures each
    assert len(page.figures) == 5 + 2 * (4 + 4)
    for one in page.figures:
        graph_objects.Figure(
            data=one["data"], layout=one["layout"]
        )  # raises for keys or values that Plotly lacks
        assert one["data"]
        assert all(numbers_in(trace) for trace in one["data"])
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.references) <= set(page.ids)
    assert all(address.startswith("data:") for address in page.addresses)
    assert page.levels[0] == 1
    assert all(after <= before + 1 for before, after in zip(page.levels, page.levels[1:], strict=False))


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
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(summary).splitlines()]
    written = next(cells for cells in lines if cells and cells[0] == "ace")
    shown = next(row for row in tables.results(summary).rows if row[0] == "ace")
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
    assert any(
        EVIL.replace("<", "&lt;").replace(">", "&gt;") in str(t.get("name"))
        for f in page.figures
        for t in f["data"]
    )
    shown = show(out, tmp_path / "profile")
    assert shown.console == ()
    assert not Page(shown.dom).handlers
    drawn(shown.dom, len(page.figures))


@pytest.mark.slow
@pytest.mark.parametrize("theme", [(), (DARK,)], ids=["light", "dark"])
def test_a_browser_draws_every_figure_and_says_nothing(
    make: Make, tmp_path: Path, theme: tuple[str, ...]
) -> None:
    out = tmp_path / "report.html"
    count = write_page(out, gather([comparison(make)]))
    shown = show(out, tmp_path / "profile", *theme)
    assert shown.console == ()
    parts = drawn(shown.dom, count)
    black, light = ("rgb(0, 0, 0)", "rgb(242, 242, 242)")  # the strict runs' colour
    strict = re.search(r'class="js-line"[^>]*stroke: (rgb\([^)]*\))', parts[2])  # the training loss
    assert strict is not None
    assert strict.group(1) == (light if theme else black)


@pytest.mark.slow
def test_a_browser_draws_only_what_is_seen_until_all_is_opened(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    count = write_page(out, gather([comparison(make)]))
    shown = show(out, tmp_path / "profile", fragment="content")
    assert 0 < shown.dom.count('data-drawn="yes"') < count


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
    text = make("ace", 3, 4.0)
    (text / "metrics.csv").write_text("epoch,val/projected\n0,abc\n")
    (chapter,) = gather([folder])
    assert len(chapter.problems) == 3
    assert [str(f) in words for f, words in zip((broken, lacking, text), chapter.problems, strict=True)] == [
        True
    ] * 3
    assert [run.name for run in chapter.runs if not run.finished] == ["ace-seed0"]
    page = written([chapter], tmp_path / "report.html")
    names = [trace.get("name") for one in page.figures for trace in one["data"]]
    assert "ace, projected" in names
    assert "Not finished yet" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_run_alone_finished_or_not(make: Make, tmp_path: Path) -> None:
    for finished in (True, False):
        folder = make("ace", 0, 4.0, finished, parent=str(finished))
        page = written(gather([folder]), tmp_path / "report.html")
        assert len(page.figures) == (5 if finished else 3) + 2 * 4
    nothing = make("strict", 0, 4.0, parent="nothing")
    (nothing / "metrics.csv").unlink()
    assert len(written(gather([nothing]), tmp_path / "report.html").figures) == 2


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
    swept = next(one for one in page.figures if "train" in one["layout"]["xaxis"]["title"]["text"])
    assert [trace["x"] for trace in swept["data"]] == [[30, 200, 1000]] * 2
    assert swept["layout"]["xaxis"]["type"] == "log"


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
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert opened == [(folder / "report.html").resolve().as_uri()]
    assert "There is no browser here: open file://" in said
    assert "10 runs, 21 figures" in said
    assert "<title>A &lt;title&gt;</title>" in (folder / "report.html").read_text(encoding="utf-8")
    pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert pictures == {f"comparison-{n}.png" for n in ("curves", "layers-scheduled", "layers-resilient")}
    assert main(["report", str(folder), "-o", str(tmp_path / "page.txt")]) == 2
    assert "should end in .html" in capsys.readouterr().err
    assert main(["report", str(folder), "-o", str(folder / "strict-seed0" / "config.yaml" / "a.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["report", str(folder / "strict-seed0" / "metrics.csv")]) == 0
    assert (folder / "strict-seed0" / "report.html").exists()
