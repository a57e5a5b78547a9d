"""A report as HTML: a fragment for notebooks, and a self-contained page."""

from __future__ import annotations

import math
from collections.abc import Collection
from html import escape
from typing import TYPE_CHECKING

from equirelax import __version__
from equirelax.auditing.error import Measurement
from equirelax.auditing.text import entry_text, number, number_or_unknown

if TYPE_CHECKING:
    from equirelax.auditing.report import AuditReport, Localisation

ROWS = 20
"""Maximum number of rows of a table in a notebook; a page has all of them."""
SMALLEST, LARGEST = 1e-17, 10.0
"""Ends of the logarithmic axis on which errors are drawn."""

_PIECE = """
.equirelax-audit{font:13px/1.45 system-ui,sans-serif;color:inherit;max-width:60rem}
.equirelax-audit table{border-collapse:collapse;font:inherit;margin:.4em 0 .8em;color:inherit;background:none}
.equirelax-audit th,.equirelax-audit td{padding:.15em .7em .15em 0;border-bottom:1px solid #8885;text-align:left;
background:none;color:inherit;vertical-align:top}
.equirelax-audit td{white-space:nowrap}.equirelax-audit td.path,.equirelax-audit td.words{white-space:normal;
overflow-wrap:anywhere;min-width:9em}
.equirelax-audit .n{text-align:right;font-variant-numeric:tabular-nums}
.equirelax-audit h1{font-size:1.1em;margin:.3em 0}
.equirelax-audit .ok{color:#2a9d5c}.equirelax-audit .no,.equirelax-audit .breaks td:nth-child(3){color:#d9534f}
.equirelax-audit .wide{overflow-x:auto}
.equirelax-audit p{margin:.3em 0;overflow-wrap:anywhere}.equirelax-audit .soft{opacity:.75;font-size:.92em}
.equirelax-audit h2{font-size:1.1em;margin:1em 0 .2em}
.equirelax-audit .scale{display:grid;grid-template-columns:max-content 1fr max-content;gap:.25em .8em;align-items:center;
max-width:42rem;margin:.7em 0}
.equirelax-audit .scale i{position:relative;height:.9em;background:#8883;font-style:normal}
.equirelax-audit .scale i b{position:absolute;left:0;top:0;bottom:0;background:currentColor}
.equirelax-audit .scale i u{position:absolute;top:-.25em;bottom:-.25em;width:2px;background:CanvasText;
box-shadow:0 0 0 1px Canvas}
.equirelax-audit .scale i small{position:absolute;font-size:.8em;opacity:.75}
.equirelax-audit .scale .axis{background:none}
"""

