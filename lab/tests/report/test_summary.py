"""Statistics against hand-made numbers and scipy; tables and sentences say no more than the numbers do."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.report import tables
from equirelax_lab.report.archive import read_archive
from equirelax_lab.report.comparison import compare_grids, comparisons, summarise_again, write_comparison
from equirelax_lab.report.conclusion import conclusion
from equirelax_lab.report.failures import ALL, DEFINITION, POOR, asks_for_failures, failures, poor, shares
from equirelax_lab.report.rows import marked_line
from equirelax_lab.report.runs import Run, of_config, read_folder, read_run
from equirelax_lab.report.statistics import holm, paired, spread
from equirelax_lab.report.summary import strengths_of, summarise
from equirelax_lab.report.table import Table, condition, measures_csv
from equirelax_lab.report.tables import summary_text
from equirelax_lab.report.weights import by_validation
from equirelax_lab.studies.study import Grid, Study
from equirelax_lab.studies.trials import Trial
from equirelax_lab.tasks.registry import config_from_dict, defaults
from equirelax_lab.tasks.settings import read_yaml
from equirelax_lab.training.dynamics import dynamics
from made import Make, accuracy, alike, averaged, changed, of_model, result

from equirelax.errors import ConfigError

RESULTS = Path(__file__).parents[2] / "results"


def test_spreads_by_hand() -> None:
    assert spread([2.0]).std is None
    assert spread([1.0, 3.0]).std == pytest.approx(2**0.5)
    found = paired({0: 1.0, 1: 2.0, 2: 6.0, 9: 0.0}, {0: 2.0, 1: 4.0, 2: 5.0})
    assert found is not None
    assert found.mean == pytest.approx(statistics.fmean([-1.0, -2.0, 1.0]))
    assert (found.wins, found.count) == (2, 3)
    assert paired({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_value_that_is_not_finite_decides_nothing(value: float) -> None:
    assert not math.isfinite(spread([1.0, value]).mean)
    assert math.isnan(spread([1.0, value]).std or 0.0)
    found = paired({0: value, 1: 1.0}, {0: 1.0, 1: 2.0})
    assert found is not None
    assert found.interval is not None
    assert found.interval == (-math.inf, math.inf)
    assert found.p is None


@pytest.mark.parametrize("count", [2, 3, 12, 40])
def test_intervals_and_tests_are_students_for_any_number_of_seeds(count: int) -> None:
    ttest = pytest.importorskip("scipy.stats").ttest_rel
    ours, strict = [math.sin(3 * i) + 0.1 * i for i in range(count)], [math.cos(5 * i) for i in range(count)]
    found, expected = paired(dict(enumerate(ours)), dict(enumerate(strict))), ttest(ours, strict)
    assert found is not None
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.effect == pytest.approx(expected.statistic / math.sqrt(count))


@pytest.mark.parametrize("ours", [{0: 1.0}, {0: 1.0, 1: 2.0}])
def test_one_seed_or_equal_differences_have_no_test(ours: dict[int, float]) -> None:
    found = paired(ours, {seed: value + 1.0 for seed, value in ours.items()})
    assert found is not None
    assert (found.p, found.effect) == (None, None)
    assert found.interval == (None if len(ours) == 1 else (-1.0, -1.0))


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
    text = summary_text(summary)
    assert "| ace | **4.00** (projected) | 1.00 | 4.00 | n/a | -1.00 | 1 of 1 | 3.8 ± 0.17 |" in text
    assert "10 of 1000 epochs" in text
    assert "a CPU" in text
    assert "Commit abc" in text


def test_small_values_have_three_digits_and_their_differences_as_many_decimals() -> None:
    runs = [result("strict", s, 0.1871) for s in (0, 1)] + [
        result("ace", s, 0.0412 + s / 1000) for s in (0, 1)
    ]
    text = summary_text(summarise(runs))
    assert "**0.187 ± 0.000**" in text
    assert "**0.0417 ± 0.0007**" in text
    assert "| -0.1454 ± 0.0007 [" in text


def sentence(seeds: int, *differences: float) -> str:
    """The conclusion where ace differs from strict's 5.0 by these, seed after seed."""
    strict = [alike("strict", s, 5.0) for s in range(seeds)]
    ace = [alike("ace", s, 5.0 + differences[s % len(differences)]) for s in range(seeds)]
    return conclusion(summarise([*strict, *ace]))


