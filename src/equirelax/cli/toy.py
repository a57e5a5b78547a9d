"""`equirelax toy`: what the plain, augmented, PI and resilient forms of ACE do to gamma."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from equirelax.benchmarks.toy import run_toy
from equirelax.cli import options
from equirelax.files import write_text
from equirelax.ranges import COUNT, POSITIVE, SEED
from equirelax.report.forms import draw_forms, forms_table
from equirelax.training import provenance

DESCRIPTION = """\
Train a small vector-neuron network with every form of ACE on two toy problems, and show what gamma does.

Needs no data; about a minute on one core. "symmetric" has targets made by a network of the same kind:
gamma = 0 is feasible. "broken" has targets that no equivariant network can fit. gamma and the residual's weight can be
traded for each other, so the table has their product too."""


def main(words: Sequence[str]) -> int:
    """`words` begins with "toy"."""
    parser = options.parser(["toy"], DESCRIPTION)
    parser.add_argument("--steps", type=int, default=2500, help="training steps of every form")
    parser.add_argument("--dual_lr", type=float, default=1e-2, help="step size of the multipliers (eta_d)")
    parser.add_argument("--seed", type=int, default=0, help="of data and weights")
    parser.add_argument(
        "-o", "--out", default="runs/toy", help="folder for toy.json, summary.md and gamma.png"
    )
    parsed = options.parse(parser, words[1:], steps=COUNT, dual_lr=POSITIVE, seed=SEED)
    torch.set_num_threads(1)
    commit = provenance.commit()
    study = run_toy(steps=parsed.steps, dual_lr=parsed.dual_lr, seed=parsed.seed)
    record = {**study, "commit": commit, "hardware": provenance.hardware(), "versions": provenance.versions()}
    out = Path(parsed.out)
    table = forms_table(study)
    write_text(out / "toy.json", json.dumps(record) + "\n")
    write_text(
        out / "summary.md",
        f"# Forms of ACE on two toy problems\n\n{table}\n\nMeans over the last fifth of the steps.\n",
    )
    draw_forms(out / "gamma.png", study)
    print(table)
    print(out / "gamma.png")
    return 0
