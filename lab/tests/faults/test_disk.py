"""Full disks and read-only folders: an error names the place, and complete files stay."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from equirelax_lab.cli import main
from equirelax_lab.training.folder import BEST, LAST, RESULT, read_result, read_table
from fault_ledger import Ledger
from forked_runs import Forks
from real_runs import PATIENCE, STUDY, differences, leftovers, words

from equirelax.errors import StorageError
from equirelax.files import write_text
from equirelax.relaxation import read

pytestmark = [pytest.mark.serial, pytest.mark.timeout(3 * PATIENCE)]

LIMIT, FULL, FORBIDDEN = "limit on file sizes", "full disk", "read-only folder"
EPOCHS = 6
Disk = Callable[[int], Path]


@pytest.fixture(scope="module")
def straight(forked: Forks, tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("straight") / "run"
    code, log = forked.run(words(tiny_root, out, epochs=EPOCHS))
    assert code == 0, log
    return out


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A function that mounts a disk of a number of bytes, if this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no disk can be mounted here ({error})")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


def fill(place: Path, but: int = 0) -> Path:
    """Fill a disk except for some bytes; removing the file frees it again."""
    filler = place / "filler"
    with filler.open("wb") as file:
        file.truncate(0)
        free = os.statvfs(place)
        file.write(bytes(free.f_bavail * free.f_bsize - but))
    return filler


def refused(code: int, log: str, place: Path) -> bool:
    """Whether a command that cannot write ended with an error that names the file and what to do."""
    return code == 2 and " be written: " in log and str(place) in log and "Traceback" not in log


def whole(out: Path) -> bool:
    """Whether all files of a run with final names can be read."""
    for name in (LAST, BEST):
        if (out / name).exists():
            read(out / name)
    if (out / RESULT).exists():
        read_result(out / RESULT)
    return not leftovers(out)


@pytest.mark.parametrize(
    "limit", [30_000, *(pytest.param(size, marks=pytest.mark.slow) for size in (700, 1_000, 3_000, 60_000))]
)
def test_a_limit_on_file_sizes(
    limit: int, forked: Forks, straight: Path, tiny_root: Path, tmp_path: Path, ledger: Ledger
) -> None:
    """As with quotas and `ulimit -f`; any user can set it."""
    out = tmp_path / "run"
    code, log = forked.run(words(tiny_root, out, epochs=EPOCHS), limit=limit)
    good = refused(code, log, out) and whole(out)
    assert good, log
    code, again = forked.run(words(tiny_root, out, "--resume", epochs=EPOCHS))
    changed = differences(straight, out) if code == 0 else [again]
    ledger.note(LIMIT, survived=good and not changed)
    assert changed == []
    assert leftovers(out) == []


@pytest.mark.parametrize(
    "room",
    [110_000, *(pytest.param(4096 * n, marks=pytest.mark.slow) for n in (0, 1, 2, 3, 5, 9, 32, 40, 60))],
)
def test_a_full_disk_during_a_run(
    room: int, forked: Forks, straight: Path, tiny_root: Path, disk: Disk, ledger: Ledger
) -> None:
    place = disk(1_000_000)
    out, filler = place / "run", fill(place, but=room)
    code, log = forked.run(words(tiny_root, out, epochs=EPOCHS))
    good = refused(code, log, place) or (code == 2 and "cannot be written to: No space left" in log)
    good = good and (not out.exists() or whole(out))
    filler.unlink()
    code, again = forked.run(words(tiny_root, out, "--resume", epochs=EPOCHS))
    changed = differences(straight, out) if code == 0 else [again]
    ledger.note(FULL, survived=good and not changed)
    assert good, log
    assert changed == []
    assert leftovers(out) == []


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_the_last_checkpoint(
    forked: Forks, straight: Path, tiny_root: Path, disk: Disk, ledger: Ledger
) -> None:
    place = disk(1_000_000)
    out = place / "run"
    assert forked.run(words(tiny_root, out, epochs=EPOCHS), file=LAST, nth=3, stage="after")[0] < 0
    before = {name: (out / name).read_bytes() for name in (LAST, BEST)}
    filler = fill(place, but=8192)
    code, log = forked.run(words(tiny_root, out, "--resume", epochs=EPOCHS))
    good = refused(code, log, out) and {name: (out / name).read_bytes() for name in before} == before
    filler.unlink()
    code, again = forked.run(words(tiny_root, out, "--resume", epochs=EPOCHS))
    changed = differences(straight, out) if code == 0 else [again]
    ledger.note(FULL, survived=good and not changed)
    assert good, log
    assert changed == []


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 40_960, 204_800])
def test_a_full_disk_during_a_study(
    room: int, forked: Forks, tiny_root: Path, tmp_path: Path, disk: Disk, ledger: Ledger
) -> None:
    place = disk(2_000_000)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    filler = fill(place, but=room)
    command = [
        "study",
        "run",
        str(path),
        "--data",
        str(tiny_root),
        "--out",
        str(place / "out"),
        "--jobs",
        "2",
    ]
    code, log = forked.run(command)
    good = code in (1, 2) and "Traceback" not in log and str(place) in log
    good = good and ("No space left" in log or "could not be written" in log)
    filler.unlink()
    again, more = forked.run(command)
    ledger.note(f"{FULL} during a study", survived=good and again == 0 and not leftovers(place / "out"))
    assert good, log
    assert again == 0, more
    assert leftovers(place / "out") == []
    assert len(list((place / "out").glob("*/result.json"))) == 3


def test_tables_pages_and_data_on_a_full_disk(
    straight: Path, disk: Disk, tiny_root: Path, capsys: pytest.CaptureFixture[str], ledger: Ledger
) -> None:
    place = disk(200_000)
    run = place / "run"
    shutil.copytree(straight, run, ignore=shutil.ignore_patterns("tensorboard", LAST))
    write_text(place / "page.html", "the old page\n")
    filler = fill(place)
    for number, command in enumerate(
        (
            ["audit", str(run), "--data", str(tiny_root), "--json", str(place / "audit.json")],
            ["project", str(run), "--out", str(place / "weights.safetensors")],
            ["report", str(run), "--out", str(place / "page.html")],
            ["data", "make", "nbody", "--data", str(place), "--train=4", "--val=4", "--test=4"],
        )
    ):
        code = main(command)
        error = capsys.readouterr().err
        good = refused(code, error, place) and not leftovers(place)
        ledger.note(FULL, survived=good)
        assert good, (number, error)
    assert (place / "page.html").read_text() == "the old page\n"
    filler.unlink()


def test_a_row_that_does_not_fit_is_not_taken_for_one(tmp_path: Path, disk: Disk, ledger: Ledger) -> None:
    """The earlier rows of a table stay intact."""
    from equirelax_lab.training.loggers import EpochTable

    table = EpochTable(disk(64 * 1024))
    for epoch in range(3):
        table.log(epoch, {"loss": 1.0 / 3.0})
    before = read_table(table.path)
    fill(table.path.parent)
    refusals = []
    for epoch in range(3, 400):
        try:
            table.log(epoch, {"loss": 1.0 / 3.0})
        except StorageError as error:
            refusals.append(str(error))
            break
    rows = read_table(table.path)
    ledger.note(FULL, survived=bool(refusals) and rows[:3] == before)
    assert "metrics.csv" in refusals[0]
    assert rows[:3] == before
    assert all(row["loss"] == before[0]["loss"] for row in rows)


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that may not be written to."""
    path = tmp_path / "closed"
    path.mkdir(mode=0o555)
    yield path
    path.chmod(0o755)


