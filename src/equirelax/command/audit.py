"""`python -m equirelax audit`: is a network equivariant, how large is the error, and which module breaks it?"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from equirelax import __version__
from equirelax.auditing import AuditReport, audit
from equirelax.auditing.samples import FROM_MODEL, leaves, model_representations, read_representations
from equirelax.command import inputs, objects
from equirelax.command.flags import ROWS
from equirelax.command.weights import load_weights
from equirelax.errors import AuditError, ConfigError
from equirelax.files import write_text
from equirelax.settings import COUNT, POSITIVE, SEED, check
from equirelax.symmetry import Group

LAYERS = 10
"""Rough factor by which an audit of all modules takes longer: 5 to 15 with SEGNN."""


def audit_network(parsed: argparse.Namespace) -> AuditReport:
    """Build the network and the inputs that the parsed flags name, and audit them.

    Raises:
        EquirelaxError: A flag or an object that it names is wrong. Errors of the user's code are reported with their place.
    """
    check(parsed.rows, COUNT, "--rows")
    check(parsed.seed, SEED, "--seed")
    group = None if parsed.group is None else Group.from_name(parsed.group)
    given = [inputs.Entry.read(text, group, "--in") for text in parsed.given or ()]
    wanted = [inputs.Entry.read(text, group, "--out") for text in parsed.out or ()]
    if parsed.inputs is not None and (parsed.rows is not None or any(entry.sizes for entry in given)):
        raise ConfigError(
            "--rows and sizes after a colon are for drawn inputs: leave them out with --inputs."
        )
    if any(entry.sizes for entry in wanted):
        raise ConfigError("--out: the sizes of an output are the network's own: leave them out.")
    with objects.importable(Path.cwd()):
        torch.manual_seed(parsed.seed)
        network = _network(parsed.network)
        if parsed.weights is not None:
            if not isinstance(network, nn.Module):
                raise ConfigError(
                    f"--weights: {parsed.network} is not a torch.nn.Module, and only modules have a state dict."
                )
            load_weights(network, Path(parsed.weights))
        in_rep: Any = inputs.tree(given, "--in") if given else _declared(network, "in_rep", "--in")
        out_rep: Any = inputs.tree(wanted, "--out") if wanted else _declared(network, "out_rep", "--out")
        if parsed.inputs is not None:
            sample = objects.load(parsed.inputs)
            if given and isinstance(sample, (tuple, list)) and not isinstance(in_rep, (tuple, dict)):
                in_rep = (in_rep,)
            where = f"the inputs are those of {parsed.inputs}"
        else:
            draws = inputs.Draws(
                ROWS if parsed.rows is None else parsed.rows, parsed.seed, device_of(network)
            )
            if given:
                sample = inputs.drawn(given, draws, "--in")
            else:
                own, _ = read_representations(FROM_MODEL, None, group, network)
                sample = inputs.drawn_like(own, draws)
            where = (
                "the inputs were drawn; a shape after the representation, such as 1x1o:4,6,3, draws others, a name before "
                "it, such as pos=1x1o, passes a keyword, and --inputs MODULE:NAME gives them, such as indices and graphs"
            )
        shapes = ", ".join(f"{leaf.path} {_shape(leaf.value)}" for leaf in leaves(sample, None, "input"))
        failing = objects.failing(f"the network failed on {shapes or type(sample).__name__} ({where})")
        with failing, contextlib.redirect_stderr(_WithoutTraces(sys.stderr)):
            return measured(network, sample, in_rep, out_rep, group, parsed)


def measured(
    network: nn.Module | Callable[..., Any],
    sample: Any,
    in_rep: Any,
    out_rep: Any,
    group: Group | None,
    parsed: argparse.Namespace,
) -> AuditReport:
    """Audit a network as the parsed flags say. Modules are measured if the deployed form breaks equivariance, or on request.

    Raises:
        EquirelaxError: See `equirelax.audit`; or a flag is out of range.
    """
    check(parsed.samples, COUNT, "--samples")
    check(parsed.seed, SEED, "--seed")
    check(parsed.tolerance, POSITIVE, "--tolerance")
    dtype = None if parsed.dtype is None else getattr(torch, parsed.dtype)

    def measure(layers: bool) -> AuditReport:
        return audit(
            network,
            sample,
            in_rep,
            out_rep,
            group,
            samples=parsed.samples,
            seed=parsed.seed,
            dtype=dtype,
            tolerance=parsed.tolerance,
            per_layer=layers,
        )

    if parsed.layers:
        return measure(True)
    began = time.monotonic()
    report = measure(False)
    if report.passes:
        if not report.equivariant:
            words = (
                "Relaxed, as it is now, the network is not equivariant; --layers says which module breaks it."
            )
            print(words, file=sys.stderr)
        return report
    likely = LAYERS * (time.monotonic() - began)
    long = f", which may take {likely:.0f} s" if likely > 20 else ""
    print(f"{report.headline[0]}: looking for the module that breaks it{long} ...", file=sys.stderr)
    return measure(True)


def finish(report: AuditReport, parsed: argparse.Namespace, words: Sequence[str]) -> int:
    """Print a report, write the files that the flags name, and return the exit code.

    Args:
        report: The report.
        parsed: The flags.
        words: The command line, which the files give as the command that reproduces them.

    Raises:
        StorageError: A file cannot be written. The report has been printed by then.
    """
    command = shlex.join(words)
    print(report)
    if parsed.json is not None:
        made_by = {"command": command, "equirelax": __version__, "torch": torch.__version__}
        write_text(
            parsed.json,
            json.dumps({**report.to_dict(), "made_by": made_by}, indent=2, allow_nan=False) + "\n",
        )
    if parsed.html is not None:
        write_text(parsed.html, report.to_html(command))
    return 0 if report.passes else 1


class _WithoutTraces(io.TextIOBase):
    """A stream that filters out the text that modules traced by torch.fx, such as e3nn's, print when they raise an error."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.dropped = False

    def write(self, text: str) -> int:
        ended = self.dropped and text == "\n"  # print writes the line break separately
        self.dropped = "Call using an FX-traced Module" in text
        if not (self.dropped or ended):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()


def _network(text: str) -> Any:
    found = objects.load(text)
    if not callable(found):
        raise ConfigError(
            f"{text} is of class {type(found).__name__}; expected a torch.nn.Module, or a function of the inputs."
        )
    return found


def device_of(network: Any) -> torch.device:
    """The device for a network's inputs: that of its first parameter."""
    parameters = network.parameters() if isinstance(network, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def _declared(network: Any, name: str, flag: str) -> Any:
    """The representation that a network itself declares for its input or output."""
    try:
        model_representations(network, name)
    except AuditError as error:
        raise ConfigError(
            f"{flag} is missing, and {type(network).__name__} does not declare it (irreps_in, in_type or in_rep, and the same "
            f"for the output): say how it transforms, as in {flag} 2x0e+1x1o, or {flag} invariant for what no element changes."
        ) from error
    return FROM_MODEL


def _shape(value: torch.Tensor) -> str:
    return f"({'x'.join(map(str, value.shape)) or 'a number'} {str(value.dtype).removeprefix('torch.')})"
