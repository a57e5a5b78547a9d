"""What tests of several rooms share: one thread, and tiny N-body data made once."""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
import torch
from slow_share import listed_as_slow, share

pytest_plugins = ["cpu_times"]
torch.set_num_threads(1)  # in every worker of pytest-xdist too: there are as many of them as cores


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow-share",
        metavar="K/N",
        help="of the slow tests, run every N-th, from the K-th on (K counts round)",
    )


@pytest.hookimpl(tryfirst=True)  # before pytest looks at the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that slow_tests.txt lists; leave out the slow ones that are not in the share that was asked for."""
    listed = listed_as_slow()
    for item in items:
        if item.nodeid.partition("tests/")[2] in listed:
            item.add_marker(pytest.mark.slow)
    if text := config.getoption("--slow-share"):
        slow = [item.nodeid for item in items if item.get_closest_marker("slow")]
        left_out = set(slow) - share(slow, text)
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
        items[:] = [item for item in items if item.nodeid not in left_out]


def pytest_collection_finish() -> None:
    """Hide what was imported and collected from the garbage collector, each of whose rounds would walk through all of it."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers in every run: a failure can be repeated."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with 48 / 24 / 24 charged systems."""
    from equirelax.data import nbody

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
    from equirelax.benchmarks.registry import defaults

    def config(method: str, model: str = "segnn", **changes: Any) -> Any:
        network = {"layers": 1, "hidden": 16} if model == "segnn" else {"layers": 2, "hidden": 8}
        return defaults("nbody", model, method).updated({**TINY, "network": network, **changes})

    return config


@pytest.fixture
def runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands start as processes, which would import everything first, is done in this one; a real one ends likewise."""
    from equirelax.cli import main
    from equirelax.training import jobs

    def obeyed(words: list[str], *, stdout: IO[bytes], **_: Any) -> subprocess.Popen[bytes]:
        threads = torch.get_num_threads()
        with open(stdout.name, "a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
            code = main(words[words.index("equirelax.cli") + 1 :])
        torch.set_num_threads(threads)
        return subprocess.Popen(["sh", "-c", f"exit {code}"])

    monkeypatch.setattr(jobs, "subprocess", SimpleNamespace(Popen=obeyed, STDOUT=subprocess.STDOUT))
