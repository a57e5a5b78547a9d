"""`equirelax demo`: show in a few minutes what the library is for, each part with a number."""

from __future__ import annotations

import argparse
import json
import resource
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from equirelax.errors import ConfigError
from equirelax.files import write_text
from equirelax.settings import JOBS
from equirelax_lab.cli import options

DESCRIPTION = """Show what the library is for, in three parts, each with a number:

  1  a network is relaxed, trained and projected, and is exactly equivariant again;
  2  a mistake is planted in a module drawn at random, and an audit names the module;
  3  a network is trained strict and relaxed (CR's schedule) on N-body, at one learning rate, for the same number of steps, with \
three fresh seeds, and the paired interval is printed, whatever the result

OUT receives summary.md (the table), demo.png (the picture), demo.html (the page, which needs nothing else) and compare/ (the
runs). The seeds are drawn at the first start and kept in OUT. Ctrl-C stops; the same command continues.

examples:
  equirelax demo
  equirelax demo --seeds 101,102,103 --out runs/demo-again"""

STATE, RUNS = "demo.json", "compare"
FRESH, SEEDS = (1000, 9999), 3
METHOD = "scheduled"
SIZES = {"train": 1000, "val": 500, "test": 1000}
SETTINGS: dict[str, Any] = {
    "epochs": 60,
    "learning_rate": 0.006,
    "checkpoint_every": 10,
    "network": {"hidden": 32},
    "dataset": SIZES,
}
"""Settings of the runs, on top of the recipe `small`."""


def main(words: Sequence[str]) -> int:
    """Run the command line `words`, which begins with "demo"; returns the exit code."""
    parser = options.parser(["demo"], DESCRIPTION)
    parser.add_argument("--out", default="runs/demo", help="folder of the results")
    parser.add_argument(
        "--seeds", help="seeds separated by commas (default: three fresh ones, or those in OUT)"
    )
    parser.add_argument("--jobs", type=int, help="runs at the same time (default: one for every core)")
    parser.add_argument("--data", help=options.DATA)
    given = options.parse(parser, words[1:], jobs=JOBS)
    demo = Demo(Path(given.out), _seeds(given.seeds))
    # Imported here because torch and e3nn take seconds to import, and help and error messages need not wait for them.
    import torch

    from equirelax_lab.report import demo as shown
    from equirelax_lab.tasks.planted import run_planted
    from equirelax_lab.tasks.round_trip import run_round_trip

    torch.set_num_threads(1)
    print(f"Seeds {', '.join(map(str, demo.seeds))}; results in {demo.out}.\n", flush=True)
    for name, title, run, tell in (
        ("round_trip", shown.ROUND_TRIP, run_round_trip, shown.round_trip_lines),
        ("planted", shown.PLANTED, run_planted, shown.planted_lines),
    ):
        print(title, flush=True)
        print("\n".join(f"   {line}" for line in tell(demo.part(name, run))) + "\n", flush=True)
    print(shown.COMPARED, flush=True)
    code = _compare(demo, given)
    if code == 130:
        return code
    demo.note_speed()
    print(shown.write_demo(demo.out, demo.state, demo.out / RUNS, given.data))
    return code


