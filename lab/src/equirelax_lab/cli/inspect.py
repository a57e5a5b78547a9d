"""`equirelax audit` and `equirelax project`: what a trained model is, and taking the relaxation away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from equirelax.errors import ConfigError
from equirelax.files import atomic_write, write_text
from equirelax.settings import COUNT, SEED
from equirelax_lab.cli import options
from equirelax_lab.data.root import named_root

AUDIT = """\
Measure the equivariance error of a trained model: the largest over random group elements, absolute and
relative, REMUL's E and E', the Lie derivative, and which layer breaks the symmetry. A relaxed model is
measured as it is and with its residuals off (projected).

example:
  equirelax audit runs/nbody/segnn-ace-seed0/best.ckpt"""

PROJECT = """\
Write a trained model without its relaxation: the author's own keys and sizes, exactly equivariant.

With --mode fold every layer first takes over the part of its residual that it can express; perceptrons and
block residuals cannot be folded: an error, or --unfoldable drop.

example:
  equirelax project runs/nbody/segnn-ace-seed0/best.ckpt -o strict.safetensors"""


def main(words: Sequence[str]) -> int:
    """`words` begins with "audit" or "project"."""
    return (run_audit if words[0] == "audit" else run_project)(words[1:])


def run_audit(words: Sequence[str]) -> int:
    """Print (and write) an audit."""
    parser = options.parser(["audit"], AUDIT)
    parser.add_argument("checkpoint", help="best.ckpt or last.ckpt of a run, or the run's folder")
    parser.add_argument("--samples", type=int, default=16, help="random group elements")
    parser.add_argument("--seed", type=int, default=0, help="seed of the elements")
    parser.add_argument(
        "--dtype", choices=["float64", "float32"], default="float64", help="precision of the run"
    )
    parser.add_argument("-o", "--out", help="also write the report to this JSON file")
    parser.add_argument("--data", help=options.DATA)
    parsed = options.parse(parser, words, samples=COUNT, seed=SEED)
    import torch

    from equirelax.auditing import audit
    from equirelax_lab.training.checkpoint import load_run

    assembly = load_run(Path(parsed.checkpoint), named_root(parsed.data))
    case = assembly.task.audit_case()
    with case.headed(assembly.model) as model:
        report = audit(
            model,
            case.sample,
            case.in_rep,
            case.out_rep,
            case.group,
            samples=parsed.samples,
            seed=parsed.seed,
            dtype=getattr(torch, parsed.dtype),
        )
    print(report)
    if parsed.out:
        write_text(parsed.out, json.dumps(report.to_dict(), indent=2) + "\n")
    return 0


def run_project(words: Sequence[str]) -> int:
    """Write the strict model's weights."""
    parser = options.parser(["project"], PROJECT)
    parser.add_argument("checkpoint", help="best.ckpt or last.ckpt of a run, or the run's folder")
    parser.add_argument("-o", "--out", required=True, help="file to write: .safetensors")
    parser.add_argument(
        "--mode", choices=["drop", "fold"], default="drop", help="remove residuals, or fold them first"
    )
    parser.add_argument(
        "--unfoldable", choices=["raise", "drop"], default="raise", help="with fold: what cannot be"
    )
    parsed = options.parse(parser, words)
    out = Path(parsed.out)
    if out.suffix != ".safetensors":
        raise ConfigError(
            f"--out is '{out}'; it should end in .safetensors: a file of tensors, readable by everyone and without code."
        )
    from safetensors.torch import save

    from equirelax.relaxation import project
    from equirelax_lab.training.checkpoint import load_run

    assembly = load_run(Path(parsed.checkpoint))
    if assembly.relaxation is None:
        print(f"The run has no residuals (method {assembly.config.method}): there is nothing to project.")
    else:
        print(project(assembly.model, mode=parsed.mode, unfoldable=parsed.unfoldable))
    weights = {key: value.contiguous().clone() for key, value in assembly.model.state_dict().items()}
    with atomic_write(out) as temporary:
        temporary.write_bytes(save(weights, metadata={"config": json.dumps(assembly.config.to_dict())}))
    print(f"{out}: {len(weights)} tensors, {sum(w.numel() for w in weights.values()):,} numbers")
    return 0
