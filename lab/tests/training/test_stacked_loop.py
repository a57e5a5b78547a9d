"""Ten steps of a stack are ten steps of every run alone: weights, strengths, multipliers, and what the optimizer keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.tasks.registry import build_task
from equirelax_lab.training.assembly import assemble
from equirelax_lab.training.launch import launched
from equirelax_lab.training.loop import Loop
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.member import Member
from equirelax_lab.training.stacked_loop import StackedLoop
from torch import Tensor

MACHINE = Machine(progress=False, tensorboard=False)
STEPS, SEEDS = 10, (3, 4)
Config = Callable[..., Any]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Networks are made in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def samples(config: Any, root: Path | None) -> Any:
    return build_task(config, root).load("train").to(dtype=torch.float64)  # type: ignore[call-arg]


def stack(configs: Sequence[Any], root: Path | None, machine: Machine = MACHINE) -> StackedLoop:
    """A stack of runs with these settings."""
    with launched(machine) as fabric:
        members = [
            Member(assemble(config, root, STEPS), samples(config, root), fabric, machine)
            for config in configs
        ]
        return StackedLoop(members, assemble(configs[0], root, STEPS), fabric, machine)


def alone(config: Any, root: Path | None) -> Loop:
    with launched(MACHINE) as fabric:
        return Loop(assemble(config, root, STEPS), samples(config, root), fabric, MACHINE)


def seeds_of(config: Any) -> list[Any]:
    return [config.updated({"seed": seed}) for seed in SEEDS]


def assert_close(found: Any, expected: Any, where: str) -> None:
    """Equal in everything but the rounding of float64."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_close(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, value in enumerate(expected):
            assert_close(found[index], value, f"{where}[{index}]")
    elif isinstance(expected, Tensor):
        assert found.dtype == expected.dtype, where
        torch.testing.assert_close(
            found, expected, rtol=1e-12, atol=1e-12, msg=lambda text: f"{where}: {text}"
        )
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12), where
    else:
        assert found == expected, where


def assert_members_are_single_runs(config: Any, root: Path | None) -> None:
    configs = seeds_of(config)
    loop = stack(configs, root)
    columns = loop.epoch()
    assert loop.steps == STEPS
    for index, (config, member) in enumerate(zip(configs, loop.members, strict=True)):
        single = alone(config, root)
        assert_close(columns[index], single.epoch(), f"columns of {index}")
        assert_close(member.state_dict(), single.state_dict(), f"member {index}")
        if (method := member.assembly.method) is not None and single.assembly.method is not None:
            assert_close(method.logs(), single.assembly.method.logs(), f"logs of {index}")


NBODY = {"batch_size": 5, "dataset": {"train": 48, "val": 24, "test": 24}}
CASES = [
    ("strict", "segnn", {}),
    ("ace", "segnn", {"ema": 0.9}),
    ("ace", "segnn", {"gradient_clip": 0.01, "weight_decay": 0.1, "decay_biases": False}),
    ("ace", "segnn", {"optimizer": "sgd", "momentum": 0.9, "residual_rate": 0.1, "schedule": "cosine"}),
    (
        "ace",
        "segnn",
        {"strength": {"dual_optimizer": "adam", "reduction": "mean", "pi": 0.1, "augmented": 0.5}},
    ),
    ("scheduled", "segnn", {}),
    ("scheduled", "segnn", {"residual": {"kind": "dense"}}),
    ("resilient", "segnn", {}),
    ("swing", "segnn", {"strength": {"period": 8}}),
    ("strict", "egnn", {}),
    ("ace", "egnn", {"ema": 0.9, "gradient_clip": 0.01}),
    ("scheduled", "egnn", {}),
]
FAST = (10,)


@pytest.mark.parametrize(
    ("method", "model", "changes"),
    [pytest.param(*case, marks=() if i in FAST else pytest.mark.slow) for i, case in enumerate(CASES)],
)
def test_nbody(method: str, model: str, changes: Any, tiny_root: Path, tiny_config: Config) -> None:
    config = tiny_config(method, model, **NBODY, **changes)
    assert_members_are_single_runs(config, tiny_root)
