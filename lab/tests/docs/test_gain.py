"""What relaxing gains against the symmetry score: gains by hand, and rank correlations of known cases."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from doc_pages import ROOT
from equirelax_lab.report.runs import Run
from PIL import Image

sys.path.insert(0, str(ROOT / "docs" / "tools"))
import gain
from equirelax_lab.tasks.registry import defaults

KEY = "dataset.asymmetry"
METRIC = {"name": "RMSE Future", "unit": "1", "symbol": None, "higher_is_better": False}


def made(method: str, seed: int, asymmetry: float, relaxed: float, projected: float) -> Run:
    config = defaults("smoke", "e2cnn", method).updated({"seed": seed, "dataset": {"asymmetry": asymmetry}})
    result: dict[str, Any] = {
        **{"benchmark": "smoke", "model": "e2cnn", "method": method, "seed": seed, "metric": METRIC},
        **{
            "config": config.to_dict(),
            "test": {"relaxed": relaxed, "projected": projected},
            "commit": "0" * 40,
        },
    }
    return Run(f"{method}-asymmetry{asymmetry}-seed{seed}", result, [], "finished")


def runs() -> list[Run]:
    """Over three seeds and three values: resilient gains 10 % a step of the value as deployed, and loses as much projected."""
    found = []
    for seed in range(3):
        for step, value in enumerate((0.0, 0.25, 0.5)):
            strict = 1.0 + seed
            found.append(made("strict", seed, value, strict, strict))
            found.append(
                made(
                    "resilient",
                    seed,
                    value,
                    strict * (1 - 0.1 * step),
                    strict * (1 + 0.1 * step + 0.01 * seed),
                )
            )
    return found


def scores(found: list[Run]) -> dict[str, Any]:
    strict = [run.result for run in found if run.result["method"] == "strict"]
    return {
        "runs": [
            {
                "config": one["config"],
                "whole": {"ratio": one["config"]["dataset"]["asymmetry"] / 5 + 0.001 * one["seed"]},
            }
            for one in strict
        ]
    }


def test_gains_are_paired_and_ranked_against_r(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gain, "DRAWS", 200)
    found = runs()
    monkeypatch.setattr(gain, "read_folder", lambda folder: (found, []))
    (tmp_path / "scores.json").write_text(json.dumps(scores(found)))
    gain.main(["runs", str(tmp_path / "scores.json"), "--out", str(tmp_path)])
    page = (tmp_path / "gain.md").read_text()
    assert "| 0.5 | 0.1010 ± 0.0010 | +20.0 [+20.0, +20.0] | -21.0 [" in page
    all_pairs = gain.gains([run.result for run in found], KEY)
    assert all_pairs["resilient", "relaxed"][2, 0.25] == pytest.approx(0.1)
    r = gain.scores_at(scores(found), KEY)
    upwards, downwards = (gain.correlation(all_pairs["resilient", form], r) for form in gain.FORMS)
    assert upwards is not None
    assert downwards is not None
    assert upwards[1] <= upwards[0] <= upwards[2]
    assert upwards[0] > 0.9
    assert downwards[2] < -0.9
    alone = {place: 0.1 for place in r if place[0] == 1}
    assert gain.correlation(alone, r) is None
    assert "| resilient, projected | -" in page
    with Image.open(tmp_path / "gain.png") as picture:
        assert min(picture.size) > 200
    # a strict run without a score is named
    (tmp_path / "scores.json").write_text(json.dumps({"runs": scores(found)["runs"][:-1]}))
    with pytest.raises(SystemExit):
        gain.main(["runs", str(tmp_path / "scores.json"), "--out", str(tmp_path)])
    assert "seed 2, asymmetry 0.5" in capsys.readouterr().err


def test_runs_that_cannot_be_paired_are_refused() -> None:
    results = [run.result for run in runs()]
    with pytest.raises(ValueError, match="two runs of seed 0"):
        gain.gains([*results, results[1]], KEY)
    with pytest.raises(ValueError, match="no strict run of seed 0"):
        gain.gains(results[1:], KEY)
    with pytest.raises(ValueError, match="higher"):
        gain.gains([{**one, "metric": {**METRIC, "higher_is_better": True}} for one in results], KEY)
