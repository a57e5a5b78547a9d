"""Ten steps of training in float64 give the numbers that they gave before the library and the laboratory were parted.

`python lab/tests/test_digits.py FILE` writes them anew, which is right only where a change of digits is meant.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.data import nbody, qm9
from equirelax_lab.tasks.registry import defaults
from equirelax_lab.training.assembly import assemble, build_optimizer
from qm9_files import write_subset
from smoke_files import write_plumes

GOLDEN = Path(__file__).parent / "golden" / "ten_steps.json"
"""The losses, penalties, strengths and norms of weights at commit 2e74af3."""
STEPS = 10
MOLECULES = {"source": "subset", "partition": "shuffled", "targets": "standardised"}
RUNS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "nbody segnn ace": (
        "nbody",
        "segnn",
        "ace",
        {
            "batch_size": 10,
            "learning_rate": 9e-4,
            "optimizer": "adam",
            "weight_decay": 1e-12,
            "augment": True,
            "dataset": {"train": 48, "val": 24, "test": 24},
            "network": {"layers": 2, "hidden": 16},
        },
    ),
    "smoke e2cnn scheduled": (
        "smoke",
        "e2cnn",
        "scheduled",
        {
            "batch_size": 4,
            "dataset": {"size": 8, "positions": 2, "steps": 30, "inputs": 3, "outputs": 2, "horizon": 2}
            | {"val_horizon": None, "loss": "mean"},
            "network": {"hidden": 4, "layers": 4, "norm": True},
        },
    ),
    "qm9 segnn ace": (
        "qm9",
        "segnn",
        "ace",
        {
            "batch_size": 5,
            "dataset": MOLECULES,
            "network": {"hidden": 8, "layers": 1, "l_max": 1, "norm": "none", "harmonics": "integral"}
            | {"pooling": "sum", "distances": "plain"},
        },
    ),
    "qm9 schnet ace": (
        "qm9",
        "schnet",
        "ace",
        {"batch_size": 5, "dataset": MOLECULES, "network": {"hidden": 8, "layers": 2, "filters": 8}},
    ),
}


def write_data(root: Path) -> None:
    """Small data of every benchmark that is run."""
    nbody.make(sizes={"train": 48, "val": 24, "test": 24}, root=root, threads=1)
    write_subset(root)
    write_plumes(root)


def numbers(name: str, root: Path) -> dict[str, Any]:
    """Task loss and penalty of every step; strengths, and every parameter's norm, after the last one."""
    benchmark, model, method, settings = RUNS[name]
    torch.set_default_dtype(torch.float64)
    try:
        config = defaults(benchmark, model, method).updated(settings)
        assembly = assemble(config, root, steps_per_epoch=5)
        task, network, driver = assembly.task, assembly.model.double(), assembly.method
        optimizer = build_optimizer(assembly)
        data, steps = task.load("train"), []
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            chosen = torch.randperm(len(data), generator=generator)[: config.training.batch_size]
            batch = {
                key: value.double() if value.is_floating_point() else value
                for key, value in task.train_batch(data, chosen, generator, slice(None)).items()
            }
            loss = task.loss(task.predict(network, batch), batch)
            penalty = driver.penalty()
            optimizer.zero_grad()
            (loss + penalty).backward()
            optimizer.step()
            steps.append([loss.item(), penalty.item()])
        norms = {
            key: float(value.norm())
            for key, value in network.state_dict().items()
            if value.is_floating_point()
        }
        return {
            "steps": steps,
            "gammas": assembly.relaxation.gammas().tolist(),
            "norms": sorted(norms.values()),
        }
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("digits")
    write_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qm9, "SUBSET_TRAIN", 14)
        patch.setattr(qm9, "SUBSET_VAL", 4)
        yield folder


@pytest.mark.parametrize("name", RUNS)
def test_ten_steps_are_what_they_were(name: str, root: Path) -> None:
    before, now = json.loads(GOLDEN.read_text("utf-8"))[name], numbers(name, root)
    for part in ("steps", "gammas", "norms"):
        # other processors round otherwise; on one, the digits are the same
        torch.testing.assert_close(
            torch.tensor(now[part], dtype=torch.float64),
            torch.tensor(before[part], dtype=torch.float64),
            rtol=1e-9,
            atol=1e-12,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    qm9.SUBSET_TRAIN, qm9.SUBSET_VAL = 14, 4
    with tempfile.TemporaryDirectory() as text:
        write_data(Path(text))
        found = {name: numbers(name, Path(text)) for name in RUNS}
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
