"""`equirelax fields` on finished smoke runs, and on what is none; `equirelax data make smoke`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equirelax_lab.cli import main
from equirelax_lab.cli.fields import forecast
from equirelax_lab.data import smoke
from equirelax_lab.tasks.registry import defaults
from equirelax_lab.training.checkpoint import load_run
from equirelax_lab.training.run import train
from PIL import Image
from smoke_files import SMALL, plumes, write_plumes

Runs = Callable[[str], Path]
DATASET = {
    "size": 8,
    "positions": 2,
    "steps": 30,
    "inputs": 3,
    "outputs": 1,
    "horizon": 2,
    "val_horizon": 2,
    "every": 3,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plumes(tmp_path_factory.mktemp("smoke"))


@pytest.fixture(scope="module")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A function (method) -> folder of a finished run of seconds, made once."""
    made: dict[str, Path] = {}

    def run(method: str) -> Path:
        if method not in made:
            network = {"hidden": 2, "layers": 2}
            config = defaults("smoke", "e2cnn", method).updated(
                {"dataset": DATASET, "network": network, "epochs": 3}
            )
            made[method] = tmp_path_factory.mktemp("runs") / method
            train(config, made[method], root)
        return made[method]

    return run


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("EQUIRELAX_DATA", str(root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("method", "words", "form"),
    [
        ("strict", [], "e2cnn, strict, seed 0"),
        pytest.param(
            "ace",
            ["--split", "domain", "--window", "5"],
            "e2cnn, ace (projected), seed 0",
            marks=pytest.mark.slow,
        ),
        ("resilient", ["--window", "7"], "e2cnn, resilient (relaxed), seed 0"),
    ],
)
def test_finished_runs(
    runs: Runs, method: str, words: list[str], form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "pictures", str(runs(method))
    capsys.readouterr()  # what training said
    assert main(["fields", folder, *words, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{form}: RMSE ")
    assert "over 2 steps" in text
    assert ("Domain, window 5" if "domain" in words else "Future, window") in text
    assert {path.name for path in out.iterdir()} == {"fields.png", "rollout.gif"}
    with Image.open(out / "fields.png") as picture:
        assert min(picture.size) > 400
    with Image.open(out / "rollout.gif") as picture:
        assert picture.n_frames == 2  # type: ignore[attr-defined]


def test_the_model_that_the_method_deploys_is_rolled_out(runs: Runs, root: Path) -> None:
    for method in ("ace", "resilient"):
        assembly = load_run(runs(method) / "best.ckpt", root)
        data = assembly.task.load("test")
        with torch.no_grad():
            for residual in assembly.relaxation.residuals.values():  # type: ignore[union-attr]
                residual.map.weight.normal_()
                residual.set_gamma(1.0)
        batch = data.batch([4])
        found = forecast(assembly, data, 4)  # type: ignore[arg-type]
        assembly.model.eval()
        with torch.no_grad():
            relaxed = assembly.task.predict(assembly.model, batch)[0]
            with assembly.relaxation.strict():  # type: ignore[union-attr]
                strict = assembly.task.predict(assembly.model, batch)[0]
        assert (relaxed - strict).abs().max() > 1e-3
        assert torch.equal(found, strict if method == "ace" else relaxed)


def test_the_error_that_is_told_is_that_of_the_window(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mean over windows of the squared errors told is the squared error of result.json."""
    folder = runs("strict")
    capsys.readouterr()  # what its training has told, where no test before has trained it
    expected = json.loads((folder / "result.json").read_text())["metrics"]["test"]["projected"]
    squares = []
    for window in range(2):
        words = ["--split", "domain", "--window", str(window), "--out", str(tmp_path)]
        assert main(["fields", str(folder), *words]) == 0
        squares.append(float(capsys.readouterr().out.split("RMSE ")[1].split()[0]) ** 2)
    assembly = load_run(folder / "best.ckpt")
    domain = assembly.task.windows("domain")  # type: ignore[attr-defined]
    every = [
        float((forecast(assembly, domain, row) - domain.batch([row])["target"][0]).square().mean())
        for row in range(len(domain))
    ]
    assert squares == pytest.approx(every[:2], rel=0.02)  # three digits are printed
    assert float(np.mean(every)) ** 0.5 == pytest.approx(expected["RMSE Domain"], rel=1e-5)


def test_mistakes_are_one_line(
    runs: Runs,
    tiny_root: Path,
    tiny_config: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finished = str(runs("strict"))
    unfinished, damaged, other = tmp_path / "unfinished", tmp_path / "damaged", tmp_path / "nbody"
    for folder in (unfinished, damaged):
        shutil.copytree(finished, folder)
    (unfinished / "result.json").unlink()
    (damaged / "best.ckpt").unlink()
    train(tiny_config("strict", "egnn", epochs=1, validate_every=1), other, tiny_root)
    for words, message in (
        ([finished, "--window", "8000"], "--window is 8000; the split future has the windows 0 to"),
        ([finished, "--window", "-1"], "--window is -1"),
        ([finished, "--split", "test"], "--split"),
        ([finished, "--data", str(tmp_path / "nowhere")], f"{tmp_path / 'nowhere'} does not exist"),
        ([finished, "--data", str(tmp_path)], "equirelax data make smoke --size 8"),
        ([str(unfinished)], "is not finished"),
        ([str(damaged)], "best.ckpt"),
        ([str(other)], "is a run of nbody: only forecasts of smoke"),
        ([str(tmp_path / "nowhere")], "is not there"),
        ([], "Missing: run"),
    ):
        assert main(["fields", *words]) == 2, words
        error = capsys.readouterr().err
        assert message in error, words
        assert error.startswith("equirelax: error: ")
        assert error.count("\n") == 1
    assert not any((Path(folder) / "fields.png").exists() for folder in (finished, unfinished, other))


def test_make_smoke_writes_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(smoke, "simulate", plumes)
    monkeypatch.setattr(smoke, "phiflow", lambda: None)
    words = ["data", "make", "smoke", "--size", "8", "--positions", "2", "--steps", "30", "--jobs", "1"]
    assert main([*words, "--data", str(tmp_path)]) == 0
    found = capsys.readouterr()
    assert found.out == f"smoke  {tmp_path / SMALL.folder}\n"
    assert found.err.endswith("smoke: 12 of 12 runs\n")
    assert len(smoke.load("domain", SMALL, inputs=2, outputs=1, root=tmp_path).frames) == 4
    for wrong, message in (
        (["--asymmetry", "1"], "asymmetry is 1"),
        (["--symmetry", "shift"], "choose one of rotation, scale"),
        (["--positons", "2"], "Did you mean '--positions'"),
        (["--jobs", "0"], "jobs is 0"),
    ):
        assert main(["data", "make", "smoke", *wrong, "--data", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
