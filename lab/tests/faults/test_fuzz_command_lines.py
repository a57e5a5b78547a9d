"""Fuzzed command lines: each does its work, which is left out here, or ends with exit code 2 and one line that names the
flag, and never with a traceback.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from equirelax_lab.cli import main
from equirelax_lab.data import nbody
from equirelax_lab.report.numbers import Numbers
from equirelax_lab.studies.estimate import Cost
from fault_ledger import Ledger
from fuzzing import Fuzzed, spoil_words
from test_fuzz_settings import STUDY, everything, settle, shares

TINY = [
    "--epochs", "2", "--batch-size", "20", "--learning_rate=1e-3", "--validate_every", "1", "--threads", "1",
    "--dataset.train", "8", "--dataset.val", "8", "--dataset.test=8", "--network.layers", "1", "--network.hidden", "8",
]  # fmt: skip
DATA = ["--dataset.train", "8", "--dataset.val", "8", "--dataset.test", "8"]
NETWORK = ["--network.layers", "1", "--network.hidden", "8", *DATA]
GOOD: tuple[list[str], ...] = (
    ["train", "nbody", "--model", "egnn", "--method", "ace", "--seed", "1", "--out", "out", *NETWORK, "--epochs", "2"],
    ["train", "nbody", "--method", "scheduled", "--strength.rows", "4", "--strength.schedule", "linear", *NETWORK],
    ["train", "mocap", "--model", "egno", "--method", "resilient", "--subject", "walk", "--modes", "1", *NETWORK[:4]],
    ["train", "modelnet40", "--model", "vn-dgcnn", "--width", "0.0625", "--classes", "ten", "--per_class", "4"],
    ["train", "md17", "--model", "plain", "--molecule", "ethanol", "--network.size", "small", "--devices", "1"],
    ["train", "nbody", "--config", "good.yaml", "--data", "data", "--progress", "false", "--accelerator", "cpu"],
    ["compare", "nbody", "--model", "egnn", "--methods", "strict,ace", "--seeds", "1", "--jobs", "1", *NETWORK],
    ["compare", "nbody", "--methods", "ace", "--seeds", "1,2", "--sweep", "dual_lr=1e-3,1e-2", "--ace.epochs", "3", *DATA],
    ["compare", "nbody", "--models", "segnn,egnn", "--methods", "strict", "--seeds", "1", "--egnn.epochs", "2", *DATA],
    ["study", "run", "study.yaml", "--small", "--out", "studies", "--jobs", "1"],
    ["study", "estimate", "study.yaml", "--small", "--data", "data"],
    ["study", "show", "study.yaml"],
    ["study", "show", "cr-nbody", "--small"],
    ["reproduce", "cr-nbody", "--small", "--out", "studies", "--jobs", "2"],
    ["report", "run", "--out", "page.html", "--title", "A page"],
    ["audit", "run", "--samples", "2", "--seed", "1", "--dtype", "float64", "--json", "audit.json"],
    ["project", "run/best.ckpt", "-o", "strict.safetensors", "--mode", "drop", "--unfoldable", "drop"],
    ["symmetry", "run", "--samples", "2", "--seed", "3", "--out", "drawn"],
    ["fields", "run", "--window", "1", "--split", "future", "--out", "drawn"],
    ["data", "make", "nbody", "--system", "charged", "--clamp", "norm", "--seed", "1", "--train", "3", "--threads", "1"],
    ["data", "make", "smoke", "--size", "8", "--positions", "2", "--steps", "5", "--asymmetry", "0.2", "--jobs", "1"],
    ["data", "make", "mocap", "--case", "mine", "--asf", "run/config.yaml", "--amc", "run/metrics.csv", "--starts", "3"],
    ["data", "get", "modelnet40", "--archive", "run/config.yaml", "--data", "data"],
    ["data", "get", "md17", "--molecule", "ethanol", "--force"],
    ["data", "get", "mnist", "--force"],
    ["perf", "nbody", "--model", "segnn", "--batch_size", "2", "--rows", "4", "--repetitions", "1", "--threads", "1"],
    ["toy", "--steps", "3", "--dual_lr", "1e-2", "--seed", "1", "-o", "toys"],
    ["list", "--data", "data"],
)  # fmt: skip
"""One valid command line of every kind, on a tiny finished run in `run`."""
REFUSED = {
    "fields": "is a run of nbody",
    "--asf": "run/config.yaml",
    "reproduce": "equirelax data make nbody",
}
"""The errors of some of them, whose data or run does not exist."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Iterator[Path]:
    """A folder with a finished run, a study and settings. Commands are parsed, but do no work."""
    here = tmp_path_factory.mktemp("fuzz") / "a" / "b" / "c"
    here.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUIRELAX_DATA", str(tiny_root))
        patch.setenv("XDG_CACHE_HOME", str(here / "cache"))
        patch.chdir(here)
        (here / "study.yaml").write_text(yaml.safe_dump(STUDY))
        (here / "data").mkdir()
        words = [
            "train",
            "nbody",
            "--model",
            "egnn",
            "--method",
            "ace",
            "--tensorboard",
            "false",
            "--out",
            "run",
        ]
        assert main([*words, *TINY]) == 0
        (here / "good.yaml").write_text((here / "run" / "config.yaml").read_text())
        _leave_out_the_work(patch)
        yield here