class Demo:
    """The state of a demo, kept in its folder so that an interrupted demo continues where it stopped.

    Args:
        out: The folder.
        seeds: The requested seeds; None takes the folder's, or draws fresh ones.

    Raises:
        ConfigError: The folder holds a demo with other seeds or settings, or its file is damaged.
    """

    def __init__(self, out: Path, seeds: tuple[int, ...] | None) -> None:
        self.out, self.path = out, out / STATE
        self.state: dict[str, Any] = {"settings": SETTINGS, "parts": {}, "seconds": {}, "cpu_seconds": {}}
        if self.path.exists():
            self.state = self._read(seeds)
        else:
            low, high = FRESH
            drawn = tuple(secrets.randbelow(high - low + 1) + low for _ in range(SEEDS))
            self.state["seeds"] = list(seeds or drawn)
            self._write()

    @property
    def seeds(self) -> list[int]:
        """The seeds of all parts; the first two parts use the first seed."""
        found: list[int] = self.state["seeds"]
        return found

    def part(self, name: str, run: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
        """The result of a part, from the folder if it is there, otherwise by running the part."""
        if name not in self.state["parts"]:
            with self.timed(name):
                found = run(self.seeds[0])
            self.state["parts"][name] = json.loads(json.dumps(found))
            self._write()
        result: dict[str, Any] = self.state["parts"][name]
        return result

    def timed(self, name: str) -> _Timed:
        """Context that records its seconds, and the CPU seconds of this process and its children, also after an error."""
        return _Timed(self, name)

    def add_seconds(self, name: str, seconds: float, cpu_seconds: float) -> None:
        """Add to the time that a part has taken so far."""
        for key, value in (("seconds", seconds), ("cpu_seconds", cpu_seconds)):
            self.state[key][name] = round(self.state[key].get(name, 0.0) + value, 1)
        self._write()

    def note_speed(self) -> None:
        """Record the speed of a core, in GFLOP/s of a product of two 1024 x 1024 matrices: times mean little without it."""
        if "gflops" not in self.state:
            import torch

            a, b = torch.randn(2, 1024, 1024)
            seconds = []
            for _ in range(15):
                began = time.thread_time()
                a @ b
                seconds.append(time.thread_time() - began)
            self.state["gflops"] = round(2 * 1024**3 / sorted(seconds)[7] / 1e9)
            self._write()

    def _read(self, seeds: tuple[int, ...] | None) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            kept, settings = state["seeds"], state["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.path} is damaged; remove {self.out}, or name another folder with --out."
            ) from error
        if seeds is not None and list(seeds) != kept:
            raise ConfigError(
                f"{self.out} holds a demo with the seeds {','.join(map(str, kept))}; name another folder with --out."
            )
        if settings != SETTINGS:
            raise ConfigError(f"{self.out} holds a demo with other settings; name another folder with --out.")
        return state

    def _write(self) -> None:
        write_text(self.path, json.dumps(self.state, indent=2) + "\n")


class _Timed:
    def __init__(self, demo: Demo, name: str) -> None:
        self.demo, self.name = demo, name

    def __enter__(self) -> None:
        self.began, self.cpu = time.monotonic(), _cpu_seconds()

    def __exit__(self, *error: object) -> None:
        self.demo.add_seconds(self.name, time.monotonic() - self.began, _cpu_seconds() - self.cpu)


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _compare(demo: Demo, given: argparse.Namespace) -> int:
    """Make missing data, and train the remaining runs; returns the exit code."""
    from equirelax_lab.cli.study import schedule
    from equirelax_lab.data import nbody
    from equirelax_lab.report.comparison import compare_grids
    from equirelax_lab.studies.scheduler import Source, failures
    from equirelax_lab.studies.study import Grid, Study
    from equirelax_lab.studies.trials import trials
    from equirelax_lab.training.machine import Machine, cores

    grid = Grid(
        name="",
        benchmark="nbody",
        models=("segnn",),
        methods=("strict", METHOD),
        seeds=tuple(demo.seeds),
        recipe="small",
        about=METHOD,
        settings=SETTINGS,
    )
    machine = Machine(progress=False, tensorboard=False)
    study = Study(name="", title="N-body", grids=(grid,), machine=machine, share_cores=False)
    found = trials(study, demo.out / RUNS)
    left = sum(trial.status == "waiting" for trial in found)
    with demo.timed("comparison"):
        nbody.make(sizes=SIZES, root=given.data, threads=cores())
        given.ray = None
        code = schedule(study, demo.out / RUNS, given, Source(found), left, len(found))
    if code != 130:
        compare_grids(study, found, demo.out / RUNS)
        print(failures(found), end="")
    return code


def _seeds(text: str | None) -> tuple[int, ...] | None:
    """Seeds separated by commas: at least two, all different."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) < 2 or len(set(parts)) < len(parts) or not all(part.isdecimal() for part in parts):
        raise ConfigError(
            f"--seeds is '{text}'; expected two or more different whole numbers, such as 1,2,3."
        )
    return tuple(map(int, parts))
