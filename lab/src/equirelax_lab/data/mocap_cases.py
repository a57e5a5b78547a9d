"""Make motion capture cases from CMU's files (mocap.cs.cmu.edu, free for all uses): skeletons (.asf) and trials (.amc)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from equirelax.errors import DataError
from equirelax_lab.data.archive import write_archive
from equirelax_lab.data.mocap import CASES, FOLDER, FRAMES_PER_SECOND, HORIZON, check_motion, files_of
from equirelax_lab.data.mocap_published import recognise, write_case
from equirelax_lab.data.root import writable_root
from equirelax_lab.data.skeleton import Skeleton, read_amc, read_asf


def from_amc(asf: str | Path, amc: Sequence[str | Path]) -> dict[str, np.ndarray]:
    """Convert the files of one subject to the layout of the motion files.

    Args:
        asf: The subject's skeleton.
        amc: The trials, in the order in which they are numbered.

    Returns:
        pos (frames of all trials, joints, 3) float32, in the files' unit; lengths (trials,); names of trials; names of joints;
        edges (joints - 1, 2); fps.

    Raises:
        DataError: A file cannot be read, or does not fit the skeleton.
    """
    skeleton = read_asf(asf)
    return _motion(skeleton, asf, _moving(skeleton, amc))


def _moving(skeleton: Skeleton, amc: Sequence[str | Path]) -> dict[str, np.ndarray]:
    """Positions (frames, joints, 3) of every trial, by the name of its file."""
    return {Path(path).stem: skeleton.positions(read_amc(path, skeleton)) for path in amc}


def _motion(skeleton: Skeleton, asf: str | Path, moving: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    if not moving:
        raise DataError(f"No trial was named for the skeleton {asf}: give one .amc file or more.")
    return {
        "pos": np.concatenate(list(moving.values())).astype(np.float32),
        "lengths": np.array([len(frames) for frames in moving.values()]),
        "trials": np.array(list(moving)),
        "joints": np.array(skeleton.names),
        "edges": skeleton.edges,
        "fps": np.array(FRAMES_PER_SECOND),
    }


def make_split(lengths: Sequence[int], *, starts: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Partition trials by the published protocol, and draw `starts` random frames of every trial that leave room for the horizon.

    A quarter of the trials each is for validation and test (11 trials give 5, 3, 3; 23 trials 11, 6, 6).

    Raises:
        DataError: There are fewer than three trials, or one is too short.
    """
    count = len(lengths)
    if count < 3:
        raise DataError(f"Three trials or more are needed for train, val and test; got {count}.")
    if short := [n for n, length in enumerate(lengths) if not 1 <= starts <= length - HORIZON]:
        raise DataError(
            f"Trial {short[0]} has {lengths[short[0]]} frames, which leave room for "
            f"{max(lengths[short[0]] - HORIZON, 0)} starts; {starts} were requested."
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
    seed: int | None = None,
    root: str | Path | None = None,
    force: bool = False,
) -> list[Path]:
    """Write a case below the data root, for `mocap.load(case=name)`, from the files of one CMU subject (31 joints).

    Args:
        name: `run` or `walk` for a published case, whose trials are recognised by their frames and whose windows are the
            published ones (those of `walk` in trials of another order, see `mocap_published`); else a new name of letters,
            digits, - and _.
        asf, amc: As `from_amc`.
        starts: For a new case: random starts per trial; None: 100, or as many as the shortest trial has room for.
        seed: For a new case: seed of the partition; None: 0.
        root: See `equirelax_lab.data.root`.
        force: Overwrite a case of the same name.

    Returns:
        The files: motion and split.

    Raises:
        DataError: The name is not allowed or the case exists, or the files cannot be used.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise DataError(f"{name!r} cannot be the name of a case: use letters, digits, - and _.")
    if name in CASES and (starts is not None or seed is not None):
        raise DataError(
            f"The windows of {name} are the published ones: leave out starts and seed, or name the case otherwise."
        )
    files = CASES.get(name, files_of(name))
    folder = writable_root(root) / FOLDER
    paths = [folder / file for file in (files.motion, files.split)]
    if not force and any(path.exists() for path in paths):
        raise DataError(
            f"The case {name!r} exists already ({paths[0]}): choose another name, or use --force."
        )
    skeleton = read_asf(asf)
    moving = _moving(skeleton, amc)
    about: dict[str, object] = {"asf": Path(asf).name, "amc": [Path(path).name for path in amc]}
    if name in CASES:
        motion = _motion(skeleton, asf, recognise(name, moving))
        check_motion(motion, Path(asf))
        return write_case(name, motion, {**about, "trials": motion["trials"].tolist()}, folder)
    motion = _motion(skeleton, asf, moving)
    check_motion(motion, Path(asf))
    lengths = motion["lengths"].tolist()
    if starts is None:
        starts = min(100, max(1, min(lengths) - HORIZON))
    split = make_split(lengths, starts=starts, seed=seed or 0)
    about |= {"starts": starts, "seed": seed or 0}
    for path, arrays in zip(paths, (motion, split), strict=True):
        write_archive(path, arrays, about)
    return paths
