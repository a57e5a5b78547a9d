"""What every test costs, in CPU seconds of its process and of the processes that it waited for, its fixtures included.

A plugin of pytest: `--cpu-times FILE` writes the seconds down as JSON, dearest first. Importing and collecting the tests is
not in them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cpu-times", metavar="FILE", help="write the CPU seconds of every test to FILE, as JSON"
    )


def pytest_configure(config: pytest.Config) -> None:
    if file := config.getoption("--cpu-times"):
        config.pluginmanager.register(CpuTimes(Path(file)), "cpu-times")


def cpu_seconds() -> float:
    """CPU seconds of this process, and of those that it waited for, since it began."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class CpuTimes:
    """Notes the seconds on the reports, which carry them from the workers of pytest-xdist to the process that prints."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seen = 0.0
        self.seconds: dict[str, float] = {}

    def pytest_collection_finish(self) -> None:
        self.seen = cpu_seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, Any, Any]:
        report = yield
        before, self.seen = self.seen, cpu_seconds()
        report.cpu_seconds = self.seen - before
        return report

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.cpu_seconds

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):
            dearest = sorted(self.seconds.items(), key=lambda entry: -entry[1])
            lines = {name: round(seconds, 3) for name, seconds in dearest}
            self.file.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
