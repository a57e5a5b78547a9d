"""scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, each rotated by a multiple of 90 degrees.

This is a quick task for which C4 is an exact symmetry. It needs no file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from equirelax.errors import DataError
from equirelax_lab.data.rotmnist import ImageSet
from equirelax_lab.extras import install

SPLITS = {"train": (0, 1_000), "val": (1_000, 1_200), "test": (1_200, 1_797)}
SEED = 0


def load(split: Literal["train", "val", "test"], root: str | Path | None = None) -> ImageSet:
    """Load a split of the digits in a fixed random order: 1,000 for training, 200 for validation, 597 for testing.

    Args:
        split: The split.
        root: Ignored, since scikit-learn ships the data.

    Raises:
        DataError: scikit-learn is not installed, or the split is unknown.
    """
    if split not in SPLITS:
        raise DataError(f"Unknown split {split!r}; choose one of {', '.join(SPLITS)}.")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(f"The digits come with scikit-learn: {install('planes')}") from error
    found = load_digits()
    images = torch.from_numpy(found.images).float()[:, None] / 16
    labels = torch.from_numpy(found.target).long()
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(labels), generator=generator)
    turns = torch.randint(4, (len(labels),), generator=generator)
    rows = order[slice(*SPLITS[split])]
    turned = torch.stack([torch.rot90(images[i], int(turns[i]), (-2, -1)) for i in rows])
    return ImageSet(turned, labels[rows])
