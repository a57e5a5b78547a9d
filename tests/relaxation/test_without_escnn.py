"""The package where escnn is not installed, as in the environment of most users: nothing notices."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn

import equirelax as er
from equirelax.errors import PlacementError
from equirelax.relaxation.layers import families
from equirelax.symmetry.escnn import is_escnn

SCRIPT = """
import sys
import equirelax as er, torch
import equirelax.symmetry.escnn, equirelax.relaxation.layers.escnn
from equirelax_lab.models import GroupConv2d
from equirelax.symmetry import Cyclic, regular
model = GroupConv2d(regular(Cyclic(4)), regular(Cyclic(4)), 3)
print(er.relax(model).summary())
er.project(model)
assert not [name for name in sys.modules if name.split(".")[0] in ("escnn", "numpy.f2py", "lie_learn")]
"""


def test_the_families_are_listed_and_escnn_is_not_imported() -> None:
    assert {"escnn-convolution", "escnn-linear"} <= set(families())
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "planar-convolution" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("escnn") is not None, reason="escnn is installed here")
def test_its_tests_are_left_out_and_the_head_of_the_run_says_why() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "tests/with_escnn"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert "with_escnn" in done.stdout.partition("rootdir")[0]
    assert "make test-escnn" in done.stdout
    assert "error" not in done.stdout.lower()


def test_names_of_escnn_in_other_packages_are_not_taken_for_it() -> None:
    class FieldType:
        gspace = None

    class R2Conv(nn.Conv2d):
        in_type = out_type = FieldType()

    layer = R2Conv(2, 2, 3)
    assert not is_escnn(FieldType(), "FieldType")
    assert not any(family.matches(layer) for family in families().values())
    with pytest.raises(PlacementError):
        er.relax(layer)
    assert torch.is_tensor(layer(torch.zeros(1, 2, 5, 5)))
