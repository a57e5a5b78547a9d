"""Copy tables and sentences of lab/results/ into README.md and docs/, between markers; numbers there are never typed by hand.

    python docs/tools/insert_results.py            rewrite the text between markers
    python docs/tools/insert_results.py --check    exit code 1, and the pages' names, if something would change

A marker names a file, and the part of it to insert:

    <!-- from lab/results/nbody/summary.md -->                               its first table, and how its rows differ
    <!-- from lab/results/nbody/summary.md: method | projected -->           these columns of it, and the same
    <!-- from lab/results/nbody/summary.md: table averaged weights -->       the table with this first column, and the same
    <!-- from lab/results/nbody/summary.md: setting -->                      the paragraph after its first table: what was run
    <!-- from lab/results/nbody/summary.md: conclusion -->                   its last paragraph
    <!-- from lab/results/perf/one-thread.txt -->                            a text file, as it is
    <!-- from lab/results/faults/summary.md if there -->                     the same; nothing while there is no such file

The inserted text ends at `<!-- end -->`.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
MARKED = re.compile(
    r"(?P<marker><!-- from (?P<source>[\w./-]+)(?P<optional> if there)?(?:: (?P<part>.+?))? -->\n).*?(?P<end><!-- end -->)",
    flags=re.DOTALL,
)

TABLE = "table "
DIFFERING = "**Settings that differ between rows**"
"""The beginning of the paragraph that must accompany every table."""


class InsertError(Exception):
    """A marker names a file, a column or a part that does not exist."""


def pages(root: Path = ROOT) -> list[Path]:
    """README.md and every page of docs/."""
    return [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]


def inserted(text: str, root: Path = ROOT) -> str:
    """`text` with the requested content between its markers.

    Raises:
        InsertError: A marker names something that does not exist.
    """
    return MARKED.sub(lambda m: m["marker"] + _content(m, root) + m["end"], text)


def _content(match: re.Match[str], root: Path) -> str:
    """The lines between the markers, each with a newline."""
    source, part = match["source"], match["part"]
    if not (root / source).is_file():
        if match["optional"]:
            return ""
        raise InsertError(f"There is no {source}.")
    text = (root / source).read_text(encoding="utf-8")
    if source.endswith(".txt"):
        return f"```text\n{text.rstrip()}\n```\n"
    if part in ("setting", "conclusion"):
        return _paragraph(source, text, part) + "\n"
    if part is not None and part.startswith(TABLE):
        table = _table(source, text, part.removeprefix(TABLE))
    elif not (table := first_table(text)):
        raise InsertError(f"{source} has no table.")
    elif part is not None:
        table = _columns(source, table, [name.strip() for name in part.split("|")])
    differing = [block for block in _blocks(text) if block.startswith(DIFFERING)][:1]
    return "\n\n".join(["\n".join(table), *differing]) + "\n"


def first_table(text: str) -> list[str]:
    """Lines of the first table of a file; further tables are details."""
    after = itertools.dropwhile(lambda line: not line.startswith("|"), text.splitlines())
    return list(itertools.takewhile(lambda line: line.startswith("|"), after))


def _table(source: str, text: str, name: str) -> list[str]:
    """Lines of the table whose first column has this heading."""
    for block in _blocks(text):
        if block.startswith(f"| {name} |"):
            return block.splitlines()
    raise InsertError(f"{source} has no table of '{name}'.")


def _blocks(text: str) -> list[str]:
    """Paragraphs and tables."""
    return [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]


def _paragraph(source: str, text: str, part: str) -> str:
    blocks = [block for block in _blocks(text) if not block.startswith(DIFFERING)]
    tables = [i for i, block in enumerate(blocks) if block.startswith("|")]
    wanted = -1 if part == "conclusion" else (tables[0] + 1 if tables else len(blocks))
    if wanted >= len(blocks) or blocks[wanted].startswith("|"):
        raise InsertError(f"{source} has no {part}.")
    return blocks[wanted]


def _columns(source: str, table: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The table with only these columns, in this order."""
    rows = [
        [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
        for line in table
    ]
    for name in wanted:
        if name not in rows[0]:
            raise InsertError(f"{source} has no column '{name}'; it has {', '.join(rows[0])}.")
    places = [rows[0].index(name) for name in wanted]
    return ["| " + " | ".join(row[place] for place in places) + " |" for row in rows]


def main(words: Sequence[str]) -> int:
    """Insert, or with --check only compare."""
    if list(words) not in ([], ["--check"]):
        print(__doc__)
        return 2
    stale = []
    for page in pages():
        before = page.read_text(encoding="utf-8")
        try:
            after = inserted(before)
        except InsertError as error:
            print(f"{page.relative_to(ROOT)}: {error}", file=sys.stderr)
            return 2
        if before != after:
            stale.append(page)
            if not words:
                page.write_text(after, encoding="utf-8")
    for page in stale:
        print(f"{page.relative_to(ROOT)} {'differs from lab/results/' if words else 'rewritten'}")
    return 1 if words and stale else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
