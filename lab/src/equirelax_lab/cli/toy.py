"""`equirelax toy`: show what the plain, augmented, PI and resilient forms of ACE do to gamma, and its orbit under two Adams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from equirelax.files import write_text
from equirelax.settings import COUNT, POSITIVE, SEED
from equirelax_lab.cli import options
from equirelax_lab.cli.terminal import show

DESCRIPTION = """\
Train a small vector-neuron network with every form of ACE on two toy problems, and show what gamma does.

Needs no data; takes about a minute on one core. "symmetric" has targets made by a network of the same kind:
gamma = 0 is feasible. "broken" has targets that no equivariant network can fit. gamma and the residual's weight can be
traded for each other, so the table also lists their product.

A second table and picture show gamma where the task does not depend on it and Adam moves both gamma and the multipliers, as
in ACE's released code: it oscillates around 0 for ever, at an amplitude that the learning rate sets. With --run the strengths
of a run of ACE are drawn over it.

examples:
  equirelax toy
  equirelax toy --run runs/nbody/segnn-ace-seed0"""

ORBIT_STEPS = 9000
"""The steps of 300 epochs of N-body's published run."""


def main(words: Sequence[str]) -> int:
    """`words` begins with "toy"."""
    parser = options.parser(["toy"], DESCRIPTION)
    parser.add_argument("--steps", type=int, default=2500, help="training steps of every form")
    parser.add_argument("--dual_lr", type=float, default=1e-2, help="step size of the multipliers (eta_d)")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and weights")
    parser.add_argument(
        "--run", default=None, help="folder of a run of ACE whose gamma is compared with the orbit"
    )
    parser.add_argument(
        "-o",
        "--out",
        default="runs/toy",
        help="folder for toy.json, summary.md, its tables as CSV and LaTeX, gamma.png and orbit.png",
    )
    parsed = options.parse(parser, words[1:], steps=COUNT, dual_lr=POSITIVE, seed=SEED)
    import torch  # these imports include matplotlib, which a help text does not need

    from equirelax_lab.report import again
    from equirelax_lab.report.record import record_text
    from equirelax_lab.report.toy import draw_forms, draw_orbit, forms_table, of_run, orbit_table
    from equirelax_lab.tasks.orbit import CURVATURES, describe, simulate
    from equirelax_lab.tasks.toy import run_toy
    from equirelax_lab.training import provenance

    torch.set_num_threads(1)
    commit = provenance.commit()
    run = None if parsed.run is None else of_run(Path(parsed.run))
    courses = {curvature: simulate(ORBIT_STEPS, curvature=curvature)[0] for curvature in CURVATURES}
    study = run_toy(steps=parsed.steps, dual_lr=parsed.dual_lr, seed=parsed.seed)
    orbit = {
        "steps": ORBIT_STEPS,
        "curvatures": {f"{c:g}": describe(course) for c, course in courses.items()},
        "run": None if run is None else run.to_dict(),
    }
    record = {
        **study,
        "orbit": orbit,
        "commit": commit,
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
    }
    out, command = Path(parsed.out), again.command(*words)
    tables = forms_table(study), orbit_table(courses)
    table, orbits = (one.markdown().rstrip() for one in tables)
    write_text(out / "toy.json", record_text(record))
    write_text(
        out / "summary.md",
        f"# Forms of ACE on two toy problems\n\n{table}\n\nMeans over the last fifth of the steps.\n\n"
        f"## gamma under two Adams, {ORBIT_STEPS:,} steps\n\n{orbits}\n\nWritten by `{command}`.\n",
    )
    for one in tables:
        for name, text in one.files().items():
            write_text(out / "tables" / name, text)
    draw_forms(out / "gamma.png", study, command)
    draw_orbit(out / "orbit.png", courses, run, command)
    show(table)
    print()
    show(orbits)
    if run is not None:
        print(
            f"{run.label}: gamma is at most {run.deviation:.2g} from the orbit over {run.steps[-1]:,} steps"
        )
    print(out / "gamma.png")
    print(out / "orbit.png")
    return 0
