"""`equirelax stack`, and `--stack` of comparisons: what is trained together, what is said, and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.cli import main
from equirelax_lab.studies.stacks import NOT_STACKABLE
from equirelax_lab.training import stacked_run
from equirelax_lab.training.folder import CONFIG, LOG, RESULT
from equirelax_lab.training.stacked_run import StackedRun

Config = Callable[..., Any]


def folders(configs: Sequence[Any], root: Path) -> list[str]:
    """Folders of runs that have not begun."""
    made = [root / str(index) for index in range(len(configs))]
    for folder, config in zip(made, configs, strict=True):
        folder.mkdir()
        config.write(folder / CONFIG)
    return [str(folder) for folder in made]


def test_a_folder_without_settings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stack", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no {CONFIG}" in capsys.readouterr().err
    assert main(["stack", str(tmp_path), str(tmp_path / "." / "x" / "..")]) == 2
    assert f"{tmp_path} is named twice" in capsys.readouterr().err


def test_why_runs_cannot_be_stacked_is_the_last_line(
    tiny_root: Path, tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config("strict", model="egnn")
    runs = folders([config, config.updated({"seed": 1, "learning_rate": 0.5})], tmp_path)
    words = ["stack", *runs, "--data", str(tiny_root), "--progress", "false", "--tensorboard", "false"]
    assert main(words) == NOT_STACKABLE
    assert "learning_rate" in capsys.readouterr().err.splitlines()[-1]


def test_a_failure_stands_in_the_log_of_its_run(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(runs: Sequence[StackedRun], *_: Any, **__: Any) -> bool:
        runs[1].failure = "The training loss is nan."
        return True

    monkeypatch.setattr(stacked_run, "train_stack", fail)
    config = tiny_config("strict", model="egnn")
    runs = folders([config, config.updated({"seed": 1})], tmp_path)
    assert main(["stack", *runs]) == 2
    assert f"{runs[1]}: The training loss is nan." in capsys.readouterr().err
    assert (Path(runs[1]) / LOG).read_text() == "equirelax: error: The training loss is nan.\n"
    assert not (Path(runs[0]) / LOG).exists()


@pytest.mark.slow
@pytest.mark.usefixtures("runs_here")
def test_a_comparison_in_stacks(tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Strict runs go together; Muon's cannot, which is said once."""
    small = "--dataset.train 48 --dataset.val 24 --dataset.test 24 --network.layers 1 --network.hidden 8"
    words = f"compare nbody --model egnn --methods strict,ace --ace.optimizer muon --seeds 2 --epochs 2 --stack 2 {small}"
    out = tmp_path / "out"
    assert main([*words.split(), "--batch_size", "20", "--data", str(tiny_root), "--out", str(out)]) == 0
    results = {path.parent.name: json.loads(path.read_text()) for path in out.glob(f"*/{RESULT}")}
    assert {name: result.get("stacked") for name, result in results.items()} == {
        "strict-seed0": 2,
        "strict-seed1": 2,
        "ace-seed0": None,
        "ace-seed1": None,
    }
    said = capsys.readouterr()
    assert said.err.count("muon") == 1
    assert (out / "summary.md").exists()


@pytest.mark.parametrize(
    "words", ["study run cr-nbody --stack 0", "compare nbody --methods strict,ace --stack 0"]
)
def test_a_stack_has_at_least_one_run(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert "--stack is 0" in capsys.readouterr().err
