"""The recipe of the swing on N-body is the setting that lab/results/confirmation tested."""

from __future__ import annotations

from pathlib import Path

from equirelax_lab.report.runs import read_folder
from equirelax_lab.tasks.registry import defaults

CONFIRMED = Path(__file__).parents[2] / "results" / "confirmation" / "nbody"
OF_THE_STUDY = {"seed", "dataset", "checkpoint_every", "audit_every", "recipe"}
"""The confirmation drew data for every seed, with a larger test set."""


def test_the_recipe_is_what_was_tested() -> None:
    runs, _, _ = read_folder(CONFIRMED)
    tested = {run.result["method"]: run.result["config"] for run in runs}
    swing = defaults("nbody", "segnn", "swing")
    strict = defaults("nbody", "segnn", "strict", "fair", "swing")
    for method, config in (("swing", swing), ("strict", strict)):
        own = config.to_dict()
        assert own.keys() == tested[method].keys()
        for key in own.keys() - OF_THE_STUDY:
            assert own[key] == tested[method][key], (method, key)
