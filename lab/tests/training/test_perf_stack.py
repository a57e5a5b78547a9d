"""The memory of a stack, and the shape of the report."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equirelax_lab.cli.perf import main
from equirelax_lab.tasks.registry import defaults
from equirelax_lab.training.assembly import assemble
from equirelax_lab.training.launch import launched
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.member import Member
from equirelax_lab.training.perf_stack import METHODS, measure_stack, table
from equirelax_lab.training.perf_subjects import random_systems
from equirelax_lab.training.stack import StackError
from equirelax_lab.training.stack_memory import USABLE, StackMemory, epoch_bytes
from equirelax_lab.training.stacked_loop import StackedLoop

from equirelax.errors import ConfigError


def test_what_fits_is_what_is_not_refused() -> None:
    memory = StackMemory(fixed=100, each=50, available=(100 + 7 * 50) / USABLE + 1)
    assert memory.most == 7
    assert memory.of(7) == 450
    memory.check(7)
    with pytest.raises(StackError, match="7 fit"):
        memory.check(8)


def test_a_device_that_is_too_small_fits_none() -> None:
    assert StackMemory(fixed=100, each=50, available=20).most == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["strict", "scheduled"])
def test_memory_grows_by_a_line(method: str) -> None:
    config = defaults("nbody", "segnn", method).updated(
        {"batch_size": 4, "network": {"layers": 1, "hidden": 16}}
    )
    machine = Machine(progress=False)

    def made(count: int) -> StackedLoop:
        with launched(machine) as fabric:
            samples = random_systems(4)
            runs = [config.updated({"seed": seed}) for seed in range(count)]
            members = [Member(assemble(run), samples, fabric, machine) for run in runs]
            return StackedLoop(members, assemble(config), fabric, machine)

    memory = StackMemory.measured(made)
    assert memory.of(5) == pytest.approx(epoch_bytes(made(5)), rel=0.02)
    weights = sum(p.numel() * p.element_size() for p in assemble(config).model.parameters())
    assert memory.each > 4 * weights


def report(*rows: dict[str, Any]) -> dict[str, Any]:
    settings = {
        "repetitions": 1, "steps": 4, "batch_size": 2, "sample": "5 bodies", "threads": 1, "device": "cpu",
    }  # fmt: skip
    return {"rows": list(rows), "settings": settings, "hardware": {"cpu": "a CPU"}, "commit": "abc"}


def test_the_table_says_what_does_not_fit() -> None:
    timed = {
        "method": "strict", "members": 8, "bytes": 10**9, "fits": True, "single_milliseconds": 3.0,
        "stack_milliseconds": 6.0, "member_steps_per_second": 1333.3, "ratio": 4.0, "kernel_share": 0.5,
    }  # fmt: skip
    large = {"method": "strict", "members": 64, "bytes": 8 * 10**9, "fits": False}
    first, second, *_ = table(report(timed, large)).splitlines()[1:]
    assert first.split() == ["strict", "8", "3.00", "6.00", "1333.3", "4.00", "50%", "1", "GB"]
    assert "does not fit" in second
    assert "8 GB" in second


@pytest.mark.slow
def test_every_method_and_number_is_timed() -> None:
    before = torch.get_num_threads()
    try:
        result = measure_stack(members=(1, 2), batch_size=2, repetitions=1, machine=Machine())
    finally:
        torch.set_num_threads(before)
    assert [(row["method"], row["members"]) for row in result["rows"]] == [
        (method, count) for method in METHODS for count in (1, 2)
    ]
    for row in result["rows"]:
        steps = 1e3 / row["stack_milliseconds"]
        assert row["member_steps_per_second"] == pytest.approx(row["members"] * steps)
        assert row["ratio"] == pytest.approx(
            row["members"] * row["single_milliseconds"] / row["stack_milliseconds"]
        )
    assert "thread" in table(result)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("perf --stack 0", "--stack"),
        ("perf --stack 2 --rows 4", "--rows"),
        ("perf modelnet40 --stack 2", "modelnet40"),
    ],
)
def test_what_cannot_be_timed_is_refused(words: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        main(words.split())
