"""Recorded outputs of published networks (`lab/tests/golden`), and the weights that they were recorded with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).with_name("golden")


def golden(name: str) -> dict[str, Tensor]:
    """The arrays of `golden/<name>.npz`. Those under `weight:` are the released network's weights, by its own names."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    shapes = {str(key): tuple(map(int, str(shape).split())) for key, shape in arrays.pop("shapes", ())}
    found = {key: torch.from_numpy(array) for key, array in arrays.items()}
    return found | {f"weight:{key}": value for key, value in seeded_weights(shapes).items()}


def seeded_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Weights and statistics of these shapes, in float64: the same numbers on every machine and with every version of NumPy.

    Matrices have entries of variance 1 / fan-in. Vectors are biases and means in (-1/2, 1/2), scales and variances in (1/2, 3/2).
    """
    random = np.random.RandomState(seed)  # its stream is frozen, unlike that of np.random.default_rng
    drawn = {}
    for name, shape in shapes.items():
        values = torch.from_numpy(np.asarray(random.random_sample(shape))) - 0.5
        if len(shape) == 2:
            values = values * (12 / shape[1]) ** 0.5
        elif not name.endswith(("bias", "mean")):
            values = values + 1
        drawn[name] = values if shape else torch.tensor(1)  # num_batches_tracked
    return drawn