_PAGE = """
:root{color-scheme:light dark;--ground:#ffffff;--ink:#1b1d21;--soft:#565b64;--rule:#d9dce1;--ok:#00744f;--no:#b3261e}
@media screen and (prefers-color-scheme:dark){:root{--ground:#15171b;--ink:#eceef1;--soft:#a9b0bb;--rule:#3a3f48;
--ok:#35c998;--no:#ff8a80}}
body{margin:0 auto;max-width:1180px;padding:1rem 1.25rem 4rem;background:var(--ground);color:var(--ink)}
.equirelax-audit{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;max-width:none}
.equirelax-audit h1{font-size:1.5rem;line-height:1.3;margin:.5rem 0;overflow-wrap:anywhere}
.equirelax-audit p{max-width:85ch}
.equirelax-audit .ok{color:var(--ok)}.equirelax-audit .no,.equirelax-audit .breaks td:nth-child(3){color:var(--no)}
.equirelax-audit .soft{opacity:1;color:var(--soft)}
.equirelax-audit th,.equirelax-audit td{border-color:var(--rule);padding:.3rem 1rem .3rem 0}
.equirelax-audit th{color:var(--soft);font-weight:600}
.equirelax-audit table{font-size:.9rem}
.equirelax-audit h2{font-size:1.25rem;margin:2rem 0 .4rem;padding-top:.8rem;border-top:2px solid var(--rule)}
.equirelax-audit code{font-size:.9em}
.equirelax-audit .words{min-width:16em}
@media(max-width:600px){body{padding:.75rem .9rem 3rem}.equirelax-audit h1{font-size:1.2rem}}
@media print{body{max-width:none;padding:0}.equirelax-audit{font-size:10pt}.equirelax-audit table{font-size:8pt}
.equirelax-audit .wide{overflow:visible}.equirelax-audit tr{break-inside:avoid}.equirelax-audit h2{break-after:avoid}
.equirelax-audit td.path,.equirelax-audit td.words{min-width:0}
.equirelax-audit .scale{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
# The page loads no external resources.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def report_html(report: AuditReport) -> str:
    """Format a report for a notebook, readable on light and dark backgrounds. Long tables are cut."""
    return f'<div class="equirelax-audit"><style>{_PIECE}</style>{_body(report, ROWS)}</div>'


def report_page(report: AuditReport, command: str = "") -> str:
    """Format a report as a page for browsers, small screens and print.

    Args:
        report: The report.
        command: The command that reproduces the report, which the page shows; empty for none.
    """
    title = escape(f"Equivariance of {report.model} under {report.group}")
    again = f"<p>Made by <code>{escape(command)}</code></p>" if command else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_PIECE}{_PAGE}</style>\n</head>\n<body>\n"
        f'<div class="equirelax-audit">{_body(report, None)}'
        f'<div class="soft">{again}<p>equirelax {__version__}</p></div></div>\n</body>\n</html>\n'
    )


def _body(report: AuditReport, most: int | None) -> str:
    """The report without its frame. Tables have at most `most` rows."""
    first, *others = report.headline
    kind = "ok" if report.passes else "no"
    parts = [
        f'<h1 class="{kind}">{escape(first)}</h1>',
        *(f"<p>{escape(line)}</p>" for line in others),
        _scale(report.forms, report.tolerance),
        f'<p class="soft">{escape(report.measured)}</p>',
        _table(*report.errors(), numbers=1, most=most),
        *(f'<p class="soft">Note: {escape(note)}.</p>' for note in report.notes),
    ]
    if not report.equivariant:
        parts += _where(report, most)
    if report.modules:
        parts += ["<h2>Relaxed modules</h2>", _table(*report.residuals(), numbers=2, most=most)]
        parts.append(f'<p class="soft">{escape(report.residuals_note)}</p>')
    tensors = [[path, action] for path, action in (*report.inputs.items(), *report.outputs.items())]
    parts.append("<h2>How inputs and outputs transform</h2>")
    parts.append(_table(["tensor", "transforms as"], tensors, numbers=2, most=most))
    return "".join(parts)


def _scale(forms: dict[str, Measurement], tolerance: float) -> str:
    """A bar for the relative error of every form on a logarithmic axis, with a line at the tolerance."""
    line = f'<u style="left:{_place(tolerance):.1f}%"></u>'
    cells = []
    for name, measured in forms.items():
        kind = "ok" if measured.relative <= tolerance else "no"
        bar = f'<b style="width:{_place(measured.relative):.1f}%"></b>'
        cells.append(
            f'<span>{escape(name)}</span><i class="{kind}">{bar}{line}</i>'
            f'<span class="n">{number(measured.relative)}</span>'
        )
    ends = "".join(
        f'<small style="left:{_place(value):.1f}%">{label}</small>'
        for value, label in ((1e-16, "1e-16"), (1e-12, "1e-12"), (1e-8, "1e-8"), (1e-4, "1e-4"), (1.0, "1"))
    )
    words = f"relative error; the line is the tolerance, {number(tolerance)}"
    return (
        f'<div class="scale">{"".join(cells)}<span></span><i class="axis">{ends}</i><span></span></div>'
        f'<p class="soft">{words}</p>'
    )


def _place(value: float) -> float:
    """The position of a value between the ends of the axis, in percent."""
    if math.isnan(value):
        return 100.0
    low, high = math.log10(SMALLEST), math.log10(LARGEST)
    within = min(max(value, SMALLEST), LARGEST)
    return 100 * (math.log10(within) - low) / (high - low)


def _where(report: AuditReport, most: int | None) -> list[str]:
    """The element and the modules that break equivariance."""
    worst = report.worst
    parts = [f"<h2>{escape(report.where_title)}</h2>"]
    if report.localisation is not None:
        parts += _first_breaks(report.localisation)
    parts.append(
        f"<p>Worst element: {escape(worst.description)}. There <code>{escape(worst.where)}</code> is "
        f"{escape(entry_text(worst.found))}, expected {escape(entry_text(worst.expected))}.</p>"
    )
    if report.localisation is not None:
        parts += _layers(report.localisation, most)
    if report.lie is not None:
        rows = [[one.name, number(one.relative), number(one.absolute)] for one in report.lie.generators]
        parts.append(_table(["Lie derivative along", "relative", "absolute"], rows, numbers=1, most=most))
    return parts


def _first_breaks(found: Localisation) -> list[str]:
    if found.note:
        return [f"<p>Layers: {escape(found.note)}.</p>"]
    parts = []
    named = (("First break", found.first), ("First break of the strict network", found.strict))
    for words, first in named:
        if first is not None:
            where = escape(f"{first.path or 'the model itself'} ({first.type})")
            parts.append(f'<p>{words}: <b class="no">{where}</b>, {escape(first.words)}.</p>')
    return parts or ["<p>No module was found that breaks equivariance by itself.</p>"]


def _layers(found: Localisation, most: int | None) -> list[str]:
    shown = [row for row in found.rows if row.status != "ok"]
    if not shown:
        return []
    rows = [
        [
            row.name,
            row.type,
            row.status,
            number_or_unknown(row.arriving),
            number_or_unknown(row.relative),
            "; ".join(row.outputs),
        ]
        for row in shown
    ]
    titles = ["module, worst first", "type", "status", "error arriving", "error added", "output as"]
    fine = len(found.rows) - len(shown)
    words = (
        "BREAKS: its inputs transform, its output does not. Breaks inside: a module in it does. Passes on: its input was "
        "already wrong, and it adds nothing."
        + (f" The other calls of modules, {fine} in number, are fine." if fine else "")
    )
    table = _table(
        titles, rows, numbers=3, most=most, words=5, marked={i for i, row in enumerate(shown) if row.breaks}
    )
    accused = {one.path for one in (found.first, found.strict) if one is not None}
    notes = [
        f'<p class="soft"><code>{escape(row.name)}</code>: {escape(row.note)}.</p>'
        for row in shown
        if row.note and row.path not in accused
    ]
    return [table, f'<p class="soft">{words}</p>', *notes[: most or len(notes)]]


def _table(
    titles: list[str],
    rows: list[list[str]],
    numbers: int,
    most: int | None,
    words: int | None = None,
    marked: Collection[int] = (),
) -> str:
    """Format a table.

    Args:
        titles: The column heads.
        rows: The cells.
        numbers: The first column of numbers.
        most: Maximum number of rows; None: all.
        words: The first column of text after the numbers; None: there is none.
        marked: Rows whose status is marked.
    """
    end = len(titles) if words is None else words
    kinds = [
        "words" if i >= end else "n" if i >= numbers else "" if i else "path" for i in range(len(titles))
    ]

    def line(cells: list[str], tag: str, kind: str = "") -> str:
        made = (_element(tag, escape(cell), c) for c, cell in zip(kinds, cells, strict=True))
        return _element("tr", "".join(made), kind)

    shown = rows if most is None else rows[:most]
    lines = [line(row, "td", "breaks" if i in marked else "") for i, row in enumerate(shown)]
    more = f'<p class="soft">... {len(rows) - len(shown)} more rows</p>' if len(rows) > len(shown) else ""
    return f'<div class="wide"><table>{line(titles, "th")}{"".join(lines)}</table></div>{more}'


def _element(tag: str, content: str, kind: str) -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f"<{tag}{attribute}>{content}</{tag}>"
