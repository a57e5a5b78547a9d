"""Records of commands as JSON."""

from __future__ import annotations

import json
import math

from equirelax_lab.report.record import record_text


def test_a_record_is_one_line_with_seven_digits_and_nothing_else_changes() -> None:
    record = {"a": [1 / 3, (1e-12 / 7, 3)], "b": {"name": "1/3", "true": True, "none": None}, "c": 12345678}
    text = record_text(record)
    assert text.count("\n") == 1
    found = json.loads(text)
    assert found == {
        "a": [0.3333333, [1.428571e-13, 3]],
        "b": {"name": "1/3", "true": True, "none": None},
        "c": 12345678,
    }
    assert isinstance(found["a"][1][1], int)


def test_values_that_are_not_finite_survive() -> None:
    found = json.loads(record_text({"x": [math.nan, math.inf]}))["x"]
    assert math.isnan(found[0])
    assert found[1] == math.inf
