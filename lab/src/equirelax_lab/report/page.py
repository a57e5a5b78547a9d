"""A report: one self-contained HTML page about finished, unfinished and failed runs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from equirelax.files import write_text
from equirelax_lab.report import again, curves, failures, layers, origin, outcomes, sweeps, tables
from equirelax_lab.report.conclusion import conclusion
from equirelax_lab.report.drawing import Figure, svg
from equirelax_lab.report.looks import variables
from equirelax_lab.report.numbers import Numbers
from equirelax_lab.report.rows import differing_line, swept_setting
from equirelax_lab.report.runs import STATUSES, Chapter
from equirelax_lab.report.summary import summarise
from equirelax_lab.report.table import Table, in_curves

# The page is self-contained: nothing is fetched, and the policy allows nothing to be.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; font-src data:; base-uri 'none'; "
    "form-action 'none'"
)


@dataclass(frozen=True)
class Block:
    """A piece of a section.

    Attributes:
        kind: conclusion, text, soft, differing, warn, command, code, table, figures or details.
        content: Text; a command; lines of code; `Numbers`; drawn figures; or, inside details, blocks.
        title: The title of details, or what a command does.
        options: For tables, bold (the column in bold) and words (cells are sentences); for details, open and name (their class).
    """

    kind: str
    content: Any
    title: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """A figure on the page: its name, unique on the page, the figure, and its SVG element."""

    name: str
    figure: Figure
    svg: str


class _Chapter:
    """The sections of one chapter; ids in it begin with `name`."""

    def __init__(self, chapter: Chapter, name: str) -> None:
        self.chapter, self.name, self.title = chapter, name, chapter_title(chapter)
        self.table = Table(chapter.runs)
        self.count = 0
        done = [run.result for run in chapter.finished]
        self.summary = summarise(done) if done else None
        self.warnings = _warnings(chapter)
        self.sections: list[tuple[str, list[Block]]] = [
            ("Results", self._results()),
            ("Training", self._figures(curves.training(self.table, chapter.metric))),
            ("Symmetry", self._symmetry()),
            ("Strengths, layer by layer", self._layers()),
            ("Cost", [Block("table", origin.cost(self.table)), Block("soft", origin.COST_NOTE)]),
            ("What was run", self._origin()),
        ]

    def _figures(self, given: Sequence[Figure | None]) -> list[Block]:
        """Figures, side by side if there is room."""
        drawn = []
        for figure in given:
            if figure is not None:
                name = f"{self.name}-f{self.count}"
                self.count += 1
                drawn.append(Drawn(name, figure, svg(figure, name)))
        return [Block("figures", drawn)] if drawn else []

    def _results(self) -> list[Block]:
        """The sentence, the tables and the figures of the test metric."""
        summary, chapter = self.summary, self.chapter
        if summary is None:
            return [Block("text", "No run is finished.")]
        blocks = [Block("conclusion", conclusion(summary))]
        if summary["scaled_down"]:
            blocks.append(Block("text", f"Smaller than the papers' setting: {summary['scaled_down']}."))
        blocks.append(Block("table", tables.tests(summary), options={"bold": 1}))
        blocks.append(Block("differing", differing_line(summary["runs"])))
        blocks.append(Block("soft", tables.RESULTS_NOTE))
        more = (tables.averaged(summary), tables.predictions(summary))
        blocks += [Block("table", numbers) for numbers in more if numbers is not None]
        first = outcomes.by_seed(self.table, summary)
        blocks += self._figures([first, *sweeps.sweeps(chapter.finished, chapter.metric)])
        blocks += self._failures()
        under = self._figures([sweeps.further_conditions(tables.levels(self.table), chapter.metric)])
        return [*blocks, *([Block("details", under, "Under further conditions")] if under else [])]

    def _failures(self) -> list[Block]:
        """The share of failed runs, and what counts as one; empty if the comparison is not about failures."""
        done, lost = (
            [run.result for run in several] for several in (self.chapter.finished, self.chapter.failed)
        )
        found = failures.shares(done, lost)
        numbers = failures.failures(found)
        if numbers is None:
            which = "run that could be read" if self.chapter.problems else "run"
            return [Block("soft", f"No {which} failed. {failures.DEFINITION}")]
        if not failures.asks_for_failures(done, lost):
            return []
        key = swept_setting([*done, *lost])
        drawn = self._figures([sweeps.failed(found, sweeps.on_axis(key))] if key else [])
        return [Block("table", numbers), Block("soft", failures.DEFINITION), *drawn]

    def _symmetry(self) -> list[Block]:
        """The equivariance error of the networks over training, and that of the selected ones."""
        selected = None if self.summary is None else outcomes.selected_equivariance(self.summary)
        blocks = self._figures([selected, curves.equivariance(self.table)])
        ended = None if self.summary is None else tables.strengths(self.summary)
        return [*blocks, *([Block("table", ended)] if ended is not None else [])]

    def _layers(self) -> list[Block]:
        """A section of curves and heat maps for every row with residuals; the first one is open."""
        blocks: list[Block] = []
        for label, runs in self.table.rows.items():
            if any(run.residuals for run in in_curves(runs)):
                options = {"open": not blocks, "name": "layers"}
                blocks.append(Block("details", self._figures(layers.strengths(label, runs)), label, options))
        return blocks

    def _origin(self) -> list[Block]:
        """Where the results come from, the settings that are not the papers', and every run."""
        words = {"words": True}
        done = [run.result for run in self.chapter.finished]
        blocks = [
            Block("table", origin.origin(self.chapter, self.summary), options=words),
            Block("table", origin.changed(self.chapter), options=words),
        ]
        if study := again.study(self.chapter.study):
            blocks.append(Block("command", study, "All runs of the study are trained again by"))
        if done:
            blocks.append(Block("table", again.training(done), options=words))
        return [*blocks, Block("details", [Block("table", origin.runs(self.chapter))], "Every run")]


