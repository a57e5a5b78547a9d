"""The paired t test against scipy's."""

from __future__ import annotations

import math

import pytest
from equirelax_lab.report.significance import holm, paired_test, two_sided
from equirelax_lab.report.statistics import paired


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 10, 31])
def test_probabilities_are_students(degrees: int) -> None:
    t = pytest.importorskip("scipy.stats").t
    for value in (0.0, 0.1, 1.0, 2.5, 12.0):
        assert two_sided(value, degrees) == pytest.approx(2 * t.sf(value, degrees), abs=1e-12)
        assert two_sided(-value, degrees) == two_sided(value, degrees)


def test_the_test_of_paired_differences() -> None:
    ttest = pytest.importorskip("scipy.stats").ttest_rel
    ours, strict = [1.0, 2.5, 2.0, 4.0], [2.0, 2.0, 3.0, 6.0]
    compared = paired(dict(enumerate(ours)), dict(enumerate(strict)))
    assert compared is not None
    found = paired_test(compared.to_dict())
    assert found is not None
    expected = ttest(ours, strict)
    assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert found.effect == pytest.approx(found.t / math.sqrt(4))


def test_there_is_none_for_one_seed_or_equal_differences() -> None:
    for ours in ({0: 1.0}, {0: 1.0, 1: 2.0}):
        compared = paired(ours, {seed: value + 1.0 for seed, value in ours.items()})
        assert compared is not None
        assert paired_test(compared.to_dict()) is None
    assert paired_test(None) is None


def test_holms_correction() -> None:
    """By hand: 4 x 0.01, then 3 x 0.015 (above 0.04), 2 x 0.02 (raised to the one before it), 0.9 as it is."""
    found = holm({"a": 0.02, "b": 0.01, "c": 0.9, "d": 0.015})
    assert found == pytest.approx({"b": 0.04, "d": 0.045, "a": 0.045, "c": 0.9})
    assert holm({"one": 0.03}) == {"one": 0.03}
    assert holm({"a": 0.7, "b": 0.6}) == {"b": 1.0, "a": 1.0}
    assert holm({}) == {}
