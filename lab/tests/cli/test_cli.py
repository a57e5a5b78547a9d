"""The command line: help, mistakes in one line with exit code 2, and the way from train to project."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.cli import main
from equirelax_lab.cli.compare import split_settings
from equirelax_lab.cli.main import COMMANDS
from equirelax_lab.training.checkpoint import load_run
from safetensors.torch import load_file

SMALL = [
    *("--epochs", "2", "--batch-size", "20", "--validate_every", "1", "--tensorboard", "false"),
    *("--dataset.train", "48", "--dataset.val", "24", "--dataset.test", "24"),
    *("--network.layers", "1", "--network.hidden", "16"),
]


@pytest.fixture(autouse=True)
def _nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, tiny_root: Path
) -> None:
    """Tiny data as the data root, an empty cache, and a working folder of its own."""
    monkeypatch.setenv("EQUIRELAX_DATA", str(tiny_root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))


def test_help_of_the_program_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)
    assert "EQUIRELAX_DATA" in text
    assert main([]) == 2


def test_help_may_stand_in_front(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main(["help", "recipe"])
    assert "usage: equirelax recipe" in capsys.readouterr().out
    assert main(["help", "recipee"]) == 2


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["train"], ["examples:", "--resume", "ace-pi"]),
        (
            ["train", "nbody", "--method", "ace"],
            ["--strength.dual_lr", "eta_d", "default: 0.0008", "--dataset.train"],
        ),
        (["train", "mocap"], ["--dataset.subject", "default: 3000"]),
        (["compare"], ["--seeds", "--jobs", "runs.json.gz"]),
        (["compare", "nbody"], ["--methods", "equivariant-control"]),
        (["data"], ["make", "get"]),
        (["data", "make"], ["--clamp", "SHA-256"]),
        (["list"], ["--data"]),
        (["audit"], ["--samples", "best.ckpt", "exit code"]),
        (["project"], ["--mode", "safetensors"]),
        (["symmetry"], ["multiplier", "symmetry.png", "--samples"]),
        (["fields"], ["--window", "rollout.gif", "default: future"]),
        (["data", "make", "smoke"], ["--asymmetry", "--jobs", "two minutes"]),
        (["perf"], ["--rows", "multiply-adds"]),
    ],
)
def test_help_texts_say_what_matters(
    words: list[str], wanted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main([*words, "--help"])
    except SystemExit as stop:  # argparse leaves by itself after help
        code = int(stop.code or 0)
    text = " ".join(capsys.readouterr().out.split())
    assert code == 0
    for part in wanted:
        assert part in text, part


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "Unknown command 'trian'. Did you mean 'train'"),
        (["train"], "Name the benchmark first"),
        (["train", "nbdy"], "Unknown benchmark 'nbdy'. Did you mean 'nbody'"),
        (["train", "nbody", "--method", "aces"], "Unknown method 'aces'. Did you mean 'ace'"),
        (["train", "nbody", "--model", "segn"], "no model 'segn'. Did you mean 'segnn'"),
        (["train", "nbody", "--epocks", "3"], "Unknown option --epocks. Did you mean '--epochs'"),
        (["train", "nbody", "--epochs", "many"], "--epochs is 'many'"),
        (["train", "nbody", "--epochs"], "--epochs needs a value"),
        (["train", "nbody", "--epochs", "0"], "at least 1"),
        (
            ["train", "nbody", "--method", "strict", "--strength.dual_lr", "1"],
            "Unknown option --strength.dual_lr",
        ),
        (["train", "nbody", "--config", "none.yaml"], "none.yaml cannot be read"),
        (["train", "nbody", "--dataset.train", "4000"], "equirelax data make nbody"),
        (["train", "nbody", "--data", "nowhere", "--out", "x"], "The data root nowhere does not exist"),
        (["compare", "nbody", "--data", "nowhere"], "The data root nowhere does not exist"),
        (["list", "--data", "nowhere"], "The data root nowhere does not exist"),
        (["train", "nbody", "--clamp", "norm", "--data", ".."], "make nbody --clamp norm --data .., or name"),
        (
            ["train", "nbody", *SMALL, "--residual.placement", "segnn-rc", "--method", "ace"],
            "Did you mean 'segnn-",
        ),
        (["compare", "nbody", "--methods", "strict,acee"], "Unknown method 'acee'"),
        (["compare", "nbody", "--seeds", "three"], "'--seeds' is 'three'"),
        (["compare", "nbody", "--seeds", "0"], "'--seeds' is 0"),
        (["compare", "nbody", "--epocks", "3"], "Unknown option --epocks"),
        (["compare", "nbody", "--methods", "strict", "--ace.epochs", "3"], "not among --methods"),
        (["compare", "nbody", "--jobs", "0"], "--jobs is 0"),
        (["compare", "nbody", "--jobs", "two"], "--jobs"),
        (["data", "mke"], "Unknown action 'mke'. Did you mean 'make'"),
        (["data", "make", "nbody", "--clamp", "nrm"], "Unknown clamp"),
        (["data", "get", "nbdy"], "Did you mean 'nbody'"),
        (["data", "get", "nbody-gravity"], "To get it: equirelax data make nbody --system gravity"),
        (["audit", "none.ckpt"], "no checkpoint at none.ckpt"),
        (["audit", "none"], "neither a file nor a folder none"),
        (["audit", "none.ckpt", "--in", "1x1o"], "--in is for networks"),
        (["audit", "nets:build", "--data", "."], "--data is for runs"),
        (["audit", "nets:build"], "There is no module 'nets'"),
        (["audit", "none.ckpt", "--samples", "0"], "no checkpoint"),
        (["project", "none.ckpt", "-o", "x.pt"], "should end in .safetensors"),
        (["project", "none.ckpt"], "Missing: --out"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("equirelax: error: ")
    assert "Traceback" not in error
    assert not list(Path().iterdir())  # nothing is left behind that would stand in the way of the next try


def test_list_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = " ".join(capsys.readouterr().out.split())  # however wide the terminal is
    for word in (
        "nbody",
        "mocap",
        "segnn",
        "egnn",
        "resilient",
        "segnn-cr",
        "there: ",
        "missing; to get it: equirelax data ",
    ):
        assert word in text


def test_data_make_and_get(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sizes = ["--train", "3", "--val", "2", "--test", "2", "--threads", "1"]
    assert main(["data", "make", "nbody", "--clamp", "norm", *sizes, "--data", str(tmp_path)]) == 0
    assert main(["data", "get", "nbody-norm", "--data", str(tmp_path)]) == 0
    assert str(tmp_path) in capsys.readouterr().out


def test_from_train_to_audit_to_project(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert main(["train", "nbody", "--method", "scheduled", "--seed", "3", "--out", str(out), *SMALL]) == 0
    assert "projected" in capsys.readouterr().out
    assert {"config.yaml", "metrics.csv", "result.json", "best.ckpt", "last.ckpt"} <= {
        p.name for p in out.iterdir()
    }
    assert json.loads((out / "result.json").read_text())["seed"] == 3

    report = tmp_path / "report.json"
    assert main(["audit", str(out), "--samples", "2", "--json", str(report)]) == 0
    assert "deployed projected: equivariant" in capsys.readouterr().out.splitlines()[0]
    numbers = json.loads(report.read_text())
    assert (numbers["passes"], numbers["made_by"]["command"].split()[:2]) == (True, ["equirelax", "audit"])

    weights = {}
    for mode in ("drop", "fold"):
        path = tmp_path / f"{mode}.safetensors"
        words = ["project", str(out / "last.ckpt"), "-o", str(path), "--mode", mode]
        if mode == "fold":  # what stands behind the gate folds into nothing
            assert main(words) == 2
            words += ["--unfoldable", "drop"]
        assert main(words) == 0
        weights[mode] = load_file(path)
    strict = load_run(out).relaxation
    assert strict is not None
    assert weights["drop"].keys() == weights["fold"].keys() == strict.strict_state_dict().keys()
    assert "the last weights" in (tmp_path / "drop.md").read_text()
    check_card(out, tmp_path, capsys)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("EQUIRELAX_DATA", str(tmp_path / "empty"))
    assert main(["project", str(out), "-o", str(tmp_path / "alone.safetensors")]) == 0
    assert "equivariance not measured" in capsys.readouterr().out
    assert "Not measured: " in (tmp_path / "alone.md").read_text()


def check_card(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The card of a run's selected weights says what they are, and loads them."""
    assert main(["project", str(run), "-o", str(tmp_path / "strict.safetensors"), "--mode", "drop"]) == 0
    assert "strict.md: its model card" in capsys.readouterr().out
    text = (tmp_path / "strict.md").read_text()
    rows = dict(re.findall(r"^\| (.+?) \| (.*) \|$", text, flags=re.MULTILINE))
    result = json.loads((run / "result.json").read_text())
    assert (rows["method"], rows["seed"], rows["group"]) == ("scheduled", "3", "O(3)")
    assert float(rows["relative equivariance error"]) < 1e-12
    assert float(rows["test MSE of the positions x1e-3"]) == pytest.approx(
        result["test"]["projected"], rel=1e-3
    )
    assert "epochs" in rows["settings that are not the recipe's"]
    assert rows["commit"] == (result["commit"] or "")
    (code,) = re.findall(r"```python\n(.+?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    with contextlib.chdir(tmp_path):
        exec(code, names)
    loaded = names["model"].state_dict()
    strict = load_file(tmp_path / "strict.safetensors")
    assert loaded.keys() == strict.keys()
    assert all(torch.equal(loaded[key], value) for key, value in strict.items())


def test_a_config_file_repeats_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    assert main(["train", "nbody", "--method", "ace", "--seed", "5", "--out", str(first), *SMALL]) == 0
    assert main(["train", "nbody", "--config", str(first / "config.yaml"), "--out", str(again)]) == 0
    a, b = (json.loads((folder / "result.json").read_text()) for folder in (first, again))
    assert a["config"] == b["config"]
    assert a["test"] == b["test"]
    assert main(["train", "nbody", "--config", str(first / "config.yaml"), "--method", "strict"]) == 2
    assert "not 'strict'" in capsys.readouterr().err


def test_a_run_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "nbody", "--out", str(tmp_path), *SMALL]
    assert main(words) == 0
    assert main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert "a new run" not in capsys.readouterr().err


