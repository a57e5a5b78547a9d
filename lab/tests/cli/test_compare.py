"""Comparisons from the command line to table and picture; interrupted and resumed ones as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.cli import main
from equirelax_lab.report.archive import read_archive
from equirelax_lab.report.runs import read_folder
from equirelax_lab.report.summary import summarise
from equirelax_lab.studies.study import Study
from equirelax_lab.studies.trials import trials
from equirelax_lab.training.folder import read_table
from PIL import Image

from equirelax.relaxation import read

SMALL = [
    *("--batch-size", "20", "--validate_every", "1", "--tensorboard", "false"),
    *("--dataset.train", "48", "--dataset.val", "24", "--dataset.test", "24"),
    *("--network.layers", "1", "--network.hidden", "16"),
]


def environment(root: Path, tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "EQUIRELAX_DATA": str(root), "XDG_CACHE_HOME": str(tmp_path / "cache")}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "equirelax_lab.cli", *words]


@pytest.fixture
def _tiny_data(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(tiny_root, tmp_path).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_tiny_data", "runs_here")
def test_several_models_in_one_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "compare",
        "nbody",
        "--models",
        "segnn,egnn",
        "--methods",
        "strict,ace",
        "--seeds",
        "1",
        "--jobs",
        "2",
    ]
    words += ["--out", str(tmp_path / "out"), *SMALL, "--epochs", "1", "--egnn.batch_size", "24"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert all(f"| {name} |" in text for name in ("strict segnn", "ace segnn", "strict egnn", "ace egnn"))
    folders = {settings.parent.name for settings in (tmp_path / "out").glob("*/config.yaml")}
    assert folders == {
        f"{model}-{method}-seed0" for model in ("segnn", "egnn") for method in ("strict", "ace")
    }
    config = (tmp_path / "out" / "egnn-ace-seed0" / "config.yaml").read_text()
    assert "batch_size: 24" in config


def test_models_that_do_not_go_with_the_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "nbody", "--models", "segnn", "--model", "egnn"]) == 2
    assert "--model or --models" in capsys.readouterr().err
    assert main(["compare", "nbody", "--models", "segnn,egn"]) == 2
    assert "Did you mean 'egnn'" in capsys.readouterr().err
    assert main(["compare", "modelnet40", "--models", "pointnet,dgcnn", "--methods", "scheduled"]) == 2
    found = capsys.readouterr()
    assert (
        "Left out, because there is nothing to relax: scheduled on pointnet, scheduled on dgcnn." in found.out
    )
    assert "anything to relax" in found.err
    assert main(["compare", "nbody", "--models", "segnn", "--egnn.epochs", "1"]) == 2
    assert "not among --models" in capsys.readouterr().err


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, dict[str, Any]]]:
    """A function (words of a command line after `compare`) -> settings of its runs by label; nothing is run."""
    studies: list[Study] = []

    def noted(study: Study, *_: Any) -> int:
        studies.append(study)
        return 0

    monkeypatch.setattr("equirelax_lab.cli.compare.run_study", noted)

    def compare(*words: str) -> dict[str, dict[str, Any]]:
        assert main(["compare", *words]) == 0
        return {trial.label: trial.config.to_dict() for trial in trials(studies[-1])}

    compare.studies = studies  # type: ignore[attr-defined]
    return compare


def test_a_sweep_is_over_the_methods_that_have_the_settings(compared: Any) -> None:
    runs = compared(
        "modelnet40",
        "--methods",
        "strict,scheduled",
        "--seeds",
        "1",
        "--sweep",
        "lie_weight+norm_weight=0,1e-2",
    )
    assert list(runs) == ["strict-seed0", "scheduled-lie_weight0-seed0", "scheduled-lie_weight0.01-seed0"]
    strength = runs["scheduled-lie_weight0.01-seed0"]["strength"]
    assert (strength["lie_weight"], strength["norm_weight"]) == (0.01, 0.01)
    runs = compared("nbody", "--methods", "strict,ace", "--seeds", "4,1", "--sweep", "train=9,19")
    assert [(label, run["dataset"]["train"]) for label, run in runs.items()] == [
        (f"{method}-train{n}-seed{seed}", n)
        for seed in (1, 4)
        for method in ("strict", "ace")
        for n in (9, 19)
    ]


def test_flags_are_settings_of_all_runs_of_one_method_or_of_the_machine(compared: Any) -> None:
    words = ["nbody", "--methods", "strict,ace", "--seeds", "1", "--batch-size=20"]
    words += ["--ace.strength.dual_lr", "1e-3", "--threads", "2", "--tensorboard", "false", "--jobs", "3"]
    runs = compared(*words)
    assert {run["batch_size"] for run in runs.values()} == {20}
    assert runs["ace-seed0"]["strength"]["dual_lr"] == 1e-3
    study = compared.studies[-1]
    assert (study.machine.threads, study.machine.tensorboard, study.jobs) == (2, False, 3)
    assert not study.share_cores
    (run,) = compared("nbody", "--methods", "scheduled", "--seeds", "1", "--schedule", "cosine").values()
    assert run["schedule"] == "cosine", "not that of gamma, strength.schedule"
    words = [
        "nbody",
        "--methods",
        "strict,scheduled",
        "--seeds",
        "1",
        "--residual.kind",
        "mlp",
        "--scheduled.residual.hidden=8",
    ]
    kinds = {run["method"]: run["residual"] for run in compared(*words).values()}
    assert [kinds[method]["kind"] for method in ("strict", "scheduled")] == ["mlp", "mlp"]
    assert kinds["scheduled"]["hidden"] == 8


def test_a_file_of_settings_may_name_the_recipe(compared: Any, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("epochs: 12\n")
    words = ["nbody", "--methods", "strict,ace", "--seeds", "1", "--config", str(path), "--batch_size", "9"]
    runs = compared(*words)
    assert {(run["epochs"], run["batch_size"]) for run in runs.values()} == {(12, 9)}
    assert (runs["strict-seed0"]["recipe"], runs["strict-seed0"]["trained_as"]) == ("fair", "ace")
    path.write_text("epochs: 12\nrecipe: published\n")
    assert {(run["recipe"], run["trained_as"]) for run in compared(*words).values()} == {("published", None)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        *((["--sweep", text], "KEY=VALUE") for text in ("", "=1", "lie_weight", "lie_weight=", "+=1")),
        (["--sweep", "lie_wieght=1"], "'lie_wieght'"),
        (["--methods", "ace", "--sweep", "hidden=3"], "write one of them in full"),
        (["--methods", "scheduled,ace", "--sweep", "lie_weight+dual_lr=1"], "all of the settings"),
        (["--sweep", "epochs=[,3"], "'['"),
        (["--epochz", "3"], "--epochz"),
        (["--seed", "3"], "--seed"),
        (["--ace.threads", "3"], "--threads"),
        (["--seeds", "0"], "'--seeds' is 0"),
        (["--methods", ","], "--methods"),
        (["--methods", "strict,scheduled,ace", "--recipe", "released"], "--about scheduled"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "nbody", "--seeds", "1", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("_tiny_data", "runs_here")
def test_compare_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "comparison"
    words = [
        "compare",
        "nbody",
        "--methods",
        "strict,ace",
        "--seeds",
        "1",
        "--jobs",
        "2",
        "--out",
        str(out),
        *SMALL,
    ]
    words += ["--epochs", "2", "--ace.learning_rate", "1e-3"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "| strict |" in text
    assert str(out / "curves.png") in text
    assert "one seed is fewer than 6" in text
    assert "It was trained with" in text
    assert text.rstrip().endswith("learning rate 0.001 instead of 0.0009.")

    runs = [run.result for run in read_folder(out)[0]]
    summary = summarise(runs)
    assert list(summary["methods"]) == ["strict", "ace"]
    assert summary["methods"]["ace"]["paired_with_strict"]["count"] == 1
    assert summary["methods"]["ace"]["published"] == "3.8 ± 0.17"
    assert [run["config"]["learning_rate"] for run in runs] == [9e-4, 1e-3]
    assert [(run["recipe"]["variant"], run["recipe"]["trained_as"]) for run in runs] == [
        ("fair", "ace"), ("published", None),
    ]  # fmt: skip
    assert summary["runs"][1]["recipe"]["changed"]["learning_rate"] == {"recipe": 9e-4, "here": 1e-3}
    # three tables: errors and costs of both methods, strengths of ace
    assert (out / "summary.md").read_text().count("\n| ") == 4 + 4 + 3
    assert summary["methods"]["ace"]["strengths"]["multiplier_drift"]["swing"] > 0
    with Image.open(out / "curves.png") as picture:
        assert min(picture.size) > 400
        assert len(picture.convert("RGB").getcolors(2**24)) > 20

    before = (out / "ace-seed0" / "result.json").stat().st_mtime_ns
    assert main(words) == 0
    assert "2 of 2 runs finished" in capsys.readouterr().out
    assert (out / "ace-seed0" / "result.json").stat().st_mtime_ns == before

    assert main([word if word != "1e-3" else "2e-3" for word in words]) == 2
    assert "learning_rate was 0.001 and is now 0.002" in capsys.readouterr().err


def wait_for_rows(table: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until a run has finished `count` epochs."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the run ended early: {process.communicate()}")
        if table.exists() and len(read_table(table)) >= count:
            return
        time.sleep(0.02)
    raise TimeoutError(f"no {count} rows in {table}")


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.usefixtures("_tiny_data")
def test_ctrl_c_leaves_a_run_that_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def words(folder: str) -> list[str]:
        return [
            "train",
            "nbody",
            "--method",
            "ace",
            "--out",
            str(tmp_path / folder),
            *SMALL,
            "--epochs",
            "40",
        ]

    process = subprocess.Popen(
        command(*words("stopped")), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_rows(tmp_path / "stopped" / "metrics.csv", 2, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert 2 <= len(read_table(tmp_path / "stopped" / "metrics.csv")) < 40

    assert main([*words("stopped"), "--resume"]) == 0
    assert main(words("straight")) == 0
    a, b = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("stopped", "straight"))
    assert a["test"] == b["test"]
    assert a["gammas"] == b["gammas"]
    weights = [read(tmp_path / name / "last.ckpt")["weights"] for name in ("stopped", "straight")]
    assert all(bool((weights[0][key] == weights[1][key]).all()) for key in weights[0])


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.usefixtures("_tiny_data")
def test_ctrl_c_stops_a_comparison_which_then_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "comparison"
    words = [
        "compare",
        "nbody",
        "--methods",
        "strict,ace",
        "--seeds",
        "1",
        "--jobs",
        "1",
        "--out",
        str(out),
        *SMALL,
    ]
    words += ["--epochs", "30"]
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_rows(out / "strict-seed0" / "metrics.csv", 2, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert not (out / "runs.json.gz").exists()
    assert not (out / "ace-seed0").exists()
    assert main(words) == 0
    assert len(read_archive(out).entries) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("_tiny_data")
def test_a_failed_run_is_reported_and_the_others_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "comparison"
    words = ["compare", "nbody", "--methods", "strict,ace", "--seeds", "1", "--out", str(out), *SMALL]
    assert main([*words, "--epochs", "1", "--ace.learning_rate", "1e30"]) == 1
    text = capsys.readouterr()
    assert "ace-seed0: failed (" in text.out
    assert "1 failed; the same command tries again:\n  ace-seed0: " in text.out
    assert "| strict |" in text.out
    assert "| ace | 1 of 1 (100%) |" in text.out, "in the table of failed runs alone"
    assert text.out.count("| ace |") == 1


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.serial
@pytest.mark.usefixtures("_tiny_data")
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    words = ["train", "nbody", "--method", "ace", *SMALL, "--epochs", "3"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    both = command(*words, "--out", str(tmp_path / "two"), "--devices", "2", "--strategy", "ddp")
    done = subprocess.run(both, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for one, two in zip(
        *(read_table(tmp_path / name / "metrics.csv") for name in ("one", "two")), strict=True
    ):
        for key in ("train/loss", "val/projected", "val/relaxed", "gamma/layers.0.update_1"):
            assert float(one[key]) == pytest.approx(float(two[key]), rel=1e-4), key
