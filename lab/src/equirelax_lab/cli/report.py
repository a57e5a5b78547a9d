"""`equirelax report`: write one HTML page about runs and comparisons, their main figures as PNG, and all numbers as CSV."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from equirelax.errors import ConfigError
from equirelax.files import write_text
from equirelax_lab.cli import options

PAGE = "report.html"

DESCRIPTION = """\
Write one HTML page about runs: tables with paired tests and published numbers, curves of training, strengths and Lie
derivatives layer by layer, equivariance errors, costs, and what was run on which machine. The page contains everything that
it needs: it can be sent, and opened offline. Unfinished runs are shown up to their last epoch.

examples:
  equirelax report runs/nbody/compare-segnn --open
  equirelax report runs/nbody/segnn-ace-seed0 runs/nbody/segnn-strict-seed0 --out ace.html
  equirelax report lab/results --pictures pictures --table measures.csv"""


def main(words: Sequence[str]) -> int:
    """`words` begins with "report"."""
    parser = options.parser(["report"], DESCRIPTION)
    parser.add_argument(
        "paths", nargs="+", help="folders of runs or comparisons, or folders that contain some"
    )
    parser.add_argument("-o", "--out", help=f"file to write (default: {PAGE} in the folder, if it is one)")
    parser.add_argument("--title", default="", help="title of the page")
    parser.add_argument("--pictures", help="folder for the main figures as PNG files")
    parser.add_argument("--table", help="CSV file for all measures: a row for every run and measure")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    parsed = options.parse(parser, words[1:])
    paths = [Path(path) for path in parsed.paths]
    out = _out(parsed.out, paths)

    from equirelax_lab.report import again
    from equirelax_lab.report.page import write_page
    from equirelax_lab.report.runs import first_few, gather

    chapters = gather(paths)
    for problem in first_few([words for chapter in chapters for words in chapter.problems]):
        print(f"equirelax report: {problem}", file=sys.stderr)
    try:
        command = again.command("report", *map(again.place, paths))
        figures = write_page(out, chapters, parsed.title, command)
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written: {error.strerror}. Name another file with --out."
        ) from error
    count = sum(len(chapter.runs) for chapter in chapters)
    print(
        f"{out}: {count} run{'s' if count != 1 else ''}, {figures} figures, {out.stat().st_size / 1e6:.1f} MB"
    )
    if parsed.pictures:
        from equirelax_lab.report.pictures import draw_pictures

        for picture in draw_pictures(Path(parsed.pictures), chapters, f"{command} --pictures pictures"):
            print(f"picture: {picture}")
    if parsed.table:
        from equirelax_lab.report.table import measures_csv

        write_text(Path(parsed.table), measures_csv([chapter.runs for chapter in chapters]))
        print(f"table: {parsed.table}")
    if parsed.open and not webbrowser.open(out.resolve().as_uri()):
        print(f"There is no browser here: open {out.resolve().as_uri()} in one.")
    return 0


def _out(given: str | None, paths: Sequence[Path]) -> Path:
    """The file of the page: that of --out, else one in the only folder named, else one in the current folder."""
    if given is None:
        return (paths[0] if paths[0].is_dir() else paths[0].parent) / PAGE if len(paths) == 1 else Path(PAGE)
    out = Path(given)
    if out.is_dir():
        return out / PAGE
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out is {out}; a page's name should end in .html.")
    return out