@pytest.mark.parametrize(
    ("seeds", "differences", "verdict"),
    [
        (1, (-1.0,), "undecided"),
        (3, (-1.0, -1.1), "undecided"),  # whatever the interval says
        (6, (-1.0, -1.1), "better"),
        (6, (1.0, 1.1), "worse"),
        (6, (-1.0, 1.1), "undecided"),
        (6, (-0.01, 0.01), "level"),
        (6, (0.001, 0.0011), "level"),  # above zero for certain, and of no account
    ],
)
def test_a_sentence_claims_no_more_than_the_seeds_allow(
    seeds: int, differences: tuple[float, ...], verdict: str
) -> None:
    first = sentence(seeds, *differences).partition(". ")[0]
    assert [word for word in ("undecided", "better", "worse", "level") if word in first] == [verdict]


def test_a_sentence_gives_the_interval_in_the_unit_of_the_difference() -> None:
    # differences -1.0 and -1.1 of 5.0: mean -21 %, deviation 0.0548 / sqrt 6 x 2.571 = 0.0575: 1.15 %
    assert "is 21 % below that of strict (95 % interval -22 to -20 %, 6 seeds)" in sentence(6, -1.0, -1.1)
    assert "0.10 % above that of strict (95 % interval +0.10 to +0.10 %" in sentence(6, 0.005, 0.0051)
    assert "is the same as that of strict" in sentence(6, -0.1, 0.1)
    assert "20 % below that of strict (one seed)" in sentence(1, -1.0)
    assert "nothing to compare" in conclusion(summarise([result("ace", 0, 1.0)]))


def test_results_that_do_not_belong_together_are_refused() -> None:
    other = copy.deepcopy(result("strict", 0, 1.0))
    other["benchmark"] = "mocap"
    with pytest.raises(ConfigError, match="one benchmark"):
        summarise([result("strict", 0, 1.0), other])
    with pytest.raises(ConfigError, match="no finished run"):
        summarise([])


def test_the_conclusion_takes_the_weights_that_validation_prefers_in_every_run() -> None:
    """Raw, the swing is far behind in every seed; averaged, it is ahead. Averaging does not help the strict network."""
    gains = [0.4, 0.5, 0.6, 0.5, 0.4, 0.6]
    strict = [averaged(alike("strict", seed, 5.0, ema=0.999), 6.0) for seed in range(6)]
    swing = [averaged(alike("swing", seed, 9.0, ema=0.999), 5.0 - gain) for seed, gain in enumerate(gains)]
    text = conclusion(summarise([*strict, *swing]))
    assert "swing: better than strict" in text
    assert "10 % below" in text
    assert "whichever validation prefers" in text
    alone = [alike("strict", seed, 5.0) for seed in range(6)]
    assert "the two differ in more than the method" in conclusion(summarise([*alone, *swing]))
    assert "whichever" not in conclusion(
        summarise([alike(m, s, 5.0) for m in ("strict", "swing") for s in range(6)])
    )
    assert by_validation(averaged(result("swing", 0, 9.0), math.nan), "projected")["test"]["projected"] == 9.0
    higher = averaged(accuracy("ace", 0, 50.0), 40.0)
    assert by_validation(higher, "projected")["test"]["projected"] == 50.0


