"""`equirelax study run|estimate|show` and `equirelax reproduce`: many runs from one file."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean
from equirelax.settings import JOBS
from equirelax_lab.cli import options
from equirelax_lab.report.comparison import TABLE, beside, compare_grids, described
from equirelax_lab.studies import estimate
from equirelax_lab.studies.cluster import connected
from equirelax_lab.studies.engine import Engine, LocalEngine
from equirelax_lab.studies.live import Board, counts, duration
from equirelax_lab.studies.ready import find_study, ready_file, ready_names
from equirelax_lab.studies.run import Runner, fair_jobs, threads_each
from equirelax_lab.studies.spec import Study, read_study
from equirelax_lab.studies.state import JOURNAL, State, read_journal, states
from equirelax_lab.studies.trials import trials
from equirelax_lab.tasks.registry import build_task

DESCRIPTION = """Run a grid of benchmarks, models, methods, settings and seeds that a file describes.

  equirelax study run FILE        run it, or go on with it; finished runs are kept, broken ones tried again
  equirelax study estimate FILE   time a little of every kind of run, and say how long all takes here
  equirelax study show FILE       what would be run
  equirelax study show FOLDER     how far it is, what failed and why, and the tables
  equirelax reproduce NAME        run or continue one of the papers' tables and figures, ours beside theirs

FILE is a YAML file, or the name of a study that comes with equirelax (`equirelax reproduce` lists them):

  title: N-body against training-set size
  benchmark: nbody
  models: [segnn]
  methods: [strict, scheduled, ace]
  seeds: 3                             # or a list
  settings: {epochs: 200}              # for all runs, as in config.yaml
  per_method: {ace: {learning_rate: 9e-4}}
  sweep: {dataset.train: [500, 1000, 3000]}          # or, together, {dataset.train+epochs: [[500, 600], [1000, 300]]}
  attempts: 2                          # of a run that breaks
  timeout: 2 h                         # a try that takes longer counts as broken (default: none)
  devices: 1                           # processes that share a run's batches; accelerator: gpu gives each a GPU
  small: {seeds: 1, settings: {epochs: 20}}

Every run is a process of its own in OUT/METHOD-seedN; OUT receives study.json and the comparison's tables and pictures.
With --ray the runs go to the machines of a Ray cluster (extra `ray`), which share the file system that OUT and the data are
on. What a lost machine ran is tried again on another, from its last checkpoint."""

VERBS = ("run", "estimate", "show")


def main(words: Sequence[str]) -> int:
    """`words` begins with "study" or "reproduce"."""
    rest = list(words[1:])
    if words[0] == "reproduce":
        return _reproduce(rest)
    if not rest or rest[0] in ("-h", "--help"):
        _parser("study", "VERB", "FILE").print_help()
        return 0 if rest else 2
    verb = rest.pop(0)
    if verb not in VERBS:
        raise ConfigError(
            f"equirelax study has no '{verb}'.{did_you_mean(verb, VERBS)} Known: {', '.join(VERBS)}."
        )
    parser = _parser("study", verb, "FOLDER" if verb == "show" else "FILE")
    if {"-h", "--help"} & set(rest):
        parser.print_help()
        return 0
    given = options.parse(parser, rest, jobs=JOBS)
    if verb == "show" and (Path(given.study).is_dir() or Path(given.study).name == JOURNAL):
        return _show_folder(Path(given.study))
    study = read_study(find_study(given.study), given.small)
    if verb == "show":
        print(described(study, trials(study)) + _terms(study))
        return 0
    return (_run if verb == "run" else _estimate)(study, given)


def _parser(command: str, verb: str, what: str) -> options.ArgumentParser:
    words = [command] if command == "reproduce" else [command, verb]
    parser = options.parser(words, DESCRIPTION)
    parser.add_argument(
        "study", metavar=what, help="study file, or name of a ready one" if what != "NAME" else "which"
    )
    parser.add_argument("--small", action="store_true", help="the small variant, for a laptop")
    parser.add_argument("--out", help="folder of the study (default: runs/studies/NAME, or NAME-small)")
    parser.add_argument(
        "--jobs", type=int, help="runs at the same time (default: the study's, else one for every core)"
    )
    if verb != "show":
        parser.add_argument(
            "--ray", help="run on a Ray cluster: HOST:PORT, or auto for the one of this machine"
        )
    parser.add_argument("--data", help="data root (default: EQUIRELAX_DATA, else the user's cache folder)")
    return parser


def _reproduce(rest: list[str]) -> int:
    if not rest or {"-h", "--help"} & set(rest):
        _parser("reproduce", "", "NAME").print_help() if rest else None
        for name in ready_names():
            print(f"  {name:26} {read_study(ready_file(name)).title}")
        return 0 if rest else 2
    given = options.parse(_parser("reproduce", "", "NAME"), rest, jobs=JOBS)
    return _run(read_study(ready_file(given.study), given.small), given)


def _run(study: Study, given: argparse.Namespace) -> int:
    """Run or continue, then compare; ours beside the papers'."""
    out, found = _found(study, given)
    left = sum(state.status == "waiting" for state in found)
    _check_data(found, given.data)
    with engine_of(given.ray) as engine:
        jobs = fair_jobs(study, given.jobs, left, engine)
        print(f"{study.title}: {counts(found)}; in {out}.", flush=True)
        with Board(f"{study.title}{_terms(study)}") as board:
            code = Runner(study, out, found, given.data, jobs, board.show, engine).run()
    if code == 130:
        print("Interrupted; the same command goes on.", file=sys.stderr)
        return code
    print(compare_grids(study, found, out))
    print(beside(study, out))
    _list_failed([(state.trial.label, state.reason) for state in found if state.status == "failed"])
    return code


