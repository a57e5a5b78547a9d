"""The flags of `python -m equirelax audit`. They need no slow imports, so that help is shown at once."""

from __future__ import annotations

import argparse
from typing import NoReturn

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean

ROWS = 8
"""Default number of rows of drawn inputs."""
DESCRIPTION = """\
Measure whether a network is equivariant, f(rho_in(g) x) = rho_out(g) f(x),
and find the module that breaks it.

The network needs no preparation. It is named by its module, or file, and what
makes it there: a class, a function without arguments, or such a call with
literals; or a network that is already made.

examples:
  {prog} mynet:build --in "2x0e+1x1o" --out 1x1o
  {prog} "nets/model.py:Net(channels=8)" \\
      --in pos=positions --in charge=1x0e --out vector --group "E(3)"
  {prog} mynet:build --inputs mynet:batch \\
      --in pos=1x1o --out forces=1x1o --html audit.html
  {prog} "mynet:CNN(8)" \\
      --in trivial@grid:2,1,32,32 --out invariant --group C4

An input or output is written as [NAME=]REPRESENTATION[@AXIS][:SIZES].
  REPRESENTATION  irreps (2x0e+1x1o), or with --group: trivial, vector,
                  positions, pseudovector, sign, regular and sums of these
                  (vector+4xtrivial); or invariant, for any tensor that no
                  element changes
  NAME            for a network that takes or returns a mapping or keywords
  @AXIS           the axis that it acts on, from the end (-1 by default), two
                  axes (-2,-1), or grid for images (..., H, W)
  :SIZES          the shape of the tensor that is drawn; by default --rows
                  times the size of the representation

exit code: 0 equivariant, 1 not equivariant, 2 bad input. A relaxed network is
judged by the form that is deployed."""


class _Parser(argparse.ArgumentParser):
    """A parser that raises instead of ending the program, with a suggestion for unknown flags."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            word = message.removeprefix("unrecognized arguments: ").split()[0].split("=")[0]
            flags = [
                flag for action in self._actions for flag in action.option_strings if flag.startswith("--")
            ]
            message = f"Unknown option {word}.{did_you_mean(word, flags)}"
        elif message.startswith("the following arguments are required: "):
            message = f"Missing: {message.removeprefix('the following arguments are required: ')}."
        end = "" if message.endswith((".", "?")) else "."
        raise ConfigError(f"{message}{end} See {self.prog} --help.")


def parser(prog: str, also: str = "") -> argparse.ArgumentParser:
    """Make the parser of the command.

    Args:
        prog: The name of the command.
        also: A paragraph of the help on other things than networks that may be named.
    """
    made = _Parser(
        prog=prog,
        usage="%(prog)s NETWORK [--in REP ...] [--out REP ...] [options]",
        description=DESCRIPTION.format(prog=prog) + also,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "network", metavar="NETWORK", help="package.module:name, path/to/file.py:name, or a call of these"
    )
    made.add_argument(
        "--in",
        action="append",
        dest="given",
        metavar="REP",
        help="how an input transforms; repeat it for every argument (default: what the network declares, such as irreps_in)",
    )
    made.add_argument(
        "--out", action="append", metavar="REP", help="how an output transforms (default: what it declares)"
    )
    made.add_argument(
        "--inputs",
        metavar="MODULE:NAME",
        help="a function that returns the network's input, for graphs and other inputs that cannot be drawn",
    )
    made.add_argument("--rows", type=int, default=None, help=f"rows of drawn inputs (default: {ROWS})")
    made.add_argument(
        "--group",
        help="SO(3), O(3), SE(3), E(3), SO(2), O(2), C4, D4, S5, ... (default: O(3), of the irreps)",
    )
    made.add_argument(
        "--weights",
        metavar="FILE",
        help="a state dict to load: .safetensors, or .pt read without running code",
    )
    made.add_argument("--samples", type=int, default=16, help="random group elements (default: 16)")
    made.add_argument("--seed", type=int, default=0, help="seed of weights, inputs and elements (default: 0)")
    made.add_argument(
        "--dtype",
        choices=["float64", "float32"],
        help="precision of the run (default: float64 where the network can)",
    )
    made.add_argument(
        "--tolerance",
        type=float,
        help="largest relative error that passes (default: by the precision, 1e-9 in float64, 1e-5 for float32 weights)",
    )
    made.add_argument(
        "--layers", action="store_true", help="measure every module even if the network is equivariant"
    )
    made.add_argument("--json", metavar="FILE", help="write all numbers to this file")
    made.add_argument("--html", metavar="FILE", help="write the report as a self-contained page")
    return made
