"""Made-up plumes in the files of the smoke data: quick, smooth, and turned with their side as the simulated ones are."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
from equirelax_lab.data import smoke
from equirelax_lab.data.smoke import SmokeSettings

SMALL = SmokeSettings(size=8, positions=2, steps=30)


def plumes(
    side: int,
    offsets: np.ndarray,
    *,
    buoyancy: float,
    size: int,
    steps: int,
    dt: float = 1.0,
    scale: float = 1.0,
) -> np.ndarray:
    """What `simulate` takes and gives: a bump that moves away from its side, faster with more buoyancy."""
    places = (np.arange(size) + 0.5) / size - 0.5
    x, y = places, -places[:, None]
    found = np.zeros((len(offsets), steps, 2, size, size))
    for run, offset in enumerate(offsets):
        for step in range(steps):
            centre = -0.3 + 0.02 * (step + 1) * dt
            bump = np.exp(-40 * ((x - scale * offset / 100) ** 2 + (y - centre) ** 2))
            found[run, step, 0] = -10 * buoyancy * scale * bump * (x - scale * offset / 100)
            found[run, step, 1] = 10 * buoyancy * scale * bump
    for _ in range(side):
        turned = np.rot90(found, 1, (-2, -1))
        found = np.stack([-turned[:, :, 1], turned[:, :, 0]], axis=2)
    return found.astype(np.float32)


def write_plumes(root: Path, settings: SmokeSettings = SMALL) -> Path:
    """Write the files of a set below the data root `root`; returns the root."""
    with mock.patch.object(smoke, "simulate", plumes), mock.patch.object(smoke, "phiflow"):
        smoke.make(settings, root, jobs=1)
    return root