def test_an_interrupt_within_executed_text_ends_with_the_exit_code_that_is_promised(tmp_path: Path) -> None:
    """As one that comes while dataclasses are made: Python would end `python -m` by SIGINT instead."""
    (tmp_path / "interrupted.py").write_text(
        "import sys, types\n"
        "from equirelax_lab.cli.main import COMMANDS, main\n"
        "command = sys.modules['command'] = types.ModuleType('command')\n"
        "command.main = lambda words: exec('raise KeyboardInterrupt')\n"
        "COMMANDS['list'] = ('command', '')\n"
        "sys.exit(main(['list']))\n"
    )
    words = [sys.executable, "-m", "interrupted"]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, "Interrupted" in ran.stderr) == (130, True), ran.stderr


def test_a_mistyped_folder_to_resume_does_not_go_unsaid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mistyped"
    assert main(["train", "nbody", "--out", str(out), "--resume", *SMALL]) == 0
    assert f"Nothing to go on with in {out}: a new run" in capsys.readouterr().err


def test_settings_of_single_methods_are_told_apart() -> None:
    words = [
        "--epochs",
        "3",
        "--ace.strength.dual_lr",
        "1e-3",
        "--scheduled.epochs=4",
        "--dataset.train",
        "5",
    ]
    common, special = split_settings(words, ["strict", "scheduled", "ace"])
    assert common == ["--epochs", "3", "--dataset.train", "5"]
    assert special == {"ace": ["--strength.dual_lr", "1e-3"], "scheduled": ["--epochs=4"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("train", "modelnet40", "--classes", "tne"),
            "--dataset.classes is 'tne'; choose one of all, ten. Did you",
        ),
        (("train", "nbody", "--epochs", "x"), "--epochs is 'x'; expected a whole number."),
        (
            ("train", "modelnet40", "--per_class", "x"),
            "--dataset.per_class is 'x'; expected a whole number or null.",
        ),
        (("project", "somewhere"), "Missing: --out."),
    ],
)
def test_wrong_values_are_explained_in_the_users_words(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "typing" not in error
    assert len(error.strip().splitlines()) == 1
