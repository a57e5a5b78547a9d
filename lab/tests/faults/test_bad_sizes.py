"""Impossible numbers: every numeric setting has a range, and networks larger than the memory are refused."""

from __future__ import annotations

import dataclasses
import math
import typing

import numpy as np
import pytest
import torch
from equirelax_lab.data.smoke import SmokeSettings
from equirelax_lab.tasks.registry import defaults
from equirelax_lab.tasks.settings import RunConfig, Training
from equirelax_lab.training import memory
from equirelax_lab.training.assembly import assemble
from equirelax_lab.training.machine import Machine
from fault_ledger import Ledger
from fuzzing import runs

from equirelax.errors import ConfigError
from equirelax.settings import COUNT, POSITIVE, SHARE, Range, check, range_of, shown


def sections() -> list[type]:
    """Every dataclass of settings."""
    found = {type(getattr(config, name)) for config in runs() for name in config.sections}
    return [Training, Machine, SmokeSettings, *sorted(found, key=lambda kind: kind.__name__)]


@pytest.mark.parametrize("section", sections(), ids=lambda kind: kind.__name__)
def test_every_number_has_a_range_that_holds_its_default(section: type) -> None:
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        wanted = range_of(field)
        kinds = typing.get_args(hints[field.name]) or (hints[field.name],)
        # of lists those within; a function of numbers is none
        inner = [kind for each in kinds if typing.get_origin(each) is list for kind in typing.get_args(each)]
        numbers = any(kind in (int, float) for kind in (*kinds, *inner))
        assert (wanted is not None) == numbers, f"{section.__name__}.{field.name}"
        if wanted is not None:
            if field.default is not dataclasses.MISSING:  # numbers of the experiments are in the recipes
                check(field.default, wanted, field.name)
            assert float("nan") not in wanted
            assert float("inf") not in wanted


@pytest.mark.parametrize("config", runs(), ids=lambda c: f"{c.benchmark}-{c.model}-{c.method}")
def test_every_benchmarks_own_settings_are_within_their_ranges(config: RunConfig) -> None:
    assert config.updated(config.to_dict()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": -1}, "'learning_rate' is -1.0; expected above 0."),
        ({"learning_rate": math.nan}, "'learning_rate' is nan; expected above 0."),
        ({"learning_rate": 10**400}, "'learning_rate' is inf; expected above 0."),
        (
            {"batch_size": 0},
            "'batch_size' is 0; expected a whole number, at least 1 and at most 1,000,000,000.",
        ),
        ({"epochs": 10**5000}, "'epochs' is a number of 5000 digits; expected a whole number, at least 1"),
        ({"step_factor": 0}, "'step_factor' is 0.0; expected above 0 and at most 1."),
        ({"momentum": 1}, "'momentum' is 1.0; expected at least 0 and below 1."),
        (
            {"network": {"hidden": 0}},
            "'network.hidden' is 0; expected a whole number, at least 1 and at most 16,384.",
        ),
        (
            {"network": {"layers": -3}},
            "'network.layers' is -3; expected a whole number, at least 1 and at most 1,000.",
        ),
        ({"residual": {"kind": "low-rank", "rank": 0}}, "'residual.rank' is 0"),
        (
            {"residual": {"kind": "mlp", "scale": math.inf}},
            "'residual.scale' is inf; expected a finite number.",
        ),
        ({"strength": {"rows": 0}}, "'strength.rows' is 0"),
        (
            {"seed": 2**32},
            "'seed' is 4294967296; expected a whole number, at least 0 and at most 4,294,967,295.",
        ),
    ],
)
def test_numbers_that_cannot_work_are_refused_by_their_key(
    values: dict[str, object], message: str, ledger: Ledger
) -> None:
    with pytest.raises(ConfigError) as caught:
        defaults("nbody", "segnn", "scheduled").updated(values)
    ledger.note("number that cannot work", survived=message in str(caught.value))
    assert message in str(caught.value)


def test_ends_of_ranges() -> None:
    assert 0 in SHARE
    assert 1 not in SHARE
    assert 0 not in POSITIVE
    assert 10**400 in POSITIVE
    assert 10**9 in COUNT
    assert 10**9 + 1 not in COUNT
    assert 1.5 not in COUNT
    assert 8.0 not in COUNT
    assert np.int64(8) in COUNT
    assert str(Range(0, 5, open_least=True)) == "above 0 and at most 5"
    assert str(Range(1, 5, whole=True)) == "a whole number, at least 1 and at most 5"
    assert len(shown({"a": ["x" * 10_000] * 10_000})) <= 80


def test_a_network_beyond_the_memory_is_refused_before_it_is_built(
    monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    monkeypatch.setattr(memory, "machine_bytes", lambda: 2**26)
    config = defaults("nbody", "egnn", "ace").updated({"network": {"hidden": 4096, "layers": 500}})
    with pytest.raises(ConfigError) as caught:
        assemble(config)
    named = all(words in str(caught.value) for words in ("'network.hidden' (4096)", "'network.layers' (500)"))
    ledger.note("network beyond the memory", survived=named)
    assert named, str(caught.value)
    assert "0 GiB" in str(caught.value)
    # the count ends with the run's network: later ones are free of it
    torch.nn.Linear(5000, 5000)
    small = defaults("nbody", "egnn", "ace").updated({"network": {"hidden": 8, "layers": 1}})
    assert assemble(small).relaxed_parameters > assemble(small).strict_parameters


def test_memory_that_the_system_refuses_names_the_settings(ledger: Ledger) -> None:
    config = defaults("nbody", "egnn", "strict").updated({"network": {"hidden": 128}})
    with pytest.raises(ConfigError, match=r"make 'network.hidden' \(128\) smaller"), memory.fitting(config):
        torch.empty(2**60, dtype=torch.uint8)
    ledger.note("network beyond the memory", survived=True)
    with pytest.raises(RuntimeError, match="something else"), memory.fitting(config):
        raise RuntimeError("something else")
