"""What tests of several rooms of the laboratory share: tiny N-body data, made once, and settings of runs of seconds."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import equirelax_lab.placements  # noqa: F401  (registers them)
import pytest
import torch


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with 48 / 24 / 24 charged systems."""
    from equirelax_lab.data import nbody

    root = tmp_path_factory.mktemp("data")
    nbody.make(sizes={"train": 48, "val": 24, "test": 24}, root=root, threads=1)
    return root


TINY: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 20,
    "validate_every": 2,
    "checkpoint_every": 10,
    "drop_last": False,  # a last batch of 8
    "dataset": {"train": 48, "val": 24, "test": 24},
}


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """A function (method, model="segnn", **changes) -> settings of a run of seconds on `tiny_root`."""
    from equirelax_lab.tasks.registry import defaults

    def config(method: str, model: str = "segnn", **changes: Any) -> Any:
        network = {"layers": 1, "hidden": 16} if model == "segnn" else {"layers": 2, "hidden": 8}
        return defaults("nbody", model, method).updated({**TINY, "network": network, **changes})

    return config


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """A function (epochs) -> context in which runs end after so many epochs, as if Ctrl-C had been pressed in the last."""
    from equirelax_lab.training import run
    from equirelax_lab.training.loop import Loop
    from equirelax_lab.training.stopping import StopRequest

    @contextmanager
    def stopped(epochs: int) -> Iterator[None]:
        request, epoch = StopRequest(), Loop.epoch

        def interrupted(loop: Loop) -> dict[str, float]:
            request.made = loop.completed + 1 == epochs
            return epoch(loop)

        with monkeypatch.context() as patch:
            patch.setattr(Loop, "epoch", interrupted)
            patch.setattr(run, "graceful_interrupt", lambda: nullcontext(request))
            yield

    return stopped


@pytest.fixture
def runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands start as processes, which would import everything first, is done in this one; a real one ends likewise."""
    from equirelax_lab.cli import main
    from equirelax_lab.studies import machines

    def obeyed(words: list[str], *, stdout: IO[bytes], **_: Any) -> subprocess.Popen[bytes]:
        threads = torch.get_num_threads()
        with open(stdout.name, "a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
            code = main(words[words.index("equirelax_lab.cli") + 1 :])
        torch.set_num_threads(threads)
        return subprocess.Popen(["sh", "-c", f"exit {code}"])

    monkeypatch.setattr(machines, "subprocess", SimpleNamespace(Popen=obeyed, STDOUT=subprocess.STDOUT))
