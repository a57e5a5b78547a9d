"""The pieces of a page: text that cannot be taken for tags, tables, figures, sections that open."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

from equirelax_lab.report.figures import Figure, Numbers


def escape(text: object) -> str:
    """Text for the inside of an element or of an attribute."""
    return html.escape(str(text))


def table(numbers: Numbers, caption: str, first_is_name: bool = True, best: int | None = None) -> str:
    """A table that scrolls by itself where it is wider than the page, also with the keyboard.

    Args:
        numbers: Head and rows. caption: What it is, for everyone.
        first_is_name: Whether the first cell of a row names it.
        best: A column to print in bold.
    """
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in numbers.head)
    rows = "".join(f"<tr>{_cells(row, first_is_name, best)}</tr>\n" for row in numbers.rows)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption>\n<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
    )


def _cells(row: Sequence[str], first_is_name: bool, best: int | None) -> str:
    cells = []
    for index, cell in enumerate(row):
        if index == 0 and first_is_name:
            cells.append(f'<th scope="row">{escape(cell)}</th>')
        elif index == best:
            cells.append(f"<td><strong>{escape(cell)}</strong></td>")
        else:
            cells.append(f"<td>{escape(cell)}</td>")
    return "".join(cells)


def details(summary: str, inside: str, opened: bool = False) -> str:
    """A section that opens when its line is chosen, with mouse or keyboard."""
    return f"<details{' open' if opened else ''}><summary>{escape(summary)}</summary>\n{inside}</details>\n"


def figure(one: Figure, name: str) -> str:
    """A figure: title, place for the drawing with its data, caption, and the numbers as a table.

    Args:
        one: The figure.
        name: Unique in the page.
    """
    data = script_json({"data": one.traces, "layout": one.layout})
    numbers = details("The numbers", table(one.numbers, one.title))
    return (
        f'<figure class="chart" id="{name}" aria-labelledby="{name}-title">\n'
        f'<h4 id="{name}-title">{escape(one.title)}</h4>\n'
        f'<div class="plot" style="height:{one.height}px" role="group" aria-labelledby="{name}-title" '
        f'aria-describedby="{name}-caption"></div>\n'
        f'<script type="application/json">{data}</script>\n'
        f'<figcaption id="{name}-caption">{escape(one.caption)}</figcaption>\n{numbers}</figure>\n'
    )


def script_json(value: object) -> str:
    """JSON for the inside of a script element: nothing in it can end the element or begin a comment.

    Raises:
        ValueError: it holds a number that is not finite, which JSON cannot.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
