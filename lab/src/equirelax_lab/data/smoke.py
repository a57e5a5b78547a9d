"""Smoke plumes that are symmetric under rotations or scalings up to a chosen asymmetry: simulate, verify and load windows.

This is our own version of the data of Wang, Walters and Yu (arXiv 2201.11969), which CR uses in section 5.4.

Rotation: inflows are on the four sides of a box, and the force points away from the side. The buoyancy is b (1 + a c_s) on side s
with c = (-1, -1/3, 1/3, 1). With asymmetry a = 0 the set is exactly symmetric under C4, positions included.
Scale: inflows are on one side. Sizes, positions, forces and therefore velocities are multiplied by one of four factors, on one
grid. The buoyancy depends on the factor as above, which breaks the symmetry together with the walls of the box.

Splits of runs with T frames: train 0 to 0.64 T - 1, validation to 0.8 T - 1, "future" to T - 1 (0-159, 160-199, 200-249 of
250), and "domain" 0 to 0.4 T - 1 (0-99) of runs from other inflow positions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from equirelax.errors import DataError, EquirelaxError
from equirelax.settings import COUNT, POSITIVE, SHARE, Range, Settings, within
from equirelax_lab.data.archive import read_archive, write_archive
from equirelax_lab.data.fields import FieldSet, windows
from equirelax_lab.data.root import command, find, named_root, search_roots, writable_root
from equirelax_lab.data.smoke_simulation import phiflow, simulate

Split = Literal["train", "val", "future", "domain"]
SPLITS: tuple[Split, ...] = ("train", "val", "future", "domain")
SHARES = {"train": (0.0, 0.64), "val": (0.64, 0.8), "future": (0.8, 1.0), "domain": (0.0, 0.4)}
"""First and last frame of a split as shares of a run."""
SIDES = 4
CONTRAST = (-1.0, -1 / 3, 1 / 3, 1.0)
SCALES = (0.6, 0.75, 0.94, 1.17)
"""Factors of the scale set, each 1.25 times the one before."""
SPREAD = 24.0
"""Largest offset of an inflow along its side, in a box of width 100."""
FORMAT = "smoke-1"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plumes(Settings):
    """The plumes that are simulated.

    Attributes:
        symmetry: rotation: inflow on one of four sides; scale: plumes at several spatial and temporal scales.
        size: Grid points along each side of the box, 8 or more.
        positions: Inflow positions on every side (for every scale); there are 4 times as many runs, and one further
            position on every side for every four of them (at least one) for the split Domain.
        steps: Frames of a run.
        asymmetry: How much the buoyancy differs between sides, a in the module's formula, 0 or more and below 1; 0 is exactly
            symmetric under rotations by 90 degrees.
    """

    symmetry: Literal["rotation", "scale"] = "rotation"
    size: int = within(Range(8, 4_096), 64)
    positions: int = within(COUNT, 10)
    steps: int = within(COUNT, 250)
    asymmetry: float = within(SHARE, 0.5)


@dataclass(frozen=True)
class SmokeSettings(Plumes):
    """Everything that defines a set.

    Attributes:
        buoyancy: b, acceleration per density: 0.1 makes a typical velocity (root mean square) of 1 hundredth of the box
            per unit of time after 100 of them.
        dt: Time from frame to frame.
    """

    error: ClassVar[type[EquirelaxError]] = DataError
    buoyancy: float = within(POSITIVE, 0.1)
    dt: float = within(POSITIVE, 1.0)

    @property
    def folder(self) -> Path:
        """The set's folder below the data root, with a hash of all settings in its name."""
        text = json.dumps([FORMAT, dataclasses.asdict(self)], sort_keys=True)
        name = f"{self.symmetry}-{self.size}-a{self.asymmetry:g}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
        return Path("smoke") / name

    @property
    def offsets(self) -> dict[bool, np.ndarray]:
        """Inflow positions along a side: those of the runs (False), and those of Domain between them (True)."""
        if self.positions == 1:
            return {False: np.zeros(1), True: np.array([SPREAD / 2])}
        known = np.linspace(-SPREAD, SPREAD, self.positions)
        others = max(1, self.positions // 4)
        step = 2 * SPREAD / (self.positions - 1)
        between = -SPREAD + step * (np.arange(others) * (self.positions - 1) // others + 0.5)
        return {False: known, True: between}

    @property
    def flags(self) -> str:
        """The flags by which the set differs from the default one, for making it and for training on it."""
        fields = [field for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        return " ".join(f"--{field.name} {getattr(self, field.name)}" for field in fields)

    @property
    def command(self) -> str:
        """The command that makes the set."""
        return f"equirelax data make smoke {self.flags}".rstrip()


@dataclass(frozen=True)
class _Run:
    """A run: its side, its offset, whether it belongs to Domain, and the name of its file."""

    side: int
    offset: float
    domain: bool
    name: str


def _runs(settings: SmokeSettings) -> list[_Run]:
    return [
        _Run(side, float(offset), domain, f"{'domain' if domain else 'run'}-{side}-{i:02d}.npz")
        for domain in (False, True)
        for side in range(SIDES)
        for i, offset in enumerate(settings.offsets[domain])
    ]


def make(
    settings: SmokeSettings,
    root: str | Path | None = None,
    *,
    jobs: int = 2,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Simulate the runs that are missing, in several processes; return the set's folder.

    Every run is a separate file, written under a temporary name and then renamed, with a manifest that holds its SHA-256. An
    interrupted call continues with the runs that have no manifest.

    Args:
        settings: The set's settings.
        root: See `equirelax_lab.data.root`; the user's cache is used for a read-only root.
        jobs: Number of processes; 1: only this one.
        force: Simulate everything again.
        progress: Called as progress(runs done, runs in all).

    Raises:
        DataError: PhiFlow is missing, `jobs` is below 1, or a simulation broke off.
    """
    if jobs < 1:
        raise DataError(f"jobs is {jobs}; expected 1 or more.")
    runs = _runs(settings)
    complete = None if force else _complete(settings, runs, root)
    if complete is not None:
        return complete
    folder = writable_root(root) / settings.folder
    missing = [run for run in runs if force or not _is_there(folder / run.name)]
    phiflow()  # raises before any process is started
    folder.mkdir(parents=True, exist_ok=True)
    done = len(runs) - len(missing)
    for finished in _simulated(settings, list(_parts(missing)), folder, jobs):
        done += finished
        if progress is not None:
            progress(done, len(runs))
    return folder


def _simulated(settings: SmokeSettings, parts: list[list[_Run]], folder: Path, jobs: int) -> Iterator[int]:
    """Simulate and write the parts of a set, in this process if `jobs` is 1; yield the number of runs in each finished part."""
    if jobs == 1:
        for part in parts:
            yield _simulate(settings, part, folder)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(min(jobs, len(parts)), mp_context=context, initializer=_one_thread) as pool:
        waiting = [pool.submit(_simulate, settings, part, folder) for part in parts]
        try:
            for finished in as_completed(waiting):
                yield finished.result()
        except BrokenProcessPool as error:
            raise DataError(
                "A process that simulates smoke broke off: too little memory, or it was started from a script without "
                "`if __name__ == '__main__':`. Call it again, for the finished runs are kept, or with jobs=1."
            ) from error
        finally:
            for job in waiting:
                job.cancel()


def least_steps(lengths: Mapping[Split, int]) -> int:
    """The fewest frames of a run in which every split has room for a window.

    Args:
        lengths: Split -> frames of a window.
    """
    ends = [(*SHARES[split], length) for split, length in lengths.items()]
    return next(
        steps
        for steps in itertools.count(1)
        if all(round(high * steps) - round(low * steps) >= length for low, high, length in ends)
    )


def made(root: str | Path | None = None) -> dict[Path, SmokeSettings]:
    """The complete sets: folder -> settings."""
    found = {}
    for manifest in (m for place in search_roots(root) for m in sorted(place.glob("smoke/*/run-0-00.json"))):
        try:
            settings = SmokeSettings(**json.loads(manifest.read_text(encoding="utf-8"))["settings"])
        except (OSError, ValueError, KeyError, TypeError, DataError):
            continue  # a damaged one is reported when it is loaded
        if all(_is_there(manifest.parent / run.name) for run in _runs(settings)):
            found[manifest.parent] = settings
    return found


def _is_there(path: Path) -> bool:
    """Whether a run is finished. Its manifest is written last."""
    return path.exists() and path.with_suffix(".json").exists()


def _complete(settings: SmokeSettings, runs: list[_Run], root: str | Path | None) -> Path | None:
    """The first searched folder of the set in which all `runs` are finished."""
    folders = (place / settings.folder for place in search_roots(root))
    return next((folder for folder in folders if all(_is_there(folder / run.name) for run in runs)), None)


def _parts(runs: list[_Run]) -> Iterator[list[_Run]]:
    """Split runs by side into parts of at most six, which are simulated together, several times faster than one by one."""
    for side in range(SIDES):
        mine = [run for run in runs if run.side == side]
        for start in range(0, len(mine), 6):
            yield mine[start : start + 6]


def _one_thread() -> None:
    torch.set_num_threads(1)


def _simulate(settings: SmokeSettings, runs: list[_Run], folder: Path) -> int:
    """Simulate and write the runs of one side; return their number."""
    side = runs[0].side
    rotation = settings.symmetry == "rotation"
    found = simulate(
        side if rotation else 0,
        np.array([run.offset for run in runs]),
        buoyancy=settings.buoyancy * (1 + settings.asymmetry * CONTRAST[side]),
        size=settings.size,
        steps=settings.steps,
        dt=settings.dt,
        scale=1.0 if rotation else SCALES[side],
    )
    for run, velocity in zip(runs, found, strict=True):
        manifest = {"settings": dataclasses.asdict(settings), "run": dataclasses.asdict(run)}
        write_archive(folder / run.name, {"velocity": velocity}, manifest)
    return len(runs)


def load(
    split: Split,
    settings: SmokeSettings | None = None,
    *,
    inputs: int = 10,
    outputs: int = 6,
    every: int = 1,
    coarsen: int = 1,
    root: str | Path | None = None,
) -> FieldSet:
    """Load the windows of a split. Every file is compared with its SHA-256.

    Args:
        split: Train, val, future or domain.
        settings: The set's settings.
        inputs: Number of frames to read.
        outputs: Number of frames to forecast.
        every: Frames from the start of one window to that of the next.
        coarsen: Width of the squares of pixels that are averaged into one pixel, which keeps every symmetry of the square.
        root: See `equirelax_lab.data.root`.

    Raises:
        DataError: The set was not made; a file is missing or damaged, has other settings or another number of frames, or holds
            NaN; or no window fits into the split.
    """
    settings = settings or SmokeSettings()
    if split not in SPLITS:
        raise DataError(f"Unknown split {split!r}; choose one of {', '.join(SPLITS)}.")
    low, high = (round(share * settings.steps) for share in SHARES[split])
    runs = [run for run in _runs(settings) if run.domain == (split == "domain")]
    chosen = windows(len(runs), low, high, inputs + outputs, every)
    named_root(root)
    folder = _complete(settings, runs, root) or find(settings.folder, root, hint=_how_to_get(settings, root))
    if coarsen < 1 or settings.size % coarsen:
        raise DataError(f"coarsen is {coarsen}; expected a divisor of the grid's size {settings.size}.")
    frames = torch.stack([torch.from_numpy(_velocity(folder, run, settings, root)) for run in runs])
    if coarsen > 1:
        frames = torch.nn.functional.avg_pool3d(frames, (1, coarsen, coarsen))
    side = torch.tensor([run.side for run in runs])
    return FieldSet(frames, chosen, torch.full((len(chosen),), split == "domain"), side, inputs, outputs)


def _how_to_get(settings: SmokeSettings, root: str | Path | None) -> str:
    """How to make a set, and how to train on those that are there instead."""
    others = [f"`{other.flags or 'no flags'}`" for other in made(root).values()]
    instead = f". There are other sets, which train with {' or '.join(others)}" if others else ""
    return f"Make it: {command(settings.command, root)}{instead}"


def _velocity(folder: Path, run: _Run, settings: SmokeSettings, root: str | Path | None) -> np.ndarray:
    """Read and verify the velocities (steps, 2, size, size) of a run."""
    path = folder / run.name
    made = command(settings.command, root)
    remedy = f"Make it again: {made}"
    if not path.exists():
        raise DataError(f"{path} is missing: making the set was not finished. {remedy}")
    arrays, manifest = read_archive(path, f"Remove it, then make it again: {made}")
    _check_settings(path, manifest, run, settings, remedy)
    velocity, expected = arrays.get("velocity"), (settings.steps, 2, settings.size, settings.size)
    if velocity is None or velocity.shape != expected:
        shape = None if velocity is None else velocity.shape
        raise DataError(
            f"{path} should hold velocities of shape {expected} and holds {shape}. {remedy} --force"
        )
    if not np.isfinite(velocity).all():
        frame = int(np.argwhere(~np.isfinite(velocity))[0][0])
        raise DataError(f"{path} holds NaN or infinity in frame {frame}. {remedy} --force")
    return velocity


def _check_settings(
    path: Path, manifest: dict[str, Any], run: _Run, settings: SmokeSettings, remedy: str
) -> None:
    expected = {"settings": dataclasses.asdict(settings), "run": dataclasses.asdict(run)}
    found = {key: manifest.get(key) for key in expected}
    if found != expected:
        raise DataError(f"{path} has other settings or belongs to another run ({found}). {remedy} --force")
