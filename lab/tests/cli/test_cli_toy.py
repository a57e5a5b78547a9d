"""`equirelax toy` writes numbers, table and picture."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("jsonargparse")
from equirelax_lab.cli import main


def test_the_toy_study(tmp_path, capsys):
    assert main(["toy", "--steps", "12", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "toy.json").read_text())
    assert {run["form"] for run in record["runs"]} == set(record["forms"])
    assert record["settings"]["steps"] == 12
    assert {"commit", "hardware", "versions"} <= set(record)
    assert (tmp_path / "gamma.png").read_bytes().startswith(b"\x89PNG")
    rows = [line for line in (tmp_path / "summary.md").read_text().splitlines() if line.startswith("| ")]
    assert len([row for row in rows if row.startswith(("| symmetric |", "| broken |"))]) == 10
    assert len([row for row in rows if row.startswith("| 0")]) == 3  # orbits of curvature 0, 0.01 and 0.1
    assert (tmp_path / "orbit.png").read_bytes().startswith(b"\x89PNG")
    assert record["orbit"]["curvatures"]["0"]["half_periods"][0] == 1260
    assert "symmetric | plain" in capsys.readouterr().out


def test_a_runs_gamma_is_compared_with_the_orbit(tmp_path, tiny_root, tiny_config, capsys):
    from equirelax_lab.training.machine import Machine
    from equirelax_lab.training.run import train

    adam = {"dual_optimizer": "adam", "reduction": "mean"}
    for method, strength in (("ace", adam), ("scheduled", {})):
        config = tiny_config(method, strength=strength)
        train(config, tmp_path / method, tiny_root, machine=Machine(progress=False, tensorboard=False))
    words = ["toy", "--steps", "2", "--out", str(tmp_path / "toy"), "--run"]
    assert main([*words, str(tmp_path / "ace")]) == 0
    found = json.loads((tmp_path / "toy" / "toy.json").read_text())["orbit"]["run"]
    assert found["steps"] == 12
    assert 0 < found["deviation"] < 12 * 2 * 9e-4  # Adam's steps are of the size of the learning rate
    assert main([*words, str(tmp_path / "scheduled")]) == 2
    assert "is no run of ACE" in capsys.readouterr().err


def test_a_misspelt_flag_is_named(capsys):
    assert main(["toy", "--step", "3"]) == 2
    assert "steps" in capsys.readouterr().err


def test_a_setting_may_be_named_without_its_section():
    from equirelax_lab.cli import options

    parser = options.parser(["test"], "")
    for flag in ("--dataset.subject", "--network.hidden", "--residual.hidden", "--epochs"):
        parser.add_argument(flag)
    assert options.parse(parser, ["--subject", "run", "--epochs=3"])["dataset.subject"] == "run"
    with pytest.raises(options.ConfigError, match=r"Unknown option --hidden"):
        options.parse(parser, ["--hidden", "3"])
