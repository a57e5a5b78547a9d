"""`import equirelax`, with everything that it names, takes at most half a second beyond torch, and loads nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.serial

LIMIT = 0.5
# Forks of a process that has torch, so that torch is imported once. The first fork may compile, as an installation does.
SCRIPT = """
import os, sys, time
import torch
for _ in range(4):
    if os.fork() == 0:
        began = time.process_time()
        import equirelax
        for name in equirelax.__all__:  # what is imported when it is first used, too
            getattr(equirelax, name)
        heavy = {'e3nn', 'torch_geometric', 'lightning', 'matplotlib', 'jsonargparse', 'scipy'} & set(sys.modules)
        assert not heavy, heavy
        print(time.process_time() - began, flush=True)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.wait()[1]):
        sys.exit('the import failed')
"""


def test_importing_takes_no_longer_than_that() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    seconds = [
        float(line)
        for line in subprocess.check_output(
            [sys.executable, "-c", SCRIPT], env=environment, text=True
        ).split()
    ]
    assert len(seconds) == 4
    assert min(seconds) <= LIMIT, seconds
