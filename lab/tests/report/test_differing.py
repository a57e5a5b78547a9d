"""Tables, sentences and pages say in which settings their rows differ besides the method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.report.comparison import compare_folders, comparisons, summarise_again
from equirelax_lab.report.conclusion import ENOUGH_SEEDS, NOTHING, conclusion
from equirelax_lab.report.page import chapter_html
from equirelax_lab.report.rows import (
    TITLE,
    differing_line,
    marked_line,
    recipes_line,
    settings_that_differ,
)
from equirelax_lab.report.runs import gather, read_folder
from equirelax_lab.report.summary import summarise, table
from equirelax_lab.tasks.registry import defaults
from test_report import result
from test_variants import changed, of_model

from equirelax.errors import ConfigError

RESULTS = Path(__file__).parents[2] / "results"
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


ALIKE: dict[str, Any] = {
    "learning_rate": 1e-3, "epochs": 1000, "weight_decay": 0.0, "augment": True, "drop_last": False,
}  # fmt: skip


def alike(method: str, seed: int, value: float, **settings: Any) -> dict[str, Any]:
    """A result with the training settings of all others; those that the methods were published with differ."""
    return changed(result(method, seed, value), **{**ALIKE, **settings})


@pytest.mark.parametrize(("key", "words", "value"), [(key, *own) for key, own in CHANGES.items()])
def test_no_table_hides_a_setting_in_which_its_rows_differ(key: str, words: str, value: Any) -> None:
    runs = [alike("strict", 0, 5.0), alike("ace", 0, 4.0, **{key: value})]
    line = differing_line(runs)
    shown = {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    assert line.startswith(f"{TITLE}: ")
    assert words in line
    assert f"{shown} (ace)" in line
    assert marked_line(runs) in table(summarise(runs))
    assert settings_that_differ(runs)[key.replace("__", ".")]["ace"] == value
    assert f"{words} {shown} instead of " in conclusion(summarise(runs))


def test_the_published_rates_of_strict_and_ace_differ_and_that_is_said() -> None:
    runs = [result("strict", 0, 5.0), result("scheduled", 0, 5.0), result("ace", 0, 4.0)]
    assert differing_line(runs) == (
        f"{TITLE}: epochs 1000 (strict, scheduled), 2000 (ace); learning rate 0.0005 (strict, scheduled), 0.0009 (ace); "
        "weight decay 1e-12 (strict, scheduled), 0.0 (ace); augment yes (strict, scheduled), no (ace); "
        "drop last no (strict, scheduled), yes (ace)."
    )
    assert "learning rate 0.0009 instead of 0.0005" in conclusion(summarise(runs))


def test_rows_of_a_matched_comparison_differ_in_nothing_else_and_name_their_recipes() -> None:
    ace = result("ace", 0, 4.0)
    fair = {"config": defaults("nbody", "segnn", "strict", "fair", "ace").to_dict()}
    published = {"config": defaults("nbody", "segnn", "ace").to_dict()}
    runs = [{**result("strict", 0, 5.0), **fair}, {**ace, **published}]
    assert differing_line(runs) == f"{TITLE}: none."
    assert recipes_line(runs) == "Recipes: fair, trained as ace (strict); published (ace)."
    assert recipes_line(runs) in table(summarise(runs))
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
    assert "excludes zero (6 seeds)" in enough
    assert "not shown" not in enough
    assert "not shown: 5 seeds are fewer than 6" in pair(5)
    other = pair(6, learning_rate=9e-4)
    assert "not shown: it was trained with learning rate 0.0009 instead of 0.001" in other
    # the optimiser is what strict-muon is; it is named, and does not stand against it
    assert "optimizer sgd instead of adam" in pair(6, optimizer="sgd")
    assert "not shown" not in pair(6, optimizer="sgd")


def test_a_rate_that_both_could_choose_does_not_stand_against_a_method() -> None:
    values = {("strict", 9e-4): 5.0, ("strict", 5e-4): 6.0, ("ace", 9e-4): 4.5, ("ace", 5e-4): 4.0}
    runs = [
        alike(method, s, value + s / 100 * (method == "ace"), learning_rate=rate)
        for (method, rate), value in values.items()
        for s in range(6)
    ]
    sentence = conclusion(summarise(runs))
    assert "below strict learning_rate=0.0009" in sentence
    assert "learning rate 0.0005 instead of 0.0009" in sentence
    assert "not shown" not in sentence
    fewer = [r for r in runs if (r["method"], r["config"]["learning_rate"]) != ("strict", 5e-4)]
    assert "not shown" in conclusion(summarise(fewer))


def test_a_method_is_compared_with_the_strict_row_that_validation_prefers() -> None:
    runs = [
        *(alike("strict", s, 9.0, learning_rate=5e-4) for s in range(2)),
        *(alike("strict", s, 8.0 + s / 10, learning_rate=9e-4) for s in range(2)),
        *(alike("strict-muon", s, 7.2, learning_rate=5e-4) for s in range(2)),
    ]
    rows = summarise(runs)["methods"]
    assert rows["strict-muon"]["compared_with"] == "strict learning_rate=0.0005"
    sentence = conclusion(summarise(runs))
    assert "11% below strict learning_rate=0.0009" in sentence
    assert "optimizer muon instead of adam" in sentence
    assert "learning rate 0.0005 instead of 0.0009" in sentence
    assert "row that shares the most settings" in table(summarise(runs))


def test_the_setting_of_a_method_is_chosen_by_validation_not_by_the_test() -> None:
    lucky = alike("ace", 0, 3.0, learning_rate=9e-4)
    lucky["val"] = {kind: 9.0 for kind in lucky["val"]}
    runs = [alike("strict", 0, 5.0), alike("ace", 0, 4.0), lucky]
    assert "here is ace learning_rate=0.001:" in conclusion(summarise(runs))
    assert conclusion(summarise([lucky])) == NOTHING


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


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of the time, and have tests of their own."""
    monkeypatch.setattr("equirelax_lab.report.comparison.draw", lambda *_: None)
    monkeypatch.setattr("equirelax_lab.report.comparison.draw_swept", lambda *_: None)


@pytest.mark.usefixtures("without_pictures")
def test_comparison_and_page_carry_the_line_and_a_comparison_is_summarised_again(tmp_path: Path) -> None:
    out = tmp_path / "results"
    runs = [result("strict", 0, 5.0), result("ace", 0, 4.0)]
    compare_folders(out, written(out, *runs))
    before = (out / "summary.md").read_text()
    assert marked_line(runs) in before
    (chapter,) = gather([out])
    assert "learning rate 0.0005 (strict), 0.0009 (ace)" in chapter_html(chapter, "c0")
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


@pytest.mark.usefixtures("without_pictures")
def test_what_cannot_be_summarised_again_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no comparison"):
        comparisons([tmp_path])
    out = tmp_path / "results"
    first, second = written(out, result("strict", 0, 5.0), result("ace", 0, 4.0))
    compare_folders(out, [first, second])
    (second / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match=second.name):
        summarise_again(out)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.parent.name in ("nbody", "demo") else pytest.mark.slow)
        for path in sorted(RESULTS.rglob("runs.json.gz"))
    ],
    ids=lambda path: str(path.parent.relative_to(RESULTS)),
)
def test_committed_comparisons_say_what_their_results_say(path: Path) -> None:
    results = [run.result for run in read_folder(path.parent)[0] if run.finished]
    text = (path.parent / "summary.md").read_text(encoding="utf-8")
    assert table(summarise(results)) in text, "equirelax summarise lab/results"
    assert text.rstrip().endswith(conclusion(summarise(results)))
