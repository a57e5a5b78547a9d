"""An audit's report as HTML, for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from equirelax.auditing.table import entry_text, number

if TYPE_CHECKING:
    from equirelax.auditing.report import AuditReport

ROWS = 20
"""Rows of a table that are shown."""

_STYLE = """<style>
.equirelax-audit{font:13px/1.45 system-ui,sans-serif;color:inherit;max-width:60rem}
.equirelax-audit table{border-collapse:collapse;margin:.4em 0 .8em;color:inherit;background:none}
.equirelax-audit th,.equirelax-audit td{padding:.15em .7em;border-bottom:1px solid #8885;text-align:left;
background:none;color:inherit}
.equirelax-audit .n{text-align:right;font-variant-numeric:tabular-nums}
.equirelax-audit b.ok{color:#2a9d5c}.equirelax-audit b.no{color:#d9534f}
.equirelax-audit p{margin:.3em 0}.equirelax-audit small{opacity:.75}
</style>"""


def report_html(report: AuditReport) -> str:
    """One piece of HTML that needs nothing else, readable on light and dark grounds."""
    first, *others = report.headline
    deployed = report.after if report.after is not None and report.deployed == "projected" else report.before
    kind = "ok" if deployed.relative <= report.tolerance else "no"
    parts = [
        _STYLE,
        f'<p><b class="{kind}">{escape(first)}</b></p>',
        *(f"<p>{escape(line)}</p>" for line in others),
        f"<p><small>{escape(report.measured)}</small></p>",
    ]
    titles, rows = report.errors()
    parts.append(_table(titles, rows, numbers=1))
    if not report.equivariant:
        worst = report.worst
        entry = ", ".join(map(str, worst.entry))
        parts.append(
            f"<p>worst element: {escape(worst.description)}, at {escape(worst.output)}[{entry}]: "
            f"{escape(entry_text(worst.expected))} became {escape(entry_text(worst.found))}</p>"
        )
    if report.lie is not None:
        parts.append(f"<p>Lie derivative: relative {number(report.lie.relative)} at most</p>")
    if report.modules:
        titles, rows = report.residuals()
        parts.append(_table(titles, rows, numbers=2))
    parts += _layers(report)
    parts += [f"<p><small>note: {escape(note)}</small></p>" for note in report.notes]
    tensors = [[path, action] for path, action in (*report.inputs.items(), *report.outputs.items())]
    folded = _table(["tensor", "transforms as"], tensors, numbers=2)
    parts.append(f"<details><summary>inputs and outputs</summary>{folded}</details>")
    return f'<div class="equirelax-audit">{"".join(parts)}</div>'


def _layers(report: AuditReport) -> list[str]:
    found = report.localisation
    if found is None or report.equivariant:
        return []
    if found.note:
        return [f"<p>layers: {escape(found.note)}</p>"]
    parts = []
    for words, first in (("first break", found.first), ("first break of the strict network", found.strict)):
        if first is not None:
            where = escape(f"{first.path or 'the model itself'} ({first.type})")
            parts.append(f"<p>{words}: <b>{where}</b><br><small>{escape(first.words)}</small></p>")
    rows = [
        [
            row.name,
            row.type,
            row.status,
            *(("?" if v is None else number(v)) for v in (row.arriving, row.relative)),
        ]
        for row in found.rows
        if row.status != "ok"
    ]
    return [*parts, _table(["module, worst first", "type", "status", "arrives", "adds"], rows, numbers=3)]


def _table(titles: list[str], rows: list[list[str]], numbers: int) -> str:
    """A table whose columns from ``numbers`` on are numbers."""

    def line(cells: list[str], tag: str) -> str:
        made = (
            f'<{tag} class="n">{escape(cell)}</{tag}>' if i >= numbers else f"<{tag}>{escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    more = f"<p><small>... {len(rows) - ROWS} more rows</small></p>" if len(rows) > ROWS else ""
    return f"<table>{line(titles, 'th')}{''.join(line(row, 'td') for row in rows[:ROWS])}</table>{more}"
