"""CMU motion capture (mocap.cs.cmu.edu) by EGNO's protocol: where are 31 joints 30 frames (0.25 s) later?

Input: positions x[t] and velocities v = x[t+1] - x[t] (per frame, at 120 frames a second); targets: x[t+26]
... x[t+30]. Edges join joints that are one or two bones apart. Lengths are in the file's unit (CMU's, 5.6
cm).

Two cases: `run` (subject 9, 11 trials) and `walk` (subject 35, 23 trials). The published partition of the
runs is the one in the split file; of the walks the order of trials is unknown, so that the split is another
one by the same protocol. `make` adds further cases from raw files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equirelax.errors import DataError
from equirelax_lab.data.graphs import GraphSet, squared_distances
from equirelax_lab.data.mocap_files import (
    CASES,
    FOLDER,
    HORIZON,
    JOINTS,
    SPLITS,
    check_motion,
    check_split,
    find_case,
    read,
    train_starts,
)
from equirelax_lab.data.mocap_raw import from_amc, make, make_split

__all__ = [
    "CASES",
    "FEATURES",
    "FOLDER",
    "HORIZON",
    "JOINTS",
    "SPLITS",
    "STEPS",
    "UP",
    "MocapSet",
    "from_amc",
    "load",
    "make",
    "make_split",
    "node_features",
    "skeleton_graph",
]

STEPS = 5
"""Number of targets of a trajectory: the frames t + HORIZON - STEPS + 1 ... t + HORIZON."""
UP = 1
"""Coordinate that is the height: y."""
FEATURES = ("published", "fixed-height", "invariant")


@dataclass
class MocapSet(GraphSet):
    """A split of the motion capture data. See `GraphSet` for the tensors.

    edge_features (N, e, 2): [1 or 2 bones apart, |r_ij|^2]. trajectory (N, 5, 31, 3). features by
    `load(features=...)`:

    - `published`: [|v|, y / max y], the maximum over all joints of the *batch*, as EGNO has it. So a
      prediction depends on the other samples of its batch, also when it is evaluated. In the whole tensor
      `features` the split is the batch.
    - `fixed-height`: [|v|, y / max y], the maximum over the training inputs: the same feature without that
    dependence.
    - `invariant`: [|v|, one-hot joint number] (32 features): the only ones that keep a network
      E(3)-equivariant end to end; height tells up from down (left: rotations about the vertical, horizontal
      translations).

    `batch` with a rotation turns the vectors; heights stay those of the recorded pose, as up turns along.

    Attributes:
        heights: (N, 31, 1) y of the input positions.
        highest: the largest height of the training inputs.
        kind: which features, one of `FEATURES`.
        trials, starts: (N,) trial number and frame t of every sample.
        joints: names of the joints.
    """

    heights: Tensor | None = None
    highest: float = 1.0
    kind: str = "published"
    trials: Tensor | None = None
    starts: Tensor | None = None
    joints: tuple[str, ...] = ()

    def _features(self, index: Tensor) -> Tensor:
        """(b, 31, f) features of the samples `index` (b,) as a batch of their own."""
        chosen = super()._features(index)
        if self.kind != "published" or self.heights is None:
            return chosen
        height = self.heights.index_select(0, index)
        return torch.cat([chosen[..., :1], height / height.max()], -1)


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
        features: one of `FEATURES`, see `MocapSet`.
        starts: how many starts of every trial, the first ones; None: the protocol's number.
        root: see `equirelax_lab.data.root`.
        dtype: of the floating point tensors; the files hold float32.

    Raises:
        DataError: unknown names, or a file that is missing, damaged or not what it should be.
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
    """Edges between joints one or two bones apart, for bones (joints - 1, 2) of a tree.

    Returns edge_index (2, e), both directions of every pair, rows (source, target), and hops (e,): 1 or 2.
    All edges of one bone come first.
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
    """(N, joints, f) features of a whole split or batch, see `MocapSet`.

    Args:
        velocities: (N, joints, 3).
        heights: (N, joints, 1).
        highest: the largest height of the training inputs; read for `fixed-height`.
        kind: one of `FEATURES`.
    """
    speed = velocities.norm(dim=-1, keepdim=True)
    if kind == "invariant":
        names = torch.eye(speed.shape[1], dtype=speed.dtype).expand(speed.shape[0], -1, -1)
        return torch.cat([speed, names], -1)
    return torch.cat([speed, heights / (heights.max() if kind == "published" else highest)], -1)


def _samples(parts: Mapping[str, np.ndarray], split: str, starts: int | None) -> tuple[Tensor, Tensor]:
    """Trial and frame, (N,) each, of the first `starts` starts (None: all) of every trial of a split."""
    frames = torch.from_numpy(parts[f"{split}_start"].astype(np.int64))
    if starts is not None and not 1 <= starts <= frames.shape[1]:
        raise DataError(
            f"A trial of the {split} split has {frames.shape[1]} starts; {starts} were asked for."
        )
    frames = frames[:, :starts]
    trials = torch.from_numpy(parts[f"{split}_trial"].astype(np.int64))
    return trials.repeat_interleave(frames.shape[1]), frames.flatten()
