"""Searches with stubbed runs: files, suggestions, pruning, and resuming after kills; one search with real runs."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from equirelax_lab.cli import main
from equirelax_lab.studies import scheduler as scheduler_module
from equirelax_lab.studies.board import Board
from equirelax_lab.studies.machines import Ending, Job
from equirelax_lab.studies.scheduler import Scheduler
from equirelax_lab.studies.search import Search, read_search
from equirelax_lab.studies.study import find_file, read_study, ready_names
from equirelax_lab.studies.suggestions import HISTORY, Suggestions, validations
from equirelax_lab.studies.trials import recorded, trials
from equirelax_lab.tasks.registry import build_task
from equirelax_lab.tasks.settings import RunConfig
from rich.console import Console

from equirelax.errors import ConfigError

FILE: dict[str, Any] = {
    "title": "Tiny search",
    "benchmark": "nbody",
    "model": "segnn",
    "method": "ace",
    "settings": {"epochs": 6, "validate_every": 1, "dataset": {"train": 40}},
    "search": {"strength.dual_lr": {"log": [1e-5, 1e-1]}},
    "trials": 15,
    "startup": 5,
    "warmup": 2,
    "jobs": 1,
}
BEST_RATE = 1e-3


def distance(config: RunConfig) -> float:
    """The distance of the dual rate from the best one in decades, which is the result of a stubbed run."""
    rate: float = config.strength.dual_lr  # type: ignore[attr-defined]
    return abs(math.log10(rate / BEST_RATE))


@dataclass(eq=False)
class Stub:
    """A run that writes a row of metrics whenever it is polled."""

    job: Job
    goal: float
    code: int = 0
    asked: bool = False
    where: str | None = ""

    def poll(self) -> Ending | None:
        table = self.job.folder / "metrics.csv"
        rows = table.read_text().splitlines()[1:] if table.exists() else []
        if self.asked:
            return Ending(130)
        if self.code:
            return Ending(self.code, "it broke")
        epochs = self.job.config.training.epochs
        if len(rows) < epochs:
            left = (epochs - 1 - len(rows)) * 0.5  # projected falls to the goal; relaxed says nothing of use
            rows.append(f"{len(rows)},{self.goal + left},{-self.goal},1.0")
            table.write_text("\n".join(["epoch,val/projected,val/relaxed,seconds", *rows]) + "\n")
            return None
        (self.job.folder / "result.json").write_text("{}")
        return Ending(0)

    def interrupt(self) -> None:
        self.asked = True

    def kill(self) -> None:
        self.asked = True


class Killed(BaseException):
    """Stands for kill -9 of the search: no code handles it."""


@dataclass(eq=False)
class Stubs:
    """A machine with stubbed runs.

    Attributes:
        codes: Number of a start -> exit code.
        kill_at: The start at which the search dies.
    """

    codes: dict[int, int] = field(default_factory=dict)
    kill_at: int | None = None
    place: str = "here"
    started: list[Job] = field(default_factory=list)

    def prepare(self, out: Path) -> None:
        pass

    def slots(self, devices: int, threads: int, gpu: bool) -> int:
        return 2 // threads

    def start(self, job: Job, data: str | None) -> Stub:
        number = len(self.started)
        self.started.append(job)
        if number == self.kill_at:
            raise Killed
        job.folder.mkdir(parents=True, exist_ok=True)
        return Stub(job, distance(job.config), self.codes.get(number, 0))


Write = Callable[..., Path]


@pytest.fixture
def search_file(tmp_path: Path) -> Write:
    """A function (**changes of the keys) -> path of a search file."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "tiny.yaml"
        values = {key: value for key, value in {**FILE, **changes}.items() if value is not None}
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "POLL", 0.0)


def searcher(search: Search, out: Path, machines: Stubs, jobs: int = 1) -> Scheduler:
    source = Suggestions(search, build_task(search.config).metric)
    board = Board(search.title, search.trials, Console(file=io.StringIO()))
    return Scheduler(search, out, source, None, jobs, board.show, machines)


def found(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "search.json").read_text())
    return content


def history(out: Path) -> list[tuple[float, str, float]]:
    """Setting, status and value of every trial."""
    return [(t["values"]["strength.dual_lr"], t["status"], t["value"]) for t in found(out)["trials"]]


