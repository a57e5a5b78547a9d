"""Estimates of a study's time: the timed work is that of runs, and the rest is computed from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.studies import estimate
from equirelax_lab.studies.estimate import Cost, measure, overall
from equirelax_lab.studies.study import read_study
from equirelax_lab.studies.trials import trials
from equirelax_lab.training.progress import duration

from equirelax.errors import ConfigError


@pytest.mark.parametrize(
    "method",
    ["strict", "ace", *(pytest.param(name, marks=pytest.mark.slow) for name in ("scheduled", "remul"))],
)
def test_a_run_of_every_kind_is_timed(method: str, tiny_config: Callable[..., Any], tiny_root: Path) -> None:
    cost = measure(tiny_config(method), tiny_root)
    assert min(cost.start, cost.epoch, cost.validation, cost.test) > 0
    assert cost.forms == (1 if method == "strict" else 2)


def test_steps_are_as_many_as_the_budget_allows(
    tiny_config: Callable[..., Any], tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    original = estimate.Objective.forward

    def counting(self: Any, batch: Any, index: int, step: int) -> Any:
        counted.append(index)
        return original(self, batch, index, step)

    monkeypatch.setattr(estimate.Objective, "forward", counting)
    config = tiny_config("strict", batch_size=4)  # 12 steps an epoch
    measure(config, tiny_root)
    assert len(counted) == 12
    counted.clear()
    measure(config, tiny_root, budget=0.0)
    assert len(counted) == estimate.LEAST_STEPS + 1


def test_what_is_done_is_not_counted(tiny_config: Callable[..., Any]) -> None:
    cost = Cost(start=5.0, epoch=2.0, validation=1.0, test=3.0, forms=1)
    config = tiny_config("strict", epochs=10, validate_every=5)
    assert cost.seconds(config) == 5 + 10 * 2 + 2 * 1 + (1 + 3)
    assert cost.seconds(config, done=9) == 5 + 2 + 1 + 4
    assert Cost(5.0, 2.0, 1.0, 3.0, forms=2).seconds(config) == 5 + 20 + 2 * 2 + 3 * 4


def test_runs_side_by_side() -> None:
    assert overall([], 2) == 0
    assert overall([3, 3, 3], 1) == 9
    assert overall([3, 3, 3], 2) == 6
    assert overall([1, 1, 4], 2) == 5
    assert overall([1, 5], 9) == 5


def test_a_forecast_takes_finished_runs_and_times_the_other_kinds_once(
    study_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_study(study_file(seeds=3, settings={"epochs": 60}))
    found = trials(study, tmp_path)
    timed: list[str] = []

    def timing(config: Any, *rest: Any) -> Cost:
        timed.append(config.method)
        return Cost(0.0, 30.0, 0.0, 0.0, 1)

    monkeypatch.setattr(estimate, "measure", timing)
    strict = next(trial for trial in found if trial.kind == "strict")
    strict.status = "finished"
    strict.folder.mkdir()
    (strict.folder / "metrics.csv").write_text("epoch,seconds\n59,3600.0\n")
    # two strict runs of an hour, three scheduled ones of half an hour
    assert estimate.forecast(found, study, 1, "here").startswith("About 3 h 30 min here")
    assert timed == ["scheduled"]

    def fails(config: Any, *rest: Any) -> Cost:
        if config.method == "scheduled":
            raise ConfigError("no such layer")
        return timing(config)

    monkeypatch.setattr(estimate, "measure", fails)
    assert estimate.forecast(found, study, 1, "here").startswith("About 5 h 0 min here")  # as the strict runs
    monkeypatch.setattr(estimate, "measure", timing)
    monkeypatch.setattr(estimate, "QUICK", 0.0)
    strict.status = "waiting"
    assert (
        estimate.forecast(found, study, 1, "here") == ""
    )  # nothing is known, and there is no time to time anything
    on_gpu = dataclasses.replace(study, machine=dataclasses.replace(study.machine, accelerator="gpu"))
    monkeypatch.setattr(estimate, "QUICK", 10.0)
    assert estimate.forecast(found, on_gpu, 1, "here") == ""
    few = read_study(study_file(seeds=1, settings={"epochs": 9}))
    assert estimate.forecast(trials(few, tmp_path / "few"), few, 1, "here") == ""
    assert timed == ["scheduled"]


def test_the_table_sums_up(study_file: Callable[..., Path], tmp_path: Path) -> None:
    study = read_study(study_file(seeds=3, settings={"epochs": 60}))
    found = trials(study, tmp_path)
    costs = {("tiny", kind): Cost(0.0, 60.0, 0.0, 0.0, 1) for kind in ("strict", "scheduled")}
    found[0].status = "finished"
    text = estimate.text(found, costs, study, jobs=2, threads=1)
    assert "5 of 6 runs are left. They take about 3 h 0 min here, 2 at a time with 1 thread each." in text
    lines = {line.split()[1]: line.split()[2:] for line in text.splitlines()[1:3]}
    assert lines["strict"] == ["2", "60.00", "s", "1", "h", "0", "min", "2", "h", "0", "min"]
    assert lines["scheduled"][0] == "3"


def test_processes_share_batches_and_validation(
    tiny_config: Callable[..., Any], tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = estimate._evaluation_seconds

    def evaluated(assembly: Any, data: Any) -> float:
        sizes.append(len(data))
        return original(assembly, data)

    made: list[tuple[int, int]] = []

    class Loader(estimate.EpochLoader):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append((self.world, len(self)))

    monkeypatch.setattr(estimate, "_evaluation_seconds", evaluated)
    monkeypatch.setattr(estimate, "EpochLoader", Loader)
    measure(tiny_config("scheduled"), tiny_root, devices=2)
    assert sizes == [12, 24]  # of 24 validation samples half; one process alone tests
    assert made == [(2, 3)]


def test_the_table_knows_processes_timeout_and_place(study_file: Callable[..., Path], tmp_path: Path) -> None:
    path = study_file(seeds=2, settings={"epochs": 60}, devices=4, timeout="4000 s")
    study = read_study(path)
    found = trials(study, tmp_path)
    costs = {
        ("tiny", "strict"): Cost(0.0, 60.0, 0.0, 0.0, 1),
        ("tiny", "scheduled"): Cost(0.0, 70.0, 0.0, 0.0, 1),
    }
    text = estimate.text(found, costs, study, 2, 1, "elsewhere")
    assert "They take about 2 h 20 min elsewhere, 2 at a time with 4 processes of 1 thread each." in text
    assert text.endswith("Longer than the study's timeout, 1 h 7 min: scheduled. Raise it.")
    assert "timeout" not in estimate.text(found, costs, dataclasses.replace(study, timeout=4300.0), 2, 1)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (3570, "1 h 0 min"),
        (12000, "3 h 20 min"),
        (187200, "2 d 4 h"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
