"""What the tests of published networks saw: networks.json, by name, and a table of all of them.

A plugin of pytest: `--networks-out FOLDER` writes what the subclasses of `NetworkConformance` recorded. Runs in several
environments may write into one folder: each replaces the networks that it tried. A network whose tests did not all pass says so.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest

COLUMNS = (
    "network", "package", "relaxed", "error at strength 1", "projected, float64", "projected, float32", "strict",
    "torch.export", "torch.jit", "remarks",
)  # fmt: skip
EQUAL, IMPOSSIBLE = "equal to", "not before relaxing either: "
"""How a fact begins that says that something is as it was, and one that says why it never could be done."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--networks-out",
        metavar="FOLDER",
        help="write what tests of networks saw to FOLDER: networks.json and summary.md",
    )


def pytest_configure(config: pytest.Config) -> None:
    if folder := config.getoption("--networks-out"):
        config.pluginmanager.register(NetworksOut(Path(folder)), "networks-out")


class NetworksOut:
    """Notes the facts on the reports, which carry them from the workers of pytest-xdist to the process that writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, dict[str, Any]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Any, Any]:
        report = yield
        cls = getattr(item, "cls", None)
        if hasattr(cls, "seen") and hasattr(cls, "name"):
            report.network = (cls.name, dict(cls.seen.get(cls.name, {})))
        return report

    def pytest_runtest_logreport(self, report: Any) -> None:
        name, facts = getattr(report, "network", ("", {}))
        if not name:
            return
        known = self.facts.setdefault(name, {"network": name})
        known.update(facts)
        if report.failed:
            known.setdefault("failed", []).append(report.nodeid.rpartition("::")[2])

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):
            return
        from equirelax_lab.training.provenance import commit, hardware, versions

        origin = {"commit": commit(), "hardware": hardware(), "versions": versions()}
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "networks.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        known |= {name: {**facts, "origin": origin} for name, facts in self.facts.items()}
        file.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        (self.folder / "summary.md").write_text(summary(list(known.values())), encoding="utf-8")


def summary(networks: list[dict[str, Any]]) -> str:
    """The table, a network a line, by name."""
    ordered = sorted(networks, key=lambda facts: facts["network"].lower())
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(row, ordered)]
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return f"# Published networks under `relax(network)`, without arguments\n\n{lines}\n"


def row(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of a network's line."""
    package = f"{facts.get('package', '')} {facts.get('version', '')}".strip()
    errors = ("relaxed_error", "projected_error_float64", "projected_error_float32")
    remarks = [facts.get("remarks", "")]
    if failed := facts.get("failed"):
        remarks.append(f"FAILED: {', '.join(failed)}")
    return (
        facts["network"],
        package or "minimal, of the same form",
        f"{facts.get('residuals', '?')}: {', '.join(facts.get('modules', []))}",
        *(f"{facts[name]:.1e}" if name in facts else "" for name in errors),
        _yes(facts.get("strict", "")),
        _yes(facts.get("export", "")),
        _yes(facts.get("script", "")),
        "; ".join(filter(None, remarks)),
    )


def _yes(fact: str) -> str:
    """A fact in short, for the column's heading says what it is about."""
    if fact.startswith(EQUAL):
        return "equal"
    return fact.replace(IMPOSSIBLE, "no: ").replace("|", "/")
