"""The equivariance error during training equals an audit's, is measured at the chosen validations, leaves no trace in the run,
and is the same in metrics.csv and in TensorBoard.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.training.assembly import assemble
from equirelax_lab.training.equivariance import ELEMENTS, PROJECTED, RELAXED, EquivarianceErrors
from equirelax_lab.training.folder import LAST, METRICS, read_table
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.run import train

from equirelax.auditing import audit
from equirelax.relaxation import read

QUIET = Machine(progress=False, tensorboard=False)
Config = Callable[..., Any]


def opened(assembly: Any) -> None:
    """Give every residual weights and strength, as during training."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in assembly.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("model", ["segnn", "egnn"])
def test_it_is_what_an_audit_with_the_same_elements_finds(
    model: str, tiny_root: Path, tiny_config: Config
) -> None:
    assembly = assemble(tiny_config("ace", model), tiny_root)
    opened(assembly)
    found = EquivarianceErrors(assembly).columns()
    case = assembly.task.audit_case()
    report = audit(
        assembly.model, case.sample, case.in_rep, case.out_rep, case.group,
        samples=ELEMENTS, seed=0, lie=False, per_layer=False,
    )  # fmt: skip
    assert report.after is not None
    assert found == {RELAXED: report.before.relative, PROJECTED: report.after.relative}
    assert found[RELAXED] > 1e-4
    assert found[PROJECTED] < 1e-6
    strict = EquivarianceErrors(assemble(tiny_config("strict", model), tiny_root)).columns()
    assert strict[RELAXED] == strict[PROJECTED] < 1e-6


def rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without the clock and the equivariance errors."""
    kept = (RELAXED, PROJECTED, "seconds")
    return [{k: v for k, v in row.items() if k not in kept} for row in read_table(folder / METRICS)]


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("ace", {}),
        *(
            pytest.param(method, changes, marks=pytest.mark.slow)
            for method, changes in (("strict", {}), ("scheduled", {"strength": {"rows": 16}}), ("remul", {}))
        ),
    ],
)
def test_a_run_is_the_same_with_and_without_it(
    method: str, changes: dict[str, Any], tiny_root: Path, tiny_config: Config, tmp_path: Path
) -> None:
    for every in (0, 1):
        config = tiny_config(method, epochs=3, validate_every=1, audit_every=every, **changes)
        train(config, tmp_path / str(every), tiny_root, machine=QUIET)
    without, measured = (read(tmp_path / name / LAST) for name in ("0", "1"))
    assert without["weights"].keys() == measured["weights"].keys()
    for key, value in without["weights"].items():
        assert torch.equal(value, measured["weights"][key]), key
    assert torch.equal(without["rng"], measured["rng"])
    assert rows(tmp_path / "0") == rows(tmp_path / "1")
    assert RELAXED not in read_table(tmp_path / "0" / METRICS)[0]
    assert all(float(row[PROJECTED]) < 1e-6 for row in read_table(tmp_path / "1" / METRICS))


def test_it_is_measured_at_every_so_many_validations_and_at_the_end(
    tiny_root: Path, tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config("scheduled", "egnn", epochs=7, validate_every=2, audit_every=2)
    train(config, tmp_path, tiny_root, machine=QUIET)
    found = [bool(row[RELAXED]) for row in read_table(tmp_path / METRICS)]
    assert found == [False, False, False, True, False, False, True]


def test_a_network_that_gives_nothing_finite_has_no_error(tiny_root: Path, tiny_config: Config) -> None:
    assembly = assemble(tiny_config("ace"), tiny_root)
    with torch.no_grad():
        next(assembly.model.parameters()).fill_(math.nan)
    assert all(math.isnan(value) for value in EquivarianceErrors(assembly).columns().values())


def test_where_the_group_does_not_act_exactly_nothing_is_measured(
    tiny_root: Path, tiny_config: Config
) -> None:
    assembly = assemble(tiny_config("strict"), tiny_root)

    class Inexact(type(assembly.task)):  # type: ignore[misc]
        """A task whose group does not act exactly, such as scalings of images."""

        auditable = False

    task = Inexact(assembly.config, tiny_root)
    assert EquivarianceErrors(dataclasses.replace(assembly, task=task)).columns() == {}


def test_tensorboard_shows_the_same_scalars_as_the_table(
    tiny_root: Path, tiny_config: Config, tmp_path: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tiny_config("ace"), tmp_path, tiny_root, machine=Machine(progress=False))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0})
    events.Reload()
    shown = {
        (name, event.step): event.value for name in events.Tags()["scalars"] for event in events.Scalars(name)
    }
    written = {
        (name, int(row["epoch"])): float(value)
        for row in read_table(tmp_path / METRICS)
        for name, value in row.items()
        if name != "epoch" and value
    }
    assert shown.keys() == written.keys()
    assert {RELAXED, PROJECTED, "val/projected", "train/loss"} <= {name for name, _ in shown}
    for key, value in written.items():
        assert shown[key] == pytest.approx(value, rel=1e-6), key  # events are float32
