"""The count of faults adds up, and keeps what other tests counted."""

from __future__ import annotations

import json

from fault_ledger import COUNTS, TABLE, Ledger


def test_counts_are_kept_and_a_loss_shows(tmp_path):
    first = Ledger()
    first.note("disk full", survived=True)
    first.note("disk full", survived=False)
    first.write(tmp_path)
    second = Ledger()
    second.note("kill -9", survived=True, times=20)
    second.write(tmp_path)
    found = json.loads((tmp_path / COUNTS).read_text())
    assert {key: found["disk full"][key] for key in ("tried", "survived", "lost")} == {
        "tried": 2,
        "survived": 1,
        "lost": 1,
    }
    assert found["kill -9"]["lost"] == 0
    assert "| disk full | 2 | 1 | 1 |" in (tmp_path / TABLE).read_text()
    assert found["kill -9"]["versions"]["torch"]
