"""Study files, and those that come with the laboratory: the runs that they describe, and the errors for mistakes in them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.studies.keys import merged
from equirelax_lab.studies.study import find_file, read_study, ready_file, ready_folder, ready_names
from equirelax_lab.studies.trials import Trial, left_out, trials
from equirelax_lab.tasks.registry import build_task, defaults

from equirelax.errors import ConfigError

File = Callable[..., Path]


def test_a_grid_becomes_runs_with_their_settings(study_file: File) -> None:
    path = study_file(
        seeds=[3, 1],
        methods=["strict", "scheduled", "ace"],
        per_method={"ace": {"learning_rate": 1e-2, "network": {"layers": 2}}},
        sweep={"dataset.train": [24, 48], "lie_weight+norm_weight": [0, 0.1]},
    )
    found = trials(read_study(path))
    # strict and ace have no lie_weight: two runs each; scheduled has four
    assert [t.label for t in found if t.config.seed == 1] == [
        "strict-train24-seed1",
        "strict-train48-seed1",
        *(f"scheduled-train{n}-lie_weight{w}-seed1" for n in (24, 48) for w in (0, 0.1)),
        "ace-train24-seed1",
        "ace-train48-seed1",
    ]
    assert [t.config.seed for t in found] == sorted(t.config.seed for t in found)
    by_name = {t.label: t.config.to_dict() for t in found}
    swept = by_name["scheduled-train24-lie_weight0.1-seed3"]
    assert (swept["strength"]["lie_weight"], swept["strength"]["norm_weight"]) == (0.1, 0.1)
    assert (swept["dataset"]["train"], swept["dataset"]["val"], swept["seed"]) == (24, 24, 3)
    assert by_name["ace-train48-seed1"]["learning_rate"] == 1e-2
    assert by_name["ace-train48-seed1"]["network"]["layers"] == 2
    assert swept["network"]["layers"] == 1
    # every row is trained as ace's recipe, which the study is about; what the study gives ace alone, ace alone has
    ace = defaults("nbody", "segnn", "ace").training
    assert (swept["learning_rate"], swept["augment"]) == (ace.learning_rate, ace.augment)
    assert (swept["recipe"], swept["trained_as"]) == ("fair", "ace")
    other = trials(read_study(study_file(methods=["strict", "ace"], as_published=True)))
    assert {t.config.method: t.config.training.learning_rate for t in other} == {"strict": 5e-4, "ace": 9e-4}
    named = study_file(methods=["strict", "scheduled", "ace"], about="scheduled", recipe="released")
    assert {(t.config.recipe, t.config.trained_as) for t in trials(read_study(named))} == {
        ("released", "scheduled released"), ("released", None), ("fair", "scheduled released"),
    }  # fmt: skip


def test_settings_may_be_swept_together_each_with_values_of_its_own(study_file: File) -> None:
    path = study_file(methods=["strict"], sweep={"dataset.train+epochs": [[24, 4], [48, 2]]})
    found = {t.label: t.config.to_dict() for t in trials(read_study(path))}
    assert {label: (c["dataset"]["train"], c["epochs"]) for label, c in found.items()} == {
        "strict-train24-seed0": (24, 4),
        "strict-train48-seed0": (48, 2),
    }


def test_several_grids_share_what_stands_at_the_top(study_file: File) -> None:
    grids = {
        "a": {},
        "b": {"models": ["egnn"], "seeds": 2, "settings": {"network": {"layers": 3}, "epochs": 7}},
    }
    found = trials(read_study(study_file(grids=grids)))
    assert [t.label for t in found] == [
        "a/strict-seed0",
        "a/scheduled-seed0",
        "b/strict-seed0",
        "b/scheduled-seed0",
        "b/strict-seed1",
        "b/scheduled-seed1",
    ]
    assert [t.config.training.epochs for t in found] == [2, 2, 7, 7, 7, 7]
    assert {t.config.model for t in found if t.grid == "b"} == {"egnn"}
    assert all(t.config.training.batch_size == 20 for t in found)


def test_the_small_variant_says_what_it_changes(study_file: File) -> None:
    small: dict[str, Any] = {
        "seeds": 1,
        "settings": {"epochs": 1, "dataset": {"train": 20}},
        "sweep": {"network.layers": None},
    }
    path = study_file(seeds=5, sweep={"network.layers": [1, 2], "l_max": [0, 1]}, small=small)
    full, quick = read_study(path), read_study(path, small=True)
    assert (len(trials(full)), len(trials(quick))) == (5 * 2 * 4, 2 * 2)
    assert quick.changed == (
        "seeds 1 instead of 5",
        "epochs 1 instead of 2",
        "dataset.train 20 instead of 48",
        "without sweep.network.layers",
    )
    assert full.changed == ()
    assert trials(quick)[0].config.dataset.val == 24  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="no small variant"):
        read_study(study_file("plain"), small=True)


def test_a_swept_setting_that_the_small_variant_leaves_out_of_one_grid_is_said_to_be_left_out(
    study_file: File,
) -> None:
    grids = {"a": {"sweep": {"network.layers": [1, 2]}}}
    path = study_file(grids=grids, small={"grids": {"a": {"sweep": {"network.layers": None}}}})
    assert read_study(path, small=True).changed == ("without grids.a.sweep.network.layers",)


def test_numbers_that_yaml_takes_for_text(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "benchmark: nbody\nmethods: [strict]\nsettings: {learning_rate: 1e-3}\nsweep: {weight_decay: [1e-4, 1E-2]}\n"
    )
    configs = [t.config.training for t in trials(read_study(path))]
    assert [(c.learning_rate, c.weight_decay) for c in configs] == [(1e-3, 1e-4), (1e-3, 1e-2)]


def test_models_with_nothing_to_relax_run_without_relaxation(study_file: File) -> None:
    path = study_file(benchmark="modelnet40", models=["vn-dgcnn", "dgcnn"], settings=None)
    study = read_study(path)
    assert [t.kind for t in trials(study)] == ["vn-dgcnn-strict", "vn-dgcnn-scheduled", "dgcnn-strict"]
    assert left_out(study.grids[0]) == ["scheduled on dgcnn"]
    with pytest.raises(ConfigError, match="anything to relax"):
        trials(
            read_study(
                study_file(
                    benchmark="modelnet40", models=["dgcnn", "pointnet"], methods=["ace"], settings=None
                )
            )
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmrak": "nbody"}, "Unknown key 'benchmrak'.*'benchmark'"),
        ({"benchmark": None}, "'benchmark' is missing"),
        ({"methods": None}, "'methods' is missing"),
        ({"benchmark": "nbdy"}, "'nbdy'.*'nbody'"),
        ({"benchmark": 3}, "'benchmark' is 3"),
        ({"models": ["segn"]}, "'segn'.*'segnn'"),
        ({"methods": ["strikt"]}, "'strikt'.*'strict'"),
        ({"methods": ["strict", "strict"]}, "twice"),
        ({"methods": {"strict": 1}}, "list of names"),
        ({"seeds": 0}, "'seeds' is 0"),
        ({"seeds": []}, "'seeds'"),
        ({"seeds": [-1]}, "0 or more"),
        ({"seeds": True}, "'seeds' is True"),
        ({"attempts": 0}, "'attempts' is 0"),
        ({"timeout": 2}, "'timeout' is 2; expected a time with its unit"),
        ({"timeout": "2"}, "'timeout' is '2'"),
        ({"timeout": "0 h"}, "'timeout' is '0 h'"),
        ({"timeout": "2 hours"}, "'timeout' is '2 hours'"),
        ({"timeout": "-2 h"}, "'timeout' is '-2 h'"),
        ({"timeout": "9" * 400 + " d"}, "'timeout' is '9"),
        ({"timeout": [1]}, "'timeout'"),
        ({"devices": 0}, "'devices' is 0"),
        ({"devices": "two"}, "'devices' is 'two'"),
        ({"accelerator": "gpus"}, "'accelerator' is 'gpus'.*'gpu'"),
        ({"accelerator": ["gpu"]}, "'accelerator'"),
        ({"graph": "yes"}, "'graph' is 'yes'; expected true or false"),
        ({"jobs": "two"}, "'jobs' is 'two'"),
        ({"title": 3}, "'title' is 3"),
        ({"settings": {"epoch": 3}}, "'epoch'.*'epochs'"),
        ({"settings": {"epochs": "many"}}, "'epochs' is 'many'"),
        ({"settings": {"method": "ace"}}, "'settings' holds 'method'"),
        ({"settings": [1]}, "'settings'.*mapping"),
        ({"per_method": {"ace": {"epochs": 3}}}, "'ace', which is not run"),
        ({"per_method": {"scheduled": {"strength": {"lie_wight": 1}}}}, "lie_wight.*lie_weight"),
        ({"per_model": {"egnn": {}}}, "'egnn', which is not run"),
        ({"sweep": {"lie_wight": [1]}}, "lie_wight.*lie_weight"),
        ({"sweep": {"dataset": [1]}}, "no method here has the setting 'dataset'"),
        ({"sweep": {"seed": [1]}}, "setting 'seed'"),
        ({"methods": ["ace"], "sweep": {"hidden": [8, 16]}}, "network.hidden or residual.hidden"),
        ({"sweep": {"epochs": 3}}, "'sweep.epochs' is 3"),
        ({"sweep": {"epochs": []}}, "sweep.epochs"),
        ({"sweep": {"epochs": [3, 3]}}, "swept twice"),
        ({"sweep": {"epochs": ["x"]}}, "'epochs' is 'x'"),
        ({"sweep": {"epochs": [[3]]}}, "'sweep.epochs' holds .3.; expected a single value"),
        (
            {"sweep": {"epochs+dataset.train": [[3, 48, 1]]}},
            "expected a list of 2, one for each of epochs.dataset.train",
        ),
        ({"sweep": {"epochs+dataset.train": [[3, [48]]]}}, "expected numbers"),
        ({"sweep": {"epochs": [{"a": 1}]}}, "'sweep.epochs' holds .*expected numbers"),
        (
            {"methods": ["strict", "strict-muon"], "settings": {"optimizer": "adam"}},
            "'optimizer' is 'adam', but strict-muon",
        ),
        ({"grids": {"a": {"seed": 3}}}, "'grids.a.seed'.*'grids.a?.?seeds'|'seeds'"),
        ({"grids": {"a": {"devices": 2}}}, "'grids.a.devices' holds for the whole study"),
        ({"grids": {"a/b": {}}}, "'a/b'"),
        ({"grids": {"a": None}}, "no grid"),
        ({"grids": []}, "'grids'"),
        ({"small": 3}, "'small'"),
        ({"small": {"seedz": 3}}, "'seedz'.*'seeds'"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str, study_file: File) -> None:
    with pytest.raises(ConfigError, match=message):
        trials(read_study(study_file(**changes)))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90 s", 90), ("30min", 1800), ("1.5 h", 5400), ("1 d 12 h", 129600), ("2h 30 min", 9000)],
)
def test_timeouts_are_times_with_units(text: str, seconds: float, study_file: File) -> None:
    assert read_study(study_file(timeout=text)).timeout == seconds


@pytest.mark.parametrize("content", ["", "[1, 2]", "a: [", "\x00"])
def test_files_that_are_no_study(content: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        read_study(path)
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_study(tmp_path / "none.yaml")


def test_merging_leaves_its_arguments_alone() -> None:
    a, b = {"x": {"y": 1, "z": 2}, "l": [1]}, {"x": {"z": 3}, "l": [2]}
    assert merged(a, b) == {"x": {"y": 1, "z": 3}, "l": [2]}
    assert a == {"x": {"y": 1, "z": 2}, "l": [1]}


PAPERS = {
    "cr-nbody", "cr-nbody-samples", "cr-nbody-layers", "cr-modelnet40-pointnet", "cr-modelnet40-dgcnn",
    "cr-modelnet40-ablations", "cr-lambda", "cr-md17", "cr-smoke-rotation", "cr-smoke-scale", "ace-nbody",
    "ace-mocap-run", "ace-mocap-walk", "ace-qm9-schnet", "ace-qm9-segnn", "ace-modelnet40",
}  # fmt: skip
QUESTIONS = {"sensitivity", "sample-efficiency", "size", "forces-nequip"}
FEWER_ON_PURPOSE = {"cr-nbody-samples", "cr-nbody-layers", *QUESTIONS}
"""They sweep over fewer samples or layers than the papers' table has, over ten classes of forty, or test on fewer frames."""


