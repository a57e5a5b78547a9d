"""The command line of the library, which prints errors as one line and exits with code 2."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from equirelax import __version__
from equirelax.command.flags import parser
from equirelax.errors import EquirelaxError
from equirelax.files import did_you_mean

USAGE = """usage: python -m equirelax audit NETWORK ...

  audit    measure whether a network is equivariant, and find the module that breaks it

`python -m equirelax audit --help` explains it. Training, comparisons and reports are commands of the laboratory
(`equirelax`, the distribution equirelax-lab)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (by default the process's own) and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if words else 2
    if words[0] == "--version":
        print(f"equirelax {__version__}")
        return 0
    if words[0] != "audit":
        return _complain(
            f"Unknown command '{words[0]}'.{did_you_mean(words[0], ['audit'])} The only one is audit."
        )
    try:
        return _audit(words)
    except EquirelaxError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    except OSError as error:
        if error.filename is None:
            raise
        return _complain(f"{error.filename} cannot be used: {error.strerror}.")
    except Exception:
        # Python's own exit code, 1, would mean that the network is not equivariant.
        traceback.print_exc()
        return _complain("this is a bug in equirelax; please report it with the lines above.")


def _audit(words: Sequence[str]) -> int:
    parsed = parser("python -m equirelax audit").parse_args(words[1:])
    from equirelax.command.audit import (
        audit_network,
        finish,
    )  # this imports torch, which help and misspelt flags do not need

    return finish(audit_network(parsed), parsed, ["python", "-m", "equirelax", *words])


def _complain(message: str) -> int:
    print(f"equirelax: error: {message}", file=sys.stderr)
    return 2
