"""What is known about the published motion capture benchmark: its trials, its windows, and its file of positions.

EGNO (Xu et al., ICML 2024; github.com/MinkaiXu/EGNO, folder motion) numbers the trials of each subject in the order in which
one file system listed them, chooses the trials of each split by these numbers, and draws the first frames of the windows with
NumPy's generator from seed 100. The split is therefore known exactly. The order of the runs is also known, since the published
positions are small enough to compare with. The order of the walks is known only from the published file, which `get` downloads.
From CMU's files they are numbered by name, which gives another partition by the same protocol.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equirelax.errors import DataError
from equirelax_lab.data.archive import write_archive
from equirelax_lab.data.download import fetch
from equirelax_lab.data.mocap import CASES, FOLDER, FRAMES_PER_SECOND, check_motion, check_split
from equirelax_lab.data.root import command, search_roots, writable_root

SEED = 100
_URL = (
    "https://raw.githubusercontent.com/MinkaiXu/EGNO/15ee2cebca01d547e5b20c5c5dabf1d110216ed9/motion/dataset/"
)
JOINT_NAMES = (
    "root", "lhipjoint", "lfemur", "ltibia", "lfoot", "ltoes", "rhipjoint", "rfemur", "rtibia", "rfoot", "rtoes",
    "lowerback", "upperback", "thorax", "lowerneck", "upperneck", "head", "lclavicle", "lhumerus", "lradius", "lwrist",
    "lhand", "lfingers", "lthumb", "rclavicle", "rhumerus", "rradius", "rwrist", "rhand", "rfingers", "rthumb",
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """One published case.

    Attributes:
        subject: CMU's number of the subject.
        file: Name of the published file of positions.
        blob: Its SHA-1 as Git computes it, from the published repository.
        train, val, test: Numbers of the trials of each split.
        starts: Windows per trial.
        span: Their first frames are drawn from 0 ... span - 1.
        trials: Frames of each trial, and the position of the root in its first frame, by which its file is recognised. In
            published order, or else in the order of CMU's file names.
        ordered: Whether `trials` is in published order.
    """

    subject: str
    file: str
    blob: str
    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]
    starts: int
    span: int
    trials: tuple[tuple[int, float, float, float], ...]
    ordered: bool


PUBLISHED: Mapping[str, Published] = {
    "run": Published(
        subject="09",
        file="motion_run.pkl",
        blob="496c7e06995f8f8a77b20b34429cadd96dce9997",
        train=(1, 2, 5, 6, 10),
        val=(0, 4, 9),
        test=(3, 7, 8),
        starts=80,
        span=90,
        trials=(
            (141, 0.09178, 17.1113, -36.2281), (138, 1.92817, 18.4484, -23.8615), (165, 1.30779, 18.3100, -31.1539),
            (143, -0.75525, 17.4139, -27.7690), (137, 0.01536, 18.0056, -30.6689), (126, 0.60116, 18.7379, -27.3740),
            (148, -0.30709, 17.6356, -28.2214), (128, 0.55522, 17.1131, -23.0715), (130, 0.05015, 17.0635, -27.6745),
            (152, 0.06982, 17.1484, -28.7254), (128, -0.33487, 17.1947, -24.8418),
        ),
        ordered=True,
    ),
    "walk": Published(
        subject="35",
        file="motion.pkl",
        blob="5a8e260677b4b0ca8673c759df519fe27e2c0a12",
        train=(20, 1, 17, 13, 14, 9, 4, 2, 7, 5, 16),
        val=(3, 8, 11, 12, 15, 18),
        test=(6, 19, 21, 0, 22, 10),
        starts=100,
        span=300,
        trials=(
            (358, 4.40047, 17.8934, -21.0986), (406, 4.81955, 17.7253, -29.2298), (427, 0.69762, 17.6628, -27.9605),
            (433, 1.50490, 17.8647, -28.5787), (427, 0.89120, 17.6140, -27.7539), (438, 1.31891, 18.0284, -29.6171),
            (360, 0.66358, 18.0401, -17.9943), (455, 0.41069, 18.0493, -29.3259), (384, 0.77831, 17.8165, -29.0209),
            (432, 0.55723, 17.9648, -24.1918), (385, 1.11390, 18.0134, -23.7545), (397, 1.16293, 17.9806, -27.8255),
            (454, 1.16618, 17.9102, -31.8259), (411, 1.21055, 17.7521, -24.0091), (406, 0.67933, 17.9725, -22.2667),
            (443, 0.76133, 18.0053, -27.0367), (417, 0.68492, 18.0372, -22.1251), (497, -0.17168, 18.0704, -31.4039),
            (412, 0.40057, 17.7623, -29.0326), (421, -0.39583, 17.9424, -32.3231), (392, 0.96886, 18.0037, -30.4294),
            (421, 0.97048, 17.5952, -31.0027), (415, 4.94232, 17.9837, -29.2290),
        ),
        ordered=False,
    ),
}  # fmt: skip


def published_split(case: str) -> dict[str, np.ndarray]:
    """Draw the published windows of `run` or `walk` again: trials (k,) and first frames (k, starts) of every split."""
    known = PUBLISHED[case]
    generator = np.random.RandomState(SEED)
    parts: dict[str, np.ndarray] = {}
    for name, trials in (("train", known.train), ("val", known.val), ("test", known.test)):
        drawn = [generator.choice(known.span, size=known.starts, replace=False) for _ in trials]
        parts[f"{name}_trial"] = np.array(trials)
        parts[f"{name}_start"] = np.stack(drawn)
    return parts


def recognise(case: str, moving: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Choose the trials of a case among CMU's files, by their frames.

    A published trial may lack the first frames of its file, as one of the runs lacks six. Files that belong to none of the trials
    are left out.

    Args:
        moving: Positions (frames, joints, 3) in CMU's unit, by the name of the file.

    Returns:
        The trials' positions in the order of `Published.trials`, by the name of the file.

    Raises:
        DataError: A trial is in none of the files.
    """
    chosen: dict[str, np.ndarray] = {}
    for number, (frames, *start) in enumerate(PUBLISHED[case].trials):
        found = [
            (name, x[len(x) - frames :])
            for name, x in moving.items()
            if len(x) >= frames and np.abs(x[len(x) - frames, 0] - start).max() < 1e-3
        ]
        if not found:
            subject = PUBLISHED[case].subject
            raise DataError(
                f"Trial {number} of the case {case} ({frames} frames) is in none of the {len(moving)} files: give all trials "
                f"of subject {subject}, {subject}_*.amc of mocap.cs.cmu.edu, and its skeleton {subject}.asf."
            )
        chosen[found[0][0]] = found[0][1]
    return chosen