def test_averaged_weights_are_compared_with_averaged_strict_weights() -> None:
    strict = [averaged(result("strict", seed, 9.0), 6.0 + seed) for seed in (0, 1)]
    ace = [averaged(result("ace", seed, 5.0), 5.5 + seed) for seed in (0, 1)]
    summary = summarise([*strict, *ace, result("scheduled", 0, 3.0)])
    found = summary["methods"]["ace"]["averaged"]
    assert found["paired_with_strict"]["mean"] == pytest.approx(-0.5)
    assert found["test"]["relaxed"]["mean"] == pytest.approx(5.0)
    assert summary["methods"]["strict"]["averaged"]["paired_with_strict"] is None
    assert summary["methods"]["scheduled"]["averaged"] is None
    assert "| ace | 0.999 | **6.00 ± 0.71** (projected) |" in summary_text(summary)
    assert "averaged weights" not in summary_text(
        summarise([result("strict", 0, 9.0), result("ace", 0, 5.0)])
    )


def test_a_loss_that_jumped_is_told() -> None:
    jumped = {"first": 259.0, "last": 268.0, "before": 1e-4, "largest": 8.0}
    run = {**result("ace", 3, 5.0), "loss_spikes": [jumped]}
    text = summary_text(summarise([result("strict", 3, 6.0), run]))
    assert "ace segnn seed 3: the training loss rose from 0.0001 to 8 (epochs 259 to 268)" in text


def test_a_projected_network_that_lags_is_told() -> None:
    text = summary_text(summarise([result("strict", 3, 6.0), {**result("ace", 3, 5.0), "lag": 80}]))
    assert "ace segnn seed 3: from epoch 80 on" in text
    none = summary_text(summarise([{**result("strict", 3, 6.0), "lag": None}, result("ace", 3, 5.0)]))
    assert "lags behind" not in none


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
    assert "is ace segnn: undecided against strict segnn" in conclusion(
        summary
    )  # the sentence is about the first model
    assert "25 % below that of strict segnn" in conclusion(summary)


@pytest.mark.parametrize("error", [{"before": 1.0, "after": 0.4, "group": "C4", "dtype": "float64"}, None])
def test_networks_that_are_not_equivariant_themselves_are_not_called_so(error: dict[str, Any] | None) -> None:
    runs = [result("strict", 0, 8.0), result("ace", 0, 6.0)]
    assert "projection back to an exactly equivariant network, is" in conclusion(summarise(runs))
    own = [{**run, "equivariance_error": error} for run in runs]
    assert "projection back to the network as its author made it, is" in conclusion(summarise(own))


def test_what_is_scaled_down_is_told_by_model_where_it_differs() -> None:
    other = of_model(result("strict", 0, 4.0), "egnn")
    other["scaled_down"] = "5 of 64 hidden"
    text = summary_text(summarise([result("strict", 0, 8.0), other]))
    assert "segnn: 10 of 1000 epochs; egnn: 5 of 64 hidden" in text
    other["scaled_down"] = "10 of 1000 epochs; 5 of 64 hidden"
    text = summary_text(summarise([result("strict", 0, 8.0), other]))
    assert "setting: 10 of 1000 epochs; egnn: 5 of 64 hidden." in text


def test_the_sentence_is_about_the_first_model_with_something_to_compare() -> None:
    alone = of_model(result("strict", 0, 4.0), "egnn")
    found = summarise([alone, result("strict", 0, 8.0), result("ace", 0, 6.0)])
    assert "ace segnn: undecided" in conclusion(found)
    assert "nothing to compare" in conclusion(summarise([alone]))


def test_a_group_without_exact_action_has_no_equivariance_error() -> None:
    one = result("strict", 0, 8.0)
    one["equivariance_error"] = None
    assert "| n/a |" in summary_text(summarise([one]))


def test_all_machines_and_numbers_of_threads_are_named() -> None:
    runs = [result("strict", 0, 8.0), result("strict", 1, 8.0), result("ace", 0, 6.0)]
    for run, threads in zip(runs, (2, 1, 1), strict=True):
        run["hardware"] = {**run["hardware"], "cpu": "a core", "threads": threads}
    assert "; a core, 1 or 2 thread(s) a run; torch " in summary_text(summarise(runs))


