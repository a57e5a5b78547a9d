"""Settings: the unknown or ill-typed is refused with a suggestion; what is written is read back."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest
import yaml
from equirelax_lab.tasks.methods import CHOICES
from equirelax_lab.tasks.registry import TASKS, config_from_dict, defaults
from equirelax_lab.tasks.settings import Dataset, Network, read_yaml
from refused_recipes import REFUSED

from equirelax.errors import ConfigError
from equirelax.methods import ACE, EquiTuned, GradNorm, Method, ResilientACE, Scheduled
from equirelax.relaxation import MLP, Dense, LowRank
from equirelax.relaxation.kinds import ResidualKind
from equirelax.settings import Settings


@pytest.mark.parametrize("method", CHOICES)
@pytest.mark.parametrize(
    ("benchmark", "model"), [(name, model) for name, task in TASKS.items() for model in task.models]
)
def test_every_default_goes_through_yaml_and_back(
    benchmark: str, model: str, method: str, tmp_path: Path
) -> None:
    if (benchmark, model, method) in REFUSED:
        with pytest.raises(ConfigError, match="another method"):
            defaults(benchmark, model, method)
        return
    config = defaults(benchmark, model, method)
    config.write(tmp_path / "config.yaml")
    assert config_from_dict(read_yaml(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epocks": 3}, r"Unknown key 'epocks'.*'epochs'"),
        ({"dataset": {"trian": 3}}, r"Unknown key 'dataset.trian'.*'train'"),
        ({"epochs": "many"}, r"'epochs' is 'many'; expected a whole number"),
        ({"epochs": True}, r"'epochs' is True; expected a whole number"),
        ({"learning_rate": [1]}, r"'learning_rate' is \[1\]; expected a number"),
        ({"optimizer": "adamm"}, r"'optimizer' is 'adamm'.*Did you mean 'adam'"),
        ({"strength": {"rows": 1.5}}, r"'strength.rows' is 1.5; expected a whole number or null"),
        ({"dataset": 3}, r"'dataset' should be a mapping"),
        ({"method": "ace"}, r"for method 'ace', not 'scheduled'"),
        ({"seed": -1}, r"'seed' is -1"),
    ],
)
def test_bad_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        defaults("nbody", "segnn", "scheduled").updated(values)


def test_the_settings_of_a_residual_are_those_of_its_kind() -> None:
    config = defaults("nbody", "segnn", "scheduled")
    thin = config.updated({"residual": {"kind": "low-rank", "rank": 3}})
    assert thin.residual.kind == LowRank(
        rank=3, init="normal", std=1e-4
    )  # what both kinds have is taken over
    assert config_from_dict(thin.to_dict()) == thin
    for wrong, key in (
        ({"rank": 3}, r"residual\.rank.*of kind dense"),
        ({"kind": "dens"}, r"residual\.kind.*'dense'"),
        ({"kind": "stream", "std": 1.0}, r"residual\.std.*stream"),
    ):
        with pytest.raises(ConfigError, match=key):
            config.updated({"residual": wrong})
    # files of earlier versions have the settings of all kinds
    earlier = {
        "init": "zeros",
        "std": 1e-4,
        "scale": 1.0,
        "bias": True,
        "hidden": None,
        "layers": 3,
        "rank": 8,
        "groups": 4,
    }
    assert config.updated({"residual": earlier}).residual.kind == Dense(bias=True)
    # the oldest ones, which lab/results keeps, lack those that came later
    for later in ("groups", "rank", "scale"):
        del earlier[later]
        assert config.updated({"residual": earlier}).residual.kind == Dense(bias=True)


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(other) for other in kind.__subclasses__()))


@pytest.mark.parametrize(
    "part", [Dataset, Network, Method.Settings, None], ids=["dataset", "network", "strength", "others"]
)
def test_every_setting_is_declared_once(part: type[Settings] | None) -> None:
    """No two classes that describe the same part of a run declare the same field."""
    parts = (Dataset, Network, Method.Settings, ResidualKind)
    kinds = subclasses(part or Settings)
    if part is None:
        kinds -= set().union(*(subclasses(other) for other in parts))
        kinds -= {EquiTuned.Settings, GradNorm.Settings}  # a seed and an asymmetry of their own
    declared: dict[tuple[str, str], list[str]] = {}
    for kind in kinds:
        for name, hint in inspect.get_annotations(kind).items():
            if name != "error":
                declared.setdefault((name, str(hint)), []).append(f"{kind.__module__}.{kind.__qualname__}")
    assert not {key: found for key, found in declared.items() if len(found) > 1}


def test_an_integer_is_taken_where_a_float_is_wanted() -> None:
    config = defaults("nbody", "segnn", "ace").updated({"learning_rate": 1, "strength": {"dual_lr": 2}})
    assert config.training.learning_rate == 1.0
    assert dataclasses.asdict(config.strength)["dual_lr"] == 2.0


def test_unknown_names_are_suggested() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'nbody'"):
        defaults("nbdy", None, "strict")
    with pytest.raises(ConfigError, match="Did you mean 'segnn'"):
        defaults("nbody", "segn", "strict")
    with pytest.raises(ConfigError, match="Did you mean 'resilient'"):
        defaults("nbody", "segnn", "resilent")
    with pytest.raises(ConfigError, match="which method"):
        config_from_dict({"benchmark": "nbody", "model": "segnn"})


def test_files_that_are_no_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    for text in ("- 1\n- 2\n", "a: [", "!!python/object/apply:os.getcwd []"):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError):
            read_yaml(path)
    assert yaml.safe_load("a: 1") == {"a": 1}


def test_the_papers_settings_of_nbody() -> None:
    strict = defaults("nbody", "segnn", "strict")
    assert (strict.training.learning_rate, strict.training.weight_decay, strict.training.batch_size) == (
        5e-4,
        1e-12,
        100,
    )
    assert (strict.training.epochs, strict.training.augment) == (1000, True)
    assert dataclasses.asdict(strict.dataset)["train"] == 3000
    scheduled = defaults("nbody", "segnn", "scheduled")
    assert isinstance(scheduled.strength, Scheduled.Settings)
    assert (scheduled.strength.lie_weight, scheduled.strength.norm_weight) == (0.01, 0.01)
    assert scheduled.strength.scaling == "root-sum"
    assert scheduled.residual.kind == Dense(init="normal", std=1e-4, bias=False)
    ace = defaults("nbody", "segnn", "ace")
    assert isinstance(ace.strength, ACE.Settings)
    assert (ace.training.learning_rate, ace.strength.dual_lr, ace.strength.dual_optimizer) == (
        9e-4,
        8e-4,
        "adam",
    )
    assert (ace.residual.kind, ace.residual.placement) == (MLP(layers=3), "segnn-ace")
    assert (ace.training.epochs, ace.training.augment, ace.training.drop_last) == (2000, False, True)
    assert isinstance(defaults("nbody", "segnn", "resilient").strength, ResilientACE.Settings)


def test_the_papers_settings_of_mocap() -> None:
    config = defaults("mocap", "egnn", "ace")
    assert (config.training.epochs, config.training.batch_size, config.training.learning_rate) == (
        3000,
        12,
        5e-4,
    )
    assert (config.training.weight_decay, config.training.gradient_clip) == (1e-10, 1.0)
    assert isinstance(config.strength, ACE.Settings)
    assert (config.strength.dual_lr, config.strength.dual_eps) == (2e-4, 1e-4)
