"""Acclaim files (.asf, .amc) written from positions, whose angles are found bone by bone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from equirelax_lab.data.skeleton import rotation


def asf_text(names: Sequence[str], parents: Sequence[int], offsets: np.ndarray, axes: np.ndarray) -> str:
    """A skeleton in which every bone has all three degrees of freedom; axes (bones, 3) in degrees."""
    lines = [":units", "angle deg", ":root", "order TX TY TZ RX RY RZ", "axis XYZ", ":bonedata"]
    for name, offset, axis in zip(names[1:], offsets[1:], axes[1:], strict=True):
        length = np.linalg.norm(offset)
        lines += ["begin", f"name {name}", f"length {length!r}", "dof rx ry rz"]
        lines.append("direction " + " ".join(repr(float(c)) for c in offset / length))
        lines += ["axis " + " ".join(repr(float(a)) for a in axis) + " XYZ", "end"]
    lines += [":hierarchy", "begin"]
    for joint, name in enumerate(names):
        children = [names[c] for c, parent in enumerate(parents) if parent == joint]
        if children:
            lines.append(" ".join([name, *children]))
    return "\n".join([*lines, "end", ""]).replace("np.float64(", "").replace(")", "")


def turn_onto(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(frames, 3, 3) the shortest rotations from the direction of a (3,) to those of b (frames, 3)."""
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b, axis=-1, keepdims=True)
    v, c = np.cross(a, b), b @ a
    k = np.zeros((len(b), 3, 3))
    k[:, 2, 1], k[:, 0, 2], k[:, 1, 0] = v.T
    k = k - k.transpose(0, 2, 1)
    return np.eye(3) + k + k @ k / (1 + c)[:, None, None]


def angles_of(turns: np.ndarray) -> np.ndarray:
    """(frames, 3) degrees about x, then y, then z of rotations (frames, 3, 3)."""
    y = np.arcsin(np.clip(-turns[:, 2, 0], -1, 1))
    x = np.arctan2(turns[:, 2, 1], turns[:, 2, 2])
    z = np.arctan2(turns[:, 1, 0], turns[:, 0, 0])
    return np.degrees(np.stack([x, y, z], -1))


def inverse(positions: np.ndarray, parents: Sequence[int], axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (bones, 3) of the first frame's pose, and angles (frames, bones, 3) that give the positions.

    Every bone is turned the shortest way from its direction in the first frame.
    """
    frames, count, _ = positions.shape
    offsets = positions[0] - positions[0][np.maximum(parents, 0)]
    angles = np.zeros((frames, count, 3))
    turned = [np.broadcast_to(np.eye(3), (frames, 3, 3))] * count
    for joint in range(1, count):
        parent = parents[joint]
        turned[joint] = turn_onto(offsets[joint], positions[:, joint] - positions[:, parent])
        c = rotation(["rx", "ry", "rz"], np.radians(axes[joint : joint + 1]))[0]
        angles[:, joint] = angles_of(c.T @ turned[parent].transpose(0, 2, 1) @ turned[joint] @ c)
    return offsets, angles


def amc_text(names: Sequence[str], roots: np.ndarray, angles: np.ndarray) -> str:
    lines = [":FULLY-SPECIFIED", ":DEGREES"]
    for frame, (root, pose) in enumerate(zip(roots, angles, strict=True), start=1):
        lines += [str(frame), "root " + " ".join(f"{c:.17g}" for c in root) + " 0 0 0"]
        for name, values in list(zip(names, pose, strict=True))[1:]:
            lines.append(f"{name} " + " ".join(f"{c:.17g}" for c in values))
    return "\n".join([*lines, ""])