def test_higher_may_be_better() -> None:
    runs = [accuracy("strict", s, 50.0) for s in (0, 1)] + [accuracy("ace", s, 60.0 + s) for s in (0, 1)]
    runs += [accuracy("resilient", s, 40.0) for s in (0, 1)]
    summary = summarise(runs)
    assert summary["methods"]["ace"]["paired_with_strict"]["wins"] == 2
    assert summary["methods"]["resilient"]["paired_with_strict"]["wins"] == 0
    told = conclusion(summary)
    assert "best relaxed method here, by validation, is ace" in told
    assert "Its test accuracy, after projection back" in told
    assert "10.50 points above that of strict (95 % interval +4.15 to +16.85 points, 2 seeds)" in told
    text = summary_text(summary)
    assert "test accuracy (%)" in text
    assert "| test class accuracy, relaxed | test class accuracy, projected |" in text
    assert "| ace | 59.50 ± 0.71 | 58.50 ± 0.71 | 2 | 3 |" in text


def test_networks_without_residuals_are_not_called_relaxed() -> None:
    runs = [accuracy(name, 0, value) for name, value in (("strict", 50.0), ("equi-tuning", 60.0))]
    for run in runs:
        run["gammas"] = {}
    assert "| **60.00** (as trained) |  |  |  |" in summary_text(summarise(runs))
    told = conclusion(summarise(runs))
    assert told.startswith("The best method here beside strict, by validation, is equi-tuning: undecided")
    assert "Its test accuracy is 10.00 points above" in told


def kept(results: list[dict[str, Any]]) -> Table:
    """The tidy table of results alone."""
    return Table([Run(f"run{index}", one, (), "finished") for index, one in enumerate(results)])


def test_everything_measured_is_in_the_tidy_table() -> None:
    table = kept([averaged(accuracy("ace", seed, 50.0 + seed), 40.0) for seed in (0, 1)])
    assert table.values("ace", "test", "projected") == {0: 50.0, 1: 51.0}
    assert table.values("ace", "test class accuracy", "relaxed") == {0: 49.0, 1: 50.0}
    assert table.values("ace", "averaged test", "projected") == {0: 40.0, 1: 40.0}
    assert table.values("ace", "parameters", "strict") == {0: 100, 1: 100}
    assert table.values("ace", "test", "folded") == {}
    assert table.names("condition ") == ["condition dropout 0.25", "condition dropout 0.5"]
    head, first, *_ = measures_csv([runs for runs in table.rows.values()]).splitlines()
    assert head == "benchmark,row,run,method,model,seed,name,state,value"
    assert first == "nbody,ace,run0,ace,segnn,0,test,relaxed,50.0"


def test_conditions_become_a_table() -> None:
    runs = [accuracy("strict", s, 50.0 + s) for s in (0, 2)] + [accuracy("ace", 0, 60.0)]
    found = tables.levels(kept(runs))
    assert found["dropout"]["strict"][0.25] == pytest.approx((48.5, 2**0.5))
    numbers = tables.conditions(found, runs[0]["metric"])
    assert numbers is not None
    assert numbers.rows[0] == ("dropout 0.25", "48.5 ± 1.4", "57.5 ± 0.0")
    assert [condition(words) for words in ("local density 3", "odd")] == [
        ("local density", 3.0),
        ("odd", 0.0),
    ]
    for run in runs:
        run["metric"] = {"name": "accuracy", "unit": "1"}  # an error: no percentage
        run["conditions"] = {
            "dropout 0.25": {state: {"accuracy": 0.0123} for state in ("relaxed", "projected")}
        }
    numbers = tables.conditions(tables.levels(kept(runs)), runs[0]["metric"])
    assert numbers is not None
    assert numbers.rows[0][1:] == ("0.0123 ± 0.0000", "0.0123 ± 0.0000")


