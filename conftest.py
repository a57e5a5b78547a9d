"""What the tests of both houses share: one thread, seeds, and which tests are slow."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from slow_share import listed_as_slow, share

pytest_plugins = ["cpu_times", "networks_out"]
# folders whose tests need a package that wants an environment of its own, see the Makefile
ELSEWHERE = {"with_escnn": "escnn", "with_mace": "mace", "with_schnetpack": "schnetpack"}
MISSING = {
    folder: package for folder, package in ELSEWHERE.items() if importlib.util.find_spec(package) is None
}
torch.set_num_threads(1)  # in every worker of pytest-xdist too: there are as many of them as cores


@pytest.fixture
def float64() -> Iterator[None]:
    """Everything that a test makes is float64, from one seed: `pytestmark = pytest.mark.usefixtures("float64")`."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


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


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave files that import such a package alone where it is not installed."""
    # the files too, for a folder that is named on the command line is collected whatever is said of it
    return True if MISSING.keys() & {collection_path.name, collection_path.parent.name} else None


def pytest_report_header() -> str | None:
    """Say so at the head of a run."""
    if not MISSING:
        return None
    return f"tests in {', '.join(MISSING)} left out: not installed here (make test-escnn, make test-networks)"


def pytest_collection_finish() -> None:
    """Hide what was imported and collected from the garbage collector, each of whose rounds would walk through all of it."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers in every run: a failure can be repeated."""
    torch.manual_seed(0)
