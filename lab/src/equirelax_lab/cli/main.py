"""The command `equirelax`: runs a subcommand, and prints errors as one line with exit code 2."""

from __future__ import annotations

import contextlib
import gc
import importlib
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from equirelax.errors import EquirelaxError
from equirelax.files import did_you_mean
from equirelax_lab.cli.help import columns, filled, rows
from equirelax_lab.extras import install_module

# name -> (module, one line). Modules are imported only when they are needed, so that `equirelax --help` is quick.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": (
        "equirelax_lab.cli.demo",
        "relax and project a network, find a mistake, compare methods: what the library is for, in a few minutes",
    ),
    "list": (
        "equirelax_lab.cli.catalogue",
        "list benchmarks, models, methods, placements, and which data is there",
    ),
    "data": ("equirelax_lab.cli.data", "make or download data sets"),
    "train": ("equirelax_lab.cli.train", "train one model with one method"),
    "stack": (
        "equirelax_lab.cli.stack",
        "train runs that differ only in the seed in one process, all in each step",
    ),
    "recipe": (
        "equirelax_lab.cli.recipe",
        "print the settings of a published experiment, and where they come from",
    ),
    "compare": (
        "equirelax_lab.cli.compare",
        "train several methods over several seeds, and write table and picture",
    ),
    "study": (
        "equirelax_lab.cli.study",
        "run a grid of benchmarks, models, methods, settings and seeds from a file",
    ),
    "reproduce": (
        "equirelax_lab.cli.study",
        "run or continue one of the papers' tables and figures, our numbers beside theirs",
    ),
    "search": (
        "equirelax_lab.cli.search",
        "search for settings of a method that are good on the validation set",
    ),
    "audit": (
        "equirelax_lab.cli.audit",
        "check whether a network is equivariant, and which module breaks it",
    ),
    "symmetry": (
        "equirelax_lab.cli.symmetry",
        "show how strongly a run's data break the symmetry, residual by residual",
    ),
    "fields": ("equirelax_lab.cli.fields", "draw the forecast of a smoke run, as a picture and an animation"),
    "summarise": (
        "equirelax_lab.cli.summarise",
        "rewrite table, sentence and pictures of comparisons from their results",
    ),
    "archive": ("equirelax_lab.cli.archive", "keep the results of each comparison in two small files"),
    "report": ("equirelax_lab.cli.report", "write one HTML page about runs and comparisons"),
    "project": (
        "equirelax_lab.cli.project",
        "write a trained model without its relaxation, as the original state dict",
    ),
    "toy": ("equirelax_lab.cli.toy", "show what every form of ACE does to gamma, on two toy problems"),
    "planted": (
        "equirelax_lab.cli.planted",
        "test whether the symmetry score finds the layer of a planted asymmetry, on a toy problem",
    ),
    "perf": ("equirelax_lab.cli.perf", "time a training step, strict and relaxed, against its floor"),
}

USAGE = """usage: equirelax COMMAND ...

Relax equivariance while training, project back exactly, and compare.

commands:
{commands}

`equirelax COMMAND --help` explains a command. A first comparison, about five minutes on two cores:

  equirelax data make nbody
  equirelax compare nbody --methods strict,scheduled,ace --seeds 1 --epochs 40

Data is searched for in --data, or without it in the folder that EQUIRELAX_DATA names, then in the user's cache folder.

Exit codes: 0 done, 1 a run of several failed (audit: not equivariant), 2 bad input, missing data
or a failed run, 3 runs that cannot be stacked, 130 interrupted (add --resume to continue)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own) and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["help"] and len(words) > 1:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        commands = "\n".join(rows((name, line) for name, (_, line) in COMMANDS.items()))
        print(filled(USAGE.format(commands=commands), columns()))
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"equirelax {version('equirelax')}")
        return 0
    if words[0] not in COMMANDS:
        return complain(
            f"Unknown command '{words[0]}'.{did_you_mean(words[0], list(COMMANDS))} See equirelax --help."
        )
    try:
        with _terminable(), _uncollected({"-h", "--help"} & set(words)):
            code: int = importlib.import_module(COMMANDS[words[0]][0]).main(words)
    except EquirelaxError as error:
        return complain(str(error))
    except KeyboardInterrupt as interrupt:
        # A command may say more exactly how to continue.
        print(str(interrupt) or "Interrupted; the same command goes on, or begins anew.", file=sys.stderr)
        # Python records an interrupt within exec(text), which dataclasses use while they are imported, and `python -m` then
        # ends by SIGINT whatever the exit code. The next exec(text) clears the record.
        exec("")
        return 130
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("equirelax", "equirelax_lab"):
            raise
        package = error.name.split(".")[0]
        return complain(f"This command needs the package '{package}': {install_module(package)}")
    except BrokenPipeError:
        return 141
    except OSError as error:
        # A path that is no file, is too long, or may not be read: a mistake on the command line.
        if error.filename is None:
            raise
        return complain(f"{error.filename} cannot be used: {error.strerror}.")
    return code


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Treat SIGTERM, which schedulers and `kill` send, like Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _uncollected(wanted: object) -> Iterator[None]:
    """Switch the garbage collector off if `wanted`: with torch loaded it takes a quarter of the time of a help text."""
    if not wanted or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def complain(message: str) -> int:
    """Print an error as a line and return exit code 2."""
    print(f"equirelax: error: {_presentable(message)}", file=sys.stderr)
    return 2


def _presentable(message: str) -> str:
    """Prepare a message for a terminal: cut very long words, and escape control characters."""
    short = re.sub(r"\S{400,}", lambda found: f"{found[0][:60]}...{found[0][-20:]}", message)
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in short)
