"""Two processes (gloo) with half of every batch each are one process with the whole, also when they resume."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning.pytorch")

from lightning_worker import run

HERE = Path(__file__).parent


@pytest.mark.ddp
@pytest.mark.serial
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("method", ["ace", "scheduled", "resilient"])
def test_two_processes_are_one(method: str, tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launch, str(HERE / "lightning_worker.py"), method, str(tmp_path)]
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=550, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    compare(torch.load(tmp_path / "found.pt", weights_only=True), run(method, tmp_path / "one", 1))


def compare(found: Any, expected: Any, path: str = "") -> None:
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=lambda text: f"{path}: {text}")
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            compare(found[key], value, f"{path}.{key}")