def swept(method: str, rates: tuple[float, ...], values: tuple[float, ...]) -> list[dict[str, Any]]:
    """A run of one seed for every learning rate."""
    pairs = zip(rates, values, strict=True)
    return [changed(result(method, 0, value), learning_rate=rate) for rate, value in pairs]


def test_a_run_is_poor_beyond_a_multiple_of_the_best_of_its_network_on_its_data() -> None:
    best = result("ace", 0, 9.0, relaxed=1.0)  # projected counts: that is what ace hands over
    just, above = result("strict", 0, 9.0 * POOR), result("strict", 1, 9.0 * POOR + 0.01)
    assert poor([best, just, above]) == [False, False, True]
    other_data = changed(above, dataset__train=17)
    other_network = changed(above, network__hidden=8)
    other_model = of_model(above, "egnn")
    assert poor([best, other_data, other_network, other_model]) == [False] * 4
    relaxed = result("resilient", 0, 1000.0, relaxed=9.0)
    assert poor([best, relaxed]) == [False, False]
    assert poor([best, result("strict", 0, math.nan), result("strict", 1, math.inf)]) == [False, True, True]
    assert poor([result("strict", 0, math.nan)]) == [True]
    assert poor([]) == []


def test_a_score_is_poor_below_a_fraction_of_the_best() -> None:
    assert poor([accuracy("strict", 0, 50.0), accuracy("ace", 0, 25.0), accuracy("ace", 1, 24.9)]) == [
        False,
        False,
        True,
    ]


def test_shares_by_method_and_swept_value() -> None:
    rates = (1e-4, 1e-3, 1e-2)
    results = [*swept("strict", rates, (30.0, 10.0, 10.0)), *swept("ace", rates, (9.0, 9.0, 9.0))]
    config = defaults("nbody", "segnn", "ace").updated({"learning_rate": 1e-2, "seed": 1})
    found = shares(results, [of_config(config)])
    assert found == {
        "strict": {ALL: (1, 3), 1e-4: (1, 1), 1e-3: (0, 1), 1e-2: (0, 1)},
        "ace": {ALL: (1, 4), 1e-4: (0, 1), 1e-3: (0, 1), 1e-2: (1, 2)},
    }
    numbers = failures(found)
    assert numbers is not None
    assert numbers.head == ("method", "failed runs", "at 0.0001", "at 0.001", "at 0.01")
    assert list(numbers.rows) == [
        ("strict", "1 of 3 (33%)", "1 of 1", "0 of 1", "0 of 1"),
        ("ace", "1 of 4 (25%)", "0 of 1", "0 of 1", "1 of 2"),
    ]
    text = numbers.markdown() + DEFINITION
    assert "| ace | 1 of 4 (25%) | 0 of 1 | 0 of 1 | 1 of 2 |" in text
    assert f"more than {POOR:g} times that of the best run" in text


def test_the_share_is_a_question_where_something_was_swept_or_a_run_was_lost() -> None:
    far_behind = [result("strict", 0, 5.0), result("ace", 0, 50.0)]
    assert failures(shares(far_behind, [])) is not None
    assert not asks_for_failures(far_behind, [])
    assert asks_for_failures(far_behind, [of_config(defaults("nbody", "segnn", "ace"))])
    assert asks_for_failures(swept("strict", (1e-4, 1e-3, 1e-2), (30.0, 10.0, 10.0)), [])


def test_without_a_failed_run_there_is_no_table() -> None:
    found = shares([result("strict", 0, 5.0), result("ace", 0, 4.0)], [])
    assert found == {"strict": {ALL: (0, 1)}, "ace": {ALL: (0, 1)}}
    assert failures(found) is None
    assert shares([], []) == {}


