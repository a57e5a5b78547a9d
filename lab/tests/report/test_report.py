"""Statistics against hand-made numbers; tables and sentences say no more than the numbers do."""

from __future__ import annotations

import copy
import statistics
from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.report.conclusion import conclusion
from equirelax_lab.report.picture import draw, gamma_columns, series
from equirelax_lab.report.statistics import T_QUANTILES, paired, spread
from equirelax_lab.report.summary import summarise, table
from equirelax_lab.tasks.registry import defaults
from PIL import Image

from equirelax.errors import ConfigError


def result(method: str, seed: int, value: float, relaxed: float | None = None) -> dict[str, Any]:
    """A result.json as a run writes it."""
    numbers = {"relaxed": value if relaxed is None else relaxed, "projected": value, "folded": None}
    return {
        "benchmark": "nbody",
        "model": "segnn",
        "method": method,
        "seed": seed,
        "metric": {"name": "MSE of the positions", "unit": "1e-3"},
        "val": dict(numbers),
        "test": dict(numbers),
        "equivariance_error": {"before": 0.1, "after": 1e-16, "group": "O(3)", "dtype": "float64"},
        "parameters": {"strict": 100, "relaxed": 200},
        "epochs": 10,
        "selected_epoch": 8,
        "gammas": {"layer": 0.5},
        "scaled_down": "10 of 1000 epochs",
        "seconds": 5.0,
        "commit": "abc",
        "hardware": {"cpu": "a CPU", "cores": 2, "threads": 1, "gpu": None},
        "versions": {"torch": "2"},
        "config": defaults("nbody", "segnn", method).to_dict(),
    }


def test_spread_and_paired_by_hand() -> None:
    assert spread([2.0]).std is None
    assert spread([1.0, 3.0]).std == pytest.approx(2**0.5)
    found = paired({0: 1.0, 1: 2.0, 2: 6.0, 9: 0.0}, {0: 2.0, 1: 4.0, 2: 5.0})
    assert found is not None
    differences = [-1.0, -2.0, 1.0]
    assert found.mean == pytest.approx(statistics.fmean(differences))
    assert (found.wins, found.count) == (2, 3)
    assert found.interval is not None
    half = T_QUANTILES[1] * statistics.stdev(differences) / 3**0.5
    assert found.interval == pytest.approx((found.mean - half, found.mean + half))
    assert paired({0: 1.0}, {1: 1.0}) is None
    single = paired({0: 1.0}, {0: 2.0})
    assert single is not None
    assert single.interval is None


def test_quantiles_are_students() -> None:
    t = pytest.importorskip("scipy.stats").t
    for degrees, value in enumerate(T_QUANTILES, start=1):
        assert t.ppf(0.975, degrees) == pytest.approx(value, abs=6e-4)


def test_headlines_are_projected_and_relaxed_for_resilient() -> None:
    results = [
        result("strict", 0, 5.0),
        result("ace", 0, 4.0, relaxed=1.0),
        result("resilient", 0, 9.0, relaxed=3.0),
    ]
    summary = summarise(results)
    assert summary["methods"]["ace"]["headline"] == "projected"
    assert summary["methods"]["ace"]["paired_with_strict"]["mean"] == pytest.approx(-1.0)
    assert summary["methods"]["resilient"]["headline"] == "relaxed"
    assert summary["methods"]["resilient"]["paired_with_strict"]["mean"] == pytest.approx(-2.0)
    text = table(summary)
    assert "| ace | **4.00** (projected) | 1.00 | 4.00 | n/a | -1.00 | 1 of 1 | 3.8 ± 0.17 |" in text
    assert "10 of 1000 epochs" in text
    assert "a CPU" in text
    assert "Commit abc" in text


def test_small_values_have_three_digits_and_their_differences_as_many_decimals() -> None:
    runs = [result("strict", s, 0.1871) for s in (0, 1)] + [
        result("ace", s, 0.0412 + s / 1000) for s in (0, 1)
    ]
    text = table(summarise(runs))
    assert "**0.187 ± 0.000**" in text
    assert "**0.0417 ± 0.0007**" in text
    assert "| -0.1454 ± 0.0007 [" in text


