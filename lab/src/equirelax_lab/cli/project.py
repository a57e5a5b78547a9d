"""`equirelax project`: a trained model without its relaxation, and its model card."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from equirelax.errors import ConfigError, DataError
from equirelax.files import atomic_write, write_text
from equirelax_lab.cli import options
from equirelax_lab.data.root import named_root

if TYPE_CHECKING:
    from equirelax.auditing import AuditReport
    from equirelax_lab.training.assembly import Assembly

DESCRIPTION = """\
Write a trained model without its relaxation: with the keys and sizes of the original network, exactly equivariant. A model
card is written beside it, a page of Markdown: what it is, how it was trained, how equivariant it is, and how to load it.

With --mode fold every layer first takes over the part of its residual that it can express. Perceptrons and block
residuals cannot be folded: they raise an error, or are dropped with --unfoldable drop.

example:
  equirelax project runs/nbody/segnn-ace-seed0/best.ckpt -o strict.safetensors"""


def main(words: Sequence[str]) -> int:
    """`words` begins with "project"."""
    parser = options.parser(["project"], DESCRIPTION)
    parser.add_argument("checkpoint", help="best.ckpt or last.ckpt of a run, or the run's folder")
    parser.add_argument(
        "-o", "--out", required=True, help="file to write: .safetensors; the card is written as .md beside it"
    )
    parser.add_argument(
        "--mode", choices=["drop", "fold"], default="drop", help="remove residuals, or fold them first"
    )
    parser.add_argument(
        "--unfoldable",
        choices=["raise", "drop"],
        default="raise",
        help="with fold: what to do with residuals that cannot be folded",
    )
    parser.add_argument("--data", help=f"for the card's audit: {options.DATA}")
    parsed = options.parse(parser, words[1:])
    out = Path(parsed.out)
    if out.suffix != ".safetensors":
        raise ConfigError(
            f"--out is '{out}'; it should end in .safetensors: a file of tensors that can be read without running code."
        )
    from safetensors.torch import save

    from equirelax.relaxation import project
    from equirelax_lab.report.card import run_card
    from equirelax_lab.training.checkpoint import load_run

    assembly = load_run(Path(parsed.checkpoint), named_root(parsed.data))
    if assembly.relaxation is None:
        print(f"The run has no residuals (method {assembly.config.method}): there is nothing to project.")
    else:
        print(project(assembly.model, mode=parsed.mode, unfoldable=parsed.unfoldable))
    weights = {key: value.contiguous().clone() for key, value in assembly.model.state_dict().items()}
    report, why = _audit(assembly)
    text = run_card(assembly, Path(parsed.checkpoint), out.name, parsed.mode, report or why)
    with atomic_write(out) as temporary:
        temporary.write_bytes(save(weights, metadata={"config": json.dumps(assembly.config.to_dict())}))
    print(f"{out}: {len(weights)} tensors, {sum(w.numel() for w in weights.values()):,} numbers")
    card = out.with_suffix(".md")
    write_text(card, text)
    print(f"{card}: its model card" + (f" (equivariance not measured: {why})" if why else ""))
    return 0


def _audit(assembly: Assembly) -> tuple[AuditReport | None, str]:
    """The audit of the projected model, or why there is none."""
    from equirelax.auditing import audit

    if not assembly.task.auditable:
        return None, "the benchmark's group does not act exactly on its samples"
    try:
        case = assembly.task.audit_case()
    except DataError as error:
        print(f"equirelax project: {error} The data root can be named with --data.", file=sys.stderr)
        # A card may be published: it names no folder of this machine.
        return None, "the benchmark's data was not there"
    with case.headed(assembly.model) as model:
        return audit(model, case.sample, case.in_rep, case.out_rep, case.group, per_layer=False), ""
