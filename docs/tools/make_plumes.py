"""Write docs/tutorial/plumes.npz, which a notebook reads: smoke plumes whose four sides are alike, and some whose sides differ.

    equirelax data make smoke --size 16 --positions 2 --steps 60 --asymmetry 0
    equirelax data make smoke --size 16 --positions 2 --steps 60 --asymmetry 0.75
    python docs/tools/make_plumes.py

Every second frame of every run is kept, in half precision.
"""

from pathlib import Path

import numpy as np
from equirelax_lab.data import smoke

TARGET = Path(__file__).parents[1] / "tutorial" / "plumes.npz"
SETS = {"symmetric": 0.0, "asymmetric": 0.75}
EVERY = 2


def frames(asymmetry: float) -> np.ndarray:
    """Velocities (sides, positions, frames, 2, height, width), float16."""
    settings = smoke.SmokeSettings(size=16, positions=2, steps=60, asymmetry=asymmetry)
    found = smoke.load("train", settings, inputs=1, outputs=1).frames
    return found[:, ::EVERY].unflatten(0, (smoke.SIDES, settings.positions)).half().numpy()


if __name__ == "__main__":
    np.savez_compressed(TARGET, **{name: frames(asymmetry) for name, asymmetry in SETS.items()})
