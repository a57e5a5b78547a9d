"""How recipe files are read: inheritance, comments, matching; the command that prints them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from equirelax_lab.cli.main import main
from equirelax_lab.recipes import benchmarks, read, variants
from equirelax_lab.recipes.commented import parse
from equirelax_lab.tasks.command_line import train_command
from equirelax_lab.tasks.from_recipe import changes
from equirelax_lab.tasks.matching import about, check_variant, matched
from equirelax_lab.tasks.registry import base_of, config_from_dict, defaults, named
from equirelax_lab.tasks.settings import EARLIER, read_yaml

from equirelax.errors import ConfigError


def test_a_value_keeps_the_comment_behind_it_and_those_above_it() -> None:
    text = """
# of the section
section:
  # one line above
  # and another
  first: 1e-3   # behind
  second: {a: 1, b: "x # y"}  # of both
  list: [1, 2]  # of a list
"""
    section = parse(text, "x").branch("section")
    assert section.comment == "of the section"
    assert section.plain() == {"first": 1e-3, "second": {"a": 1, "b": "x # y"}, "list": [1, 2]}
    assert section.items["first"].comment == "one line above\nand another\nbehind"
    assert section.branch("second").items["b"].comment == "of both"
    assert section.items["list"].comment == "of a list"
    with pytest.raises(ConfigError, match=r"line 3.*'a' is there twice"):
        parse("a: 1\nb: 2\na: 3\n", "x")


def test_a_value_that_is_changed_takes_its_own_comment() -> None:
    merged = parse("a: 1  # old\nb: {c: 2, d: 3}  # kept\n", "x").merged(
        parse("a: 4  # new\nb: {c: 5}\n", "y")
    )
    assert merged.plain() == {"a": 4, "b": {"c": 5, "d": 3}}
    assert merged.items["a"].comment == "new"
    assert merged.branch("b").items["d"].comment == "kept"
    assert merged.branch("b").items["c"].comment == ""


def test_every_value_of_a_paper_has_a_comment() -> None:
    recipe = read("nbody", "segnn", "ace")
    for key in ("epochs", "learning_rate", "augment", "drop_last", "strength.dual_lr", "residual.kind"):
        assert "ACE" in recipe.comments[key]
    assert set(benchmarks()) == {"nbody", "mocap", "qm9", "modelnet40", "md17", "smoke", "rotmnist"}


def test_fair_is_trained_as_the_relaxed_run() -> None:
    ace, fair = defaults("nbody", "segnn", "ace"), defaults("nbody", "segnn", "strict", "fair")
    assert (fair.training, fair.dataset, fair.trained_as) == (ace.training, ace.dataset, "ace")
    muon = defaults("nbody", "segnn", "strict-muon", "fair")
    assert muon.training == dataclasses.replace(ace.training, optimizer="muon")
    rpp = defaults("modelnet40", "vn-dgcnn", "rpp", trained_as="scheduled")
    assert rpp.training.weight_decay == 0.0
    assert rpp.training.momentum == 0.9
    small = defaults("nbody", "segnn", "strict", "small", "ace small")
    assert (small.training.learning_rate, small.training.epochs) == (9e-4, 120)


def test_the_comparison_is_about_the_first_learnt_method_else_the_first_that_relaxes() -> None:
    assert about(["strict", "scheduled", "ace", "resilient"]) == "ace"
    assert about(["strict", "equivariant-control", "no-lie", "scheduled"]) == "no-lie"
    assert about(["strict", "strict-muon"]) is None
    assert about(["strict", "scheduled", "ace"], "scheduled") == "scheduled"
    with pytest.raises(ConfigError, match="none of its methods"):
        about(["strict"], "ace")
    assert matched("nbody", "segnn", "strict", "ace") == ("fair", "ace")
    assert matched("nbody", "segnn", "ace", "ace") == ("published", None)
    assert matched("nbody", "segnn", "strict", None) == ("published", None)
    assert matched("nbody", "segnn", "strict", "ace", "printed") == ("fair", "ace printed")
    assert matched("nbody", "segnn", "strict", "scheduled", "released") == ("released", "scheduled released")


def test_rows_are_not_trained_as_a_method_that_lacks_their_variant() -> None:
    rows = [("segnn", name) for name in ("strict", "scheduled", "ace")]
    with pytest.raises(
        ConfigError, match=r"ace has no recipe 'released'.*leave ace out, or --about scheduled"
    ):
        check_variant("nbody", rows, "released", "ace")
    check_variant("nbody", rows, "released", "scheduled")
    check_variant("nbody", rows, "released")
    check_variant("nbody", rows, "printed", "ace")  # the others are trained as ace printed
    with pytest.raises(ConfigError, match=r"leave ace out, or take another recipe"):
        check_variant("nbody", rows[::2], "released", "ace")


def test_unknown_variants_are_named() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'printed'.*It has: published, released, fair, small"):
        read("nbody", "segnn", "strict", "printed")
    with pytest.raises(ConfigError, match="Did you mean 'printed'"):
        read("nbody", "segnn", "ace", "print")
    assert variants("nbody", "segnn", "ace") == ["published", "printed", "fair", "small"]


def test_what_is_printed_is_the_settings_with_their_comments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", "nbody", "ace", "--variant", "printed"]) == 0
    text = capsys.readouterr().out
    assert "dual_optimizer: sgd" in text
    assert "ACE, Algorithm 1" in text
    assert max(map(len, text.splitlines())) <= 125
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert config_from_dict(read_yaml(tmp_path / "recipe.yaml")) == defaults(
        "nbody", "segnn", "ace", "printed"
    )
    assert main(["recipe", "nbody", "strict", "--model", "egnn", "--variant", "fair"]) == 0
    assert "Training settings and data are those of ace" in capsys.readouterr().out
    assert main(["recipe", "nbody", "acee"]) == 2
    assert main(["recipe", "ace", "nbody"]) == 2
    assert "equirelax recipe nbody ace" in capsys.readouterr().err


def test_a_run_names_its_recipe_and_what_was_changed() -> None:
    config = defaults("nbody", "segnn", "ace", "printed").updated({"epochs": 7, "network": {"hidden": 8}})
    values = yaml.safe_load(yaml.safe_dump(config.to_dict()))
    assert (values["recipe"], values["trained_as"]) == ("printed", None)
    assert config_from_dict(values) == config
    assert named(config) == {
        "variant": "printed",
        "trained_as": None,
        "changed": {"epochs": {"recipe": 2000, "here": 7}, "network.hidden": {"recipe": 64, "here": 8}},
    }
    assert changes(config, base_of(config)) == {"epochs": (2000, 7), "network.hidden": (64, 8)}
    with pytest.raises(ConfigError, match="for recipe 'published', not 'printed'"):
        config.updated({"recipe": "published"})


def test_settings_that_another_kind_of_residual_brings_are_changes() -> None:
    recipe = defaults("nbody", "segnn", "scheduled")
    config = recipe.updated({"residual": {"kind": "mlp", "layers": 4}})
    found = named(config)["changed"]
    assert found["residual.kind"] == {"recipe": "dense", "here": "mlp"}
    assert found["residual.layers"] == {"recipe": None, "here": 4}
    assert found["residual.hidden"] == {"recipe": None, "here": None}
    assert "residual.init" not in found  # both kinds have it, with one value
    # what the kind of the recipe alone has
    back = changes(recipe, config)
    assert back["residual.layers"] == (4, None)
    assert train_command(config).endswith("--residual.kind mlp --residual.layers 4")


def test_settings_of_version_0_1_are_read_as_they_were() -> None:
    """A full config.yaml without a recipe: what it lacks is not taken from recipes that came later."""
    now = defaults("nbody", "segnn", "ace").to_dict()
    then = {
        key: value for key, value in now.items() if key not in ("recipe", "trained_as", "drop_last", "ema")
    }
    then["strength"] = {**now["strength"], "dual_optimizer": "sgd"}
    then["dataset"] = {key: now["dataset"][key] for key in ("train", "val", "test", "system", "clamp")}
    config = config_from_dict(then)
    assert config.recipe == EARLIER
    assert not config.training.drop_last
    assert config_from_dict(config.to_dict()) == config
    assert named(config)["changed"] == {}
    assert base_of(config) == defaults("nbody", "segnn", "ace")
    # settings that a user writes, a few of them, are changes of the published recipe
    few = config_from_dict({"benchmark": "nbody", "model": "segnn", "method": "ace", "epochs": 3})
    assert (few.recipe, few.training.drop_last, few.training.epochs) == ("published", True, 3)


@pytest.mark.parametrize("recipe", [None, 7])
def test_a_recipe_that_is_no_name_is_refused(recipe: object) -> None:
    values = defaults("nbody", "segnn", "ace").to_dict() | {"recipe": recipe}
    with pytest.raises(ConfigError, match="'recipe'"):
        config_from_dict(values)
