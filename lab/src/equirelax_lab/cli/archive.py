"""`equirelax archive`: keep the results of each comparison in two small files, to store and to share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from equirelax.errors import ConfigError
from equirelax_lab.cli import options
from equirelax_lab.cli.terminal import show

DESCRIPTION = """\
Keep the results of comparisons and studies without the folders of their runs. For every comparison below FOLDER, finished
or not, OUT receives runs.json.gz (the result or the settings of every run, its status, and why it failed), curves.csv.gz
(the metrics.csv of all runs), summary.md and the pictures. `equirelax report` and `equirelax summarise` read them like
folders of runs. FOLDER is not changed. Checkpoints and logs are not kept.

examples:
  equirelax archive runs/nbody/compare-segnn --out kept/nbody
  equirelax archive runs/studies/sensitivity --out kept/sensitivity"""


def main(words: Sequence[str]) -> int:
    """`words` begins with "archive"."""
    parser = options.parser(["archive"], DESCRIPTION)
    parser.add_argument("folder", help="folder of a comparison or a study, or a folder that contains some")
    parser.add_argument("-o", "--out", required=True, help="folder for the archive")
    parsed = options.parse(parser, words[1:])
    folder, out = Path(parsed.folder), Path(parsed.out)
    if out.resolve() == folder.resolve():
        raise ConfigError(f"--out is {out}, the folder itself. Name another folder.")

    from equirelax_lab.report.comparison import comparisons, summarise_again

    for comparison in comparisons([folder], written=False):
        place = out / comparison.relative_to(folder)
        show(f"\n## {place}\n{summarise_again(comparison, place)}")
    return 0