@pytest.mark.parametrize(
    "kind",
    ["train", "resume", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("compare", "study"))],
)
def test_a_folder_that_may_not_be_written_to(
    kind: str, forked: Forks, straight: Path, tiny_root: Path, tmp_path: Path, closed: Path, ledger: Ledger
) -> None:
    """The error comes before training, and leaves no files."""
    out, study = closed / "run", tmp_path / "study.yaml"
    study.write_text(STUDY)
    place = ["--data", str(tiny_root), "--out", str(out), "--jobs", "1"]
    if kind == "resume":
        closed.chmod(0o755)
        shutil.copytree(straight, out)
        (out / RESULT).unlink()
        for path in (out, closed):
            path.chmod(0o555)
    command = {
        "compare": ["compare", "nbody", "--methods", "strict", "--seeds", "1", "--epochs", "1", *place],
        "study": ["study", "run", str(study), *place],
    }.get(kind, words(tiny_root, out, "--resume", epochs=EPOCHS))
    if kind == "compare":
        command += ["--dataset.train", "48", "--dataset.val", "24", "--dataset.test", "24"]
    before = sorted(map(str, closed.rglob("*")))
    code, log = forked.run(command, bound=True)
    good = code == 2 and str(out) in log and "Permission denied" in log and "Traceback" not in log
    good = good and sorted(map(str, closed.rglob("*"))) == before
    ledger.note(FORBIDDEN, survived=good)
    assert good, log
    if kind == "resume":
        out.chmod(0o755)
