"""A stack of whole runs leaves what single runs leave; members go on, fail and are refused one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.tasks.nbody import NBodyTask
from equirelax_lab.training import stack_memory, stacked_run
from equirelax_lab.training.epoch_end import EpochEnd
from equirelax_lab.training.folder import BEST, BEST_AVERAGE, CONFIG, LAST, METRICS, RESULT, read_table
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.run import train
from equirelax_lab.training.stack import StackError
from equirelax_lab.training.stack_memory import USABLE, StackMemory
from equirelax_lab.training.stacked_loop import StackedLoop
from equirelax_lab.training.stacked_run import MEASURED, StackedRun, train_stack
from equirelax_lab.training.stopping import StopRequest

from equirelax.relaxation import read

QUIET = Machine(progress=False, tensorboard=False)
Config = Callable[..., Any]
OWN = ("seconds", "stacked", "inference")
"""Keys of a result that tell of the machine and not of the run."""


def stack_of(config: Any, folder: Path, seeds: tuple[int, ...] = (0, 1)) -> list[StackedRun]:
    """Runs of some seeds in folders named by them."""
    return [StackedRun(config.updated({"seed": seed}), folder / str(seed)) for seed in seeds]


def stop_after(epochs: int, patch: pytest.MonkeyPatch) -> None:
    """End stacks after so many epochs, as if Ctrl-C had been pressed in the last."""
    request, epoch = StopRequest(), StackedLoop.epoch

    def interrupted(loop: StackedLoop) -> list[dict[str, float]]:
        request.made = loop.completed + 1 == epochs
        return epoch(loop)

    patch.setattr(StackedLoop, "epoch", interrupted)
    patch.setattr(stacked_run, "graceful_interrupt", lambda: nullcontext(request))


def assert_alike(found: Any, expected: Any, where: str = "") -> None:
    """The same keys and words; numbers to the rounding of float32."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected.keys() - {*OWN}:
            assert_alike(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, (own, other) in enumerate(zip(found, expected, strict=True)):
            assert_alike(own, other, f"{where}[{index}]")
    elif isinstance(expected, torch.Tensor):
        assert found.untyped_storage().nbytes() == found.nbytes, where  # no part of the stack's memory
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=lambda text: f"{where}: {text}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=2e-3, abs=1e-5, nan_ok=True), where
    else:
        assert found == expected, where


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [
        {key: float(value) for key, value in row.items() if key != "seconds" and value}
        for row in read_table(folder / METRICS)
    ]


def assert_same_run(found: Path, expected: Path) -> None:
    """Every file of two runs."""
    names = {path.name for path in expected.iterdir()}
    assert {path.name for path in found.iterdir()} == names
    assert (found / CONFIG).read_text() == (expected / CONFIG).read_text()
    assert_alike(rows_of(found), rows_of(expected))
    for name in names & {BEST, BEST_AVERAGE, LAST}:
        assert_alike(read(found / name), read(expected / name), name)
    result, other = (json.loads((folder / RESULT).read_text()) for folder in (found, expected))
    assert result.pop("stacked") == 2
    assert_alike(result, other)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, marks=pytest.mark.slow)
        for method in ("strict", "ace", "scheduled", "resilient", "swing")
    ],
)
def test_every_file_is_that_of_a_single_run(
    method: str, tiny_root: Path, tiny_config: Config, tmp_path: Path
) -> None:
    changes = {"strength": {"period": 8}} if method == "swing" else {}
    config = tiny_config(method, audit_every=1, ema=0.9, gradient_clip=0.1, checkpoint_every=2, **changes)
    runs = stack_of(config, tmp_path / "stack")
    assert train_stack(runs, tiny_root, machine=QUIET)
    for run in runs:
        alone = tmp_path / "alone" / run.folder.name
        train(run.config, alone, tiny_root, machine=QUIET)
        assert_same_run(run.folder, alone)


@pytest.mark.slow
@pytest.mark.parametrize("together", [True, False])
def test_an_interrupted_stack_goes_on(
    together: bool, tiny_root: Path, tiny_config: Config, tmp_path: Path
) -> None:
    """Together again, or every run alone."""
    config = tiny_config("ace", ema=0.9)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(2, patch)
        runs = stack_of(config, tmp_path / "stack")
        assert not train_stack(runs, tiny_root, machine=QUIET)
    assert all(run.open for run in runs)
    if together:
        assert train_stack(runs, tiny_root, machine=QUIET)
    for run in runs:
        alone = tmp_path / "alone" / run.folder.name
        train(run.config, alone, tiny_root, machine=QUIET)
        if not together:
            train(run.config, run.folder, tiny_root, resume=True, machine=QUIET)
        assert_alike(rows_of(run.folder), rows_of(alone))
        assert_alike(read(run.folder / LAST), read(alone / LAST))


