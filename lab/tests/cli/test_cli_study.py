"""Studies from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from equirelax_lab.cli import main

STUDY: dict[str, Any] = {
    "title": "Tiny study",
    "published": "Nobody published this.",
    "methods": ["strict"],
    "settings": {"epochs": 1, "batch_size": 24, "dataset": {"train": 48, "val": 24, "test": 24}},
    "grids": {
        "small-net": {
            "benchmark": "nbody",
            "models": ["egnn"],
            "settings": {"network": {"layers": 1, "hidden": 8}},
        },
        "diverging": {
            "benchmark": "nbody",
            "settings": {"learning_rate": 1e30, "network": {"layers": 1, "hidden": 16}},
        },
    },
    "small": {"grids": {"diverging": None}},
}


@pytest.fixture
def study(tmp_path: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EQUIRELAX_DATA", str(tiny_root))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


@pytest.mark.usefixtures("runs_here")
def test_a_study_from_end_to_end(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One grid finishes; the loss of the other diverges, which is listed with its reason and does not stop the first."""
    assert main(["study", "estimate", str(study), "--jobs", "2"]) == 0
    assert "2 of 2 runs are left" in capsys.readouterr().out

    assert main(["study", "run", str(study), "--jobs", "2"]) == 1
    text = capsys.readouterr().out
    assert "| small-net | strict | MSE of the positions x1e-3 |" in text
    assert "| 7.1 |" in text
    assert "Published: Nobody published this." in text
    assert "Scaled down: small-net: 1 of 1000 epochs; 48 of 3000 train samples" in text
    assert "1 failed; the same command tries again:\n  diverging/strict-seed0: " in text
    assert "learning_rate" in text.split("diverging/strict-seed0: ")[-1]
    out = tmp_path / "runs" / "studies" / "tiny"
    assert (out / "small-net" / "runs.json.gz").exists()
    assert (out / "small-net" / "curves.png").exists()
    assert (
        json.loads((out / "study.json").read_text())["runs"]["small-net/strict-seed0"]["status"] == "finished"
    )

    assert main(["study", "show", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Tiny study: 1 of 2 runs finished, 1 failed." in shown
    assert "| strict |" in shown
    assert "diverging/strict-seed0: " in shown


def test_show_tells_what_would_be_run(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "show", str(study)]) == 0
    text = capsys.readouterr().out
    assert "small-net: 1 runs on nbody" in text
    assert "setting  learning_rate = 1e+30" in text
    assert main(["study", "show", str(study), "--small"]) == 0
    text = capsys.readouterr().out
    assert "without grids.diverging" in text
    assert "1 runs in all" in text


def test_show_tells_how_runs_execute(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study.write_text(
        yaml.safe_dump({**STUDY, "devices": 2, "timeout": "90 min", "accelerator": "gpu", "attempts": 1})
    )
    assert main(["study", "show", str(study)]) == 0
    assert "(2 processes each, on GPUs, at most 1 h 30 min a try)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study", "rum"], "'rum'. Did you mean 'run'"),
        (["study", "run"], "Missing"),
        (["study", "run", "none.yaml"], "none.yaml cannot be read"),
        (["study", "run", "cr-nbdy"], "Did you mean 'cr-nbody'"),
        (["study", "run", "cr-nbody", "--smal"], "--smal. Did you mean '--small'"),
        (["study", "run", "tiny.yaml", "--jobs", "0"], "--jobs is 0"),
        (["study", "run", "tiny.yaml"], "equirelax data make nbody"),
        (["study", "estimate", "tiny.yaml"], "equirelax data make nbody"),
        (["study", "show", "."], "not the folder of a study"),
        (["reproduce", "cr-nbdy"], "Did you mean 'cr-nbody'"),
        (["reproduce", "tiny.yaml"], "no ready study 'tiny.yaml'"),
    ],
)
def test_mistakes_are_a_line(
    words: list[str],
    message: str,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("EQUIRELAX_DATA", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "equirelax: error: " in error
    assert "Traceback" not in error


def test_help_and_the_list_of_ready_studies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--help"]) == 0
    assert "equirelax study estimate FILE" in capsys.readouterr().out
    assert main(["reproduce"]) == 2
    listed = capsys.readouterr().out
    assert "cr-nbody " in listed
    assert "sample-efficiency" in listed
    assert main(["reproduce", "--help"]) == 0
    assert "ace-qm9-schnet" in capsys.readouterr().out
