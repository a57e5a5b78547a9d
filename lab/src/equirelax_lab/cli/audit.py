"""`equirelax audit`: is a network, of a run or of your own, equivariant, and which module breaks it?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from equirelax.command import flags
from equirelax.errors import ConfigError

if TYPE_CHECKING:
    from equirelax.auditing import AuditReport

ALSO = """

A trained run is named by its folder, or by its best.ckpt or last.ckpt; its
benchmark gives the inputs and says how they transform.

  equirelax audit runs/nbody/segnn-ace-seed0 --layers"""

OF_NETWORKS = ("given", "out", "inputs", "rows", "group", "weights")
"""Flags whose values a run supplies."""


def main(words: Sequence[str]) -> int:
    """`words` begins with "audit"."""
    parser = flags.parser("equirelax audit", ALSO)
    parser.add_argument(
        "--data",
        help="data root of a run's benchmark, searched before the user's cache folder (default: EQUIRELAX_DATA)",
    )
    parsed = parser.parse_args(words[1:])
    from equirelax.command.audit import audit_network, finish

    if ":" in parsed.network and not Path(parsed.network).exists():
        if parsed.data is not None:
            raise ConfigError("--data is for runs: a network's inputs are given by --in or --inputs.")
        report = audit_network(parsed)
    else:
        report = audit_run(parsed)
    return finish(report, parsed, ["equirelax", *words])


def audit_run(parsed: argparse.Namespace) -> AuditReport:
    """Audit the network of a run.

    Raises:
        EquirelaxError: There is no such run, or a flag does not fit it.
    """
    for name in OF_NETWORKS:
        if getattr(parsed, name) is not None:
            flag = "in" if name == "given" else name
            raise ConfigError(
                f"--{flag} is for networks named as module:name; {parsed.network} is read as a run, which supplies that itself."
            )
    from equirelax.command.audit import measured
    from equirelax_lab.data.root import named_root
    from equirelax_lab.training.checkpoint import load_run

    path = Path(parsed.network)
    if not path.exists() and path.suffix != ".ckpt":
        raise ConfigError(
            f"There is neither a file nor a folder {path}. A run is named by its folder, a network by package.module:name or "
            "path/to/file.py:name."
        )
    assembly = load_run(path, named_root(parsed.data))
    case = assembly.task.audit_case()
    with case.headed(assembly.model) as model:
        return measured(model, case.sample, case.in_rep, case.out_rep, case.group, parsed)
