"""A report: one HTML page that holds everything it needs, of finished and unfinished runs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from equirelax.files import write_text
from equirelax_lab.report import failures, figures_results, figures_strengths, figures_training, tables
from equirelax_lab.report.conclusion import conclusion
from equirelax_lab.report.figures import Figure, Numbers
from equirelax_lab.report.html import details, escape, figure, table
from equirelax_lab.report.picture import gamma_columns
from equirelax_lab.report.rows import differing_line, swept_setting
from equirelax_lab.report.runs import STATUSES, Chapter
from equirelax_lab.report.summary import summarise
from equirelax_lab.report.swept import in_words

# Nothing is fetched, and nothing could be: the page may only use what it holds.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "worker-src blob:; base-uri 'none'; form-action 'none'"
)
HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="equirelax {version}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
<script>{plotly}</script>
</head>
<body>
<a class="skip" href="#content">To the content</a>
<header>
<h1>{title}</h1>
<noscript><p>The figures need JavaScript; their numbers stand below each of them as tables.</p></noscript>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
<button type="button" id="open-all" aria-pressed="false">Open all sections</button>
</header>
<main id="content" tabindex="-1">
"""
SECTIONS = ("Results", "Training", "Symmetry", "Strengths, layer by layer", "Cost", "What was run")


