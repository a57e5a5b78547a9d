"""How strengths ended, computed from a table of metrics; damaged tables give errors of one line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.training.dynamics import courses, dynamics, first_lag, loss_spikes, read_metrics

from equirelax.errors import ConfigError


def rows(epochs: int, **columns: Any) -> list[dict[str, str]]:
    """Rows of a metrics.csv; columns are functions of the epoch (from 1)."""
    return [
        {"epoch": str(e - 1), **{name.replace("__", "/"): str(f(e)) for name, f in columns.items()}}
        for e in range(1, epochs + 1)
    ]


def test_the_last_tenth_by_hand() -> None:
    table = rows(
        100,
        gamma__a=lambda e: 1 - e / 100,
        gamma__b=lambda e: -2.0 if e == 3 else 0.25,
        multiplier__a=lambda e: e / 100,
        multiplier__b=lambda e: -5.0 if e < 90 else -2.0,
        slack__a=lambda e: 0.0,
        slack__b=lambda e: 0.0,
    )
    found = dynamics(table)
    assert found is not None
    assert found["max_abs_gamma"] == {"largest": 2.0, "end": 0.25}
    assert found["window"] == {"first": 90, "last": 100}
    assert found["drift"]["multiplier"] == pytest.approx({"change": 0.1, "swing": 0.1, "relative": 0.05})
    assert found["drift"]["gamma"] == pytest.approx({"change": 0.1, "swing": 0.1, "relative": 0.4})
    assert found["drift"]["slack"] == {"change": 0.0, "swing": 0.0, "relative": 0.0}


def test_a_course_that_comes_back_has_no_change_but_a_swing() -> None:
    table = rows(
        200,
        gamma__a=lambda e: math.sin(2 * math.pi * e / 20),
        multiplier__a=lambda e: math.cos(2 * math.pi * e / 20),
    )
    drift = dynamics(table)["drift"]["multiplier"]  # type: ignore[index]
    assert drift["change"] < 1e-12
    assert drift["swing"] == pytest.approx(2.0)
    assert drift["relative"] == pytest.approx(2.0)


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_short_runs(epochs: int) -> None:
    found = dynamics(rows(epochs, gamma__a=lambda e: float(e)))
    assert found is not None
    assert found["window"] == {"first": max(epochs - 1, 1), "last": epochs}
    assert found["max_abs_gamma"] == {"largest": epochs, "end": epochs}
    assert found["drift"]["gamma"]["change"] == min(epochs - 1, 1)


def test_without_residuals_there_is_nothing() -> None:
    assert dynamics(rows(3, seconds=lambda e: e)) is None
    assert dynamics([]) is None


def test_missing_values_and_rows_do_not_count() -> None:
    table = rows(40, gamma__a=lambda e: 0.5, multiplier__a=lambda e: 1.0)
    table[38]["multiplier/a"] = ""
    table[37]["multiplier/a"] = "nan"
    del table[20:30]
    assert dynamics(table)["drift"]["multiplier"]["swing"] == 0.0  # type: ignore[index]
    assert math.isnan(courses(table)["multiplier"]["a"][28])


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no row with an epoch"),
        ("step,seconds\n1,2\n", "no row with an epoch"),
        ("epoch,gamma/a\n0,1.0\n1,one\n", "column gamma/a holds 'one' at epoch '1'"),
        ("epoch,gamma/a\n0,1.0\n,1.0\n", "a row has no epoch"),
        ("epoch,gamma/a\n0,1.0\n1,0.9\n", "ends at epoch 2 of 3"),
        ("epoch,gamma/a\n0,1.0\n1,0.9\n2", "ends at epoch 2 of 3"),
    ],
)
def test_damaged_tables(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read_metrics(write(tmp_path / "metrics.csv", text), 3)
    assert "\n" not in str(error.value)


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_metrics(tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv").write_bytes(b"epoch,gamma/a\n0,\xff\xfe\x00\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_metrics(tmp_path / "metrics.csv")


def test_a_whole_table_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.csv", "epoch,gamma/a,val/best\n0,1.0,\n1,0.9,nan\n")
    assert len(read_metrics(path, 2)) == len(read_metrics(path)) == 2


def test_a_loss_that_rises_a_thousandfold_and_stays_is_found() -> None:
    course = {1: 1.0, 2: 1e-2, 3: 1e-4, 4: 8.0, 5: 0.5, 6: 0.05, 7: 5.0, 8: 1e-4}  # epoch 7: alone
    found = loss_spikes(rows(8, train__loss=lambda e: course[e]))
    assert found == [{"first": 4, "last": 5, "before": 1e-4, "largest": 8.0}]
    still = loss_spikes(rows(3, train__loss=lambda e: (1e-4, 1.0, 2.0)[e - 1]))
    assert still == [{"first": 2, "last": 3, "before": 1e-4, "largest": 2.0}]
    assert loss_spikes(rows(5, train__loss=lambda e: 1.0 + 900 * (e == 3))) == []


def test_the_epoch_at_which_the_projected_network_first_lags() -> None:
    """Every second epoch measures; the relaxed loss falls from the 9th measurement on, the projected one stays."""
    columns = {
        "fit__projected": lambda e: "" if e % 2 else 1.0,
        "fit__relaxed": lambda e: "" if e % 2 else (1.0 if e <= 16 else 0.1),
    }
    # the newer six of twelve measurements: four of 0.1 and two of 1 have a mean of 0.4
    assert first_lag(rows(60, **columns)) == 24
    assert first_lag(rows(22, **columns)) is None
    assert first_lag(rows(60, fit__projected=lambda e: 1.0, fit__relaxed=lambda e: 1.0)) is None
    assert first_lag(rows(60, train__loss=lambda e: 1.0)) is None