def test_the_minimum_is_found_and_those_behind_end_early(
    search_file: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search, engine = read_search(search_file(trials=30)), Stubs()
    assert searcher(search, tmp_path, engine).run() == 0
    result = found(tmp_path)
    assert len(engine.started) == len(result["trials"]) == 30
    assert 0.7 * BEST_RATE < result["best"]["values"]["strength.dual_lr"] < 1.4 * BEST_RATE
    finished = [t for t in result["trials"] if t["status"] == "finished"]
    pruned = [t for t in result["trials"] if t["status"] == "pruned"]
    assert len(finished) + len(pruned) == 30
    assert result["best"]["value"] == min(t["value"] for t in finished)
    # the first five go to their ends whatever they are worth; after that nothing ends before the warm-up's end
    assert all(t["status"] == "finished" for t in result["trials"][:5])
    assert len(pruned) > 5
    assert all(2 < t["epochs"] <= 6 for t in pruned)
    assert all(t["epochs"] == 6 for t in finished)
    # numbers drawn at random from these four decades are one decade from their middle in the mean
    assert sum(distance(job.config) for job in engine.started[-15:]) / 15 < 0.7
    said = capsys.readouterr().out
    assert "ended after epoch" in said
    assert "best so far: trial" in said.splitlines()[-1]
    assert [each.status for each in recorded(tmp_path)] == [t["status"] for t in result["trials"]]


def test_without_pruner_every_trial_goes_to_its_end(search_file: Write, tmp_path: Path) -> None:
    search = read_search(search_file(pruner="none"))
    assert searcher(search, tmp_path, Stubs()).run() == 0
    assert {status for _, status, _ in history(tmp_path)} == {"finished"}


@pytest.mark.parametrize("kill_at", [3, 14])
def test_a_killed_search_goes_on_to_the_same_suggestions(
    kill_at: int, search_file: Write, tmp_path: Path
) -> None:
    search = read_search(search_file())
    assert searcher(search, tmp_path / "whole", Stubs()).run() == 0
    cut = tmp_path / "cut"
    with pytest.raises(Killed):
        searcher(search, cut, Stubs(kill_at=kill_at)).run()
    with (cut / HISTORY).open("ab") as file:
        file.write(b'{"op_code": 4, "wor')  # the line that it was writing
    again = Stubs()
    assert searcher(search, cut, again).run() == 0
    assert history(cut) == history(tmp_path / "whole")
    assert len(again.started) == 15 - kill_at
    assert again.started[0].folder == cut / f"trial-{kill_at:04d}"
    # all is done: nothing is started, the outcome is the same
    assert searcher(search, cut, idle := Stubs()).run() == 0
    assert not idle.started
    # more trials of the same search go on from there
    more = read_search(search_file(trials=17))
    assert searcher(more, cut, extra := Stubs()).run() == 0
    assert len(extra.started) == 2


def test_an_interrupted_trial_goes_on_where_it_was(search_file: Write, tmp_path: Path) -> None:
    search = read_search(search_file(trials=3))
    mine = searcher(search, tmp_path, engine := Stubs())
    engine_start = engine.start

    def interrupted(job: Job, data: str | None) -> Stub:
        stub = engine_start(job, data)
        stub.poll()  # one epoch
        if len(engine.started) == 2:
            mine.interrupts.count = 1
        return stub

    engine.start = interrupted  # type: ignore[method-assign]
    assert mine.run() == 130
    result = found(tmp_path)
    assert [t["status"] for t in result["trials"]] == ["finished", "running"]
    assert result["left"] == 2
    assert 0 < len(validations(tmp_path / "trial-0001", "val/projected")) < 6
    assert searcher(search, tmp_path, again := Stubs()).run() == 0
    assert [job.folder.name for job in again.started] == ["trial-0001", "trial-0002"]
    assert [status for _, status, _ in history(tmp_path)] == ["finished"] * 3


def test_broken_runs_are_tried_again_and_those_that_cannot_work_are_not(
    search_file: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # starts: trial 0, trial 0 again; trial 1 cannot work; trial 2 breaks twice; trial 3
    search = read_search(search_file(trials=4))
    engine = Stubs(codes={0: -9, 2: 2, 3: 1, 4: 1})
    assert searcher(search, tmp_path, engine).run() == 1, "some have failed"
    names = [job.folder.name[-1] for job in engine.started]
    assert names == ["0", "0", "1", "2", "2", "3"]
    assert [t["status"] for t in found(tmp_path)["trials"]] == ["finished", "failed", "failed", "finished"]
    assert "trial-0000: broken, to be tried again (it broke)" in capsys.readouterr().out
    assert found(tmp_path)["trials"][1]["reason"] == "it broke"


def test_it_gives_up_when_nothing_works(
    search_file: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = read_search(search_file())
    engine = Stubs(codes=dict.fromkeys(range(20), 2))
    mine = searcher(search, tmp_path, engine)
    assert mine.run() == 1
    assert len(engine.started) == 3
    assert "3 trials have failed in a row" in capsys.readouterr().out
    assert found(tmp_path)["best"] is None
    assert not mine.source.succeeded  # type: ignore[attr-defined]
    assert not (tmp_path / "best.yaml").exists()
    mended = searcher(search, tmp_path, again := Stubs())
    mended.run()
    assert mended.source.succeeded  # type: ignore[attr-defined]
    assert len(again.started) == 12


def test_runs_share_the_cores(search_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    search = read_search(search_file())
    assert searcher(search, tmp_path / "two", two := Stubs(), jobs=2).run() == 0
    assert {job.machine.threads for job in two.started} == {1}
    assert len({job.folder for job in two.started}) == 15
    assert searcher(search, tmp_path / "one", one := Stubs(), jobs=1).run() == 0
    assert {job.machine.threads for job in one.started} == {2}


def test_the_method_says_which_form_is_optimised(search_file: Write, tmp_path: Path) -> None:
    """Algorithm 2 deploys the relaxed model; the relaxed value of a stubbed run falls with its distance."""
    search = read_search(search_file(method="resilient"))
    assert searcher(search, tmp_path, Stubs()).run() == 0
    result = found(tmp_path)
    assert result["optimised"] == "val/relaxed"
    assert distance(search.run(result["best"]["values"])) > 1.5


def test_best_yaml_is_a_study_and_the_command_repeats_the_run(
    search_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {
        "strength.dual_lr": {"log": [1e-5, 1e-1]},
        "network.layers": {"integer": [1, 3]},
        "schedule": {"choice": ["constant", "cosine"]},
    }
    # a kind that brings settings of its own, which the recipe's has not
    residual = {"kind": "low-rank", "rank": 2}
    settings = {**FILE["settings"], "strength": {"augmented": 0.5}, "residual": residual}
    search = read_search(search_file(search=space, settings=settings, trials=4))
    assert searcher(search, tmp_path, Stubs()).run() == 0
    best = found(tmp_path)["best"]["values"]
    runs = trials(read_study(tmp_path / "best.yaml"))
    assert {(t.config.method, t.config.seed) for t in runs} == {
        (m, s) for m in ("strict", "ace") for s in (1, 2, 3)
    }
    for each in runs:
        assert each.config.network.layers == best["network.layers"]  # type: ignore[attr-defined]
        assert each.config.training.epochs == 6
    own = next(t.config for t in runs if t.config.method == "ace")
    assert own == search.run(best).updated({"seed": own.seed})
    assert next(t.config for t in runs if t.config.method == "strict").training.schedule == "constant"
    words = found(tmp_path)["command"].split()
    taken: list[RunConfig] = []

    def run(config: RunConfig, *_: Any, **__: Any) -> dict[str, Any]:
        taken.append(config)
        return {}

    monkeypatch.setattr("equirelax_lab.training.run.train", run)
    assert words[0] == "equirelax"
    assert main(words[1:]) == 0
    assert taken == [search.run(best)]


def test_another_search_is_not_gone_on_with(search_file: Write, tmp_path: Path) -> None:
    searcher(read_search(search_file(trials=1)), tmp_path / "out", Stubs()).run()
    for change, message in (
        ({"search": {"strength.dual_lr": {"log": [1e-5, 1e-2]}}}, r"search\.strength\.dual_lr"),
        ({"settings": {"epochs": 7}}, r"settings\.epochs was 6 and is now 7"),
        ({"seed": 1}, "seed was 0 and is now 1"),
    ):
        with pytest.raises(ConfigError, match=f"another search: .*{message}"):
            searcher(read_search(search_file(**change)), tmp_path / "out", Stubs()).run()


def test_more_trials_are_the_same_search(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    for count in (3, 6):
        content = {key: value for key, value in FILE.items() if key != "startup"}
        file.write_text(yaml.safe_dump({**content, "trials": count}))
        assert searcher(read_search(file), tmp_path / "out", Stubs()).run() == 0
        assert len(found(tmp_path / "out")["trials"]) == count


def test_a_damaged_memory_is_named(search_file: Write, tmp_path: Path) -> None:
    search = read_search(search_file(trials=2))
    searcher(search, tmp_path, Stubs()).run()
    lines = (tmp_path / HISTORY).read_bytes().splitlines(keepends=True)
    lines[1] = b"\x00" + lines[1][5:]
    (tmp_path / HISTORY).write_bytes(b"".join(lines))
    with pytest.raises(ConfigError, match=rf"{HISTORY} is damaged.*--out"):
        searcher(search, tmp_path, Stubs()).run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"serach": {}}, "Unknown key 'serach'.*'search'"),
        ({"search": None}, "'search' is missing"),
        ({"search": {}}, "'search' holds no setting"),
        ({"search": 3}, "'search' is 3; expected a mapping"),
        ({"method": 3}, "'method' is 3; expected a name"),
        ({"method": "aec"}, "'aec'.*Did you mean 'ace'"),
        ({"search": {"dual_rl": {"log": [1, 2]}}}, r"'search.dual_rl': ace has no setting.*dual_lr"),
        ({"search": {"seed": {"integer": [1, 2]}}}, r"'search.seed'"),
        ({"search": {"hidden": {"integer": [1, 2]}}}, r"'hidden' may be network.hidden or residual.hidden"),
        ({"search": {"dual_lr": {"log": [1, 2, 3]}}}, r"'search.dual_lr.log' is \[1, 2, 3\]; expected two"),
        ({"search": {"dual_lr": {"log": [0, 1]}}}, r"'search.dual_lr.log'.*starts above 0"),
        ({"search": {"dual_lr": {"linear": [2, 1]}}}, r"'search.dual_lr.linear'.*larger"),
        ({"search": {"dual_lr": {"linear": [1, float("nan")]}}}, r"'search.dual_lr.linear'"),
        ({"search": {"dual_lr": {"lgo": [1, 2]}}}, r"'search.dual_lr.lgo'.*'log'"),
        ({"search": {"dual_lr": [1, 2]}}, r"'search.dual_lr' is \[1, 2\]; expected one of log"),
        ({"search": {"dual_lr": {"linear": [-1, 1]}}}, r"'search.dual_lr'.*strength.dual_lr"),
        (
            {"search": {"network.layers": {"linear": [1, 2]}}},
            r"'search.network.layers': 'network.layers' is 1.0",
        ),
        ({"search": {"network.layers": {"integer": [1.5, 2]}}}, r"two whole numbers"),
        ({"search": {"schedule": {"choice": []}}}, r"'search.schedule.choice'"),
        ({"search": {"schedule": {"choice": ["step", "step"]}}}, r"list every choice once"),
        ({"search": {"schedule": {"choice": ["step", "stop"]}}}, r"'search.schedule': 'schedule' is 'stop'"),
        (
            {"search": {"dual_lr": {"log": [1, 2]}, "strength.dual_lr": {"log": [1, 2]}}},
            r"strength.dual_lr is searched for by 'dual_lr' and by 'strength.dual_lr'",
        ),
        ({"settings": {"epocks": 1}}, "Unknown key 'epocks'"),
        ({"settings": {"seed": 1}}, "'settings' holds 'seed'.*'run_seed'"),
        ({"trials": 0}, "'trials' is 0; expected a whole number, at least 1"),
        ({"trials": True}, "'trials' is True"),
        ({"seed": -1}, "'seed' is -1"),
        ({"pruner": "mean"}, "'pruner' is 'mean'.*median"),
        ({"title": 3}, "'title' is 3"),
        ({"small": 3}, "'small' should be a mapping"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str, search_file: Write) -> None:
    path = search_file(**changes)
    if changes.get("search", 0) is None:
        path.write_text(yaml.safe_dump({k: v for k, v in FILE.items() if k != "search"}))
    with pytest.raises(ConfigError, match=f"tiny.yaml: .*{message}"):
        read_search(path)


def test_settings_joined_by_plus_take_one_value(search_file: Write) -> None:
    search = read_search(
        search_file(method="scheduled", search={"lie_weight+norm_weight": {"log": [1e-4, 1]}})
    )
    config = search.run({"lie_weight+norm_weight": 0.25})
    assert (config.strength.lie_weight, config.strength.norm_weight) == (0.25, 0.25)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["search-nbody-lambda", "search-nbody-dual-rate"])
def test_ready_searches_are_valid_and_have_a_smaller_variant(name: str) -> None:
    assert name in ready_names(searches=True)
    assert name not in ready_names()
    full, small = (read_search(find_file(name, searches=True), small) for small in (False, True))
    assert small.changed
    assert small.trials * small.config.training.epochs < full.trials * full.config.training.epochs / 5
    assert build_task(full.config).scaled_down() is None


@pytest.mark.usefixtures("runs_here")
def test_from_the_command_line(
    search_file: Write, tmp_path: Path, tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs, then the same table from the folder."""
    settings = {
        "epochs": 2,
        "validate_every": 1,
        "batch_size": 24,
        "dataset": {"train": 24, "val": 24, "test": 24},
        "network": {"layers": 1, "hidden": 8},
    }
    path, out = str(search_file(settings=settings, trials=2)), str(tmp_path / "out")
    assert main(["search", path, "--out", out, "--data", str(tiny_root), "--jobs", "2"]) == 0
    first = capsys.readouterr().out
    assert (
        "| trial | strength.dual_lr | validation MSE of the positions x1e-3 (projected) | epochs | end |"
        in first
    )
    assert first.count("| finished |") == 2
    assert "equirelax train nbody --model segnn --method ace" in first
    result = found(tmp_path / "out")
    for trial in result["trials"]:
        run = json.loads((tmp_path / "out" / trial["folder"] / "result.json").read_text())
        assert trial["value"] == pytest.approx(run["val"]["projected"], rel=1e-6)
        assert f"| {trial['value']:.4g} |" in first
        assert trial["values"]["strength.dual_lr"] == run["config"]["strength"]["dual_lr"]
    assert main(["search", out]) == 0
    assert capsys.readouterr().out.strip() in first


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.timeout(900)
def test_killed_for_good_it_goes_on_with_what_it_had(
    search_file: Write, tmp_path: Path, tiny_root: Path
) -> None:
    """After kill -9 of a search with real runs, the run that outlived it is waited for, and counts once."""
    settings = {
        "epochs": 8,
        "validate_every": 1,
        "checkpoint_every": 1,
        "dataset": {"train": 48, "val": 24, "test": 24},
        "network": {"layers": 1, "hidden": 8},
    }
    # one thread a run; the settings of three trials are drawn at random, whichever ends first
    path, cut = search_file(settings=settings, trials=3, pruner="none", jobs=2), tmp_path / "cut"
    words = [
        sys.executable,
        "-m",
        "equirelax_lab.cli",
        "search",
        str(path),
        "--data",
        str(tiny_root),
        "--out",
        str(cut),
    ]
    with subprocess.Popen(words) as process:
        while len(validations(cut / "trial-0000", "val/projected")) < 3:
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    assert subprocess.run(words, check=False).returncode == 0
    searcher(read_search(path), tmp_path / "stubbed", Stubs()).run()
    assert [t[:2] for t in history(cut)] == [t[:2] for t in history(tmp_path / "stubbed")]
    assert len(list(cut.glob("trial-*"))) == 3
    for trial in found(cut)["trials"]:
        assert trial["value"] == min(validations(cut / trial["folder"], "val/projected").values())
    assert not list(cut.glob("**/*.tmp*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "search-nbody-lamda"], "Did you mean 'search-nbody-lambda'"),
        (["search", "none.yaml"], "none.yaml cannot be read"),
        (["search", "."], "not the folder of a search"),
        (["search", "search-nbody-lambda", "--trials", "0"], "--trials is 0"),
        (["search", "search-nbody-lambda", "--trails", "3"], "'--trials'"),
        (["search", "search-nbody-lambda"], "equirelax data make nbody"),
    ],
)
def test_mistakes_on_the_command_line_are_a_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("EQUIRELAX_DATA", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
