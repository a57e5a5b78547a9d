"""A whole demo of tiny parts, as a process: `python demo_process.py WORDS`."""

from __future__ import annotations

import sys

from equirelax_lab.cli import demo, main
from equirelax_lab.tasks import planted, round_trip

TINY = {
    "epochs": 4,
    "learning_rate": 0.006,
    "batch_size": 20,
    "validate_every": 1,
    "checkpoint_every": 1,
    "network": {"hidden": 8, "layers": 1},
    "dataset": {"train": 40, "val": 20, "test": 20},
}


def shrink() -> None:
    """Make every part small."""
    demo.SETTINGS, demo.SEEDS = TINY, 2
    demo.SIZES = TINY["dataset"]
    round_trip.SAMPLES, round_trip.BATCH = 64, 16
    round_trip.run_round_trip.__defaults__ = (4,)
    planted.run_planted.__defaults__ = (1,)


if __name__ == "__main__":
    shrink()
    sys.exit(main(["demo", *sys.argv[1:]]))
