"""Runs of one method with several settings are told apart, and compared with the right strict runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.report.conclusion import conclusion
from equirelax_lab.report.conditions import conditions_table, curves, draw_conditions, split
from equirelax_lab.report.rows import baseline_row, by_label, labels, method_of
from equirelax_lab.report.summary import summarise, table
from equirelax_lab.tasks.registry import defaults
from PIL import Image
from test_report import result


def changed(base: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A result whose configuration has other values: section__key=value, or key=value."""
    copied = copy.deepcopy(base)
    for name, value in settings.items():
        section, _, key = name.rpartition("__")
        (copied["config"][section] if section else copied["config"])[key] = value
    return copied


def test_what_differs_within_a_method_is_in_its_label() -> None:
    scheduled = [
        changed(result("scheduled", seed, 1.0), strength__lie_weight=w, strength__norm_weight=w)
        for seed in (0, 1)
        for w in (0.0, 0.1)
    ]
    found = labels([result("strict", 0, 1.0), result("strict", 1, 1.0), *scheduled])
    assert found[:2] == ["strict", "strict"]
    assert found[2:] == ["scheduled lie_weight=norm_weight=0.0", "scheduled lie_weight=norm_weight=0.1"] * 2
    assert [method_of(label) for label in found] == ["strict"] * 2 + ["scheduled"] * 4


def of_model(base: dict[str, Any], model: str) -> dict[str, Any]:
    """The same result of another model."""
    config = defaults(base["benchmark"], model, base["method"]).to_dict()
    return {**copy.deepcopy(base), "model": model, "config": config}


def test_runs_of_several_models_are_compared_with_the_strict_runs_of_their_own() -> None:
    first = [result("strict", 0, 8.0), result("ace", 0, 6.0)]
    second = [of_model(result("strict", 0, 4.0), "egnn"), of_model(result("ace", 0, 5.0), "egnn")]
    summary = summarise([*first, *second])
    assert summary["model"] == "segnn, egnn"
    rows = summary["methods"]
    assert list(rows) == ["strict segnn", "ace segnn", "strict egnn", "ace egnn"]
    assert rows["ace segnn"]["paired_with_strict"]["mean"] == pytest.approx(-2.0)
    assert rows["ace egnn"]["paired_with_strict"]["mean"] == pytest.approx(1.0)
    assert rows["ace segnn"]["published"] == "3.8 ± 0.17"
    assert rows["ace egnn"]["published"] is None
    assert "ace segnn: its test error" in conclusion(summary)  # the sentence is about the first model
    assert "25% below strict" in conclusion(summary)


@pytest.mark.parametrize("error", [{"before": 1.0, "after": 0.4, "group": "C4", "dtype": "float64"}, None])
def test_networks_that_are_not_equivariant_themselves_are_not_called_so(error: dict[str, Any] | None) -> None:
    runs = [result("strict", 0, 8.0), result("ace", 0, 6.0)]
    assert "projection back to an exactly equivariant network is" in conclusion(summarise(runs))
    own = [{**run, "equivariance_error": error} for run in runs]
    assert "projection back to the network as its author made it is" in conclusion(summarise(own))


def test_what_is_scaled_down_is_told_by_model_where_it_differs() -> None:
    other = of_model(result("strict", 0, 4.0), "egnn")
    other["scaled_down"] = "5 of 64 hidden"
    text = table(summarise([result("strict", 0, 8.0), other]))
    assert "segnn: 10 of 1000 epochs; egnn: 5 of 64 hidden" in text
    other["scaled_down"] = "10 of 1000 epochs; 5 of 64 hidden"
    text = table(summarise([result("strict", 0, 8.0), other]))
    assert "setting: 10 of 1000 epochs; egnn: 5 of 64 hidden." in text


def test_the_sentence_is_about_the_first_model_with_something_to_compare() -> None:
    alone = of_model(result("strict", 0, 4.0), "egnn")
    found = summarise([alone, result("strict", 0, 8.0), result("ace", 0, 6.0)])
    assert "ace segnn: its test error" in conclusion(found)
    assert "nothing to compare" in conclusion(summarise([alone]))


def test_a_group_without_exact_action_has_no_equivariance_error() -> None:
    one = result("strict", 0, 8.0)
    one["equivariance_error"] = None
    assert "| n/a |" in table(summarise([one]))


def test_a_setting_that_an_older_version_did_not_have_is_at_its_default() -> None:
    new = result("ace", 0, 1.0)
    old = copy.deepcopy(result("ace", 1, 1.0))
    del old["config"]["schedule"], old["config"]["strength"]["reduction"]
    assert labels([new, old]) == ["ace", "ace"]