def test_a_sentence_claims_no_more_than_the_seeds_allow() -> None:
    one = summarise([result("strict", 0, 5.0), result("ace", 0, 4.0)])
    assert "no evidence" in conclusion(one)
    clear = summarise(
        [r for s in range(3) for r in (result("strict", s, 5.0 + s / 100), result("ace", s, 4.0))]
    )
    assert "excludes zero" in conclusion(clear)
    assert "20% below" in conclusion(clear)
    noisy = summarise(
        [r for s in range(3) for r in (result("strict", s, 5.0), result("ace", s, 3.0 + 2 * s))]
    )
    assert "do not tell from chance" in conclusion(noisy)
    worse = summarise(
        [r for s in range(3) for r in (result("strict", s, 5.0), result("ace", s, 6.0 + s / 100))]
    )
    assert "above strict" in conclusion(worse)
    assert "nothing to compare" in conclusion(summarise([result("ace", 0, 1.0)]))


def test_results_that_do_not_belong_together_are_refused() -> None:
    other = copy.deepcopy(result("strict", 0, 1.0))
    other["benchmark"] = "mocap"
    with pytest.raises(ConfigError, match="one benchmark"):
        summarise([result("strict", 0, 1.0), other])
    with pytest.raises(ConfigError, match="no finished run"):
        summarise([])


def rows(relaxed: bool) -> list[dict[str, str]]:
    """A metrics.csv of three epochs, validated in the second and third."""
    found = []
    for epoch in range(3):
        row = {"epoch": str(epoch), "val/projected": str(9.0 - epoch) if epoch else "", "val/relaxed": "nan"}
        found.append({**row, "gamma/a": "0.5"} if relaxed else row)
    return found


def test_series_leave_out_what_is_missing_or_not_finite() -> None:
    assert series(rows(False), "val/projected") == {2: 8.0, 3: 7.0}
    assert series(rows(False), "val/relaxed") == {}
    assert gamma_columns(rows(True)) == ["gamma/a"]


@pytest.mark.parametrize("methods", [["strict"], ["strict", "ace"], ["scheduled", "ace", "resilient"]])
def test_pictures_are_drawn_with_and_without_strengths(methods: list[str], tmp_path: Path) -> None:
    runs = {name: [rows(name != "strict")] * 2 for name in methods}
    draw(tmp_path / "curves.png", runs, "title", "metric")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1000


def averaged(base: dict[str, Any], value: float) -> dict[str, Any]:
    numbers = {"relaxed": value - 1, "projected": value, "folded": None}
    return {**base, "averaged": {"decay": 0.999, "val": numbers, "test": numbers, "selected_epoch": 5}}


def test_averaged_weights_are_compared_with_averaged_strict_weights() -> None:
    strict = [averaged(result("strict", seed, 9.0), 6.0 + seed) for seed in (0, 1)]
    ace = [averaged(result("ace", seed, 5.0), 5.5 + seed) for seed in (0, 1)]
    summary = summarise([*strict, *ace, result("scheduled", 0, 3.0)])
    found = summary["methods"]["ace"]["averaged"]
    assert found["paired_with_strict"]["mean"] == pytest.approx(-0.5)
    assert found["test"]["relaxed"]["mean"] == pytest.approx(5.0)
    assert summary["methods"]["strict"]["averaged"]["paired_with_strict"] is None
    assert summary["methods"]["scheduled"]["averaged"] is None
    assert "| ace | 0.999 | **6.00 ± 0.71** (projected) |" in table(summary)
    assert "averaged weights" not in table(summarise([result("strict", 0, 9.0), result("ace", 0, 5.0)]))


def test_a_loss_that_jumped_is_told() -> None:
    jumped = {"first": 259.0, "last": 268.0, "before": 1e-4, "largest": 8.0}
    run = {**result("ace", 3, 5.0), "loss_spikes": [jumped]}
    text = table(summarise([result("strict", 3, 6.0), run]))
    assert "ace segnn seed 3: the training loss rose from 0.0001 to 8 (epochs 259 to 268)" in text