@pytest.mark.usefixtures("undrawn")
def test_a_comparison_counts_what_ended_without_a_result(make: Make, tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in (make("strict", 0, 5.0), make("ace", 0, 4.0))]
    unfinished = read_run(make("ace", 1, 4.0, finished=False))
    failed = dataclasses.replace(unfinished, status="failed", reason="The loss is nan.")
    text = write_comparison(tmp_path / "out", [*runs, failed])
    written = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    for one in (text, written):
        assert "| ace | 1 of 2 (50%) |" in one
    kept = read_archive(tmp_path / "out").entries
    assert [(entry.status, entry.reason) for entry in kept] == [
        ("finished", ""),
        ("finished", ""),
        ("failed", "The loss is nan."),
    ]
    write_comparison(tmp_path / "out", runs)
    assert "failed" not in (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_comparison_and_page_carry_the_line_and_a_comparison_is_summarised_again(tmp_path: Path) -> None:
    out = tmp_path / "results"
    runs = [result("strict", 0, 5.0), result("ace", 0, 4.0)]
    write_comparison(out, [read_run(folder) for folder in written(out, *runs)])
    before = (out / "summary.md").read_text()
    assert marked_line(runs) in before
    assert comparisons([tmp_path]) == [out]
    summarise_again(out)
    assert (out / "summary.md").read_text() == before
    written(out, changed(result("strict", 0, 4.5), learning_rate=9e-4))
    summarise_again(out)
    after = (out / "summary.md").read_text()
    assert [line.split(" | ")[0] for line in after.splitlines() if line.startswith("| ")][2:5] == [
        "| strict learning_rate=0.0005",
        "| strict learning_rate=0.0009",
        "| ace",
    ]


@pytest.mark.usefixtures("undrawn")
def test_a_damaged_run_is_named_and_the_others_are_compared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no comparison"):
        comparisons([tmp_path])
    out = tmp_path / "results"
    first, second, third = written(
        out, result("strict", 0, 5.0), result("ace", 0, 4.0), result("resilient", 0, 3.0)
    )
    write_comparison(out, [read_run(first), read_run(second)])
    for damaged in (second, third):
        (damaged / "result.json").write_text("{}")
    summarise_again(out)
    text = (out / "summary.md").read_text()
    assert "| ace | **4.00**" in text  # as the archive has it
    assert "| resilient |" not in text
    left_out = [line for line in text.splitlines() if line.startswith("**Left out**")]
    assert [name in line for name, line in zip((second.name, third.name), left_out, strict=True)] == [
        True
    ] * 2
    assert str(tmp_path) not in text
    (first / "result.json").write_text("{}")
    (out / "runs.json.gz").unlink()
    with pytest.raises(ConfigError, match=first.name):
        summarise_again(out)


@pytest.mark.usefixtures("undrawn")
def test_a_damaged_run_of_a_study_is_named_and_the_others_are_compared(make: Make, tmp_path: Path) -> None:
    folders = [make(method, 0, 5.0) for method in ("strict", "ace", "resilient")]
    (folders[1] / "result.json").write_text('{"benchmark": ')
    grid = Grid(
        name="", benchmark="nbody", models=("segnn",), methods=("strict", "ace", "resilient"), seeds=(0,)
    )
    about = Study(name="", title="a comparison", grids=(grid,))
    runs = [
        Trial(one.name, "", one.name, config_from_dict(read_yaml(one / "config.yaml")), one, "finished")
        for one in folders
    ]
    text = compare_grids(about, runs, folders[0].parent)
    assert "| resilient |" in text
    assert "**Left out**: ace-seed0/result.json" in text
    nothing = compare_grids(about, runs[1:2], tmp_path / "out")
    assert "ace-seed0/result.json" in nothing


@pytest.mark.usefixtures("undrawn")
def test_a_damaged_archive_is_not_written_over(tmp_path: Path) -> None:
    write_comparison(tmp_path, [read_run(folder) for folder in written(tmp_path, result("strict", 0, 5.0))])
    (tmp_path / "runs.json.gz").write_bytes(b"{}")
    with pytest.raises(ConfigError, match=r"runs\.json\.gz"):
        summarise_again(tmp_path)
    assert (tmp_path / "runs.json.gz").read_bytes() == b"{}"


def test_methods_stand_in_one_order_whatever_that_of_the_runs(tmp_path: Path) -> None:
    runs = [result(method, 0, 5.0) for method in ("ace", "strict-muon", "resilient", "strict", "scheduled")]
    assert list(summarise(runs)["methods"]) == ["strict", "strict-muon", "scheduled", "ace", "resilient"]
    swept_runs = [changed(run, learning_rate=rate) for rate in (3e-3, 1e-3, 2e-3) for run in runs[3::-3]]
    assert list(summarise(swept_runs)["methods"]) == [
        f"{method} learning_rate={rate}" for method in ("strict", "ace") for rate in (0.001, 0.002, 0.003)
    ]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.parent.name in ("nbody", "compare") else pytest.mark.slow)
        for path in sorted(RESULTS.rglob("runs.json.gz"))
    ],
    ids=lambda path: str(path.parent.relative_to(RESULTS)),
)
def test_committed_comparisons_say_what_their_results_say(path: Path) -> None:
    results = [run.result for run in read_folder(path.parent)[0] if run.finished]
    summary = path.parent / "summary.md"
    if not results:
        assert not summary.exists(), "no run is finished"
        return
    text = summary.read_text(encoding="utf-8")
    assert summary_text(summarise(results)) in text, "equirelax summarise lab/results"
    assert text.rstrip().endswith(conclusion(summarise(results)))