def epochs(found: list[Trial]) -> int:
    return sum(trial.config.training.epochs for trial in found)


def test_there_is_one_for_every_table_and_figure() -> None:
    assert set(ready_names()) == PAPERS | QUESTIONS


@pytest.mark.parametrize("name", sorted(PAPERS | QUESTIONS))
def test_it_is_at_the_papers_settings_and_has_a_smaller_variant(name: str) -> None:
    full, small = read_study(ready_file(name)), read_study(ready_file(name), small=True)
    assert full.title == small.title
    assert full.published
    assert small.changed
    assert epochs(trials(small)) < epochs(trials(full)) / 5
    scales = [build_task(trial.config).scaled_down() for trial in trials(full)]
    assert name in FEWER_ON_PURPOSE or scales == [None] * len(scales)
    assert all(build_task(trial.config).scaled_down() for trial in trials(small))


def test_files_are_found_by_path_and_by_name(tmp_path: Path) -> None:
    own = tmp_path / "cr_nbody.yaml"
    own.write_text("")
    assert find_file(str(own)) == own
    for name in ("cr-nbody", "cr_nbody"):
        assert find_file(name) == ready_folder() / "cr_nbody.yaml"
    with pytest.raises(ConfigError, match=r"'cr-nbdy'.*'cr-nbody'"):
        find_file("cr-nbdy")
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_study(find_file(str(tmp_path / "none.yaml")))


def test_the_wheel_takes_them_along() -> None:
    root = ready_folder().parent
    if not (root / "pyproject.toml").exists():
        pytest.skip("an installed package, not a checkout")
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"studies": "equirelax_lab/ready"}


def test_where_runs_execute_stands_in_the_file(study_file: File) -> None:
    machine = read_study(study_file(accelerator="gpu", graph=True, devices=1)).machine
    assert (machine.accelerator, machine.graph, machine.devices) == ("gpu", True, 1)
    assert not read_study(study_file()).machine.graph
