"""The plugin that writes what tests of networks saw."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from networks_out import COLUMNS, NetworksOut, row, summary

FACTS: dict[str, Any] = {
    "network": "Theirs", "package": "theirs", "version": "1.2", "residuals": 2, "modules": ["Linear", "Product"],
    "relaxed_error": 0.123, "projected_error_float64": 2e-16, "projected_error_float32": 3e-7,
    "strict": "equal to the bit", "script": "equal to before relaxing",
    "export": "not before relaxing either: a | b", "remarks": "SE(3)",
}  # fmt: skip


def session(**of_workers: Any) -> Any:
    return SimpleNamespace(config=SimpleNamespace(**of_workers))


def report(facts: dict[str, Any], failed: bool = False) -> Any:
    return SimpleNamespace(
        network=("Theirs", facts), failed=failed, nodeid="test_theirs.py::TestTheirs::test_it"
    )


def test_the_cells_of_a_network() -> None:
    cells = dict(zip(COLUMNS, row(FACTS), strict=True))
    assert cells["package"] == "theirs 1.2"
    assert cells["relaxed"] == "2: Linear, Product"
    assert [cells[name] for name in COLUMNS[3:6]] == ["1.2e-01", "2.0e-16", "3.0e-07"]
    assert [cells[name] for name in COLUMNS[6:9]] == ["equal", "no: a / b", "equal"]
    assert cells["remarks"] == "SE(3)"
    assert dict(zip(COLUMNS, row({"network": "Ours"}), strict=True))["package"] == "minimal, of the same form"


def test_what_several_reports_saw_is_one_file_and_a_line_of_the_table(tmp_path: Path) -> None:
    pytest.importorskip("equirelax_lab", reason="the plugin notes where it ran with the laboratory")
    file = tmp_path / "networks.json"
    other = {"Other": {"network": "Other"}}
    file.write_text(json.dumps(other))
    plugin = NetworksOut(tmp_path)
    plugin.pytest_runtest_logreport(report({"residuals": 2}))
    plugin.pytest_runtest_logreport(report({"relaxed_error": 0.5}, failed=True))
    plugin.pytest_runtest_logreport(SimpleNamespace(failed=True, nodeid="another test"))
    plugin.pytest_sessionfinish(session(workerinput={}))
    assert json.loads(file.read_text()) == other
    plugin.pytest_sessionfinish(session())
    found = json.loads(file.read_text())
    assert list(found) == ["Other", "Theirs"]
    assert {"commit", "hardware", "versions"} <= set(found["Theirs"].pop("origin"))
    assert found["Theirs"] == {
        "network": "Theirs",
        "residuals": 2,
        "relaxed_error": 0.5,
        "failed": ["test_it"],
    }
    lines = (tmp_path / "summary.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][2:] == ["| Other", "| Theirs"]
    assert "FAILED: test_it" in lines[-1]


@pytest.mark.parametrize("networks", [[], [FACTS]])
def test_a_table_has_as_many_cells_in_every_line(networks: list[dict[str, Any]]) -> None:
    lines = [line for line in summary(networks).splitlines() if line.startswith("|")]
    assert {line.count(" | ") for line in lines} == {len(COLUMNS) - 1}
    assert len(lines) == 2 + len(networks)
