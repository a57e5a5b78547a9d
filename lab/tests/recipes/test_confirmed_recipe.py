"""The recipe of the swing on N-body is the setting that lab/results/confirmation tested, and its period fits every run."""

from __future__ import annotations

from pathlib import Path

from equirelax_lab.report.runs import read_folder
from equirelax_lab.tasks.methods import Swinging, build_method
from equirelax_lab.tasks.registry import defaults
from torch import nn

import equirelax as er

CONFIRMED = Path(__file__).parents[2] / "results" / "confirmation" / "nbody"
OF_THE_STUDY = {"seed", "dataset", "checkpoint_every", "audit_every", "recipe"}
"""The confirmation drew data for every seed, with a larger test set."""
STEPS = 300 * 30


def test_the_recipe_is_what_was_tested() -> None:
    runs, _, _ = read_folder(CONFIRMED)
    tested = {run.result["method"]: run.result["config"] for run in runs}
    swing = defaults("nbody", "segnn", "swing")
    strict = defaults("nbody", "segnn", "strict", "fair", "swing")
    for method, config in (("swing", swing), ("strict", strict)):
        own = config.to_dict()
        if method == "swing":
            own["strength"] = swing.strength.for_run(STEPS).to_dict()
        assert own.keys() == tested[method].keys()
        for key in own.keys() - OF_THE_STUDY:
            assert own[key] == tested[method][key], (method, key)


def test_the_period_is_a_share_of_the_run_unless_it_is_given() -> None:
    assert [Swinging().for_run(steps).period for steps in (9000, 1060, 800, 1)] == [2100, 247, 187, 1]
    assert Swinging(period=50).for_run(9000).period == 50
    config = defaults("nbody", "segnn", "swing", "small")
    relaxation = er.relax(
        nn.Sequential(nn.Linear(3, 3, bias=False)), er.Layers(declare=er.Linear("0", "1x1o", "1x1o"))
    )
    method = build_method(relaxation, config, steps_per_epoch=10)
    assert isinstance(method, er.Swing)
    assert method.settings.period == config.training.epochs * 10 * 7 // 30
