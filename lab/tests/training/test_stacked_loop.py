"""Ten steps of a stack are ten steps of every run alone: weights, strengths, multipliers, and what the optimizer keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equirelax_lab.data import modelnet
from equirelax_lab.tasks.registry import build_task, defaults
from equirelax_lab.training.assembly import assemble
from equirelax_lab.training.graph import GraphedGradients
from equirelax_lab.training.launch import launched
from equirelax_lab.training.loop import Loop
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.member import Member
from equirelax_lab.training.stack import StackError
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


def assert_close(found: Any, expected: Any, where: str, tolerance: float = 1e-12) -> None:
    """Equal in everything but the rounding of float64."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_close(found[key], value, f"{where}.{key}", tolerance)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, value in enumerate(expected):
            assert_close(found[index], value, f"{where}[{index}]", tolerance)
    elif isinstance(expected, Tensor):
        assert found.dtype == expected.dtype, where
        torch.testing.assert_close(
            found, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{where}: {text}"
        )
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance), where
    else:
        assert found == expected, where


def assert_members_are_single_runs(config: Any, root: Path | None, tolerance: float = 1e-12) -> None:
    """Train a stack and single runs, and compare them; networks' buffers always to 1e-11."""
    configs = seeds_of(config)
    loop = stack(configs, root)
    columns = loop.epoch()
    assert loop.steps >= STEPS
    for index, (config, member) in enumerate(zip(configs, loop.members, strict=True)):
        single = alone(config, root)
        assert_close(columns[index], single.epoch(), f"columns of {index}", tolerance)
        assert_close(member.state_dict(), single.state_dict(), f"member {index}", tolerance)
        buffers, others = (dict(run.assembly.model.named_buffers()) for run in (member, single))
        assert_close(buffers, others, f"buffers of {index}", 1e-11)
        if (method := member.assembly.method) is not None and single.assembly.method is not None:
            assert_close(method.logs(), single.assembly.method.logs(), f"logs of {index}", tolerance)


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


@pytest.fixture(scope="module")
def motions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with made-up runs: 4 trials of 75 frames."""
    root = tmp_path_factory.mktemp("data")
    (root / "cmu_mocap").mkdir()
    random = np.random.default_rng(0)
    pose, drift = random.uniform(1, 8, (4, 1, 31, 3)), random.normal(size=(4, 75, 31, 3)).cumsum(1)
    trials = {"train": [2, 0], "val": [1], "test": [3]}
    starts = {
        f"{part}_start": np.stack([random.permutation(45)[:42] for _ in of]) for part, of in trials.items()
    }
    np.savez(
        root / "cmu_mocap" / "egno_split_run.npz",
        **{f"{part}_trial": np.array(of) for part, of in trials.items()},
        **starts,
    )
    np.savez(
        root / "cmu_mocap" / "cmu09_run.npz",
        pos=(pose + 0.1 * drift).astype(np.float32).reshape(-1, 31, 3),
        lengths=np.array([75] * 4),
        joints=np.array([f"joint{n}" for n in range(31)]),
        edges=np.array([[joint, (joint - 1) // 2] for joint in range(1, 31)]),
    )
    return root


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with random point clouds, 3 and 1 of each of 40 classes."""
    root = tmp_path_factory.mktemp("data")
    path = root / modelnet.NPZ
    path.parent.mkdir(parents=True)
    random = np.random.default_rng(0)
    arrays = {"scale": np.float32(1 / 32767), "classes": np.array([f"c{i}" for i in range(40)])}
    for part, count in (("train", 120), ("test", 40)):
        arrays[f"{part}_xyz"] = random.integers(-32767, 32767, (count, 30, 3)).astype(np.int16)
        arrays[f"{part}_y"] = (np.arange(count) % 40).astype(np.uint8)
    np.savez(path, **arrays)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("method", ["strict", "scheduled", "ace"])
def test_egno(method: str, motions: Path) -> None:
    """Residual streams and spectral convolutions over time."""
    config = defaults("mocap", "egno", method).updated(
        {"batch_size": 8, "learning_rate": 1e-4, "network": {"layers": 2, "hidden": 8}}
    )
    assert_members_are_single_runs(config, motions)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["strict", "scheduled", "ace"])
def test_vn_pointnet(method: str, objects: Path) -> None:
    """Batch norms, whose running statistics every member has of its own.

    Its gradients magnify rounding a million times, also where a single network's weights change in their last digits: the
    weights hardly move here, and gradients of up to 500 are compared to 1e-6.
    """
    config = defaults("modelnet40", "vn-pointnet", method).updated(
        {
            "batch_size": 8,
            "learning_rate": 1e-15,
            "dataset": {"points": 24, "point_dropout": 0.0},
            "network": {"width": 0.1, "neighbours": 4, "dropout": 0.0},
        }
    )
    assert_members_are_single_runs(config, objects, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("captured", [False, True])
def test_the_step_may_be_repeated_as_a_graph(
    captured: bool, tiny_root: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU, a call that writes where it first wrote stands in for a captured graph."""
    config = tiny_config("scheduled", "egnn", **{**NBODY, "batch_size": 4}, drop_last=True)  # 12 batches of 4
    plain, graphed = (stack(seeds_of(config), tiny_root, replace(MACHINE, graph=on)) for on in (False, True))
    assert isinstance(graphed.gradients, GraphedGradients)
    if captured:
        graphed.gradients.capture = recorded
    assert_close(graphed.epoch(), plain.epoch(), "columns")
    for member, other in zip(graphed.members, plain.members, strict=True):
        assert_close(member.state_dict(), other.state_dict(), "state")
        assert member.assembly.method is not None
        assert other.assembly.method is not None
        assert_close(member.assembly.method.logs(), other.assembly.method.logs(), "logs")


def recorded(call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Stands in for a capture."""
    outputs = tuple(torch.full_like(output, torch.nan) for output in call())

    def replay() -> None:
        for output, value in zip(outputs, call(), strict=True):
            output.copy_(value)

    return replay, outputs


def test_ragged_batches_are_refused(tiny_root: Path, tiny_config: Config) -> None:
    loop = stack(seeds_of(tiny_config("strict", "egnn", **NBODY)), tiny_root)
    batches = [next(iter(member.loader)) for member in loop.members]
    batches[1] = {**batches[1], "positions": batches[1]["positions"][:-1]}
    with pytest.raises(StackError, match=r"'positions' is \(24, 3\) and \(25, 3\) in step 1"):
        loop.stacked(batches)


def test_networks_that_draw_are_refused(objects: Path) -> None:
    config = defaults("modelnet40", "vn-pointnet", "strict").updated(
        {"dataset": {"points": 24}, "network": {"width": 0.1, "neighbours": 4}}
    )
    with pytest.raises(StackError, match="Dropout"):
        stack(seeds_of(config), objects)
