"""The table of an exploration: validation errors of finished runs, and nothing of the test set."""

from __future__ import annotations

import re
import sys

import pytest
from doc_pages import ROOT

sys.path.insert(0, str(ROOT / "docs" / "tools"))
import validation
from equirelax_lab.report.runs import Run


def made(seed: int, raw: list[float], averaged: list[float], status: str = "finished") -> Run:
    rows = [
        {
            "epoch": str(epoch),
            "val/projected": str(one),
            "averaged/projected": str(other),
            "fit/projected": "0.004",
            "fit/relaxed": "0.001",
            "seconds": "3600",
        }
        for epoch, (one, other) in enumerate(zip(raw, averaged, strict=True))
    ]
    result = {"seed": seed, "method": "swing", "test": {"projected": 77.77}, "metric": {}}
    return Run(f"swing-seed{seed}", result, rows, status)


def test_the_least_of_either_weights_counts_seed_by_seed() -> None:
    arms = {
        "strict": [made(0, [9.0, 5.0, 6.0], [9.0, 8.0, 4.0]), made(1, [9.0, 3.0, 6.0], [9.0, 8.0, 5.0])],
        "swing": [made(0, [9.0, 3.5, 6.0], [9.0, 8.0, 4.5]), made(1, [9.0, 6.0, 2.0], [9.0, 8.0, 5.0])],
        "slow": [made(0, [1.0, 1.0], [1.0, 1.0], "running")],
    }
    strict, swing = validation.table(arms).splitlines()[2:]
    assert strict.startswith("| strict | 2 | 4.00 ± 1.41 | 4.50 ± 0.71 | 3.50 ± 0.71 |  | 0: 4.00 1: 3.00 |")
    assert "| 2.75 ± 1.06 | -0.75 [" in swing
    assert swing.endswith("| 0: 3.50 1: 2.00 | 4.00 | 1.00 | no, no |")
    assert validation.left(arms) == "Not finished:\n\n- slow, seed 0: epoch 2, 1.00 so far"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": 0}, "two runs of one seed"),
        ({"metric": {"higher_is_better": True}}, "higher values are better"),
    ],
)
def test_runs_that_it_cannot_compare_are_refused(
    changed: dict[str, object],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = [made(seed, [1.0], [1.0]) for seed in range(2)]
    runs[1] = Run(runs[1].name, {**runs[1].result, **changed}, runs[1].rows, "finished")
    runs = runs if "seed" in changed else runs[1:]
    monkeypatch.setattr(validation, "comparison_folders", lambda folder: [folder / "strict"])
    monkeypatch.setattr(validation, "read_folder", lambda folder: (runs, [], None))
    monkeypatch.setattr(validation, "labels", lambda results: ["strict" for _ in results])
    with pytest.raises(SystemExit):
        validation.main(["runs"])
    assert words in capsys.readouterr().err


def test_rows_of_one_folder_are_arms_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    validation.main([str(ROOT / "lab/results/mocap-optimisers")])
    text = capsys.readouterr().out
    assert re.search(r"^\| adam-rates strict learning_rate=0.005 \| 2 \|", text, flags=re.MULTILINE)


def test_committed_archives_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    validation.main([str(ROOT / "lab/results/nbody-long")])
    text = capsys.readouterr().out
    assert re.search(r"^\| matched ace \| 2 \| .* \| 165, 80 \|$", text, flags=re.MULTILINE)
    assert "matched strict, seed 2: epoch 133" in text
    assert "77.77" not in validation.table({"strict": [made(0, [1.0], [1.0])]})
