"""A swept number is recognised, and drawn against what came of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from equirelax_lab.report.rows import labels, swept_curves, swept_setting
from equirelax_lab.report.runs import Run
from equirelax_lab.report.swept import draw_swept, final_size
from PIL import Image
from test_report import result
from test_variants import changed, of_model

METRIC = {"name": "MSE", "unit": "1", "symbol": None}


def swept(method: str, values: tuple[float, ...]) -> list[dict]:
    return [changed(result(method, s, 1.0 + v), dataset__train=v) for s in (0, 1) for v in values]


def test_one_number_with_three_values_or_more_is_a_sweep() -> None:
    assert swept_setting(swept("strict", (100, 200, 300))) == "dataset.train"
    assert swept_setting(swept("strict", (100, 200))) is None
    assert swept_setting([result("strict", 0, 1.0), result("ace", 0, 1.0)]) is None
    words = [changed(result("strict", 0, 1.0), schedule=s) for s in ("constant", "step", "cosine")]
    assert swept_setting(words) is None
    both = [
        changed(one, batch_size=b) for one in swept("ace", (1, 2, 3)) for b in (10, 20)
    ]  # every training-set size with both batch sizes: two curves
    assert swept_setting(both) == "dataset.train"
    assert set(swept_curves(both, [1.0] * len(both), "dataset.train")) == {
        "ace batch_size=10",
        "ace batch_size=20",
    }
    three = [changed(one, batch_size=b) for one in swept("ace", (1, 2, 3)) for b in (10, 20, 30)]
    assert swept_setting(three) is None
    assert swept_setting([changed(one, seed=0) for one in both[::2]]) == "dataset.train"


def zipped(method: str) -> list[dict]:
    """Training-set size with epochs and validations changing along, as at equal numbers of steps."""
    points = {100: (900, 9), 300: (300, 3), 900: (100, 1)}
    return [
        changed(result(method, s, 1.0), epochs=e, validate_every=v, dataset__train=n)
        for s in (0, 1)
        for n, (e, v) in points.items()
    ]


def test_settings_that_change_one_to_one_are_one_axis_named_after_the_data() -> None:
    results = [*zipped("strict"), *zipped("ace")]
    assert swept_setting(results) == "dataset.train"
    assert set(swept_curves(results, [1.0] * len(results), "dataset.train")["ace"]) == {100, 300, 900}
    assert labels(results)[:3] == ["strict train=100", "strict train=300", "strict train=900"]
    assert labels(results[:2]) == [
        f"strict epochs={e} validate_every={v} train={n}" for e, v, n in ((900, 9, 100), (300, 3, 300))
    ]
    broken = [*results, changed(results[0], epochs=7)]
    assert swept_setting(broken) is None
    assert labels(broken)[0] == "strict epochs=900 train=100"
    together = [
        changed(result("ace", 0, 1.0), learning_rate=v, strength__dual_lr=2 * v) for v in (0.1, 0.2, 0.3)
    ]
    assert swept_setting(together) == "learning_rate"
    names = ("constant", "step", "cosine")
    words = [changed(one, schedule=s) for one, s in zip(swept("ace", (1, 2, 3))[:3], names, strict=True)]
    assert swept_setting(words) == "dataset.train"


def test_methods_without_the_swept_setting_have_no_curve() -> None:
    results = [result("strict", 0, 1.0)]
    results += [
        changed(result("scheduled", 0, 1.0), strength__lie_weight=w, strength__norm_weight=w)
        for w in (0.0, 0.1, 1.0)
    ]
    assert swept_setting(results) == "strength.lie_weight"
    assert list(swept_curves(results, [1.0] * 4, "strength.lie_weight")) == ["scheduled"]


def test_every_method_and_model_has_a_curve_with_a_number_for_every_seed() -> None:
    results = [*swept("strict", (1, 2, 3)), *swept("ace", (1, 2, 3))]
    found = swept_curves(results, [r["test"]["projected"] for r in results], "dataset.train")
    assert found == {m: {1: [2.0, 2.0], 2: [3.0, 3.0], 3: [4.0, 4.0]} for m in ("strict", "ace")}
    both = [*results, of_model(results[0], "egnn")]
    assert set(swept_curves(both, [0.0] * len(both), "dataset.train")) == {
        "strict segnn",
        "ace segnn",
        "strict egnn",
    }


def test_the_size_at_the_end_is_the_mean_over_residuals() -> None:
    table = [
        {"epoch": "0", "gamma/a": "9", "gamma/b": "9"},
        {"epoch": "1", "gamma/a": "-0.5", "gamma/b": "1.5"},
    ]
    assert final_size(table, "gamma") == pytest.approx(1.0)
    assert final_size(table, "slack") is None
    assert final_size([], "gamma") is None


def test_the_picture_has_a_panel_for_the_metric_and_one_each_for_multipliers_and_gamma(
    tmp_path: Path,
) -> None:
    results = [*swept("strict", (1, 2, 3)), *swept("resilient", (1, 2, 3))]
    rows = [
        {"epoch": "0", "gamma/a": "1", "multiplier/a": "0"},
        {"epoch": "1", "gamma/a": "0.5", "multiplier/a": "0.2"},
    ]
    runs = [Run("", one, rows if one["method"] != "strict" else (), "finished") for one in results]
    assert draw_swept(tmp_path / "all.png", runs, METRIC, "title")
    assert draw_swept(tmp_path / "plain.png", runs[:6], METRIC, "title")
    wide, narrow = (Image.open(tmp_path / name).size[0] for name in ("all.png", "plain.png"))
    assert wide > 2 * narrow
    assert not draw_swept(tmp_path / "none.png", runs[:1], METRIC, "title")
    assert not (tmp_path / "none.png").exists()
