"""The workflow for GitHub runs `.ci/run` and nothing else."""

from __future__ import annotations

import os

import pytest
from doc_pages import ROOT

yaml = pytest.importorskip("yaml")


def test_it_does_what_ci_run_does() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert {step["uses"].split("@")[0] for step in steps if "uses" in step} == {
        "actions/checkout",
        "actions/setup-python",
    }
    assert not any("if" in step or step.get("continue-on-error") for step in steps)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_its_python_is_one_that_the_package_takes() -> None:
    import tomllib

    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(
        ">="
    )
    assert f'python-version: "{needed}"' in workflow