def _leave_out_the_work(patch: pytest.MonkeyPatch) -> None:
    """Replace everything that trains, simulates, downloads or draws."""

    def train(config: Any, *_: object, **__: object) -> dict[str, Any]:
        everything(config)
        return {}

    def write_page(out: Path, *_: object) -> int:
        out.write_text("page")
        return 1

    def make_nbody(system: str, *, clamp: str | None, **_: object) -> dict[str, Path]:
        nbody.settings(system, clamp)
        return {}

    found = SimpleNamespace(to_dict=dict, passes=True, equivariant=True)
    patch.setattr("equirelax_lab.training.run.train", train)
    patch.setattr("equirelax_lab.cli.study.Scheduler", lambda *_, **__: SimpleNamespace(run=lambda: 0))
    patch.setattr("equirelax_lab.report.comparison.compare_grids", lambda *_: "table")
    patch.setattr("equirelax_lab.report.comparison.beside", lambda *_: "table")
    patch.setattr("equirelax_lab.studies.estimate.measure", lambda *_, **__: Cost(1.0, 1.0, 1.0, 1.0, 1))
    patch.setattr("equirelax_lab.report.page.write_page", write_page)
    patch.setattr("equirelax.auditing.audit", lambda *_, **__: found)
    patch.setattr("equirelax_lab.cli.symmetry.measure", lambda *_: (None, None))
    patch.setattr("equirelax_lab.report.symmetry_picture.draw_symmetry", lambda *_: None)
    patch.setattr("equirelax_lab.data.nbody.make", make_nbody)
    patch.setattr("equirelax_lab.data.smoke.make", lambda *_, **__: Path("smoke"))
    patch.setattr("equirelax_lab.data.download.get", lambda *_, **__: Path("archive"))
    patch.setattr("equirelax_lab.data.md17.get_original", lambda *_, **__: Path("molecule"))
    patch.setattr("equirelax_lab.data.rotmnist.get", lambda *_: Path("digits"))
    patch.setattr("equirelax_lab.training.perf.measure", lambda *_, **__: {})
    patch.setattr("equirelax_lab.training.perf.table", lambda *_: "table")
    patch.setattr("equirelax_lab.tasks.toy.run_toy", lambda **_: {})
    patch.setattr("equirelax_lab.report.toy.forms_table", lambda *_: Numbers("table", ("form",), ()))
    patch.setattr("equirelax_lab.report.toy.draw_forms", lambda *_: None)
    patch.setattr("webbrowser.open", lambda *_: True)


def met(fuzzed: Fuzzed) -> str | None:
    """Say what is wrong with the reaction to a command line; None if nothing is."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main(fuzzed.value)
    except SystemExit as stop:
        code = 0 if {"-h", "--help"} & set(fuzzed.value) and not stop.code else -1
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}  {fuzzed.value}"[:900]
    text = err.getvalue()
    if code not in (0, 2) or "Traceback" in text:
        return f"exit code {code}: {text[-300:]}  {fuzzed.value}"[:900]
    errors = [line for line in text.splitlines() if line.startswith("equirelax: error: ")]
    if code == 2 and len(fuzzed.value) > 1 and len(errors) != 1 and text:
        return f"{len(errors)} errors: {text[-300:]}  {fuzzed.value}"[:900]
    if len(text) > 3000:
        return f"{len(text)} characters: {text[:300]}"
    if code == 2 and errors and not any(name in text for name in fuzzed.culprits or ("",)):
        return f"names none of {fuzzed.culprits}: {errors[0]}  {fuzzed.value}"[:900]
    return None


@pytest.mark.parametrize("words", GOOD, ids=lambda words: " ".join(words[:3]))
def test_what_is_spoilt_is_good(words: list[str], place: Path) -> None:
    """The unspoilt command lines are accepted, except for missing data."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    refused = next((REFUSED[word] for word in words if word in REFUSED), None)
    assert code == (0 if refused is None else 2)
    assert ("error" not in err.getvalue()) if refused is None else (refused in err.getvalue()), err.getvalue()


@shares(150, 2000)
def test_command_lines_with_something_wrong(first: int, last: int, ledger: Ledger, place: Path) -> None:
    def one(seed: int) -> str | None:
        draw = random.Random(seed)
        words = draw.choice(GOOD)
        fuzzed = spoil_words(draw, words)
        anyway = [REFUSED[word] for word in words if word in REFUSED]
        return met(Fuzzed(fuzzed.value, (*fuzzed.culprits, *anyway) if fuzzed.culprits else ()))

    settle(ledger, "fuzzed command line", {seed: one(seed) for seed in range(first, last)})
