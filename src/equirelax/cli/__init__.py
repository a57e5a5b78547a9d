"""The command line: `equirelax COMMAND ...`."""

from equirelax.cli.main import main

__all__ = ["main"]
