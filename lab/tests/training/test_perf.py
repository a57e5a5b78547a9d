"""Counting and replaying matrix products; the shape of the report."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equirelax_lab.training.perf import measure, products, ratios, replay, table
from torch import nn

from equirelax.errors import ConfigError


def test_products_of_a_linear_layer_and_its_gradient() -> None:
    layer, x = nn.Linear(7, 5), torch.randn(11, 7, requires_grad=True)
    forward = products(lambda: layer(x))
    assert [p.multiply_adds for p in forward] == [11 * 7 * 5]
    both = products(lambda: layer(x).sum().backward())
    assert sum(p.multiply_adds for p in both) == 3 * 11 * 7 * 5
    batched = products(lambda: torch.bmm(torch.randn(2, 3, 4), torch.randn(2, 4, 5)))
    assert [p.multiply_adds for p in batched] == [2 * 3 * 4 * 5]


def test_a_replay_runs_the_same_products() -> None:
    layer, x = nn.Linear(7, 5), torch.randn(11, 7)
    found = products(lambda: layer(x))
    again = products(replay(found))
    assert [p.shapes for p in again] == [p.shapes for p in found]


def test_ratios_divide_what_they_say() -> None:
    times = {
        "strict: step": 2.0,
        "relaxed: step": 3.0,
        "strict: its matrix products alone": 1.0,
        "strict: inference": 0.5,
        "projected: inference": 0.5,
    }
    found = ratios(times, {"strict": 100, "relaxed": 130})
    assert found["relaxed / strict"] == {"time": 1.5, "floor": 1.3}
    assert found["strict / its matrix products alone"]["time"] == 2.0
    assert found["projected inference / strict inference"]["time"] == 1.0


@pytest.mark.slow
def test_the_report_names_hardware_and_settings() -> None:
    result = measure(batch_size=2, rows=4, repetitions=1)
    assert result["settings"]["warm_up"] >= 10
    counts = result["multiply_adds"]
    assert counts["strict"] < counts["relaxed, no penalty"] < counts["relaxed + exact penalty"]
    added = counts["relaxed + exact penalty"] - counts["relaxed, no penalty"]
    fourth = counts["relaxed + exact penalty every 4th step"] - counts["relaxed, no penalty"]
    assert fourth == pytest.approx(added / 4, rel=1e-3)
    split = counts["relaxed, 4 groups, no penalty"]
    assert counts["strict"] < split < counts["relaxed, 4 groups + exact penalty"]
    assert split < counts["relaxed, no penalty"]
    memory = result["memory"]
    assert memory["strict"]["residual"] == 0 < memory["strict"]["training"]
    dense, grouped = memory["relaxed, no penalty"], memory["relaxed, 4 groups, no penalty"]
    assert 0 < grouped["residual"] < dense["residual"] / 2
    assert grouped["gram"] < dense["gram"]
    assert result["versions"]["torch"] == torch.__version__
    text = table(result)
    assert "1.25" in text
    assert str(result["hardware"]["cpu"]) in text
    assert "100 x 5 bodies" not in text
    assert "2 x 5 bodies" in text


@pytest.mark.slow
def test_point_clouds_are_timed_against_goals_in_milliseconds() -> None:
    before = torch.get_num_threads()
    try:
        result = measure("modelnet40", batch_size=2, rows=16, repetitions=1, threads=1)
    finally:
        torch.set_num_threads(before)
    counts = result["multiply_adds"]
    assert counts["strict"] < counts["relaxed, no penalty"] < counts["relaxed + exact penalty"]
    thin = counts["relaxed, rank 8, no penalty"]
    assert counts["strict"] < thin < counts["relaxed, rank 8 + exact penalty"] < counts["relaxed, no penalty"]
    assert set(result["goals"]) <= {*result["ratios"], *result["milliseconds"]}
    assert result["model"] == "vn-pointnet"
    lines = table(result).splitlines()
    step = next(line for line in lines if line.startswith("strict: step"))
    assert step.split()[-1] == "800"
    assert float(step.split()[-3]) == pytest.approx(2e-9 * counts["strict"], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repetitions": 0}, "at least 1"),
        ({"benchmark": "nbdy"}, "nbody"),
        ({"benchmark": "modelnet40", "model": "vn-pointnt"}, "vn-pointnet"),
    ],
)
def test_what_cannot_be_timed_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        measure(**options)
