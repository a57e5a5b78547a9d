"""MD17 and rMD17: frames of small molecules' dynamics, with energies and forces from density functional theory.

Two sources that must not be compared with each other: `rmd17`, the revised set, computed anew with tight settings
(Christensen and von Lilienfeld, Machine Learning: Science and Technology 1, 045018, 2020), and `md17`, the original one (Chmiela
et al., 2017), on which most published numbers are, and whose energies are noisy. The protocol is 950 frames for training, 50 for
validation, 1000 for testing.
"""

from __future__ import annotations

import dataclasses
import os

import torch

from equirelax.data.frames import MolecularFrames, force_scaling
from equirelax.data.md17_files import MOLECULES, SOURCES, Frames, get_original, read
from equirelax.errors import DataError

__all__ = ["COUNTS", "MOLECULES", "SOURCES", "SPLITS", "get_original", "load"]

SPLITS = ("train", "val", "test")
COUNTS = (950, 50, 1000)


def load(
    split: str,
    molecule: str = "aspirin",
    source: str = "rmd17",
    root: str | os.PathLike[str] | None = None,
    counts: tuple[int, int, int] = COUNTS,
    dtype: torch.dtype = torch.float32,
) -> MolecularFrames:
    """Load a split, scaled by the frames that training takes (`force_scaling`).

    Args:
        split: `train`, `val` or `test`.
        molecule: one of `MOLECULES`; of rMD17 without its archive aspirin and ethanol are usual.
        source: `rmd17` or `md17`.
        root: see `equirelax.data.root`.
        counts: frames of train, val and test: the first of the source's training frames; those from number 950 on (or the
            first that training leaves), so that fewer training frames do not change them; the first of its test frames.
        dtype: of positions and forces.

    Raises:
        DataError: unknown names, counts below 1, more frames than there are, or files that are missing or damaged.
    """
    if split not in SPLITS:
        raise DataError(f"Unknown split '{split}' of MD17; choose one of {', '.join(SPLITS)}.")
    if len(counts) != 3 or min(counts) < 1:
        raise DataError(
            f"counts must be three numbers of frames, train, val and test, at least 1; got {counts}."
        )
    train, val, test = counts
    fitted = read(source, molecule, "train", root)
    training = _tensors(_part(fitted, 0, train, "train"), dtype)
    scaling = force_scaling(training)
    if split == "train":
        found = training
    elif split == "val":
        found = _tensors(_part(fitted, max(train, COUNTS[0]), val, split), dtype)
    else:
        found = _tensors(_part(read(source, molecule, "test", root), 0, test, split), dtype)
        if not torch.equal(found.numbers, training.numbers):
            raise DataError(
                f"The test frames of {molecule} have their atoms in another order than those of training. Get the files anew."
            )
    return dataclasses.replace(found, scaling=scaling)


def _part(frames: Frames, start: int, count: int, split: str) -> Frames:
    there = len(frames.energies)
    if start + count > there:
        before = f" after the first {start}" if start else ""
        raise DataError(
            f"The {split} split takes {count} frames{before}, and {frames.origin} has {there} for it: ask for fewer."
        )
    return frames.take(slice(start, start + count))


def _tensors(frames: Frames, dtype: torch.dtype) -> MolecularFrames:
    return MolecularFrames(
        torch.from_numpy(frames.numbers),
        torch.from_numpy(frames.positions).to(dtype),
        torch.from_numpy(frames.energies),
        torch.from_numpy(frames.forces).to(dtype),
    )
