"""CMU motion capture (mocap.cs.cmu.edu) by EGNO's protocol: where are 31 joints 30 frames (0.25 s) later?

Input: positions x[t] and velocities v = x[t+1] - x[t] (per frame, at 120 frames a second). Targets: x[t+26] ... x[t+30].
Edges connect joints that are one or two bones apart. Lengths are in the files' unit (CMU's, 5.6 cm).

There are two cases: `run` (subject 9, 11 trials) and `walk` (subject 35, 23 trials). `mocap_published` has what is known about
their published windows and downloads the published positions. `mocap_cases` makes these and further cases from CMU's files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from equirelax.errors import DataError
from equirelax_lab.data.archive import load_npz
from equirelax_lab.data.graphs import GraphSet, squared_distances
from equirelax_lab.data.root import command, find, search_roots

FOLDER = Path("cmu_mocap")
JOINTS = 31
FRAMES_PER_SECOND = 120
HORIZON = 30
"""Frames from the input to the last target."""
SPLITS = ("train", "val", "test")
TRAIN_SAMPLES = 200
"""Number of training samples in the protocol, which decides how many starts of every training trial are used."""


@dataclass(frozen=True)
class Case:
    """Files of a motion, and the number of starts per training trial (None: enough for `TRAIN_SAMPLES`)."""

    motion: str
    split: str
    train_starts: int | None = None


CASES: Mapping[str, Case] = {
    "run": Case("cmu09_run.npz", "egno_split_run.npz", train_starts=40),
    "walk": Case("cmu35_walk.npz", "egno_split.npz", train_starts=18),
}


def files_of(name: str) -> Case:
    """The files of a case that was made from raw files."""
    return Case(f"{name}.npz", f"{name}_split.npz")


def find_case(name: str, root: str | Path | None) -> Case:
    """Find a published case, or one that was made from raw files. Raise `DataError` for any other name."""
    if name in CASES:
        return CASES[name]
    files = files_of(name)
    if not any((folder / FOLDER / files.motion).is_file() for folder in search_roots(root)):
        raise DataError(
            f"Unknown case {name!r} of the motion capture data; choose one of {', '.join(CASES)}, or make it from CMU's "
            f"files: {command(f'equirelax data make mocap --case {name} --asf ... --amc ...', root)}"
        )
    return files


def train_starts(files: Case, parts: Mapping[str, np.ndarray], path: Path) -> int:
    """Number of starts per training trial that are used. Raise `DataError` if the split has fewer."""
    trials, starts = parts["train_start"].shape
    if files.train_starts is not None:
        problem = f"train_start has {starts} starts of a trial, and {files.train_starts} are used"
        _require(starts >= files.train_starts, path, problem)
        return files.train_starts
    return min(starts, max(1, TRAIN_SAMPLES // trials))


def read(name: str, root: str | Path | None) -> tuple[dict[str, np.ndarray], Path]:
    case = next((case for case, files in CASES.items() if name in (files.motion, files.split)), None)
    words = "equirelax data make mocap" if case is None else f"equirelax data get mocap-{case}"
    how = f"{'make the case again with ' if case is None else ''}{command(words, root)}"
    path = find(FOLDER / name, root, hint=f"Get it: {how}; or put it there as {FOLDER / name}")
    return load_npz(path, path, "Get the file again."), path


def _require(condition: bool, path: Path, problem: str) -> None:
    if not condition:
        raise DataError(f"{path}: {problem}. The file is not what is expected here; get it again.")


def check_motion(motion: Mapping[str, np.ndarray], path: Path) -> None:
    """Raise `DataError` unless pos (frames, 31, 3), lengths, joints and edges exist, are finite and fit together."""
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
        # not starts + HORIZON, which may overflow
        last = lengths.astype(np.int64)[trials][:, None] - HORIZON
        room = starts.size > 0 and starts.min() >= 0 and (starts < last).all()
        _require(
            bool(room), path, f"a start of {split}_start is not {HORIZON} frames before the end of its trial"
        )
        both = seen & set(trials.tolist())
        _require(not both, path, f"the trials {sorted(both)} are in more than one split")
        seen |= set(trials.tolist())


STEPS = 5
"""Number of targets in a trajectory: the frames t + HORIZON - STEPS + 1 ... t + HORIZON."""
UP = 1
"""The coordinate that is the height: y."""
FEATURES = ("published", "fixed-height", "invariant")


@dataclass
class MocapSet(GraphSet):
    """A split of the motion capture data. See `GraphSet` for the tensors.

    edge_features (N, e, 2): [1 or 2 bones apart, |r_ij|^2]. trajectory (N, 5, 31, 3). features by
    `load(features=...)`:

    - `published`: [|v|, y / max y] with the maximum over all joints of the *batch*, as in EGNO. A prediction then depends on
      the other samples of its batch, also in evaluation. In the tensor `features` the whole split is the batch.
    - `fixed-height`: [|v|, y / max y] with the maximum over the training inputs: the same feature without that dependence.
    - `invariant`: [|v|, one-hot joint number] (32 features), the only ones that keep a network E(3)-equivariant end to end. With
      heights, only rotations about the vertical and horizontal translations remain symmetries.

    `batch` with a rotation rotates the vectors. Heights stay those of the recorded pose, because the vertical rotates as well.

    Attributes:
        heights: (N, 31, 1) y of the input positions.
        highest: Largest height of the training inputs.
        kind: The kind of features, one of `FEATURES`.
        trials, starts: (N,) trial number and frame t of every sample.
        joints: Names of the joints.
    """

    heights: Tensor | None = None
    highest: float = 1.0
    kind: str = "published"
    trials: Tensor | None = None
    starts: Tensor | None = None
    joints: tuple[str, ...] = ()

    def features_of(self, index: Tensor) -> Tensor:
        """The features (b, 31, f) of the samples `index` (b,), which are a whole batch."""
        chosen = super().features_of(index)
        if self.kind != "published" or self.heights is None:
            return chosen
        height = self.heights.index_select(0, index)
        return torch.cat([chosen[..., :1], height / height.max()], -1)

    def in_batches(self, size: int) -> Self:
        """The set with the features that batches of `size` samples have, one batch after the other.

        They then no longer depend on which samples are read together.
        """
        batches = torch.arange(len(self), device=self.device).split(size)
        features = torch.cat([self.features_of(index) for index in batches])
        return dataclasses.replace(self, features=features, heights=None)


def load(
    split: str,
    *,
    case: str = "run",
    features: str = "published",
    starts: int | None = None,
    root: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> MocapSet:
    """Load a split, ordered by trial.

    Args:
        split: `train` (run: 200 samples, walk: 198), `val` or `test` (run: 240, walk: 600).
        case: `run`, `walk`, or a name given to `make`.
        features: One of `FEATURES`, see `MocapSet`.
        starts: Number of starts per trial, from the first on; None: the protocol's number.
        root: See `equirelax_lab.data.root`.
        dtype: Dtype of the floating tensors; the files hold float32.

    Raises:
        DataError: A name is unknown, or a file is missing, damaged or of another kind.
    """
    for word, known, what in ((split, SPLITS, "split"), (features, FEATURES, "features")):
        if word not in known:
            raise DataError(
                f"Unknown {what} {word!r} of the motion capture data; choose one of {', '.join(known)}."
            )
    files = find_case(case, root)
    motion, motion_path = read(files.motion, root)
    check_motion(motion, motion_path)
    parts, split_path = read(files.split, root)
    check_split(parts, split_path, motion["lengths"])
    positions = torch.from_numpy(motion["pos"].astype(np.float64))  # (frames of all trials, 31, 3)
    first = torch.from_numpy(np.concatenate([[0], np.cumsum(motion["lengths"])[:-1]]).astype(np.int64))

    used = train_starts(files, parts, split_path)
    trials, times = _samples(parts, split, used if starts is None and split == "train" else starts)
    frames = first[trials] + times
    inputs, following = positions[frames], positions[frames + 1]
    velocities = following - inputs
    later = torch.arange(HORIZON - STEPS + 1, HORIZON + 1)
    trajectory = positions[frames[:, None] + later]  # (N, 5, 31, 3)
    train_trials, train_times = _samples(parts, "train", used)
    highest = float(positions[first[train_trials] + train_times][..., UP].max())
    heights = inputs[..., UP, None]
    edge_index, hops = skeleton_graph(torch.from_numpy(motion["edges"].astype(np.int64)), inputs.shape[1])
    edge_features = torch.stack(
        [hops.double().expand(len(frames), -1), squared_distances(inputs, edge_index)], -1
    )
    return MocapSet(
        positions=inputs.to(dtype),
        velocities=velocities.to(dtype),
        features=node_features(velocities, heights, highest, features).to(dtype),
        targets=trajectory[:, -1].to(dtype),
        edge_index=edge_index,
        edge_features=edge_features.to(dtype),
        trajectory=trajectory.to(dtype),
        heights=heights.to(dtype),
        highest=highest,
        kind=features,
        trials=trials,
        starts=times,
        joints=tuple(motion["joints"].tolist()),
    )


def skeleton_graph(bones: Tensor, joints: int) -> tuple[Tensor, Tensor]:
    """Connect joints one or two bones apart, for the bones (joints - 1, 2) of a tree.

    Returns:
        edge_index (2, e) with both directions of every pair, rows (source, target), and hops (e,), 1 or 2. All edges of one bone
        come first.
    """
    near = torch.zeros(joints, joints, dtype=torch.bool)
    near[bones[:, 0], bones[:, 1]] = True
    near = near | near.T
    through = (near.long() @ near.long()) > 0
    second = through & ~near & ~torch.eye(joints, dtype=torch.bool)
    pairs = [torch.stack(mask.nonzero(as_tuple=True)).flip(0) for mask in (near, second)]
    hops = torch.cat([torch.full((edges.shape[1],), hop) for hop, edges in enumerate(pairs, start=1)])
    return torch.cat(pairs, 1), hops


def node_features(velocities: Tensor, heights: Tensor, highest: float, kind: str) -> Tensor:
    """Compute the features (N, joints, f) of a whole split or batch, see `MocapSet`.

    Args:
        velocities: (N, joints, 3).
        heights: (N, joints, 1).
        highest: Largest height of the training inputs, used by `fixed-height`.
        kind: One of `FEATURES`.
    """
    speed = velocities.norm(dim=-1, keepdim=True)
    if kind == "invariant":
        names = torch.eye(speed.shape[1], dtype=speed.dtype).expand(speed.shape[0], -1, -1)
        return torch.cat([speed, names], -1)
    return torch.cat([speed, heights / (heights.max() if kind == "published" else highest)], -1)


def _samples(parts: Mapping[str, np.ndarray], split: str, starts: int | None) -> tuple[Tensor, Tensor]:
    """Trial and frame, (N,) each, of the first `starts` starts (None: all) of every trial in a split."""
    frames = torch.from_numpy(parts[f"{split}_start"].astype(np.int64))
    if starts is not None and not 1 <= starts <= frames.shape[1]:
        raise DataError(
            f"A trial of the {split} split has {frames.shape[1]} starts; {starts} were requested."
        )
    frames = frames[:, :starts]
    trials = torch.from_numpy(parts[f"{split}_trial"].astype(np.int64))
    return trials.repeat_interleave(frames.shape[1]), frames.flatten()
