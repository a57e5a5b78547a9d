"""The files of the motion capture data: which there are, and whether they are what they should be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from equirelax.errors import DataError
from equirelax_lab.data.archive import load_npz
from equirelax_lab.data.root import find, search_roots

FOLDER = Path("cmu_mocap")
JOINTS = 31
HORIZON = 30
"""Frames from the input to the last target."""
SPLITS = ("train", "val", "test")
TRAIN_SAMPLES = 200
"""About as many training samples the protocol has: as many starts of every training trial as make them up."""


@dataclass(frozen=True)
class Case:
    """Files of a motion, and the number of starts of every training trial that the protocol uses (None: what makes up
    `TRAIN_SAMPLES`).
    """

    motion: str
    split: str
    train_starts: int | None = None


CASES: Mapping[str, Case] = {
    "run": Case("cmu09_run.npz", "egno_split_run.npz", train_starts=40),
    "walk": Case("cmu35_walk.npz", "egno_split.npz", train_starts=18),
}


def files_of(name: str) -> Case:
    """Where a case stands that was made."""
    return Case(f"{name}.npz", f"{name}_split.npz")


def find_case(name: str, root: str | Path | None) -> Case:
    """A published case, or one that was made. Raises `DataError` for any other name."""
    if name in CASES:
        return CASES[name]
    files = files_of(name)
    if not any((folder / FOLDER / files.motion).is_file() for folder in search_roots(root)):
        raise DataError(
            f"Unknown case {name!r} of the motion capture data; choose one of {', '.join(CASES)}, or make it from raw "
            f"files: equirelax data make mocap --case {name} --asf ... --amc ..."
        )
    return files


def train_starts(files: Case, parts: Mapping[str, np.ndarray], path: Path) -> int:
    """Number of starts of every training trial that are used. Raises `DataError` where the split has fewer."""
    trials, starts = parts["train_start"].shape
    if files.train_starts is not None:
        problem = f"train_start has {starts} starts of a trial, and {files.train_starts} are used"
        _require(starts >= files.train_starts, path, problem)
        return files.train_starts
    return min(starts, max(1, TRAIN_SAMPLES // trials))


def read(name: str, root: str | Path | None) -> tuple[dict[str, np.ndarray], Path]:
    hint = f"`equirelax list` says how to get it. Put it there as {FOLDER / name}"
    path = find(FOLDER / name, root, hint=hint)
    return load_npz(path, path, "Get the file anew."), path


def _require(condition: bool, path: Path, problem: str) -> None:
    if not condition:
        raise DataError(f"{path}: {problem}. The file is not what is expected here; get it anew.")


def check_motion(motion: Mapping[str, np.ndarray], path: Path) -> None:
    """Raise `DataError` unless pos (frames, 31, 3), lengths, joints and edges are there, finite and fit
    together.
    """
    missing = [key for key in ("pos", "lengths", "joints", "edges") if key not in motion]
    _require(not missing, path, f"the arrays {', '.join(missing)} are missing")
    positions, lengths, bones = motion["pos"], motion["lengths"], motion["edges"]
    _require(
        positions.ndim == 3 and positions.shape[1:] == (JOINTS, 3) and positions.dtype.kind == "f",
        path,
        f"pos must be floating point of shape (frames, {JOINTS}, 3), but is {positions.dtype} "
        f"{positions.shape}",
    )
    _require(bool(np.isfinite(positions).all()), path, "pos holds NaN or infinity")
    _require(
        lengths.ndim == 1 and lengths.dtype.kind in "iu" and lengths.sum() == len(positions),
        path,
        f"lengths must be integers that add up to the {len(positions)} frames of pos",
    )
    _require(motion["joints"].shape == (JOINTS,), path, f"joints must be {JOINTS} names")
    _require(
        bones.shape == (JOINTS - 1, 2)
        and bones.dtype.kind in "iu"
        and bones.min() >= 0
        and bones.max() < JOINTS,
        path,
        f"edges must be ({JOINTS - 1}, 2) joint numbers below {JOINTS}",
    )


def check_split(parts: Mapping[str, np.ndarray], path: Path, lengths: np.ndarray) -> None:
    """Raise `DataError` unless every start leaves room for the horizon and no trial is in two splits."""
    seen: set[int] = set()
    for split in SPLITS:
        missing = [key for key in (f"{split}_trial", f"{split}_start") if key not in parts]
        _require(not missing, path, f"the arrays {', '.join(missing)} are missing")
        trials, starts = parts[f"{split}_trial"], parts[f"{split}_start"]
        integers = trials.dtype.kind in "iu" and starts.dtype.kind in "iu"
        shapes = trials.ndim == 1 and starts.ndim == 2 and len(starts) == len(trials)
        _require(
            integers and shapes,
            path,
            f"{split}_trial and {split}_start must be integers (k,) and (k, starts)",
        )
        known = len(trials) > 0 and trials.min() >= 0 and trials.max() < len(lengths)
        _require(
            bool(known), path, f"{split}_trial names a trial that is not among the {len(lengths)} trials"
        )
        # not starts + HORIZON, which may be more than an integer holds
        last = lengths.astype(np.int64)[trials][:, None] - HORIZON
        room = starts.size > 0 and starts.min() >= 0 and (starts < last).all()
        _require(
            bool(room), path, f"a start of {split}_start is not {HORIZON} frames before the end of its trial"
        )
        both = seen & set(trials.tolist())
        _require(not both, path, f"the trials {sorted(both)} are in more than one split")
        seen |= set(trials.tolist())
