"""Two processes (gloo) with half of the batch each are one process with the whole:
weights, strengths, multipliers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_runtime import setup, train

HERE = Path(__file__).parent


@pytest.mark.ddp
@pytest.mark.serial
@pytest.mark.timeout(900)
@pytest.mark.slow  # test_fsdp.py trains with two processes in every run
@pytest.mark.parametrize("method", ["ace", "scheduled", "swing", "symmetry-following", "resilient", "remul"])
def test_two_processes_are_one(method, tmp_path):
    output = tmp_path / "state.pt"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(HERE / "ddp_worker.py"),
        method,
        str(output),
    ]
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=850, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = torch.load(output, weights_only=True)
    model, made, optimizer = setup(method)
    train(model, made, optimizer)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(found["model"][key], value, rtol=1e-10, atol=1e-13, msg=key)
    compare(found["method"], made.state_dict())


def compare(found, expected, path="method"):
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13, msg=path)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            compare(found[key], value, f"{path}.{key}")
    else:
        assert found == expected, path
