"""The rows of a table: told apart by their settings, compared with the right strict row, and said to differ where they do."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from equirelax_lab.report.conclusion import ENOUGH_SEEDS, NOTHING, conclusion
from equirelax_lab.report.rows import (
    TITLE,
    baseline_row,
    by_label,
    differing_line,
    labels,
    marked_line,
    recipes_line,
    settings_that_differ,
    swept_curves,
    swept_setting,
)
from equirelax_lab.report.summary import summarise
from equirelax_lab.report.tables import summary_text
from equirelax_lab.tasks.registry import defaults
from made import alike, changed, of_model, result


def test_what_differs_within_a_method_is_in_its_label() -> None:
    scheduled = [
        changed(result("scheduled", seed, 1.0), strength__lie_weight=w, strength__norm_weight=w)
        for seed in (0, 1)
        for w in (0.0, 0.1)
    ]
    found = labels([result("strict", 0, 1.0), result("strict", 1, 1.0), *scheduled])
    assert found[:2] == ["strict", "strict"]
    assert found[2:] == ["scheduled lie_weight=norm_weight=0.0", "scheduled lie_weight=norm_weight=0.1"] * 2


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
        f"strict validate_every={v} epochs={e} train={n}" for e, v, n in ((900, 9, 100), (300, 3, 300))
    ]
    broken = [*results, changed(results[0], epochs=7)]
    assert swept_setting(broken) is None
    assert sorted(labels(broken)[0].split()) == ["epochs=900", "strict", "train=100"]
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


CHANGES: dict[str, tuple[str, Any]] = {
    "learning_rate": ("learning rate", 0.003),
    "optimizer": ("optimizer", "sgd"),
    "epochs": ("epochs", 77),
    "batch_size": ("batch size", 7),
    "augment": ("augment", False),
    "dataset__train": ("data train", 77),
    "schedule": ("schedule", "cosine"),
    "weight_decay": ("weight decay", 0.5),
}


@pytest.mark.parametrize(("key", "words", "value"), [(key, *own) for key, own in CHANGES.items()])
def test_no_table_hides_a_setting_in_which_its_rows_differ(key: str, words: str, value: Any) -> None:
    runs = [alike("strict", 0, 5.0), alike("ace", 0, 4.0, **{key: value})]
    line = differing_line(runs)
    shown = {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    assert line.startswith(f"{TITLE}: ")
    assert words in line
    assert f"{shown} (ace)" in line
    assert marked_line(runs) in summary_text(summarise(runs))
    assert settings_that_differ(runs)[key.replace("__", ".")]["ace"] == value
    if key.startswith("dataset"):  # errors on other data are not compared at all
        assert summarise(runs)["methods"]["ace"]["paired_with_strict"] is None
    else:
        assert f"{words} {shown} instead of " in conclusion(summarise(runs))


def test_the_published_rates_of_strict_and_ace_differ_and_that_is_said() -> None:
    runs = [result("strict", 0, 5.0), result("scheduled", 0, 5.0), result("ace", 0, 4.0)]
    said, _, parts = differing_line(runs).rstrip(".").partition(": ")
    assert said == TITLE
    assert set(parts.split("; ")) == {
        "epochs 1000 (strict, scheduled), 2000 (ace)",
        "learning rate 0.0005 (strict, scheduled), 0.0009 (ace)",
        "weight decay 1e-12 (strict, scheduled), 0 (ace)",
        "augment yes (strict, scheduled), no (ace)",
        "drop last no (strict, scheduled), yes (ace)",
    }
    assert "learning rate 0.0009 instead of 0.0005" in conclusion(summarise(runs))


def test_rows_of_a_matched_comparison_differ_in_nothing_else_and_name_their_recipes() -> None:
    ace = result("ace", 0, 4.0)
    fair = {"config": defaults("nbody", "segnn", "strict", "fair", "ace").to_dict()}
    published = {"config": defaults("nbody", "segnn", "ace").to_dict()}
    runs = [{**result("strict", 0, 5.0), **fair}, {**ace, **published}]
    assert differing_line(runs) == f"{TITLE}: none."
    assert recipes_line(runs) == "Recipes: fair, trained as ace (strict); published (ace)."
    assert recipes_line(runs) in summary_text(summarise(runs))
    before = {key: value for key, value in published["config"].items() if key not in ("recipe", "trained_as")}
    assert recipes_line([{**ace, "config": before}]) == "Recipe: 0.1 settings."


def test_rows_that_share_everything_say_so() -> None:
    runs = [alike("strict", 0, 5.0), alike("ace", 0, 4.0)]
    assert differing_line(runs) == f"{TITLE}: none."
    assert settings_that_differ(runs) == {}


def test_rows_of_other_seeds_say_so() -> None:
    runs = [*(alike("strict", s, 5.0) for s in range(3)), *(alike("ace", s, 4.0) for s in (0, 2))]
    assert differing_line(runs) == f"{TITLE}: seeds 0 to 2 (strict), 0 and 2 (ace)."


def test_settings_that_do_nothing_in_a_run_are_left_out() -> None:
    runs = [alike("strict", 0, 5.0), alike("ace", 0, 4.0, muon_rms=3.0, momentum=0.5, step_factor=0.1)]
    assert differing_line(runs) == f"{TITLE}: none."


def test_rows_are_named_in_few_words() -> None:
    runs = [
        alike(method, 0, 5.0, dataset__train=train, epochs=epochs, learning_rate=rate)
        for method, rate in (("strict", 5e-4), ("strict", 9e-4), ("ace", 9e-4))
        for train, epochs in ((100, 90), (300, 30), (900, 10))
    ]
    line = differing_line(runs)
    assert (
        "learning rate 0.0005 (strict learning_rate=0.0005), 0.0009 (strict learning_rate=0.0009, ace)"
        in line
    )
    assert "epochs 90 (train=100), 30 (train=300), 10 (train=900)" in line
    assert "data train as the rows' names say" in line


def test_of_many_rows_the_largest_group_is_all_others() -> None:
    runs = [alike("strict", 0, 5.0, dataset__train=100 * n) for n in range(1, 14)]
    runs += [alike("strict", 1, 5.0, dataset__train=1300)]
    assert "seeds 0 (all other rows), 0 and 1 (train=1300)" in differing_line(runs)


def test_networks_of_several_models_are_not_compared() -> None:
    runs = [alike("strict", 0, 5.0), of_model(alike("strict", 0, 4.0), "egnn")]
    assert not any(key.startswith("network.") for key in settings_that_differ(runs))
    wider = [alike("strict", 0, 5.0), alike("ace", 0, 5.0, network__hidden=3)]
    assert set(settings_that_differ(wider)) == {"network.hidden"}


def pair(seeds: int, **of_ace: Any) -> str:
    """The sentence where ace is clearly better on `seeds` seeds."""
    runs = [alike("strict", s, 5.0 + s / 100) for s in range(seeds)]
    runs += [alike("ace", s, 4.0, **of_ace) for s in range(seeds)]
    return conclusion(summarise(runs))


def test_that_a_method_helps_takes_six_seeds_and_the_same_settings() -> None:
    assert ENOUGH_SEEDS == 6
    enough = pair(6)
    assert "ace: better than strict." in enough
    assert "undecided against strict, because 5 seeds are fewer than 6" in pair(5)
    other = pair(6, learning_rate=9e-4)
    assert "undecided" in other
    assert "trained with learning rate 0.0009 instead of 0.001" in other
    # the optimiser is what strict-muon is; it is named, and does not stand against it
    assert "optimizer sgd instead of adam" in pair(6, optimizer="sgd")
    assert "better" in pair(6, optimizer="sgd")


def test_a_rate_that_both_could_choose_does_not_stand_against_a_method() -> None:
    values = {("strict", 9e-4): 5.0, ("strict", 5e-4): 6.0, ("ace", 9e-4): 4.5, ("ace", 5e-4): 4.0}
    runs = [
        alike(method, s, value + s / 100 * (method == "ace"), learning_rate=rate)
        for (method, rate), value in values.items()
        for s in range(6)
    ]
    sentence = conclusion(summarise(runs))
    assert "better than strict learning_rate=0.0009" in sentence
    assert "learning rate 0.0005 instead of 0.0009" in sentence
    fewer = [r for r in runs if (r["method"], r["config"]["learning_rate"]) != ("strict", 5e-4)]
    assert "undecided" in conclusion(summarise(fewer))


def test_a_method_is_compared_with_the_strict_row_that_validation_prefers() -> None:
    runs = [
        *(alike("strict", s, 9.0, learning_rate=5e-4) for s in range(2)),
        *(alike("strict", s, 8.0 + s / 10, learning_rate=9e-4) for s in range(2)),
        *(alike("strict-muon", s, 7.2, learning_rate=5e-4) for s in range(2)),
    ]
    rows = summarise(runs)["methods"]
    assert rows["strict-muon"]["compared_with"] == "strict learning_rate=0.0005"
    sentence = conclusion(summarise(runs))
    assert "11 % below that of strict learning_rate=0.0009" in sentence
    assert "optimizer muon instead of adam" in sentence
    assert "learning rate 0.0005 instead of 0.0009" in sentence
    assert "row that shares the most settings" in summary_text(summarise(runs))


def test_the_setting_of_a_method_is_chosen_by_validation_not_by_the_test() -> None:
    lucky = alike("ace", 0, 3.0, learning_rate=9e-4)
    lucky["val"] = {kind: 9.0 for kind in lucky["val"]}
    runs = [alike("strict", 0, 5.0), alike("ace", 0, 4.0), lucky]
    assert "by validation, is ace learning_rate=0.001:" in conclusion(summarise(runs))
    assert conclusion(summarise([lucky])) == NOTHING


def test_the_best_method_is_chosen_by_validation_not_by_the_test() -> None:
    lucky = [alike("ace", seed, 3.0 + seed / 100) for seed in range(6)]
    for run in lucky:
        run["val"] = {kind: 9.0 for kind in run["val"]}
    runs = [
        *(alike("strict", seed, 5.0) for seed in range(6)),
        *(alike("scheduled", seed, 4.0 + seed / 100) for seed in range(6)),
        *lucky,
    ]
    assert "by validation, is scheduled: better than strict" in conclusion(summarise(runs))


def test_a_difference_counts_after_the_correction_for_all_methods() -> None:
    strict = [alike("strict", seed, 5.0) for seed in range(6)]
    errors = [4.9, 4.5, 4.2, 4.95, 4.4, 4.9]  # p is 0.037 alone
    best = [alike("scheduled", seed, errors[seed]) for seed in range(6)]
    assert "better than strict" in conclusion(summarise([*strict, *best]))
    worse = [alike(name, seed, 2.5 + 6 * (seed % 2)) for name in ("ace", "ace-pi") for seed in range(6)]
    sentence = conclusion(summarise([*strict, *best, *worse]))
    assert "by validation, is scheduled: undecided" in sentence
    assert "one of 3" in sentence


def test_failed_runs_of_the_two_rows_leave_it_undecided() -> None:
    runs = [
        alike(name, s, value + s / 100) for name, value in (("strict", 5.0), ("ace", 4.0)) for s in range(6)
    ]
    of_ace, of_another = alike("ace", 6, 0.0), alike("ace", 6, 0.0, learning_rate=0.5)
    assert "better than strict" in conclusion(summarise(runs), [of_another])
    assert "undecided against strict, because 1 " in conclusion(summarise(runs), [of_ace])


def test_settings_that_only_a_method_has_are_part_of_it() -> None:
    runs = [
        *(alike("strict", seed, 5.0) for seed in range(6)),
        *(alike("ace", seed, 4.0 + seed / 100, residual_rate=0.1) for seed in range(6)),
    ]
    assert "better than strict" in conclusion(summarise(runs))


def test_a_strict_row_that_is_no_number_makes_no_method_the_best() -> None:
    runs = [alike("strict", 0, 5.0), alike("ace", 0, 4.0)]
    others = [alike("strict", 0, 5.0, dataset__train=77), alike("scheduled", 0, 4.9, dataset__train=77)]
    others[0]["val"] = {kind: math.nan for kind in others[0]["val"]}
    assert "by validation, is ace" in conclusion(summarise([*runs, *others]))


def test_the_method_that_is_ahead_by_the_larger_share_is_the_best() -> None:
    runs = [alike("strict", 0, 1.0), alike("ace", 0, 0.9)]
    others = [alike("strict", 0, 0.1, dataset__train=77), alike("scheduled", 0, 0.06, dataset__train=77)]
    assert "by validation, is scheduled" in conclusion(summarise([*runs, *others]))


def test_a_key_that_an_earlier_version_lacked_does_not_part_its_runs_from_later_ones() -> None:
    runs = [alike("strict", 0, 5.0), alike("ace", 0, 4.0)]
    del runs[0]["config"]["dataset"]["draw"]
    assert summarise(runs)["methods"]["ace"]["compared_with"] == "strict"
