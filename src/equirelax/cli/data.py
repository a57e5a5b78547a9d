"""`equirelax data`: make data sets, or say how to get them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from equirelax.cli import options
from equirelax.data import nbody, status
from equirelax.errors import ConfigError, DataError
from equirelax.files import did_you_mean

DESCRIPTION = {
    "make": """Simulate a data set and write it below the data root, with a SHA-256 that every load checks.

Splits that are there and large enough are kept. The charged set (10,000 / 2,000 / 2,000 systems of five
bodies) takes some seconds; gravity (100 bodies) a quarter of an hour.

example:
  equirelax data make nbody""",
    "get": "Say where a data set is, or how to get it.",
}


def main(words: Sequence[str]) -> int:
    """`words` begins with "data"."""
    actions = {"make": make, "get": get}
    if len(words) < 2 or words[1] in ("-h", "--help"):
        print("usage: equirelax data {make,get} NAME ...\n\n  make  simulate a data set (nbody)")
        print("  get   where a data set is, or how to get it (see equirelax list)")
        return 0 if len(words) > 1 else 2
    if words[1] not in actions:
        raise ConfigError(
            f"Unknown action '{words[1]}'.{did_you_mean(words[1], list(actions))} Use make or get."
        )
    return actions[words[1]](words[2:])


def make(words: Sequence[str]) -> int:
    """Simulate N-body data."""
    parser = options.parser(["data", "make"], DESCRIPTION["make"])
    parser.add_argument("name", choices=["nbody"], help="data set")
    parser.add_argument("--system", choices=list(nbody.SYSTEMS), default="charged", help="which simulator")
    parser.add_argument("--clamp", help="charged: component (as the public data) or norm (equivariant)")
    parser.add_argument("--data_seed", type=int, default=0, help="seed of the data; benchmarks use 0")
    for split in nbody.SPLITS:
        parser.add_argument(f"--{split}", type=int, help=f"systems of the {split} split")
    parser.add_argument("--force", action="store_true", help="make everything anew, also over good files")
    parser.add_argument("--threads", type=int, default=2, help="blocks simulated at the same time")
    parser.add_argument("--data", help="data root (default: EQUIRELAX_DATA, else the user's cache folder)")
    parsed = options.parse(parser, ["--data_seed" if word == "--seed" else word for word in words])
    sizes = dict(nbody.DEFAULT_SIZES[parsed.system])
    sizes.update({split: parsed[split] for split in nbody.SPLITS if parsed[split] is not None})

    def report(split: str, done: int, total: int) -> None:
        print(f"\r{split}: {done} of {total} systems", end="", file=sys.stderr, flush=True)

    paths = nbody.make(
        parsed.system,
        clamp=parsed.clamp,
        sizes=sizes,
        seed=parsed.data_seed,
        root=parsed.data,
        force=parsed.force,
        threads=parsed.threads,
        progress=report,
    )
    print(file=sys.stderr)
    for split, path in paths.items():
        print(f"{split:5}  {path}")
    return 0


def get(words: Sequence[str]) -> int:
    """Where a data set is, or how to get it."""
    parser = options.parser(["data", "get"], DESCRIPTION["get"])
    parser.add_argument("name", help="data set; see equirelax list")
    parser.add_argument("--data", help="data root (default: EQUIRELAX_DATA, else the user's cache folder)")
    parsed = options.parse(parser, words)
    rows = {row.name: row for row in status(parsed.data)}
    if parsed.name not in rows:
        raise ConfigError(
            f"Unknown data set '{parsed.name}'.{did_you_mean(parsed.name, list(rows))} "
            f"Known: {', '.join(rows)}."
        )
    row = rows[parsed.name]
    if not row.available:
        raise DataError(f"{row.name} is not there. To get it: {row.how_to_get}.")
    print(f"{row.name}  {row.location}")
    return 0
