"""The studies that come with the library: all there, all valid, at the papers' settings, each with a smaller variant."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from equirelax_lab.studies.ready import find_study, ready_file, ready_folder, ready_names
from equirelax_lab.studies.spec import read_study
from equirelax_lab.studies.trials import Trial, trials
from equirelax_lab.tasks.registry import build_task

from equirelax.errors import ConfigError

PAPERS = {
    "cr-nbody", "cr-nbody-samples", "cr-nbody-layers", "cr-modelnet40-pointnet", "cr-modelnet40-dgcnn",
    "cr-modelnet40-ablations", "cr-lambda", "cr-md17", "cr-smoke-rotation", "cr-smoke-scale", "ace-nbody",
    "ace-mocap-run", "ace-mocap-walk", "ace-qm9-schnet", "ace-qm9-segnn", "ace-modelnet40",
}  # fmt: skip
QUESTIONS = {"sensitivity", "sample-efficiency", "size"}
FEWER_ON_PURPOSE = {"cr-nbody-samples", "cr-nbody-layers", *QUESTIONS}
"""They sweep over fewer samples or layers than the papers' table has, or over ten classes of forty."""


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
    assert find_study(str(own)) == own
    for name in ("cr-nbody", "cr_nbody"):
        assert find_study(name) == ready_folder() / "cr_nbody.yaml"
    with pytest.raises(ConfigError, match=r"'cr-nbdy'.*'cr-nbody'"):
        find_study("cr-nbdy")
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_study(find_study(str(tmp_path / "none.yaml")))


def test_the_wheel_takes_them_along() -> None:
    root = ready_folder().parent
    if not (root / "pyproject.toml").exists():
        pytest.skip("an installed package, not a checkout")
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"studies": "equirelax_lab/ready"}
