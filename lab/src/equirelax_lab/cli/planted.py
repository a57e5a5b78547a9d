"""`equirelax planted`: does the symmetry score name the layer at which an asymmetry was planted?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from equirelax.files import write_text
from equirelax.settings import COUNT, SEED
from equirelax_lab.cli import options
from equirelax_lab.cli.terminal import show

DESCRIPTION = """\
Plant an asymmetry at one layer of a small network's task, and score how symmetric the data are at every layer.

Needs no data; takes about a minute per seed on one core. The network has a trunk of two layers and three heads, all equivariant.
Its targets come from a network of the same kind, one layer of which has an added map that no rotation leaves unchanged. A strict
network is trained and scored on held-out examples as it trains. Then a relaxed one is trained whose gammas follow the score
(equirelax.methods.SymmetryFollowing).

examples:
  equirelax planted
  equirelax planted --steps 200 --seed 1
  equirelax planted --seeds 6"""


def main(words: Sequence[str]) -> int:
    """`words` begins with "planted"."""
    parser = options.parser(["planted"], DESCRIPTION)
    parser.add_argument("--steps", type=int, default=1000, help="training steps of every network")
    parser.add_argument("--seed", type=int, default=0, help="first seed of targets, examples and weights")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds; tables show means over them")
    parser.add_argument(
        "-o",
        "--out",
        default="runs/planted",
        help="folder for planted.json, summary.md, its tables as CSV and LaTeX, scores.png and courses.png",
    )
    parsed = options.parse(parser, words[1:], steps=COUNT, seed=SEED, seeds=COUNT)
    import torch  # these imports include matplotlib, which a help text does not need

    from equirelax_lab.report import again
    from equirelax_lab.report.planted import draw_courses, gammas_table, panels_of, ratios_table
    from equirelax_lab.report.record import record_text
    from equirelax_lab.report.symmetry_score import draw_scores
    from equirelax_lab.tasks.planted_asymmetry import run_planted
    from equirelax_lab.training import provenance

    torch.set_num_threads(1)
    record = {
        "command": again.command(*words),
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
        **run_planted(parsed.steps, range(parsed.seed, parsed.seed + parsed.seeds)),
    }
    out = Path(parsed.out)
    tables = ratios_table(record), gammas_table(record)
    ratios, gammas = (one.markdown().rstrip() for one in tables)
    settings = record["settings"]
    write_text(out / "planted.json", record_text(record))
    write_text(
        out / "summary.md",
        f"# An asymmetry planted at one layer\n\n{ratios}\n\nr of every layer of a strict network after {settings['steps']} "
        f"steps, on {settings['held_out']} held-out examples; z of the layer with the largest r; mean squared error.\n\n"
        f"## gammas that follow the score\n\n{gammas}\n\ngamma after as many steps, and the mean squared error on the held-out "
        f"examples: as deployed, of the same network with all gamma 0, and of the strict network above.\n\n"
        f"Mean ± standard deviation over the seeds {', '.join(map(str, settings['seeds']))}. Commit {record['commit']}. "
        f"Written by `{record['command']}`.\n",
    )
    for one in tables:
        for name, text in one.files().items():
            write_text(out / "tables" / name, text)
    draw_scores(out / "scores.png", panels_of(record), record["command"])
    draw_courses(out / "courses.png", record, record["command"])
    show(ratios)
    print()
    show(gammas)
    print(out / "scores.png")
    print(out / "courses.png")
    return 0