def _warnings(chapter: Chapter) -> list[str]:
    found = [*chapter.problems, *(f"{run.name} failed for good: {run.reason}" for run in chapter.failed)]
    if unfinished := [run.name for run in chapter.runs if run.status not in ("finished", "failed", "pruned")]:
        words = "Not finished yet, and so at most in the curves, where no seed is finished"
        found.append(f"{words}: {', '.join(unfinished)}.")
    return found


def write_page(out: Path, chapters: Sequence[Chapter], title: str = "", command: str = "") -> int:
    """Write the page to `out`; returns the number of figures.

    Args:
        out: An .html file.
        chapters: The chapters, from `runs.gather`.
        title: Title of the page; by default what the chapters are about.
        command: The command that writes the page again.
    """
    text, count = render(chapters, title, command)
    write_text(out, text)
    return count


def render(chapters: Sequence[Chapter], title: str = "", command: str = "") -> tuple[str, int]:
    """The page as text, and the number of its figures; see `write_page`.

    Raises:
        ModuleNotFoundError: jinja2 is not installed (extra `run`).
    """
    filled = [_Chapter(chapter, f"c{index}") for index, chapter in enumerate(chapters)]
    text = fill(title or page_title(chapters), filled, command, progress(chapters))
    return text, sum(chapter.count for chapter in filled)


class Filled(Protocol):
    """A chapter of a page: its name (the beginning of its ids), its title, its warnings, and its sections."""

    name: str
    title: str
    warnings: list[str]
    sections: list[tuple[str, list[Block]]]


def fill(title: str, chapters: Sequence[Filled], command: str = "", progress: Numbers | None = None) -> str:
    """The page of ready chapters as text.

    Args:
        title: Title of the page.
        chapters: The chapters, from top to bottom.
        command: The command that writes the page again.
        progress: A table above everything.

    Raises:
        ModuleNotFoundError: jinja2 is not installed (extra `run`).
    """
    import jinja2

    from equirelax import __version__

    here = resources.files("equirelax_lab.report")
    files = {
        name: here.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    }
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["file"] = _as_file
    text: str = environment.from_string(files["page.html"]).render(
        title=title,
        command=command,
        policy=POLICY,
        version=__version__,
        style=variables() + files["page.css"],
        script=files["page.js"],
        progress=progress,
        chapters=chapters,
    )
    return text


def _as_file(text: str, kind: str) -> str:
    """Text as a data URL from which a link saves a file: the page contains the files that it offers."""
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"


def page_title(chapters: Sequence[Chapter]) -> str:
    """What the chapters are about: one study, one benchmark, or several comparisons."""
    studies = {None if chapter.study is None else chapter.study.title for chapter in chapters}
    if len(studies) == 1 and (study := studies.pop()):
        return study
    titles = list(dict.fromkeys(chapter.title for chapter in chapters))
    return titles[0] if len(titles) == 1 else f"{len(chapters)} comparisons"


def chapter_title(chapter: Chapter) -> str:
    """The folder's name, the benchmark and its models, as in a list of several."""
    return f"{chapter.name}: {chapter.title} ({', '.join(chapter.models)})"


def progress(chapters: Sequence[Chapter]) -> Numbers | None:
    """The progress of the studies that the chapters belong to, a row for every chapter; None if there is no study."""
    pruned = any(chapter.study is not None and chapter.study.counts["pruned"] for chapter in chapters)
    shown = STATUSES if pruned else STATUSES[:-1]  # only searches prune runs
    rows = [
        (
            chapter.name,
            chapter.study.title + (" (the small variant)" if chapter.study.small else ""),
            *(str(chapter.study.counts[status]) for status in shown),
        )
        for chapter in chapters
        if chapter.study is not None
    ]
    if not rows:
        return None
    if len({row[1] for row in rows}) > 1:
        return Numbers("How far the studies are", ("grid", "study", *shown), tuple(rows))
    short = tuple((name, *counts) for name, _, *counts in rows)
    return Numbers(f"How far the study is: {rows[0][1]}", ("grid", *shown), short)
