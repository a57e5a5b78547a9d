"""The calls of a training run go down the rooms: only placements, which the library is given, are called from below."""

from __future__ import annotations

from pathlib import Path

import pytest
from call_chain import climbs, tiny_run


@pytest.mark.slow
def test_the_calls_of_a_run_go_up_three_times_at_most(tiny_root: Path, tmp_path: Path) -> None:
    pairs = climbs(tiny_run(tmp_path / "run", tiny_root))
    assert len(pairs) <= 3, sorted(pairs)
