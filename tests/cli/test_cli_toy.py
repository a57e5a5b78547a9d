"""`equirelax toy` writes numbers, table and picture."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("jsonargparse")
from equirelax.cli import main


def test_the_toy_study(tmp_path, capsys):
    assert main(["toy", "--steps", "12", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "toy.json").read_text())
    assert {run["form"] for run in record["runs"]} == set(record["forms"])
    assert record["settings"]["steps"] == 12
    assert {"commit", "hardware", "versions"} <= set(record)
    assert (tmp_path / "gamma.png").read_bytes().startswith(b"\x89PNG")
    assert (
        len([line for line in (tmp_path / "summary.md").read_text().splitlines() if line.startswith("| ")])
        == 11
    )
    assert "symmetric | plain" in capsys.readouterr().out


def test_a_misspelt_flag_is_named(capsys):
    assert main(["toy", "--step", "3"]) == 2
    assert "steps" in capsys.readouterr().err


def test_a_setting_may_be_named_without_its_section():
    from equirelax.cli import options

    parser = options.parser(["test"], "")
    for flag in ("--dataset.subject", "--network.hidden", "--residual.hidden", "--epochs"):
        parser.add_argument(flag)
    assert options.parse(parser, ["--subject", "run", "--epochs=3"])["dataset.subject"] == "run"
    with pytest.raises(options.ConfigError, match=r"Unknown option --hidden"):
        options.parse(parser, ["--hidden", "3"])