def write_page(out: Path, chapters: Sequence[Chapter], title: str = "") -> int:
    """Write the page to `out`; returns the number of figures.

    Args:
        out: An .html file. chapters: From `collect.gather`. title: Of the page; by default what the chapters are of.

    Raises:
        ModuleNotFoundError: Plotly is not installed (extra `report`).
    """
    from plotly.offline import get_plotlyjs

    from equirelax import __version__

    title = title or page_title(chapters)
    bodies = [chapter_html(chapter, f"c{index}") for index, chapter in enumerate(chapters)]
    contents = "".join(
        _contents(chapter, f"c{index}", len(chapters)) for index, chapter in enumerate(chapters)
    )
    here = resources.files("equirelax_lab.report")
    style, script = (here.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    head = HEAD.format(
        policy=POLICY,
        version=escape(__version__),
        title=escape(title),
        style=style,
        plotly=get_plotlyjs(),
        contents=contents,
    )
    text = (
        head
        + progress(chapters)
        + "".join(bodies)
        + f"</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )
    write_text(out, text)
    return sum(body.count('<figure class="chart"') for body in bodies)


def page_title(chapters: Sequence[Chapter]) -> str:
    """What the chapters are of: one study, one benchmark, or several comparisons."""
    studies = {None if chapter.study is None else chapter.study.title for chapter in chapters}
    if len(studies) == 1 and (study := studies.pop()):
        return study
    titles = list(dict.fromkeys(chapter.title for chapter in chapters))
    return titles[0] if len(titles) == 1 else f"{len(chapters)} comparisons"


def progress(chapters: Sequence[Chapter]) -> str:
    """How far the studies are that the chapters are of: a row for every chapter; nothing where there is no study."""
    rows = [
        (
            chapter.name,
            study.title + (" (the small variant)" if study.small else ""),
            *map(str, study.counts.values()),
        )
        for chapter in chapters
        if (study := chapter.study) is not None
    ]
    if not rows:
        return ""
    if len({row[1] for row in rows}) > 1:
        return table(Numbers(("grid", "study", *STATUSES), tuple(rows)), "How far the studies are")
    short = tuple((name, *counts) for name, _, *counts in rows)
    return table(Numbers(("grid", *STATUSES), short), f"How far the study is: {rows[0][1]}")


def _contents(chapter: Chapter, name: str, count: int) -> str:
    """Links to the chapter's sections, or to the chapter where there are several."""
    if count > 1:
        return f'<li><a href="#{name}">{escape(chapter_title(chapter))}</a></li>'
    return "".join(f'<li><a href="#{name}-{i}">{escape(words)}</a></li>' for i, words in enumerate(SECTIONS))


def chapter_title(chapter: Chapter) -> str:
    """The folder's name, the benchmark and its models, as in a list of several."""
    models = ", ".join(dict.fromkeys(run.result["model"] for run in chapter.runs))
    return f"{chapter.name}: {chapter.title} ({models})"


def chapter_html(chapter: Chapter, name: str) -> str:
    """One chapter; the ids in it begin with `name`."""
    parts = [f'<h2 id="{name}">{escape(chapter_title(chapter))}</h2>\n']
    parts += [f'<p class="warn">{escape(words)}</p>\n' for words in chapter.problems]
    parts += [
        f'<p class="warn">{escape(f"{run.name} failed for good: {run.reason}")}</p>\n'
        for run in chapter.failed
    ]
    if unfinished := [run.name for run in chapter.runs if not run.finished and not run.failed]:
        words = f"Not finished yet, and so at most in the curves, where no seed is finished: {', '.join(unfinished)}."
        parts.append(f'<p class="warn">{escape(words)}</p>\n')
    summary = summarise([run.result for run in chapter.finished]) if chapter.finished else None
    bodies = (
        results(chapter, summary),
        charts(figures_training.validation(chapter))
        + charts(figures_training.losses(chapter))
        + charts(figures_training.fit(chapter))
        + charts(figures_training.updates(chapter)),
        symmetry(chapter, summary),
        layers(chapter, name),
        table(tables.cost(chapter), "What training and predicting costs") + _soft(tables.COST_NOTE),
        what_was_run(chapter, summary),
    )
    for index, (words, body) in enumerate(zip(SECTIONS, bodies, strict=True)):
        body = body or "<p>Nothing was recorded.</p>\n"
        parts.append(
            f'<section aria-labelledby="{name}-{index}"><h3 id="{name}-{index}">{words}</h3>\n{body}</section>\n'
        )
    return _numbered("".join(parts), name)


def results(chapter: Chapter, summary: tables.Summary | None) -> str:
    """The sentence, the tables and the figures of the test metric."""
    if summary is None:
        return "<p>No run is finished.</p>\n"
    parts = [f'<p class="conclusion">{escape(conclusion(summary))}</p>\n']
    if summary["scaled_down"]:
        parts.append(f"<p>Smaller than the papers' setting: {escape(summary['scaled_down'])}.</p>\n")
    parts.append(table(tables.results(summary), "Test metric: mean ± standard deviation over seeds", best=1))
    parts.append(f'<p class="differing">{escape(differing_line(summary["runs"]))}</p>\n')
    parts.append(_soft(tables.RESULTS_NOTE))
    if further := tables.further(summary):
        parts.append(table(further, "Further metrics on the test set"))
    first = figures_results.by_seed(chapter, summary)
    parts.append(charts([first]) + charts(figures_results.sweeps(chapter)))
    parts.append(failed(chapter))
    if under := figures_results.further_conditions(chapter):
        parts.append(details("Under further conditions", charts(under)))
    return "".join(parts)


def failed(chapter: Chapter) -> str:
    """The share of failed runs by method, and what counts as one; empty where that is no question."""
    done, lost = ([run.result for run in several] for several in (chapter.finished, chapter.failed))
    found = failures.shares(done, lost)
    if not failures.any_failed(found):
        return _soft(f"No run failed. {failures.DEFINITION}")
    if not failures.asked(done, lost):
        return ""
    head, rows = failures.share_rows(found)
    key = swept_setting([*done, *lost])
    drawn = charts([figures_results.failed(found, in_words(key))] if key else [])
    return table(Numbers(head, tuple(rows)), "Failed runs") + _soft(failures.DEFINITION) + drawn


def symmetry(chapter: Chapter, summary: tables.Summary | None) -> str:
    """How far the networks are from the symmetry over training, how exactly the selected ones keep it, and how strengths
    ended.
    """
    selected = None if summary is None else figures_results.equivariance(summary)
    parts = [charts([*figures_training.equivariance(chapter), selected])]
    if summary is not None and (ended := tables.strengths(summary)):
        parts.append(table(ended, "Strengths and multipliers: largest over residuals and seeds"))
    return "".join(parts)


def layers(chapter: Chapter, name: str) -> str:
    """For every method with residuals a section with curves and heat maps; the first one is open."""
    parts: list[str] = []
    for label, runs in chapter.in_curves().items():
        if any(gamma_columns(run.rows) for run in runs):
            opened = details(label, charts(figures_strengths.strengths(label, runs)), opened=not parts)
            parts.append(opened.replace("<details", '<details class="layers"', 1))
    return "".join(parts)


def what_was_run(chapter: Chapter, summary: tables.Summary | None) -> str:
    """Provenance, settings that are not the papers', and every run."""
    origin = table(tables.origin(chapter, summary), "Origin")
    changed = table(tables.changed(chapter), "Settings that are not the papers'")
    runs = details("Every run", table(tables.runs(chapter), "Every run"))
    return f'<div class="words">{origin}{changed}</div>{runs}'


def charts(figures: Sequence[Figure | None]) -> str:
    """Figures side by side where there is room; ids are given later."""
    drawn = "".join(figure(one, "FIGURE") for one in figures if one is not None and one.traces)
    return f'<div class="charts">{drawn}</div>\n' if drawn else ""


def _soft(words: str) -> str:
    return f'<p class="soft">{escape(words)}</p>\n'


def _numbered(text: str, name: str) -> str:
    """Give every figure an id of its own."""
    first, *others = text.split('<figure class="chart" id="FIGURE"')
    parts = [first]
    for index, other in enumerate(others):
        own = f"{name}-f{index}"
        other = other.replace('="FIGURE-', f'="{own}-')
        parts.append(f'<figure class="chart" id="{own}"{other}')
    return "".join(parts)
