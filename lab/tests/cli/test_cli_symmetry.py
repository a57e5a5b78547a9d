"""`equirelax symmetry` on finished runs of every method, and on folders that are none."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.cli import main
from equirelax_lab.report.record import record_text
from equirelax_lab.training.run import train
from PIL import Image

Runs = Callable[..., Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path, tiny_config: Callable[..., Any]) -> Runs:
    """A function (method, model="segnn") -> folder of a finished run of seconds, made once."""
    made: dict[tuple[str, str], Path] = {}
    root = tmp_path_factory.mktemp("runs")

    def run(method: str, model: str = "segnn") -> Path:
        if (method, model) not in made:
            folder = root / f"{model}-{method}"
            train(tiny_config(method, model), folder, tiny_root)
            made[method, model] = folder
        return made[method, model]

    return run


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch, tiny_root: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("EQUIRELAX_DATA", str(tiny_root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(("method", "model"), [("resilient", "egnn"), ("scheduled", "segnn")])
def test_finished_runs(
    runs: Runs, method: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = runs(method, model), tmp_path / "out"
    assert main(["symmetry", str(folder), "-o", str(out), "--samples", "2"]) == 0
    text = capsys.readouterr().out
    study = json.loads((out / "symmetry.json").read_text())
    result = json.loads(record_text(json.loads((folder / "result.json").read_text())))
    assert {row["key"]: row["gamma"] for row in study["residuals"]} == result["gammas"]
    assert study["dynamics"] == result["dynamics"]
    assert all(row["added"] is not None and row["weight"] is not None for row in study["residuals"])
    assert "is not a chain of layers" in study["bounds"]["reason"]
    assert study["bounds"]["equivariance"] is None
    page = (out / "symmetry.md").read_text()
    assert str(out / "symmetry.png") in text
    for row in study["residuals"]:
        assert f"| {row['key']} |" in text
        assert f"| {row['key']} |" in page
    with Image.open(out / "symmetry.png") as picture:
        assert min(picture.size) > 500
    if method == "scheduled":  # dense residuals without bias: each has a bound of its own, and keeps it
        assert all(row["bound"] >= row["added"] for row in study["residuals"])
    else:
        assert all(row["bound"] is None and row["reason"] for row in study["residuals"])


def test_metrics_hold_the_norms_of_the_residuals_in_epochs_that_validate(runs: Runs) -> None:
    header, *rows = (runs("resilient", "egnn") / "metrics.csv").read_text().splitlines()
    columns = header.split(",")
    for place in (i for i, column in enumerate(columns) if column.startswith("weight/")):
        assert [bool(row.split(",")[place]) for row in rows] == [False, True, False, True]
    gammas = [column for column in columns if column.startswith("gamma/")]
    assert sum(column.startswith("weight/") for column in columns) == len(gammas) > 0


def test_a_run_without_its_weights_tells_what_the_tables_know(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs("resilient", "egnn"), folder, ignore=shutil.ignore_patterns("*.ckpt"))
    assert main(["symmetry", str(folder / "metrics.csv")]) == 0  # a file in it names the run too
    assert "best.ckpt) are not in the run's folder" in capsys.readouterr().out
    study = json.loads((folder / "symmetry.json").read_text())
    assert study["residuals"][0]["slack"] is not None
    assert study["residuals"][0]["added"] is None


def test_a_strict_run_has_nothing_to_tell(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["symmetry", str(runs("strict", "egnn")), "-o", str(tmp_path / "out")]) == 0
    assert "method strict has no residuals" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def spoil(folder: Path, name: str, text: str | None) -> Path:
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("result.json", None, "is not finished"),
        ("result.json", "{", "result.json cannot be read"),
        ("result.json", "{}", "it lacks benchmark"),
        ("result.json", "[]", "it lacks benchmark"),
        ("metrics.csv", None, "metrics.csv cannot be read"),
        ("metrics.csv", "", "no row with an epoch"),
        ("metrics.csv", "epoch,gamma/a\n0,x\n", "holds 'x'"),
        ("metrics.csv", "epoch,gamma/layers.0:h\n0,1.0\n", "ends at epoch 1 of 4"),
        ("metrics.csv", "epoch,seconds\n3,1.0\n", "has no column of gamma"),
        ("best.ckpt", "nothing", "cannot be read as a checkpoint"),
    ],
)
def test_damaged_runs(
    runs: Runs, name: str, text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs("resilient", "egnn"), folder)
    assert main(["symmetry", str(spoil(folder, name, text))]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("equirelax: error: ")
    assert error.count("\n") == 1
    assert not (folder / "symmetry.md").exists()


def test_what_is_no_run(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        ([str(tmp_path / "nowhere")], "is not there"),
        ([str(tmp_path)], "is no run"),
        ([str(runs("resilient", "egnn").parent)], "holds several runs: name one of them"),
        ([str(runs("resilient", "egnn")), "--samples", "0"], "--samples is 0"),
        ([str(runs("resilient", "egnn")), "--data", str(tmp_path / "nowhere")], "does not exist"),
        ([], "Missing: run"),
        ([str(runs("resilient", "egnn")), "--draws", "3"], "--score"),
        ([str(runs("resilient", "egnn")), "--examples", "3"], "--score"),
        ([str(runs("resilient", "egnn")), "--score", "--examples", "1"], "--examples is 1"),
        ([str(runs("resilient", "egnn")), "--score", "--draws", "-1"], "--draws is -1"),
    ):
        assert main(["symmetry", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.slow
def test_a_score_of_one_run_and_of_several(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict, relaxed = runs("strict"), runs("scheduled")
    out = tmp_path / "score"
    words = ["symmetry", "--score", str(strict), str(relaxed), "--examples", "6"]
    assert main([*words, "-o", str(out)]) == 0
    numbers = json.loads((out / "symmetry_score.json").read_text())
    assert [one["run"] for one in numbers["runs"]] == [strict.name, relaxed.name]
    assert {"commit", "hardware", "versions", "command"} <= numbers.keys()
    for one in numbers["runs"]:
        assert one["examples"] == 6
        assert [layer["key"] for layer in one["layers"]] == ["layers.0.update_1", "layers.0.update_2"]
        assert all(-0.2 - 1e-9 <= layer["ratio"] <= 1 for layer in one["layers"])
        assert f"## {one['run']}" in (out / "symmetry_score.md").read_text()
    with Image.open(out / "symmetry_score.png") as picture:
        assert min(picture.size) > 150
    assert f"| {relaxed.name} |" in capsys.readouterr().out
    assert main(words) != 0
    assert "--out" in capsys.readouterr().err
    assert main(["symmetry", str(strict), str(relaxed)]) != 0
    assert "--score" in capsys.readouterr().err


@pytest.mark.slow
def test_draws_scatter_around_the_score_and_runs_of_several_seeds_are_put_together(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, other = runs("strict"), tmp_path / "again", runs("scheduled")
    shutil.copytree(first, second)
    for name in ("config.yaml", "result.json"):
        text = (second / name).read_text()
        (second / name).write_text(text.replace("seed: 0", "seed: 1").replace('"seed": 0', '"seed": 1'))
    words = ["symmetry", "--score", str(first), str(second), str(other), "--examples", "5", "--draws", "3"]
    assert main([*words, "-o", str(tmp_path)]) == 0
    numbers = json.loads((tmp_path / "symmetry_score.json").read_text())
    assert [len(one["draws"]) for one in numbers["runs"]] == [3, 3, 3]
    assert (
        numbers["runs"][0]["whole"] == numbers["runs"][1]["whole"]
    )  # the weights are the same, the draws differ
    assert len({draw["ratio"] for one in numbers["runs"][:2] for draw in one["draws"]}) == 6
    ratios = [draw["ratio"] for one in numbers["runs"][:2] for draw in one["draws"]]
    page = (tmp_path / "symmetry_score.md").read_text()
    assert f"| strict | 2 | 5 | 6 | {statistics.fmean(ratios):.4f} ± {statistics.stdev(ratios):.4f} |" in page
    assert "| scheduled | 1 | 5 | 3 |" in capsys.readouterr().out
    assert main([*words[:3], "--examples", "500", "--draws", "3"]) == 2
    assert "every draw takes 500" in capsys.readouterr().err


@pytest.mark.slow
def test_gamma_follows_the_score_in_a_run(runs: Runs) -> None:
    """Measured once an epoch; on so few symmetric systems nothing leaves the dead zone."""
    rows = list(csv.DictReader((runs("symmetry-following") / "metrics.csv").open()))
    gammas = [float(row["gamma/layers.0.update_1"]) for row in rows]
    assert gammas == pytest.approx([0.9 ** (epoch + 1) for epoch in range(4)], abs=0.05)
    assert all(-1 <= float(row["ratio/layers.0.update_1"]) <= 1 for row in rows)