class _Arrays(pickle.Unpickler):
    """Unpickle lists of NumPy arrays of numbers, and refuse everything else before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]  # wherever this NumPy has it
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_published(path: str | Path) -> dict[str, np.ndarray]:
    """Read EGNO's file of positions, a pickle, without running any code that it may hold.

    Returns:
        pos (frames of all trials, 31, 3) float32 in CMU's unit, lengths (trials,), joints, edges (30, 2) and fps.

    Raises:
        DataError: The file cannot be read, or holds anything but bones and positions.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            bones, moving = _Arrays(file).load()
        positions = np.concatenate([np.asarray(trial, dtype=np.float64) for trial in moving])
        motion = {
            "pos": positions.astype(np.float32),
            "lengths": np.array([len(trial) for trial in moving]),
            "joints": np.array(JOINT_NAMES),
            "edges": np.asarray(bones, dtype=np.int64).reshape(-1, 2),
            "fps": np.array(FRAMES_PER_SECOND),
        }
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    # A file of another kind raises errors of many types: UnpicklingError, EOFError, ValueError, TypeError, IndexError, ...
    except Exception as error:
        raise DataError(
            f"{path} is not EGNO's file of positions ({' '.join(str(error).split())})."
        ) from error
    check_motion(motion, path)
    return motion


def get(
    case: str,
    root: str | os.PathLike[str] | None = None,
    *,
    file: Path | None = None,
    url: str | None = None,
    force: bool = False,
) -> list[Path]:
    """Return the motion and the split file of a published case. If they are missing, download the positions and write both.

    Args:
        case: `run` or `walk`.
        root: See `equirelax_lab.data.root`.
        file: The published file, obtained in another way. Nothing is downloaded then.
        url: Another address of it.
        force: Download and write again, even if the files are there.

    Raises:
        DataError: The file could not be obtained, or is not the published one. The message says what to do.
    """
    files, known = CASES[case], PUBLISHED[case]
    names = (files.motion, files.split)
    if not force and file is None and url is None:
        for folder in search_roots(root):
            there = [folder / FOLDER / name for name in names]
            if all(path.is_file() for path in there):
                return there
    folder = writable_root(root) / FOLDER
    source = folder / known.file if file is None else file
    try:
        if file is None:
            fetch(url or _URL + known.file, source)
        _check_blob(source, known.blob)
        motion = read_published(source)
    except DataError as error:
        again = command(f"equirelax data get mocap-{case} --archive PATH", root)
        words = (
            f"equirelax data make mocap --case {case} --asf {known.subject}.asf --amc {known.subject}_*.amc"
        )
        raise DataError(
            f"{error} Get {known.file} in another way (github.com/MinkaiXu/EGNO, folder motion/dataset) and pass it on: {again}; "
            f"or make the case from CMU's own files: {command(words, root)}"
        ) from error
    finally:
        if file is None:
            source.unlink(missing_ok=True)
    origin = str(file) if file is not None else url or _URL + known.file
    return write_case(case, motion, {"origin": origin, "git_blob": known.blob}, folder)


def write_case(
    case: str, motion: Mapping[str, np.ndarray], about: Mapping[str, Any], folder: Path
) -> list[Path]:
    """Write the motion and the split file of `run` or `walk`, with the published windows; return their paths."""
    paths = [folder / name for name in (CASES[case].motion, CASES[case].split)]
    split = published_split(case)
    check_split(split, paths[1], motion["lengths"])
    for path, arrays in zip(paths, (motion, split), strict=True):
        write_archive(path, arrays, about)
    return paths


def _check_blob(path: Path, blob: str) -> None:
    """Raise `DataError` unless the file has the SHA-1 that Git gives its content."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != blob:
        raise DataError(f"{path} is not the published file: its Git blob is not {blob}.")
