"""Members that are measured together: what each of them measures alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from equirelax_lab.tasks.registry import defaults
from equirelax_lab.training.assembly import assemble
from equirelax_lab.training.evaluation import Evaluation
from equirelax_lab.training.launch import launched
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.member import Member
from equirelax_lab.training.perf_subjects import random_systems
from equirelax_lab.training.stacked_loop import StackedLoop
from torch import Tensor

MACHINE = Machine(progress=False, tensorboard=False)
SEEDS = (3, 4, 5)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def systems(count: int, seed: int = 0) -> Any:
    data = random_systems(count)
    data.positions += 0.1 * seed
    return data.to(dtype=torch.float64)


def trained(method: str, model: str) -> StackedLoop:
    """A stack after an epoch of one step."""
    network = {"layers": 1, "hidden": 16} if model == "segnn" else {"layers": 2, "hidden": 8}
    config = defaults("nbody", model, method).updated({"batch_size": 4, "ema": 0.9, "network": network})
    with launched(MACHINE) as fabric:
        runs = [config.updated({"seed": seed}) for seed in SEEDS]
        members = [Member(assemble(run), systems(4), fabric, MACHINE) for run in runs]
        loop = StackedLoop(members, assemble(config), fabric, MACHINE)
    for member in members:
        member.in_stack = loop.evaluation.join
    loop.epoch()
    return loop


def together(loop: StackedLoop, seeded: bool) -> list[Evaluation]:
    """Of 300 samples, more than are predicted at once."""
    return [
        member.evaluation(systems(300, seed if seeded else 0), systems(5, seed))
        for seed, member in enumerate(loop.members)
    ]


def measured(each: Evaluation, relaxed: bool) -> list[Tensor]:
    forms = (False, True) if relaxed else (False,)
    return [
        value
        for strict in forms
        for value in (
            each.totals("trained", strict),
            each.totals("averaged", strict),
            each.loss_sum("trained", strict),
        )
    ]


def assert_as_alone(loop: StackedLoop, parts: list[Evaluation]) -> None:
    for member, part in zip(loop.members, parts, strict=True):
        alone = Evaluation(part.task, part.networks, part.val, part.train)
        relaxed = member.assembly.relaxation is not None
        for found, expected in zip(measured(part, relaxed), measured(alone, relaxed), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("method", "model", "seeded"),
    [
        ("ace", "egnn", False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("strict", "segnn", False), ("ace", "segnn", True), ("scheduled", "segnn", False)]
        ),
    ],
)
def test_every_member_is_as_alone(method: str, model: str, seeded: bool) -> None:
    loop = trained(method, model)
    parts = together(loop, seeded)
    assert_as_alone(loop, parts)
    assert loop.evaluation.able
    loop.epoch()  # the weights move, and nothing that was found before is left
    assert_as_alone(loop, parts)


def test_what_cannot_be_mapped_is_measured_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = trained("strict", "egnn")
    parts = together(loop, False)
    task = loop.members[0].assembly.task
    predict = type(task).predict

    def reads_a_value(self: Any, model: Any, batch: Any) -> Tensor:
        out = predict(self, model, batch)
        assert float(out.sum()) == float(out.sum())
        return out

    monkeypatch.setattr(type(task), "predict", reads_a_value)
    assert_as_alone(loop, parts)
    assert not loop.evaluation.able
