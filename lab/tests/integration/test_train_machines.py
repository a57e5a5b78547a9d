"""`equirelax train` in parts, in bfloat16 and on two processes: the same weights, strengths and metrics."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training.folder import LAST, METRICS, read_table
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.run import train
from tolerances import BFLOAT16, SINGLE
from torch import Tensor

from equirelax.errors import ConfigError
from equirelax.relaxation import read

Config = Callable[..., Any]
SHORT = {"epochs": 2, "validate_every": 1}
# Adam makes steps of full size out of gradients that are rounding, as those of RPP's small residuals are in part.
TRAINED = {"rpp": {"optimizer": "sgd", "learning_rate": 0.05}}
RESIDUALS = ["scheduled", "ace", "resilient", "rpp"]
# What depends on the clock, and what is rounding: no number to compare.
LEFT_OUT = ("seconds", "equivariance/projected")


def trained(config: RunConfig, folder: Path, root: Path, **machine: Any) -> Path:
    """The folder of a run, which is made in this process, or in processes of its own for several devices."""
    where = Machine(progress=False, tensorboard=False, **machine)
    if where.devices == 1:
        assert train(config, folder, root, machine=where) is not None
        return folder
    settings = folder.with_suffix(".yaml")
    config.write(settings)
    words = [sys.executable, "-m", "equirelax_lab.cli", "train", config.benchmark, "--config", str(settings)]
    words += ["--out", str(folder), "--data", str(root)]
    words += [f"--{name}={str(value).lower()}" for name, value in asdict(where).items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=850, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def differences(found: Path, expected: Path) -> dict[str, float]:
    """The largest difference over the largest entry of metrics and of the last state, by the first part of their names."""
    ours, theirs = (read_table(folder / METRICS) for folder in (found, expected))
    assert len(ours) == len(theirs)
    columns: dict[str, list[tuple[float, float]]] = {}
    for here, there in zip(ours, theirs, strict=True):
        assert here.keys() == there.keys()
        for name in set(there) - set(LEFT_OUT):
            if there[name]:
                columns.setdefault(name, []).append((float(here[name]), float(there[name])))
    result: dict[str, float] = {}

    def note(name: str, a: Tensor, b: Tensor) -> None:
        error = float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) if b.numel() else 0.0
        assert math.isfinite(error), name
        result[name] = max(result.get(name, 0.0), error)

    for name, pairs in columns.items():
        a, b = torch.tensor(pairs, dtype=torch.float64).unbind(1)
        note(name.split("/")[0], a, b)
    states = [read(folder / LAST) for folder in (found, expected)]
    weights = [state["weights"] for state in states]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[1].items():
        if value.is_floating_point():
            note("weights", weights[0][name], value)
    methods = [state["method"] or {} for state in states]
    for name, value in methods[1].items():
        if isinstance(value, Tensor) and value.is_floating_point():
            note(f"method.{name}", methods[0][name], value)
    return result


def within(found: dict[str, float], tolerance: float, *names: str) -> None:
    assert set(names) <= found.keys()
    assert {name: error for name, error in found.items() if error > tolerance} == {}


NUMBERS = {
    "scheduled": ("gamma", "lie", "norm", "weight"),
    "ace": ("gamma", "multiplier", "method.multipliers"),
    "resilient": ("gamma", "multiplier", "slack", "method.multipliers", "method.slacks"),
    "rpp": ("gamma", "method"),
    "strict": (),
}


@pytest.mark.parametrize("method", ["strict", *RESIDUALS])
def test_batches_in_parts(method: str, tiny_root: Path, tiny_config: Config, tmp_path: Path) -> None:
    """48 samples in batches of 20, the last of 8, each in three parts that differ in size."""
    config = tiny_config(method, **SHORT, **TRAINED.get(method, {}))
    plain = trained(config, tmp_path / "plain", tiny_root)
    parts = trained(config, tmp_path / "parts", tiny_root, accumulate=3)
    within(differences(parts, plain), SINGLE, "train", "val", "weights", *NUMBERS[method])


def test_parts_of_remul_draw_their_own_elements(tiny_root: Path, tiny_config: Config, tmp_path: Path) -> None:
    """Its runs are therefore similar, not equal."""
    config = tiny_config("remul", **SHORT)
    plain = trained(config, tmp_path / "plain", tiny_root)
    parts = trained(config, tmp_path / "parts", tiny_root, accumulate=2)
    assert 0 < differences(parts, plain)["train"] < 0.05


@pytest.mark.parametrize("method", ["scheduled", "resilient"])
def test_bfloat16(method: str, tiny_root: Path, tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(method, **SHORT)
    plain = trained(config, tmp_path / "plain", tiny_root)
    cast = trained(config, tmp_path / "cast", tiny_root, precision="bf16-mixed")
    found = differences(cast, plain)
    compared = {k: v for k, v in found.items() if k not in ("weights", "weight", "equivariance")}
    within(compared, BFLOAT16, "train", "val", "gamma")
    assert found["train"] > 1e-6  # it was cast
    assert all(v.dtype == torch.float32 for k, v in read(cast / LAST)["weights"].items() if "weight" in k)


def test_more_parts_than_samples_are_refused(tiny_root: Path, tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs 21 samples or more; batch_size is 20"):
        trained(tiny_config("strict"), tmp_path / "run", tiny_root, accumulate=21)


DEVICES = [(method, size) for method in RESIDUALS for size in (20, 19)]


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.serial
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("method", "batch_size"), DEVICES)
def test_two_processes(
    method: str, batch_size: int, tiny_root: Path, tiny_config: Config, tmp_path: Path
) -> None:
    """Batches of 20 and 8, and of 19 and 10, which two processes cannot share equally."""
    config = tiny_config(method, batch_size=batch_size, **SHORT, **TRAINED.get(method, {}))
    one = trained(config, tmp_path / "one", tiny_root)
    two = trained(config, tmp_path / "two", tiny_root, devices=2)
    within(differences(two, one), SINGLE, "train", "val", "weights", *NUMBERS[method])


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.serial
@pytest.mark.timeout(900)
def test_two_processes_with_batches_in_parts(tiny_root: Path, tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config("scheduled", **SHORT)
    one = trained(config, tmp_path / "one", tiny_root)
    two = trained(config, tmp_path / "two", tiny_root, devices=2, accumulate=2)
    within(differences(two, one), SINGLE, "train", "val", "weights", *NUMBERS["scheduled"])
