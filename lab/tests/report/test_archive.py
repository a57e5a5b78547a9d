"""Archives hold everything that folders of runs hold, and are read as these are."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from equirelax_lab.cli import main
from equirelax_lab.report.archive import CURVES, RUNS, Archive, Entry, read_archive, write_archive
from equirelax_lab.report.comparison import TABLES, comparisons, summarise_again
from equirelax_lab.report.runs import Run, archived, gather, read_folder, read_run
from equirelax_lab.studies.trials import JOURNAL
from made import Make, study

from equirelax.errors import ConfigError

RESULTS = Path(__file__).parents[2] / "results"
LIMITS = 7, 12_000_000
"""Files in a folder of committed results, and bytes of all of them."""
MOST_TABLES = 6
"""Of a comparison, each as CSV and as LaTeX in a folder of their own."""


def test_what_is_written_is_read_again_row_by_row(tmp_path: Path) -> None:
    entries = (
        Entry("b", "finished", result={"x": 1.0}, rows=({"epoch": "0", "gamma/z": "", "gamma/a": "1"},)),
        Entry("a", "failed", "The loss is nan.", config={"y": None}, rows=({"epoch": "0", "val": "2,5"},)),
        Entry("c", "waiting"),
    )
    write_archive(tmp_path, Archive(entries, {"name": "n", "title": "t", "small": True}))
    found = read_archive(tmp_path)
    assert found == Archive(entries, {"name": "n", "title": "t", "small": True})
    assert [list(entry.rows[0]) for entry in found.entries[:2]] == [
        ["epoch", "gamma/z", "gamma/a"],
        ["epoch", "val"],
    ]
    before = (tmp_path / RUNS).read_bytes()
    write_archive(tmp_path, found)
    assert (tmp_path / RUNS).read_bytes() == before  # without a time stamp


def test_reasons_do_not_say_where_the_runs_lay(tmp_path: Path) -> None:
    reason = f"The loss exploded. {tmp_path / 'strict-seed0'} keeps best.ckpt."
    run = Run("strict-seed0", {"config": {"seed": 0}}, (), "failed", reason)
    journal = {"status": "failed", "attempts": 2, "reason": reason}
    (tmp_path / JOURNAL).write_text(json.dumps({"name": "n", "runs": {"ace-seed0": journal}}))
    found = archived([run], tmp_path)
    assert {entry.name: entry.reason for entry in found.entries} == dict.fromkeys(
        ("strict-seed0", "ace-seed0"), "The loss exploded. strict-seed0 keeps best.ckpt."
    )


def in_numbers(row: Mapping[str, str]) -> dict[str, float]:
    return {key: float(value or "nan") for key, value in row.items()}


def test_curves_are_kept_to_six_digits(tmp_path: Path) -> None:
    written = {
        "a": "7.443580150604248",
        "b": "-1.23456789e-12",
        "c": "12345678901",
        "d": "0.5",
        "e": "",
        "f": "nan",
        "g": "x.y",
    }
    write_archive(tmp_path, Archive((Entry("r", "finished", result={"x": 1.0}, rows=(written,)),), None))
    [entry] = read_archive(tmp_path).entries
    kept = {
        "a": "7.44358",
        "b": "-1.23457e-12",
        "c": "12345678901",
        "d": "0.5",
        "e": "",
        "f": "nan",
        "g": "x.y",
    }
    assert dict(entry.rows[0]) == kept


@pytest.mark.usefixtures("undrawn")
def test_a_study_is_archived_with_what_failed_and_reported_alike(make: Make, tmp_path: Path) -> None:
    folder, kept = study(make, tmp_path), tmp_path.parent / "kept"
    assert main(["archive", str(folder), "--out", str(kept)]) == 0
    assert {path.name for path in (kept / "first").iterdir()} == {
        *(RUNS, CURVES, "summary.md", "curves.png", TABLES),
    }
    for before, after in zip(gather([folder]), gather([kept]), strict=True):
        assert before.study == after.study
        assert [run.name for run in before.runs] == [run.name for run in after.runs]
        assert list(before.problems) == list(after.problems)
        for one, other in zip(before.runs, after.runs, strict=True):
            assert (one.result, one.status, one.reason) == (other.result, other.status, other.reason)
            assert [in_numbers(row) for row in other.rows] == [
                pytest.approx(in_numbers(row), rel=5e-6, nan_ok=True) for row in one.rows
            ]
    assert read_run(kept / "first" / "resilient-seed0").reason == "The loss is nan."
    text = (kept / "first" / "summary.md").read_text()
    summarise_again(kept / "first")
    assert (kept / "first" / "summary.md").read_text() == text
    assert comparisons([kept]) == [kept / "first", kept / "second"]
    assert main(["archive", str(kept), "--out", str(kept)]) == 2


def test_unfinished_runs_are_archived_too(make: Make, tmp_path: Path) -> None:
    folder = make("strict", 0, 5.0, finished=False).parent
    summarise_again(folder, tmp_path / "kept")
    (run,) = read_folder(tmp_path / "kept")[0]
    assert (run.status, len(run.rows)) == ("unfinished", 5)
    assert comparisons([tmp_path], written=False) == [folder, tmp_path / "kept"]
    assert comparisons([tmp_path]) == [tmp_path / "kept"]


@pytest.mark.usefixtures("undrawn")
def test_a_run_in_its_own_folder_counts_more_than_in_the_archive(make: Make, tmp_path: Path) -> None:
    folder = make("strict", 0, 5.0).parent
    make("ace", 0, 4.0)
    summarise_again(folder)
    shutil.rmtree(folder / "ace-seed0")
    again = json.loads((folder / "strict-seed0" / "result.json").read_text())
    again["test"]["projected"] = 6.0
    (folder / "strict-seed0" / "result.json").write_text(json.dumps(again))
    found, problems, _ = read_folder(folder)
    assert problems == []
    assert {run.name: run.result["test"]["projected"] for run in found} == {
        "strict-seed0": 6.0,
        "ace-seed0": 4.0,
    }
    assert [run.name for run in gather([folder / "ace-seed0"])[0].runs] == ["ace-seed0"]


def test_the_order_of_an_older_summary_is_kept(make: Make, tmp_path: Path) -> None:
    folders = [make("strict", seed, 5.0) for seed in (0, 1)] + [
        make("scheduled", 0, 4.0),
        make("ace", 0, 4.0),
    ]
    runs = [json.loads((folder / "result.json").read_text()) for folder in folders]
    (folders[0].parent / "summary.json").write_text(json.dumps({"runs": runs[:3]}))
    assert [run.name for run in read_folder(folders[0].parent)[0]] == [folder.name for folder in folders]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "content",
    [b"{}", gzip.compress(b"{}"), gzip.compress(b'{"layout": 2, "runs": [], "study": null}')],
    ids=["not compressed", "empty", "another layout"],
)
def test_a_damaged_archive_is_named(make: Make, tmp_path: Path, content: bytes) -> None:
    folder = make("strict", 0, 5.0).parent
    summarise_again(folder)
    (folder / RUNS).write_bytes(content)
    with pytest.raises(ConfigError, match=RUNS):
        read_archive(folder)
    (chapter,) = gather([folder])
    assert [run.name for run in chapter.runs] == ["strict-seed0"]
    assert any(RUNS in words for words in chapter.problems)


def test_committed_results_are_few_small_files() -> None:
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    for folder in {path.parent for path in files}:
        most = LIMITS[0] if folder.name != TABLES else 2 * MOST_TABLES
        assert sum(path.parent == folder for path in files) <= most, folder
    assert sum(path.stat().st_size for path in files) < LIMITS[1]
    for name in ("config.yaml", "result.json", "metrics.csv"):
        assert not list(RESULTS.rglob(name)), f"equirelax archive: {name}"
