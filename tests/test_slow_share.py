"""The rotating share of the slow tests leaves none out in the long run."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from slow_share import LIST, listed_as_slow, share

import equirelax.testing

INHERITED = {
    "NetworkConformance": Path(equirelax.testing.__file__).with_name("networks.py"),
    "LayerFamilyConformance": Path(equirelax.testing.__file__).with_name("layers.py"),
    "ModelConformance": Path(equirelax.testing.__file__).with_name("models.py"),
}
"""Where the tests are that a test class inherits."""
NAMES = [f"tests/test_{letter}.py::test" for letter in "fbagcde"]


@pytest.mark.parametrize("step", [1, 2, 3, 10])
def test_the_shares_are_disjoint_and_all_there_is(step):
    shares = [share(NAMES, f"{1000 + k}/{step}") for k in range(step)]
    assert set().union(*shares) == set(NAMES)
    assert sum(map(len, shares)) == len(NAMES)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["", "3", "1/0", "-1/3", "a/b"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(ValueError, match="--slow-share"):
        share(NAMES, text)


def test_the_list_of_slow_tests_names_tests_that_are_there() -> None:
    names = listed_as_slow()
    assert names
    for name in names:
        file, _, test = name.partition("::")
        *classes, function = test.partition("[")[0].split("::")
        text = text_of(file)
        assert all(f"class {cls}(" in text or f"class {cls}:" in text for cls in classes), name
        inherited = [path.read_text("utf-8") for base, path in INHERITED.items() if classes and base in text]
        assert any(f"def {function}(" in source for source in (text, *inherited)), name


@functools.cache
def text_of(file: str) -> str:
    houses = (LIST.parent, LIST.parents[1] / "lab" / "tests")
    return next(house / file for house in houses if (house / file).exists()).read_text("utf-8")