@pytest.mark.slow
def test_a_stop_while_runs_are_validated_keeps_the_same_epoch_of_all(
    tiny_root: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop between two runs of the stack is seen by none of them before the next epoch, as in a single run."""
    request, call = StopRequest(), EpochEnd.__call__

    def stopped(end: EpochEnd, columns: dict[str, float], stopping: bool) -> None:
        call(end, columns, stopping)
        request.made = True

    monkeypatch.setattr(EpochEnd, "__call__", stopped)
    monkeypatch.setattr(stacked_run, "graceful_interrupt", lambda: nullcontext(request))
    runs = stack_of(tiny_config("strict", model="egnn", epochs=3, checkpoint_every=3), tmp_path)
    assert not train_stack(runs, tiny_root, machine=QUIET)
    assert [read(run.folder / LAST)["completed"] for run in runs] == [2, 2]


@pytest.mark.slow
def test_a_member_that_is_no_longer_finite_fails_alone(
    tiny_root: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights become NaN in the second epoch; the other run is, to the bit, what it is beside a healthy one."""
    config = tiny_config("ace", model="egnn", epochs=3, validate_every=1)
    healthy = stack_of(config, tmp_path / "healthy")
    assert train_stack(healthy, tiny_root, machine=QUIET)
    epoch = StackedLoop.epoch

    def poisoned(loop: StackedLoop) -> list[dict[str, float]]:
        if loop.completed == 1:
            with torch.no_grad():
                next(loop.members[1].assembly.model.parameters()).fill_(torch.nan)
        return epoch(loop)

    monkeypatch.setattr(StackedLoop, "epoch", poisoned)
    runs = stack_of(config, tmp_path / "stack")
    assert train_stack(runs, tiny_root, machine=QUIET)
    assert runs[0].result is not None
    assert rows_of(runs[0].folder) == rows_of(healthy[0].folder)
    assert runs[1].result is None
    assert "epoch 2" in runs[1].failure
    assert "the weight" in runs[1].failure
    assert str(runs[1].folder / BEST).split("/")[-1] in runs[1].failure
    assert len(rows_of(runs[1].folder)) == 1
    assert not (runs[1].folder / RESULT).exists()


def test_a_run_whose_checkpoint_is_damaged_fails_alone(
    tiny_root: Path, tiny_config: Config, tmp_path: Path
) -> None:
    runs = stack_of(tiny_config("strict", model="egnn", epochs=1), tmp_path)
    runs[0].config.write(tmp_path / "0" / CONFIG)
    (tmp_path / "0" / LAST).write_bytes(b"damaged")
    assert train_stack(runs, tiny_root, machine=QUIET)
    assert str(tmp_path / "0" / LAST) in runs[0].failure
    assert runs[1].result is not None


@pytest.mark.slow
def test_runs_that_cannot_be_stacked_are_refused(
    tiny_root: Path, tiny_config: Config, tmp_path: Path
) -> None:
    def refusal(config: Any, other: Any = None, machine: Machine = QUIET) -> str:
        runs = [
            StackedRun(config, tmp_path / "a"),
            StackedRun(other or config.updated({"seed": 1}), tmp_path / "b"),
        ]
        with pytest.raises(StackError) as caught:
            train_stack(runs, tiny_root, machine=machine)
        return str(caught.value)

    strict = tiny_config("strict", model="egnn")
    assert "--devices 1" in refusal(strict, machine=replace(QUIET, devices=2))
    assert "--accumulate 1" in refusal(strict, machine=replace(QUIET, accumulate=2))
    assert "learning_rate was" in refusal(strict, strict.updated({"seed": 1, "learning_rate": 0.5}))
    assert "muon" in refusal(tiny_config("strict", optimizer="muon"))
    assert refusal(tiny_config("remul", model="egnn"))
    assert refusal(tiny_config("scheduled", model="egnn", strength={"rows": 4}))
    assert not (tmp_path / "a" / RESULT).exists()


def test_a_step_that_cannot_be_computed_for_several_networks_is_refused(
    tiny_root: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one whose course depends on numbers."""
    loss = NBodyTask.loss

    def branching(self: NBodyTask, prediction: torch.Tensor, batch: Any) -> torch.Tensor:
        return 2 * loss(self, prediction, batch) if prediction.sum() > 0 else loss(self, prediction, batch)

    monkeypatch.setattr(NBodyTask, "loss", branching)
    runs = stack_of(tiny_config("strict", model="egnn"), tmp_path)
    with pytest.raises(StackError, match="data-dependent control flow"):
        train_stack(runs, tiny_root, machine=QUIET)


@pytest.mark.slow
def test_a_stack_that_does_not_fit_is_refused_before_it_trains(
    tiny_root: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = stack_of(tiny_config("strict", "egnn", epochs=1), tmp_path, tuple(range(MEASURED + 1)))
    monkeypatch.setattr(stack_memory, "machine_bytes", lambda: 1e4)
    with pytest.raises(StackError, match="0 fit"):
        train_stack(runs, tiny_root, machine=QUIET)
    monkeypatch.undo()
    assert all(run.open for run in runs)
    assert train_stack(runs, tiny_root, machine=QUIET)
    assert all(run.result is not None for run in runs)


@pytest.mark.slow
def test_as_many_are_stacked_as_fit(
    tiny_root: Path,
    tiny_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(StackMemory, "measured", lambda made: StackMemory(0, 1, 3 / USABLE + 0.1))
    runs = stack_of(tiny_config("strict", "egnn", epochs=1), tmp_path, tuple(range(MEASURED + 1)))
    assert train_stack(runs, tiny_root, machine=QUIET)
    assert [run.result and run.result["stacked"] for run in runs] == [3, 3, 3, 2, 2]
    assert capsys.readouterr().err == "3 of 5 runs fit into memory together; the others follow.\n"
