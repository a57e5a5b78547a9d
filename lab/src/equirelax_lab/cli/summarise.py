"""`equirelax summarise`: write tables, sentences and pictures of comparisons anew from the results of their runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from equirelax_lab.cli import options
from equirelax_lab.cli.terminal import show

DESCRIPTION = """\
Write the archive, summary.md and the pictures of comparisons anew, from the results of their runs; nothing is trained.
Use it for comparisons that an earlier version wrote, or whose folder has received further runs.

examples:
  equirelax summarise runs/nbody/compare-segnn
  equirelax summarise lab/results"""


def main(words: Sequence[str]) -> int:
    """`words` begins with "summarise"."""
    parser = options.parser(["summarise"], DESCRIPTION)
    parser.add_argument("paths", nargs="+", help="folders of comparisons, or folders that contain some")
    parsed = options.parse(parser, words[1:])

    from equirelax_lab.report.comparison import comparisons, summarise_again

    for folder in comparisons([Path(path) for path in parsed.paths]):
        show(f"\n## {folder}\n{summarise_again(folder)}")
    return 0
