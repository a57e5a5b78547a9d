"""Motion capture cases made from raw files: those of other subjects, which are downloaded from mocap.cs.cmu.edu."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from equirelax.errors import DataError
from equirelax_lab.data.archive import write_archive
from equirelax_lab.data.mocap_files import CASES, FOLDER, HORIZON, check_motion, files_of
from equirelax_lab.data.root import writable_root
from equirelax_lab.data.skeleton import read_amc, read_asf

FRAMES_PER_SECOND = 120


def from_amc(asf: str | Path, amc: Sequence[str | Path]) -> dict[str, np.ndarray]:
    """A motion in the layout of the motion files, from raw files (mocap.cs.cmu.edu) of one subject.

    Args:
        asf: the subject's skeleton.
        amc: trials, in the order in which they shall be numbered.

    Returns:
        pos (frames of all trials, joints, 3) float32, in the files' unit; lengths (trials,); trials, their names;
        joints, their names; edges (joints - 1, 2); fps.

    Raises:
        DataError: a file that cannot be read, or does not fit the skeleton.
    """
    skeleton = read_asf(asf)
    moving = [skeleton.positions(read_amc(path, skeleton)) for path in amc]
    if not moving:
        raise DataError(f"No trial was named for the skeleton {asf}: give one .amc file or more.")
    return {
        "pos": np.concatenate(moving).astype(np.float32),
        "lengths": np.array([len(frames) for frames in moving]),
        "trials": np.array([Path(path).stem for path in amc]),
        "joints": np.array(skeleton.names),
        "edges": skeleton.edges,
        "fps": np.array(FRAMES_PER_SECOND),
    }


def make_split(lengths: Sequence[int], *, starts: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A partition of trials by the published protocol: a quarter each for validation and test (of 11: 5, 3, 3; of 23:
    11, 6, 6), and `starts` random frames of every trial, in random order, that leave room for the horizon.

    Raises:
        DataError: fewer than three trials, or one that is too short.
    """
    count = len(lengths)
    if count < 3:
        raise DataError(f"Three trials or more are needed for train, val and test; got {count}.")
    if short := [n for n, length in enumerate(lengths) if not 1 <= starts <= length - HORIZON]:
        raise DataError(
            f"Trial {short[0]} has {lengths[short[0]]} frames, which leave room for "
            f"{max(lengths[short[0]] - HORIZON, 0)} starts; {starts} were asked for."
        )
    rng = np.random.default_rng(seed)
    quarter = max(1, round(count / 4))
    order, parts = rng.permutation(count), {}
    bounds = {
        "train": (0, count - 2 * quarter),
        "val": (count - 2 * quarter, -quarter),
        "test": (-quarter, None),
    }
    for split, (begin, end) in bounds.items():
        trials = np.sort(order[begin:end])
        parts[f"{split}_trial"] = trials
        rows = [rng.permutation(lengths[trial] - HORIZON)[:starts] for trial in trials]
        parts[f"{split}_start"] = np.stack(rows)
    return parts


def make(
    name: str,
    asf: str | Path,
    amc: Sequence[str | Path],
    *,
    starts: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    force: bool = False,
) -> list[Path]:
    """Write a new case below the data root, for `load(case=name)`, from raw files of one subject of CMU's (31 joints).

    Args:
        name: letters, digits, - and _; not `run` or `walk`.
        asf, amc: as `from_amc`.
        starts: random starts of every trial; None: 100, or as many as the shortest trial has room for.
        seed: of the partition.
        root: see `equirelax_lab.data.root`.
        force: write over a case of the same name.

    Returns:
        The files: motion and split.

    Raises:
        DataError: a name that is taken or not allowed, or files that cannot be used.
    """
    if name in CASES or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise DataError(
            f"{name!r} cannot be the name of a new case: use letters, digits, - and _, not run or walk."
        )
    files = files_of(name)
    paths = [writable_root(root) / FOLDER / file for file in (files.motion, files.split)]
    if not force and any(path.exists() for path in paths):
        raise DataError(f"The case {name!r} is there already ({paths[0]}): choose another name, or force.")
    motion = from_amc(asf, amc)
    check_motion(motion, Path(asf))
    lengths = motion["lengths"].tolist()
    if starts is None:
        starts = min(100, max(1, min(lengths) - HORIZON))
    split = make_split(lengths, starts=starts, seed=seed)
    about = {"asf": Path(asf).name, "amc": [Path(path).name for path in amc], "starts": starts, "seed": seed}
    for path, arrays in zip(paths, (motion, split), strict=True):
        write_archive(path, arrays, about)
    return paths
