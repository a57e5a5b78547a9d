"""The command line: `equirelax COMMAND ...`."""

from equirelax_lab.cli.main import main

__all__ = ["main"]
