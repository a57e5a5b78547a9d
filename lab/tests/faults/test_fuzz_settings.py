"""Fuzzed settings and study files: each is taken, and then builds everything of its run, or refused by an error that names
the key or the file.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.studies.study import read_study
from equirelax_lab.studies.trials import trials
from equirelax_lab.tasks.registry import config_from_dict, defaults
from equirelax_lab.tasks.settings import RunConfig, read_yaml
from equirelax_lab.training.assembly import assemble, build_optimizer, build_scheduler
from fault_ledger import Ledger
from fuzzing import Fuzzed, runs, spoil_mapping, spoil_text, tiny_settings, yaml_text

from equirelax.errors import EquirelaxError

STUDY: dict[str, Any] = {
    "title": "Fuzzed",
    "published": "nothing",
    "attempts": 2,
    "jobs": 1,
    "benchmark": "nbody",
    "methods": ["strict", "ace"],
    "seeds": 2,
    "settings": {"epochs": 2, "dataset": {"train": 48, "val": 24, "test": 24}},
    "per_method": {"ace": {"learning_rate": 9e-4, "strength": {"dual_lr": 1e-3}}},
    "grids": {
        "one": {
            "models": ["segnn", "egnn"],
            "per_model": {"egnn": {"epochs": 3}},
            "sweep": {"network.hidden": [8, 16]},
        },
        "two": {
            "seeds": [3, 4],
            "sweep": {"dataset.train+epochs": [[8, 4], [16, 2]], "weight_decay": [0, 1e-3]},
        },
    },
    "small": {"seeds": 1, "settings": {"epochs": 1}, "grids": {"two": None}},
}
PART = 500

FOLLOWING = ("'per_model'", "'per_method'", "'grids'", "key 'small'")
"""Keys of a study that become invalid when another one is missing or null."""


def everything(config: RunConfig) -> None:
    """Build what a run builds before it reads data."""
    assembly = assemble(config)
    build_scheduler(config, build_optimizer(assembly))


def outcome(work: Callable[[], object], fuzzed: Fuzzed) -> str | None:
    """Say what is wrong with the reaction to an input; None if nothing is."""
    try:
        work()
    except EquirelaxError as error:
        message = str(error)
        if not any(name in message for name in fuzzed.culprits or ("",)):
            return f"the error names none of {fuzzed.culprits}: {message}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:500]}"
    return None


def settle(ledger: Ledger, fault: str, faults: dict[int, str | None]) -> None:
    """Record all faults of a kind, then fail with the first ones that were not survived."""
    lost = {number: words for number, words in faults.items() if words is not None}
    ledger.note(fault, survived=True, times=len(faults) - len(lost))
    if lost:
        ledger.note(fault, survived=False, times=len(lost))
    shown = "\n".join(f"  {number}: {words}" for number, words in list(lost.items())[:12])
    assert not lost, f"{len(lost)} of {len(faults)}:\n{shown}"


def shares(quick: int, all_of_them: int) -> Any:
    """Parametrise seeds (first, last): a quick share, and the rest in slow parts that a busy machine finishes in time."""
    rest = [
        pytest.param(
            first, min(first + PART, all_of_them), marks=[pytest.mark.slow, pytest.mark.timeout(1200)]
        )
        for first in range(quick, all_of_them, PART)
    ]
    return pytest.mark.parametrize(("first", "last"), [(0, quick), *rest])


@shares(80, 4000)
def test_settings_with_something_wrong(first: int, last: int, ledger: Ledger) -> None:
    def met(seed: int) -> str | None:
        draw = random.Random(seed)
        fuzzed = spoil_mapping(draw, tiny_settings(draw.choice(runs())))
        return outcome(lambda: everything(config_from_dict(fuzzed.value)), fuzzed)

    settle(ledger, "fuzzed settings", {seed: met(seed) for seed in range(first, last)})


@shares(100, 2000)
def test_files_that_are_damaged(first: int, last: int, ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"

    def met(seed: int) -> str | None:
        draw = random.Random(seed)
        study = bool(seed % 2)
        values = STUDY if study else tiny_settings(defaults("nbody", "segnn", "ace"))
        path.write_bytes(spoil_text(draw, yaml_text(values)))
        if study:
            return outcome(lambda: trials(read_study(path)), Fuzzed(None))
        return outcome(lambda: everything(config_from_dict(read_yaml(path))), Fuzzed(None))

    settle(ledger, "damaged settings file", {seed: met(seed) for seed in range(first, last)})
    assert not Path("bombed").exists()


@shares(100, 2000)
def test_studies_with_something_wrong(first: int, last: int, ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"

    def met(seed: int) -> str | None:
        draw = random.Random(seed)
        fuzzed = spoil_mapping(draw, STUDY)
        parts = [
            part for name in fuzzed.culprits for part in name.split("+")
        ]  # of settings that are swept together
        fuzzed = Fuzzed(fuzzed.value, (*parts, *FOLLOWING))
        path.write_text(yaml_text(fuzzed.value), encoding="utf-8")
        return outcome(lambda: trials(read_study(path, small=draw.random() < 0.3)), fuzzed)

    settle(ledger, "fuzzed study file", {seed: met(seed) for seed in range(first, last)})