def test_settings_that_do_not_change_together_stand_apart() -> None:
    one = result("ace", 0, 1.0)
    both = [one, changed(one, strength__dual_lr=0.5), changed(one, epochs=7)]
    assert labels(both)[0].startswith("ace epochs=")
    assert "dual_lr=" in labels(both)[0]
    assert "epochs=dual_lr" not in labels(both)[0]


def test_a_run_is_compared_with_the_strict_runs_on_its_own_data() -> None:
    few, many = (
        [changed(result(method, 0, value), dataset__train=count) for method, value in pairs]
        for count, pairs in ((100, [("strict", 8.0), ("ace", 7.0)]), (900, [("strict", 4.0), ("ace", 5.0)]))
    )
    everything = few + many
    assert baseline_row(few[1], by_label(everything)) == "strict train=100"
    assert baseline_row(many[1], by_label(everything)) == "strict train=900"
    summary = summarise(everything)
    differences = {
        name: row["paired_with_strict"]["mean"]
        for name, row in summary["methods"].items()
        if row["paired_with_strict"]
    }
    assert differences == {"ace train=100": -1.0, "ace train=900": 1.0}


def accuracy(method: str, seed: int, value: float) -> dict[str, Any]:
    """A result whose metric is better when it is higher, with further metrics, conditions and cost."""
    found = result(method, seed, value)
    found["metric"] = {"name": "accuracy", "unit": "1e-2", "symbol": "%", "higher_is_better": True}
    below = {"relaxed": 1, "projected": 2, "folded": 2}
    kinds = {kind: {"accuracy": value, "class accuracy": value - less} for kind, less in below.items()}
    found["metrics"] = {"val": kinds, "test": kinds}
    found["conditions"] = {
        f"dropout {level}": {kind: {"accuracy": value - 10 * level} for kind in kinds}
        for level in (0.25, 0.5)
    }
    cost = {"multiply_adds": 2e6, "milliseconds": 3.0}
    found["inference"] = {"relaxed": cost, "projected": cost}
    return found


def test_higher_may_be_better() -> None:
    runs = [accuracy("strict", s, 50.0) for s in (0, 1)] + [accuracy("ace", s, 60.0 + s) for s in (0, 1)]
    runs += [accuracy("resilient", s, 40.0) for s in (0, 1)]
    summary = summarise(runs)
    assert summary["methods"]["ace"]["paired_with_strict"]["wins"] == 2
    assert summary["methods"]["resilient"]["paired_with_strict"]["wins"] == 0
    sentence = conclusion(summary)
    assert "best relaxed method here is ace" in sentence
    assert "after projection back" in sentence
    assert "10.50 points above strict" in sentence
    text = table(summary)
    assert "test accuracy (%)" in text
    assert "| test class accuracy, relaxed | test class accuracy, projected |" in text
    assert "| ace | 59.50 ± 0.71 | 58.50 ± 0.71 | 2 | 3 |" in text


def test_networks_without_residuals_are_not_called_relaxed() -> None:
    runs = [accuracy(name, 0, value) for name, value in (("strict", 50.0), ("equi-tuning", 60.0))]
    for run in runs:
        run["gammas"] = {}
    assert "| **60.00** (as trained) |  |  |  |" in table(summarise(runs))
    sentence = conclusion(summarise(runs))
    assert sentence.startswith(
        "The best method here beside strict is equi-tuning: its test accuracy is 10.00 points"
    )


def test_conditions_become_a_table_and_a_picture(tmp_path: Path) -> None:
    runs = [accuracy("strict", s, 50.0 + s) for s in (0, 2)] + [accuracy("ace", 0, 60.0)]
    found = curves(runs)
    assert found["dropout"]["strict"][0.25] == pytest.approx((48.5, 2**0.5))
    text = conditions_table(found, runs[0]["metric"])
    assert "| dropout 0.25 | 48.5 ± 1.4 | 57.5 ± 0.0 |" in text
    draw_conditions(tmp_path / "conditions.png", found, runs[0]["metric"], "title")
    with Image.open(tmp_path / "conditions.png") as image:
        assert image.size[0] > 400
    assert split("local density 3") == ("local density", 3.0)
    assert split("odd") == ("odd", 0.0)


def test_conditions_of_errors_below_one_have_three_digits() -> None:
    runs = [accuracy("strict", s, 0.5 + s / 100) for s in (0, 2)]
    for run in runs:
        run["metric"] = {"name": "accuracy", "unit": "1"}  # an error: no percentage
        run["conditions"] = {
            "dropout 0.25": {k: {"accuracy": 0.0123} for k in ("relaxed", "projected", "folded")}
        }
    text = conditions_table(curves(runs), runs[0]["metric"])
    assert "| dropout 0.25 | 0.0123 ± 0.0000 |" in text
