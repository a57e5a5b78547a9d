"""The workflow for GitHub: one job is `.ci/run` and nothing else, the others run the library's tests where nobody did."""

from __future__ import annotations

import os
import tomllib

import pytest
from doc_pages import ROOT

yaml = pytest.importorskip("yaml")
TESTS = ['python -m pip install ".[e3nn,test]"', 'python -m pytest -q -m "not slow" tests']


@pytest.fixture(scope="module")
def jobs() -> dict:
    return yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]


def runs(job: dict) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_it_does_what_ci_run_does(jobs: dict) -> None:
    assert runs(jobs["checks"]) == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    (setup,) = (step for step in jobs["checks"]["steps"] if "setup-python" in step.get("uses", ""))
    assert setup["with"]["python-version"] == oldest()


def test_other_systems_and_versions_run_the_librarys_tests(jobs: dict) -> None:
    assert runs(jobs["library"])[1:] == runs(jobs["conda"])[1:] == TESTS
    rows = jobs["library"]["strategy"]["matrix"]["include"]
    assert any("macos" in row["os"] for row in rows)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = (text for text in project["dependencies"] if text.startswith("torch"))
    assert torch.replace(">=", "==") + ".0" in {row["torch"] for row in rows}  # the oldest that is allowed


def test_no_step_may_fail_or_be_left_out(jobs: dict) -> None:
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert not any("if" in step or step.get("continue-on-error") for step in steps)
    assert {step["uses"].split("@")[0] for step in steps if "uses" in step} == {
        "actions/checkout",
        "actions/setup-python",
        "conda-incubator/setup-miniconda",
    }


def oldest() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["requires-python"].removeprefix(">=")
