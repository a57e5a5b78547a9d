"""The toy study: deterministic plain data, and the finding that it is for."""

from __future__ import annotations

import json

import pytest
import torch
from equirelax_lab.tasks.toy import make_problem, run_form, run_toy

from equirelax.errors import ConfigError


def test_it_is_plain_data_and_the_same_on_every_call() -> None:
    first = run_toy(problems=["symmetric"], forms=["plain", "resilient"], steps=30, records=10)
    torch.randn(3)  # the global generator plays no part
    second = run_toy(problems=["symmetric"], forms=["plain", "resilient"], steps=30, records=10)
    assert json.dumps(first) == json.dumps(second)
    run = first["runs"][1]
    assert run["paths"] == ["first", "second", "last"]
    moments = len(run["step"])
    assert run["step"][-1] == 29
    for key in ("gamma", "multiplier", "effective_multiplier", "slack", "gamma_weight"):
        assert len(run[key]) == moments
        assert all(len(row) == 3 for row in run[key])
    assert len(run["loss_relaxed"]) == len(run["loss_strict"]) == moments


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'broken'"):
        make_problem("brokn")
    with pytest.raises(ConfigError, match="Did you mean 'plain'"):
        run_form("broken", "plane", steps=1)


@pytest.mark.slow
def test_damping_brings_gamma_down_where_the_plain_form_circles() -> None:
    finals = {
        form: run_form("symmetric", form, steps=600, records=60)["final"]
        for form in ("plain", "augmented", "pi", "resilient")
    }
    assert finals["plain"]["swing_gamma"] > 0.5
    for form in ("augmented", "pi"):
        assert finals[form]["max_abs_gamma"] < 0.1
        assert finals[form]["loss_strict"] < 0.1
    assert finals["plain"]["loss_strict"] > 10 * finals["augmented"]["loss_strict"]
    assert finals["resilient"]["max_abs_gamma"] < 0.2


@pytest.mark.slow
def test_the_broken_problem_needs_its_relaxation() -> None:
    _, y = make_problem("broken")
    assert float(y.std()) == pytest.approx(1.0)
    final = run_form("broken", "augmented", steps=600, records=10)["final"]
    assert final["loss_relaxed"] < 0.05
    assert final["loss_strict"] > 0.15
