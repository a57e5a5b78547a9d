"""MD17 and rMD17: frames of small molecules' dynamics, with energies and forces from density functional theory.

Two sources that must not be compared with each other: `rmd17`, the revised set, computed anew with tight settings
(Christensen and von Lilienfeld, Machine Learning: Science and Technology 1, 045018, 2020), and `md17`, the original one (Chmiela
et al., 2017), on which most published numbers are, and whose energies are noisy. The protocol is 950 frames for training, 50 for
validation, 1000 for testing.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import torch

from equirelax.errors import DataError
from equirelax_lab.data.frames import MolecularFrames, force_scaling
from equirelax_lab.data.md17_files import MOLECULES, SOURCES, Frames, get_original, read
from equirelax_lab.data.molecules import Scaling

__all__ = ["COUNTS", "MOLECULES", "SOURCES", "SPLITS", "get_original", "load"]

SPLITS = ("train", "val", "test")
COUNTS = (950, 50, 1000)
DRAW_SEED = 17
"""Of the random splits, beside that of a run."""
ARRAYS = ("positions", "energies", "forces")


def load(
    split: str,
    molecule: str = "aspirin",
    source: str = "rmd17",
    root: str | os.PathLike[str] | None = None,
    counts: tuple[int, int, int | None] = COUNTS,
    dtype: torch.dtype = torch.float32,
    *,
    frames: str = "first",
    seed: int = 0,
    scale: str = "forces",
) -> MolecularFrames:
    """Load a split, scaled by the frames that training takes.

    Args:
        split: `train`, `val` or `test`.
        molecule: one of `MOLECULES`; of rMD17 without its archive aspirin and ethanol are usual.
        source: `rmd17` or `md17`.
        root: see `equirelax_lab.data.root`.
        counts: frames of train, val and test: the first of the source's training frames; those from number 950 on (or the
            first that training leaves), so that fewer training frames do not change them; the first of its test frames, None:
            all.
        dtype: of positions and forces.
        frames: `first`, see `counts`; or `random`: training, validation and test frames are drawn, in this order, from all
            frames of the source by `seed`.
        scale: `forces`, by the training forces' root mean square (`force_scaling`), or `energies`, by the training energies'
            standard deviation.

    Raises:
        DataError: unknown names, counts below 1, more frames than there are, or files that are missing or damaged.
    """
    if split not in SPLITS:
        raise DataError(f"Unknown split '{split}' of MD17; choose one of {', '.join(SPLITS)}.")
    if len(counts) != 3 or min(1 if count is None else count for count in counts) < 1:
        raise DataError(
            f"counts must be three numbers of frames, train, val and test, at least 1; got {counts}."
        )
    for word, known in ((frames, ("first", "random")), (scale, ("forces", "energies"))):
        if word not in known:
            raise DataError(f"Unknown choice '{word}' of MD17; choose one of {', '.join(known)}.")
    if frames == "random":
        parts = _drawn(_everything(source, molecule, root), counts, seed)
    else:
        parts = _first(source, molecule, root, counts, split)
    training = _tensors(parts["train"], dtype)
    found = training if split == "train" else _tensors(parts[split], dtype)
    return dataclasses.replace(found, scaling=_scaling(training, scale))


def _scaling(training: MolecularFrames, scale: str) -> Scaling:
    if scale == "forces":
        return force_scaling(training)
    composition = training.composition().expand(len(training), -1)
    return Scaling.fit(training.energies, composition, references=True)


def _first(
    source: str,
    molecule: str,
    root: str | os.PathLike[str] | None,
    counts: tuple[int, int, int | None],
    split: str,
) -> dict[str, Frames]:
    """The training frames and, where it is another one, the split."""
    train, val, test = counts
    fitted = read(source, molecule, "train", root)
    parts = {"train": _part(fitted, 0, train, "train")}
    if split == "val":
        parts[split] = _part(fitted, max(train, COUNTS[0]), val, split)
    elif split == "test":
        others = read(source, molecule, "test", root)
        _check_order(fitted, others, molecule)
        parts[split] = _part(others, 0, len(others.energies) if test is None else test, split)
    return parts


def _everything(source: str, molecule: str, root: str | os.PathLike[str] | None) -> Frames:
    """All frames of a source."""
    one, other = (read(source, molecule, part, root) for part in ("train", "test"))
    _check_order(one, other, molecule)
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in ARRAYS
    }
    return dataclasses.replace(one, **joined)


def _drawn(everything: Frames, counts: tuple[int, int, int | None], seed: int) -> dict[str, Frames]:
    """Three parts of a random order."""
    train, val, test = counts
    there = len(everything.energies)
    wanted = train + val + (1 if test is None else test)
    if wanted > there:
        raise DataError(
            f"{everything.origin} has {there} frames; {wanted} or more were asked for: ask for fewer."
        )
    order = np.random.default_rng([DRAW_SEED, seed]).permutation(there)
    last = there if test is None else wanted
    bounds = {"train": (0, train), "val": (train, train + val), "test": (train + val, last)}
    return {split: everything.take(order[slice(*ends)]) for split, ends in bounds.items()}


def _check_order(one: Frames, other: Frames, molecule: str) -> None:
    if not np.array_equal(one.numbers, other.numbers):
        raise DataError(
            f"The test frames of {molecule} have their atoms in another order than those of training. Get the files anew."
        )


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
