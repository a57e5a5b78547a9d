"""`equirelax demo`: its parts, what it leaves behind, and that it goes on where it was interrupted."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from equirelax_lab.cli import demo, main
from equirelax_lab.data import nbody
from equirelax_lab.report import demo as shown
from equirelax_lab.tasks import round_trip
from equirelax_lab.tasks.planted import run_planted

from equirelax.errors import ConfigError

RESULTS = Path(__file__).parents[2] / "results" / "demo"
PROCESS = [sys.executable, str(Path(__file__).parent / "demo_process.py")]
SIZES = {"train": 40, "val": 20, "test": 20}


def test_seeds_are_fresh_and_kept(tmp_path: Path) -> None:
    one, two = demo.Demo(tmp_path / "one", None), demo.Demo(tmp_path / "two", None)
    assert one.seeds != two.seeds  # alike once in 10^11
    assert len(set(one.seeds)) == demo.SEEDS
    assert demo.Demo(tmp_path / "one", None).seeds == one.seeds
    assert demo.Demo(tmp_path / "three", (1, 2)).seeds == [1, 2]
    with pytest.raises(ConfigError, match="--out"):
        demo.Demo(tmp_path / "three", (2, 1))


def test_a_finished_part_is_not_run_again(tmp_path: Path) -> None:
    first = demo.Demo(tmp_path, (5, 6))
    assert first.part("planted", lambda seed: {"seed": seed}) == {"seed": 5}
    again = demo.Demo(tmp_path, None)
    assert again.part("planted", lambda seed: pytest.fail("it is there")) == {"seed": 5}
    assert again.state["seconds"].keys() == {"planted"}


def test_an_interrupted_part_counts_its_seconds_and_begins_anew(tmp_path: Path) -> None:
    def interrupted(seed: int) -> dict[str, object]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.Demo(tmp_path, (5, 6)).part("round_trip", interrupted)
    again = demo.Demo(tmp_path, None)
    assert "round_trip" in again.state["seconds"]
    assert again.part("round_trip", lambda seed: {"seed": seed}) == {"seed": 5}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"seeds": [1, 2]}', '{"seeds": '])
def test_a_damaged_folder_is_named(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / demo.STATE).write_text(text)
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert f"{tmp_path / demo.STATE} is damaged" in capsys.readouterr().err
    assert (tmp_path / demo.STATE).read_text() == text


@pytest.mark.parametrize("seeds", ["1", "1,1", "1,x", "-1,2", ""])
def test_wrong_seeds(tmp_path: Path, seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), f"--seeds={seeds}"]) == 2
    assert f"--seeds is '{seeds}'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_the_round_trip_ends_exactly_equivariant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_trip, "SAMPLES", 64)
    monkeypatch.setattr(round_trip, "MEASURED", 2)
    found = round_trip.run_round_trip(0, epochs=4)
    (_, untrained, before), (_, relaxed, _), (_, projected, after) = found["stages"]
    assert max(untrained, projected) < 1e-12 < 1e-3 < relaxed
    assert after < before
    assert found["same_keys"]
    assert found["parameters"]["strict"] == found["parameters"]["projected"] < found["parameters"]["relaxed"]
    assert "er.project(model)" in found["code"]


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_the_audit_names_the_planted_mistake(seed: int) -> None:
    found = run_planted(seed, layers=1)
    assert found["named"] == found["planted"]
    assert found["before"] < 1e-12 < 1e-4 < found["after"]
    added = dict(found["modules"])
    assert added.pop(found["planted"]) > 1e-2
    assert max(added.values()) < 1e-12


def test_what_is_committed_is_what_the_demo_writes(tmp_path: Path) -> None:
    state = json.loads((RESULTS / demo.STATE).read_text("utf-8"))
    assert state["settings"] == demo.SETTINGS
    said = shown.write_demo(tmp_path, state, RESULTS / demo.RUNS, None)
    assert (tmp_path / shown.TABLE).read_text("utf-8") == (RESULTS / shown.TABLE).read_text("utf-8")
    assert (tmp_path / shown.PICTURE).read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / shown.PAGE).read_text("utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", page)  # self-contained
    for part in (said, page):
        assert state["parts"]["planted"]["named"] in part
        assert "minus strict" in part
        assert all(
            command in part.replace("&#34;", '"') for _, command in shown.next_commands(tmp_path, state, None)
        )
    assert f"--seeds {','.join(map(str, state['seeds']))}" in page


@pytest.mark.slow
@pytest.mark.serial
def test_a_whole_demo_interrupted_and_continued(tmp_path: Path) -> None:
    """Interrupted in its first seconds, by kill -9 and by Ctrl-C in the middle: the same command goes on to the end."""
    data, out = tmp_path / "data", tmp_path / "demo"
    nbody.make(sizes=SIZES, root=data)
    words = [*PROCESS, "--out", str(out), "--data", str(data), "--jobs", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    seeds = None
    for sign, wanted in (
        (signal.SIGTERM, out / demo.STATE),
        (signal.SIGKILL, out / demo.RUNS / "study.json"),
        (signal.SIGINT, None),
    ):
        process = subprocess.Popen(
            words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        until = time.monotonic() + 120
        while not (wanted.exists() if wanted else list(out.glob(f"{demo.RUNS}/*/metrics.csv"))):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(sign)
        said, _ = process.communicate(timeout=120)
        assert process.returncode in (130, -sign), said
        assert "Traceback" not in said
        state = json.loads((out / demo.STATE).read_text("utf-8"))
        seeds = seeds or state["seeds"]
        assert state["seeds"] == seeds
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert f"Seeds {', '.join(map(str, seeds or ()))};" in done.stdout
    finished = {path: path.stat().st_mtime_ns for path in out.glob(f"{demo.RUNS}/*/result.json")}
    assert len(finished) == 2 * len(state["seeds"]) == 4
    for name in (shown.TABLE, shown.PICTURE, shown.PAGE):
        assert (out / name).stat().st_size > 500
    again = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    state = json.loads((out / demo.STATE).read_text("utf-8"))
    (_, symmetry), (_, report), _ = shown.next_commands(out, state, str(data))
    assert main(shlex.split(symmetry)[1:]) == 0
    assert main([word for word in shlex.split(report)[1:] if word != "--open"]) == 0
