"""The list of mutants does not rot: what `make mutants` (which takes minutes) needs is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants.mistakes import MUTANTS, Mutant

TESTS = Path(__file__).parent


def test_there_are_forty_of_every_room_with_names_of_their_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) == 40
    rooms = {mutant.file.split("/")[0] for mutant in MUTANTS}
    assert rooms == {"symmetry", "relaxation", "methods", "auditing"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_it_can_be_made_and_its_tests_are_there(mutant: Mutant) -> None:
    text = (TESTS.parent / "src" / "equirelax" / mutant.file).read_text("utf-8")
    assert text.count(mutant.old) == 1
    compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")
    assert mutant.old != mutant.new
    assert mutant.tests
    assert all((TESTS.parent / name).exists() for name in mutant.tests.split())
