"""Count how often each fault was tried and survived; `--faults-out DIR` writes the counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_ledger import Ledger
from forked_runs import Forks, forks
from real_runs import end_started


def pytest_addoption(parser: pytest.Parser) -> None:
    # Known only where this folder is named on the command line, as `make faults` does.
    parser.addoption("--faults-out", default=None, help="folder that receives the count of faults")


@pytest.fixture(scope="session")
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """Record every fault with `ledger.note(fault, survived=...)` before the assertion that it was survived."""
    found = Ledger()
    yield found
    if out := request.config.getoption("--faults-out", default=None):
        found.write(Path(out))


@pytest.fixture(autouse=True)
def _nothing_goes_on() -> Iterator[None]:
    """No process that a test started outlives it."""
    yield
    end_started()


@pytest.fixture(scope="session")
def forked() -> Iterator[Forks]:
    """Run command lines in forked processes that have imported everything already."""
    with forks() as found:
        yield found