def _estimate(study: Study, given: argparse.Namespace) -> int:
    """Time a little of every kind that has runs left."""
    out, found = _found(study, given)
    waiting = [state for state in found if state.status == "waiting"]
    if not waiting:
        print(f"Nothing is left to do: {counts(found)}; in {out}.")
        return 0
    with engine_of(given.ray) as engine:
        jobs, place = fair_jobs(study, given.jobs, len(waiting), engine), engine.place
        threads = threads_each(jobs, study.devices, study.on_gpu, engine)
    torch.set_num_threads(threads)
    imports = time.process_time()  # what this process has needed so far, every run's process needs too
    costs: dict[tuple[str, str], estimate.Cost] = {}
    for state in waiting:
        key = (state.trial.grid, state.trial.kind)
        if key not in costs:
            print(f"timing {state.trial.kind} ({len(costs) + 1})", file=sys.stderr, flush=True)
            cost = estimate.measure(
                state.trial.config, options.optional_path(given.data), devices=study.devices
            )
            costs[key] = dataclasses.replace(cost, start=cost.start + imports)
    print(
        estimate.text(found, costs, jobs, threads, devices=study.devices, timeout=study.timeout, place=place)
    )
    return 0


def engine_of(ray: str | None) -> contextlib.AbstractContextManager[Engine]:
    """Where runs execute: here, or on the Ray cluster at an address."""
    return contextlib.nullcontext(LocalEngine()) if ray is None else connected(ray)


def _terms(study: Study) -> str:
    """What holds for every run, for the heading of the live table."""
    terms = [f"{study.devices} processes each"] if study.devices > 1 else []
    terms += ["on GPUs"] if study.on_gpu else []
    terms += [f"at most {duration(study.timeout)} a try"] if study.timeout is not None else []
    return f" ({', '.join(terms)})" if terms else ""


def _found(study: Study, given: argparse.Namespace) -> tuple[Path, list[State]]:
    """The study's folder and what stands there."""
    name = f"{study.name}-small" if study.small else study.name
    out = Path(given.out) if given.out else Path("runs") / "studies" / name
    return out, states(trials(study), out)


def _show_folder(path: Path) -> int:
    """The journal of a study in words, and its tables."""
    out = path.parent if path.name == JOURNAL else path
    journal = read_journal(out)
    runs = journal["runs"]
    total = {
        status: sum(run["status"] == status for run in runs.values()) for status in ("finished", "failed")
    }
    print(
        f"{journal['title']}: {total['finished']} of {len(runs)} runs finished, {total['failed']} failed.\n"
    )
    for table in sorted(out.glob(f"**/{TABLE}")):
        print(table.read_text(encoding="utf-8"))
    _list_failed([(name, run["reason"]) for name, run in runs.items() if run["status"] == "failed"])
    return 0


def _list_failed(failed: Sequence[tuple[str, str]]) -> None:
    if failed:
        print(f"\n{len(failed)} failed; the same command tries again:")
        print("\n".join(f"  {name}: {reason}" for name, reason in failed))


def _check_data(found: Sequence[State], root: str | None) -> None:
    """Fail before any process starts when the data of a grid's first run is missing."""
    seen: set[str] = set()
    for state in found:
        if state.status == "waiting" and state.trial.grid not in seen:
            seen.add(state.trial.grid)
            task = build_task(state.trial.config, options.optional_path(root))
            for split in ("train", "val", "test"):
                task.load(split)
