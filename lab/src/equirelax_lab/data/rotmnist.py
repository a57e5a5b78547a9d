"""Rotated MNIST: every image is rotated by its own uniform, seeded angle; 10,000 training, 2,000 validation, 50,000 test images.

The published set was drawn once and is not available: the protocol is the same, the angles differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from equirelax.errors import DataError
from equirelax_lab.data.archive import load_npz, write_archive
from equirelax_lab.data.root import command, find, writable_root
from equirelax_lab.extras import install

RELATIVE = Path("mnist") / "mnist.npz"
CONTENT = "mnist.npz (train_x, train_y, test_x, test_y)"
SIZES = {"train": 10_000, "val": 2_000, "test": 50_000}
SEED = 0


@dataclass
class ImageSet:
    """N labelled images: images (N, 1, H, W) float32 in [0, 1] with row 0 on top, labels (N,) long."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.labels.device

    def to(self, device: torch.device | str | None = None) -> Self:
        """The set on another device."""
        return type(self)(self.images.to(device), self.labels.to(device))

    def subset(self, indices: Tensor | Sequence[int] | slice) -> Self:
        """Only the images `indices`, in that order."""
        chosen = indices if isinstance(indices, slice) else torch.as_tensor(indices, device=self.device)
        return type(self)(self.images[chosen], self.labels[chosen])

    def batch(self, indices: Tensor | Sequence[int] | range) -> dict[str, Tensor]:
        """images (b, 1, H, W), labels (b,)."""
        rows = torch.as_tensor(indices, device=self.device)
        return {"images": self.images[rows], "labels": self.labels[rows]}


def load(split: Literal["train", "val", "test"], root: str | Path | None = None) -> ImageSet:
    """Load a split. Training and validation images are MNIST's first 12,000, test images its next 50,000.

    Raises:
        DataError: The file is missing or damaged, or the split is unknown.
    """
    if split not in SIZES:
        raise DataError(f"Unknown split {split!r}; choose one of {', '.join(SIZES)}.")
    get_it = command("equirelax data get mnist", root)
    path = find(RELATIVE, root, hint=f"Get it: {get_it}; or put {CONTENT} there")
    remedy = f"Get it again ({get_it}), or put {CONTENT} there"
    images, labels = _checked(path, load_npz(path, path, f"{remedy}."), remedy)
    names = list(SIZES)
    start = sum(SIZES[name] for name in names[: names.index(split)])
    rows = slice(start, start + SIZES[split])
    # one stream of angles for all splits, so that they do not depend on which split is loaded first
    generator = torch.Generator().manual_seed(SEED)
    angles = 2 * math.pi * torch.rand(sum(SIZES.values()), generator=generator, dtype=torch.float64)
    plain = torch.from_numpy(images[rows]).float()[:, None] / 255
    return ImageSet(rotate(plain, angles[rows]), torch.from_numpy(labels[rows]).long())


def get(root: str | Path | None = None) -> Path:
    """Download MNIST from openml.org with scikit-learn, write the file that `load` reads, and return its path.

    Args:
        root: See `equirelax_lab.data.root`; the user's cache is used for a read-only root.

    Raises:
        DataError: scikit-learn is not installed, the server cannot be reached, or it sends something else.
    """
    try:
        from sklearn.datasets import fetch_openml
    except ImportError as error:
        raise DataError(f"MNIST is fetched with scikit-learn: {install('planes')}") from error
    by_hand = f"Put {CONTENT} there, got in another way."
    try:
        found = fetch_openml("mnist_784", version=1, as_frame=False, parser="liac-arff")
    except (OSError, ValueError) as error:
        raise DataError(f"MNIST could not be fetched from openml.org ({error}). {by_hand}") from error
    images, labels = np.asarray(found.data), np.asarray(found.target).astype(np.uint8)
    if images.shape != (70_000, 784):
        raise DataError(f"openml.org sent {images.shape} numbers instead of MNIST's (70000, 784). {by_hand}")
    images = images.astype(np.uint8).reshape(-1, 28, 28)
    path = writable_root(root) / RELATIVE
    halves = {"train": slice(0, 60_000), "test": slice(60_000, None)}
    arrays = {
        f"{half}_{key}": a[rows] for half, rows in halves.items() for key, a in (("x", images), ("y", labels))
    }
    write_archive(path, arrays, {"made_from": "mnist_784 of openml.org, version 1"})
    return path


def rotate(images: Tensor, angles: Tensor) -> Tensor:
    """Rotate images (N, C, H, W) counter-clockwise by `angles` (N,), radians: bilinear, with zeros outside."""
    c, s = angles.cos().to(images.dtype), angles.sin().to(images.dtype)
    # grid_sample needs the origin of each new pixel, in coordinates x right and y down
    back = torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], 1)
    theta = torch.cat([back, torch.zeros(len(images), 2, 1, dtype=images.dtype)], dim=2)
    parts = []
    for some, turn in zip(images.split(2_000), theta.split(2_000), strict=True):  # grids take memory
        grid = torch.nn.functional.affine_grid(turn, list(some.shape), align_corners=False)
        parts.append(torch.nn.functional.grid_sample(some, grid, align_corners=False))
    return torch.cat(parts)


def _checked(path: Path, arrays: dict[str, np.ndarray], remedy: str) -> tuple[np.ndarray, np.ndarray]:
    """Check both halves of MNIST and join them: images (n, 28, 28) and labels (n,)."""
    missing = [key for key in ("train_x", "train_y", "test_x", "test_y") if key not in arrays]
    if missing:
        raise DataError(f"{path} has no array {', '.join(missing)}. {remedy}.")
    halves = [(arrays[f"{half}_x"], arrays[f"{half}_y"]) for half in ("train", "test")]
    needed = sum(SIZES.values())
    fits = all(
        x.shape == (*y.shape, 28, 28) and y.ndim == 1 and x.dtype == np.uint8 and y.dtype.kind in "iu"
        for x, y in halves
    )
    if not fits or sum(len(y) for _, y in halves) < needed:
        found = " and ".join(f"images {x.shape} {x.dtype} with labels {y.shape}" for x, y in halves)
        raise DataError(
            f"{path} should hold {needed} images of 28 x 28 bytes or more with their labels; it holds {found}. {remedy}."
        )
    images, labels = (np.concatenate(parts) for parts in zip(*halves, strict=True))
    if labels.min() < 0 or labels.max() > 9:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"{path} holds the label {wrong}; expected 0 to 9. {remedy}.")
    return images, labels
