"""A sweep makes a run for every value, of the methods that have the setting; mistakes name the key."""

from __future__ import annotations

import pytest
from equirelax_lab.cli import sweep
from equirelax_lab.studies.trials import check_known
from equirelax_lab.tasks.registry import defaults

from equirelax.errors import ConfigError


def test_a_sweep_sets_several_keys_to_one_value() -> None:
    keys, values = sweep.parse("lie_weight+norm_weight=0,0.01")
    found = sweep.variants(defaults("nbody", "segnn", "scheduled"), keys, values)
    assert [variant.name for variant in found] == ["-lie_weight0", "-lie_weight0.01"]
    assert found[1].flags == ("--strength.lie_weight", "0.01", "--strength.norm_weight", "0.01")


def test_methods_without_the_setting_run_as_they_are() -> None:
    assert sweep.variants(defaults("nbody", "segnn", "strict"), ["lie_weight"], ["0"]) == [sweep.PLAIN]
    assert sweep.variants(defaults("nbody", "segnn", "ace"), [], []) == [sweep.PLAIN]


def test_settings_of_training_and_data_are_swept_for_every_method() -> None:
    for method in ("strict", "ace"):
        config = defaults("nbody", "segnn", method)
        assert sweep.variants(config, ["learning_rate"], ["1e-3"])[0].flags == ("--learning_rate", "1e-3")
        assert sweep.variants(config, ["dataset.train"], ["9"])[0].flags == ("--dataset.train", "9")
        assert sweep.variants(config, ["train"], ["9"])[0].flags == ("--dataset.train", "9")


@pytest.mark.parametrize("text", ["", "=1", "lie_weight", "lie_weight=", "+=1"])
def test_malformed_sweeps_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        sweep.parse(text)


def test_unknown_and_ambiguous_keys_are_named() -> None:
    configs = [defaults("nbody", "segnn", "scheduled")]
    with pytest.raises(ConfigError, match=r"'lie_wieght'.*lie_weight"):
        check_known(["lie_wieght"], configs, "--sweep")
    with pytest.raises(ConfigError, match="write one of them in full"):
        sweep.variants(configs[0], ["hidden"], ["3"])  # of the network and of the residuals
