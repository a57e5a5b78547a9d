"""Small samples of real data for tests, as a data root; see samples/README.md."""

from __future__ import annotations

from pathlib import Path

SAMPLES = Path(__file__).with_name("samples")
QM9_SIZES = {"train": 220, "val": 20, "test": 20}
"""The splits of the sample of QM9, in the place of `qm9.SUBSET_TRAIN` and `qm9.SUBSET_VAL`."""
