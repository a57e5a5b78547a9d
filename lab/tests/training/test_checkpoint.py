"""Files that a run wrote are read; others are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.tasks.task import Metric
from equirelax_lab.training.assembly import assemble
from equirelax_lab.training.checkpoint import Selection, load_run, read_run, read_state
from equirelax_lab.training.folder import BEST, LAST
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.run import train

import equirelax
from equirelax.errors import CheckpointError


@pytest.fixture(scope="module")
def run(tiny_root: Path, tiny_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a learnt relaxation."""
    folder = tmp_path_factory.mktemp("run")
    train(tiny_config("ace"), folder, tiny_root, machine=Machine(progress=False, tensorboard=False))
    return folder


def test_a_run_is_rebuilt_from_either_file_or_its_folder(run: Path, tiny_root: Path) -> None:
    for path in (run, run / BEST, run / LAST):
        assembly = load_run(path, tiny_root)
        assert assembly.relaxation is not None
        assert len(assembly.relaxation.gamma_parameters()) == 2
    stored = read_run(run / LAST)
    assert stored.epochs == 4
    for key, value in load_run(run / LAST).model.state_dict().items():
        assert torch.equal(value, stored.weights[key]), key


def test_files_hold_tensors_and_plain_data_only(run: Path) -> None:
    for name in (BEST, LAST):
        torch.load(run / name, weights_only=True)


def test_other_files_are_refused_with_what_to_do(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_run(tmp_path / "nothing.ckpt")
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes((run / BEST).read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"damaged\.ckpt"):
        read_run(damaged)
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"weight": torch.zeros(2)}, foreign)
    with pytest.raises(CheckpointError, match="equirelax train"):
        read_run(foreign)
    saved = tmp_path / "saved.pt"
    equirelax.save(load_run(run).model, saved)
    with pytest.raises(CheckpointError, match=r"equirelax\.load"):
        read_run(saved)


def test_the_state_of_an_older_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / LAST
    torch.save(
        {"state_dict": {"model.weight": torch.zeros(2)}, "equirelax": {"format": "equirelax-run-2"}}, path
    )
    for reader in (read_run, read_state):
        with pytest.raises(CheckpointError, match=r"last\.ckpt .*older version.*anew"):
            reader(path)


def test_selected_weights_of_another_version_are_refused_as_such(tmp_path: Path) -> None:
    path = tmp_path / BEST
    torch.save({"format": "equirelax-run-1", "config": {}, "epoch": 0, "value": 1.0, "weights": {}}, path)
    for reader in (read_run, read_state):
        with pytest.raises(CheckpointError, match=r"best\.ckpt .*equirelax-run-1.*version.*anew"):
            reader(path)


@pytest.mark.parametrize(
    ("rule", "higher", "epoch"), [("best", False, 0), ("best", True, 2), ("last", False, 3)]
)
def test_selection(rule: str, higher: bool, epoch: int) -> None:
    """The best value, or the last one that is finite; nothing is selected before the first."""
    selection = Selection(Metric("error", higher_is_better=higher), rule)
    model = torch.nn.Linear(1, 1)
    assert selection.consider(0, math.nan, model) is None
    assert selection.state_dict() is None
    values = [1.0, 2.0, 3.0, 2.0, math.nan]
    for number, value in enumerate(values):
        found = selection.consider(number, value, model)
    assert selection.selected is not None
    assert (selection.selected.epoch, found) == (epoch, values[epoch])
    with torch.no_grad():
        model.weight.fill_(7.0)
    assert selection.selected.weights["weight"] != model.weight
    again = Selection(selection.metric, rule)
    again.load_state_dict(selection.state_dict())
    assert again.selected == selection.selected


def test_weights_of_another_model_are_refused(run: Path, tmp_path: Path) -> None:
    state = torch.load(run / BEST, weights_only=True)
    state["config"]["network"]["hidden"] = 32
    wrong = tmp_path / "wrong.ckpt"
    torch.save(state, wrong)
    with pytest.raises(CheckpointError, match="do not fit"):
        load_run(wrong)


def test_runs_of_one_seed_start_from_the_same_strict_network(tiny_config: Callable[..., Any]) -> None:
    strict = assemble(tiny_config("strict")).model.state_dict()
    for method in ("scheduled", "ace", "resilient", "equivariant-control"):
        relaxed = assemble(tiny_config(method))
        assert relaxed.relaxation is not None
        own = relaxed.relaxation.strict_state_dict()
        assert own.keys() == strict.keys()
        assert all(torch.equal(own[key], strict[key]) for key in strict)
        assert relaxed.strict_parameters == sum(
            p.numel() for p in assemble(tiny_config("strict")).model.parameters()
        )
