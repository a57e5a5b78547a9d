"""What to install is a command that works: it names packages that are on an index, and the pip of the running Python."""

from __future__ import annotations

import importlib.metadata
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from equirelax_lab import extras

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
DECLARED = {name: own for name, own in PROJECT["optional-dependencies"].items() if name != "all"}


def test_every_extra_is_known_and_all_has_what_runs_need() -> None:
    assert extras.EXTRAS.keys() == DECLARED.keys()
    (everything,) = PROJECT["optional-dependencies"]["all"]
    named = set(everything.partition("[")[2].rstrip("]").split(","))
    # 240 MB for those who have a cluster, and the clients of services for those who use them
    assert named == DECLARED.keys() - {"ray", "wandb", "mlflow"}


@pytest.mark.parametrize("extra", DECLARED)
def test_the_command_names_packages_of_an_index(extra: str) -> None:
    words = shlex.split(extras.install(extra))
    assert words[words.index("install") + 1 :] == DECLARED[extra]
    assert not any("equirelax" in package for package in DECLARED[extra])


def test_a_wheel_says_the_same_as_a_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from_clone = {extra: extras.install(extra) for extra in DECLARED}
    lines = [f'{package}; extra == "{extra}"' for extra, own in DECLARED.items() for package in own]
    monkeypatch.setattr(extras, "PROJECT", tmp_path / "pyproject.toml")
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["equirelax==0", *lines])
    assert {extra: extras.install(extra) for extra in DECLARED} == from_clone
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "of-somebody-else"\n')
    assert {extra: extras.install(extra) for extra in DECLARED} == from_clone


def test_a_pip_of_another_python_is_not_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder, expected in (
        (tmp_path / "other", f"{tmp_path / 'own' / 'python'} -m pip"),
        (tmp_path / "own", "pip"),
    ):
        folder.mkdir()
        (folder / "pip").write_text("")
        (folder / "pip").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.setattr(sys, "executable", str(tmp_path / "own" / "python"))
        assert extras.install("search").startswith(f"{expected} install")


def test_a_module_leads_to_its_extra_or_to_its_own_name() -> None:
    assert extras.install_module("phi") == extras.install("planes")
    assert extras.install_module("jinja2") == extras.install("run")
    assert extras.install_module("unheard_of").endswith(' install "unheard_of"')
