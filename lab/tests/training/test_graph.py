"""A step in fixed memory gives the same run; settings whose steps differ are refused.

Without a GPU, a call that is repeated and writes where it first wrote stands in for a captured graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.training import graph
from equirelax_lab.training.folder import LAST, METRICS, read_table
from equirelax_lab.training.graph import WARM_UP, GraphedGradients
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.run import train
from torch import Tensor

from equirelax.errors import ConfigError
from equirelax.relaxation import read

QUIET = Machine(progress=False, tensorboard=False)
GRAPH = replace(QUIET, graph=True)
Config = Callable[..., Any]


def recorded(call: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Callable[[], None], tuple[Tensor, Tensor]]:
    """Stands in for a capture."""
    outputs = tuple(torch.full_like(output, torch.nan) for output in call())

    def replay() -> None:
        for output, value in zip(outputs, call(), strict=True):
            output.copy_(value)

    return replay, outputs  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("method", "captured"),
    [
        ("ace", True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("scheduled", True), ("ace", False)]),
    ],
)
def test_a_run_is_the_same(
    method: str, captured: bool, tiny_root: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = tiny_config(
        method, batch_size=16, audit_every=1, ema=0.9, gradient_clip=0.1
    )  # three batches of 16
    plain = train(config, tmp_path / "plain", tiny_root, machine=QUIET)
    if captured:
        monkeypatch.setattr(graph, "capture_on", lambda device: recorded)
    graphed = train(config, tmp_path / "graphed", tiny_root, machine=GRAPH)
    assert ("uncaptured" in capsys.readouterr().err) != captured
    assert plain is not None
    assert graphed is not None
    assert plain["metrics"] == graphed["metrics"]
    rows = [read_table(tmp_path / name / METRICS) for name in ("plain", "graphed")]
    assert [r | {"seconds": ""} for r in rows[0]] == [r | {"seconds": ""} for r in rows[1]]
    weights = [read(tmp_path / name / LAST)["weights"] for name in ("plain", "graphed")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(
    ("method", "changes", "machine", "word"),
    [
        ("strict", {"batch_size": 20}, {}, "last batch of an epoch has 8 samples"),
        ("strict", {"batch_size": 16}, {"accumulate": 2}, "--accumulate 1"),
        ("scheduled", {"batch_size": 16, "strength": {"every": 2}}, {}, "every is 2"),
        ("remul", {"batch_size": 16}, {}, "remul"),
    ],
)
def test_steps_that_differ_are_refused(
    method: str, changes: dict[str, Any], machine: dict[str, Any], word: str, tiny_root: Path, tiny_config: Config,
    tmp_path: Path,
) -> None:  # fmt: skip
    with pytest.raises(ConfigError, match=word):
        train(tiny_config(method, **changes), tmp_path / "run", tiny_root, machine=replace(GRAPH, **machine))


def doubled(weight: Tensor, capture: graph.Capture | None = None) -> GraphedGradients:
    """2 w . x, whose graph reads `weight`."""

    def gradients(batch: dict[str, Tensor], index: int) -> tuple[Tensor, Tensor]:
        return (2 * weight * batch["x"]).sum(), batch["x"].clone()

    return GraphedGradients(gradients, None, [weight], capture)


def test_batches_are_copied_to_where_the_first_one_was_and_outputs_are_the_callers() -> None:
    step = doubled(torch.ones(2), recorded)
    outputs, places = [], set()
    for number in range(WARM_UP + 3):
        outputs.append(step({"x": torch.full((2,), float(number))}, 7))
        places.add(step.batch["x"].data_ptr())
    assert len(places) == 1
    assert [float(objective) for objective, _ in outputs] == [4.0 * number for number in range(WARM_UP + 3)]
    assert [float(terms[0]) for _, terms in outputs] == list(range(WARM_UP + 3))


@pytest.mark.parametrize(
    ("batch", "words"),
    [({"x": torch.zeros(3)}, r"'x' changes from \(2,\) to \(3,\)"), ({}, "'x' .* to None")],
)
def test_a_batch_of_another_shape_is_refused(batch: dict[str, Tensor], words: str) -> None:
    step = doubled(torch.ones(2))
    step({"x": torch.zeros(2)}, 0)
    with pytest.raises(ConfigError, match=words):
        step(batch, 1)


def test_weights_that_move_and_steps_that_cannot_be_captured_are_errors() -> None:
    weight = torch.ones(2)
    step = doubled(weight, recorded)
    for _ in range(WARM_UP + 1):
        step({"x": torch.ones(2)}, 0)
    weight.data = torch.ones(2)
    with pytest.raises(ConfigError, match="moved in memory"):
        step({"x": torch.ones(2)}, 0)

    def fails(_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    step = doubled(weight, fails)
    for _ in range(WARM_UP):
        step({"x": torch.ones(2)}, 0)
    with pytest.raises(ConfigError, match=r"cannot be captured .*not permitted when stream is capturing"):
        step({"x": torch.ones(2)}, 0)