def written(tmp_path: Path, *runs: dict[str, Any]) -> list[Path]:
    """Folders of runs as `equirelax compare` leaves them."""
    folders = []
    for run in runs:
        folder = tmp_path / f"{run['method']}-rate{run['config']['learning_rate']}-seed{run['seed']}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(run))
        rows = [f"{epoch},{5.0 - epoch / 10}" for epoch in range(run["epochs"])]
        (folder / "metrics.csv").write_text("\n".join(["epoch,val/projected", *rows, ""]))
        folders.append(folder)
    return folders


def test_holms_correction() -> None:
    """By hand: 4 x 0.01, then 3 x 0.015 (above 0.04), 2 x 0.02 (raised to the one before it), 0.9 as it is."""
    found = holm({"a": 0.02, "b": 0.01, "c": 0.9, "d": 0.015})
    assert found == pytest.approx({"b": 0.04, "d": 0.045, "a": 0.045, "c": 0.9})
    assert holm({"one": 0.03}) == {"one": 0.03}
    assert holm({"a": 0.7, "b": 0.6}) == {"b": 1.0, "a": 1.0}
    assert holm({}) == {}


def test_the_strengths_of_a_method_are_the_worst_over_its_seeds() -> None:
    rows = [
        {"epoch": str(e), "gamma/a": str(1 + e / 1000), "multiplier/a": str(2 + e / 1000)} for e in range(20)
    ]
    runs: list[dict[str, Any]] = [{**result("ace", seed, 4.0), "dynamics": dynamics(rows)} for seed in (0, 1)]
    runs[1] = copy.deepcopy(runs[1])
    runs[1]["dynamics"]["max_abs_gamma"]["end"] = 7.0
    found = strengths_of(runs)
    assert found is not None
    assert found["max_abs_gamma"]["end"] == 7.0
    assert found["multiplier_drift"]["swing"] == pytest.approx(0.002)
    assert "| ace | 1.02 | 7 | 0.002 | " in summary_text(summarise(runs))
    assert found["lag"] == []
    for run, lag in zip(runs, (12, None), strict=True):
        run["lag"] = lag
    assert "| ace | 1.02 | 7 | 0.002 | 0.1% | 12, never |" in summary_text(summarise(runs))
    assert strengths_of([{}, {"dynamics": None}]) is None
    assert tables.strengths(summarise([result("strict", 0, 5.0)])) is None
