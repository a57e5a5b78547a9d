"""Counts how often the calls of a training run go up a room: `python lab/tests/call_chain.py` prints them.

The rooms of both houses have an order (`ROOMS` in tests/test_architecture.py), and a room imports only those before it. Calls
may go the other way: a function of a lower room calls one of a higher room that it was given. The run is of seconds, on a
tiny N-body set; every pair of files is counted once.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

HOUSES = Path(__file__).parents[2]
sys.path.insert(0, str(HOUSES / "tests"))
SOURCES = {
    "equirelax": HOUSES / "src" / "equirelax",
    "equirelax_lab": HOUSES / "lab" / "src" / "equirelax_lab",
}


def climbs(call: Callable[[], Any], direct: bool = True) -> set[tuple[str, str]]:
    """Run `call`; returns (caller's file, callee's file) of every call from a lower room into a higher one.

    Args:
        call: What to run.
        direct: Whether calls that pass through other libraries, such as torch's hooks, are left out.
    """
    from test_architecture import ROOMS

    order = [f"{house}/{room}" for house in ROOMS for room in ROOMS[house]]
    files: dict[CodeType, tuple[int, str] | None] = {}

    def place(code: CodeType) -> tuple[int, str] | None:
        """Number of the room, and file, of a function; None for those of other packages."""
        if code not in files:
            files[code] = None
            for house, folder in SOURCES.items():
                if code.co_filename.startswith(f"{folder}/"):
                    path = Path(code.co_filename).relative_to(folder)
                    room = f"{house}/{path.parts[0].removesuffix('.py')}"
                    files[code] = (order.index(room), f"{house}/{path}") if room in order else None
        return files[code]

    found: set[tuple[str, str]] = set()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        callee = place(frame.f_code) if event == "call" else None
        if callee is None or frame.f_code.co_name == "<module>":
            return
        before = frame.f_back
        while before is not None and not direct and place(before.f_code) is None:
            before = before.f_back
        caller = None if before is None else place(before.f_code)
        if caller is not None and caller[0] < callee[0]:
            found.add((caller[1], callee[1]))

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def tiny_run(folder: Path, data: Path) -> Callable[[], Any]:
    """A call that trains ACE on 48 N-body systems for one epoch."""
    from equirelax_lab.tasks.registry import defaults
    from equirelax_lab.training.machine import Machine
    from equirelax_lab.training.run import train

    sizes = {"train": 48, "val": 24, "test": 24}
    settings = {
        "epochs": 1,
        "batch_size": 24,
        "validate_every": 1,
        "dataset": sizes,
        "network": {"layers": 1, "hidden": 8},
    }
    config = defaults("nbody", "segnn", "ace").updated(settings)
    machine = Machine(progress=False, tensorboard=False)
    return lambda: train(config, folder, data, machine=machine)


def main() -> None:
    """Print the calls that go up, and those that do so through other libraries."""
    from equirelax_lab.data import nbody

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        nbody.make(sizes={"train": 48, "val": 24, "test": 24}, root=root / "data", threads=1)
        for direct in (True, False):
            pairs = climbs(tiny_run(root / str(direct), root / "data"), direct)
            print(f"{len(pairs)} {'direct' if direct else 'direct or through torch'}:")
            print("\n".join(f"  {caller} -> {callee}" for caller, callee in sorted(pairs)))


if __name__ == "__main__":
    main()
