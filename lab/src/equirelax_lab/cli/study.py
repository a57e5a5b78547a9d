"""`equirelax study run|estimate|show` and `equirelax reproduce`: run many runs from one file."""

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
from equirelax_lab.cli.help import columns, filled, rows
from equirelax_lab.cli.terminal import show
from equirelax_lab.data.root import named_root
from equirelax_lab.studies.board import Board, counts
from equirelax_lab.studies.machines import LocalMachine, Machines
from equirelax_lab.studies.scheduler import Scheduler, Source, decided, failures, fair_jobs, threads_each
from equirelax_lab.studies.study import Study, find_file, read_study, ready_file, ready_names
from equirelax_lab.studies.trials import (
    JOURNAL,
    Trial,
    check_data,
    check_owner,
    read_journal,
    recorded,
    trials,
)
from equirelax_lab.training.progress import duration

DESCRIPTION = """Run a grid of benchmarks, models, methods, settings and seeds that a file describes.

  equirelax study run FILE        run or continue it; finished runs are kept, broken ones tried again
  equirelax study estimate FILE   time a little of every kind of run, and print how long the study takes here
  equirelax study show FILE       print what would be run
  equirelax study show FOLDER     print its progress and failures, with the tables
  equirelax reproduce NAME        run or continue one of the papers' tables and figures, our numbers beside theirs

FILE is a YAML file, or the name of a study that comes with equirelax (`equirelax reproduce` lists them):

  title: N-body against training-set size
  benchmark: nbody
  models: [segnn]
  methods: [strict, scheduled, ace]
  seeds: 3                  # or a list
  settings: {epochs: 200}   # for all runs, as in config.yaml
  per_method: {ace: {learning_rate: 9e-4}}
  # or, together, {dataset.train+epochs: [[500, 600], [1000, 300]]}
  sweep: {dataset.train: [500, 1000, 3000]}
  attempts: 2               # for a run that breaks
  timeout: 2 h              # a try that takes longer counts as broken
  devices: 1                # processes that share a run's batches
  accelerator: cpu          # or gpu, or auto: GPUs if there are any
  graph: false              # replay training steps as CUDA graphs, which needs settings: {drop_last: true}
  small: {seeds: 1, settings: {epochs: 20}}

Every run is a separate process in OUT/METHOD-seedN. OUT receives study.json and the comparison's tables and pictures.
With --ray the runs go to the machines of a Ray cluster (extra `ray`), which must share the file system that holds OUT and
the data. If a machine is lost, its runs are tried again on another one, from their last checkpoints.

With --stack N, one process trains up to N runs that differ only in the seed, with every training step as one computation
(equirelax stack). Runs that cannot be stacked are trained one at a time, and the reason is printed."""

REPRODUCE = """\
Run or continue one of the papers' tables and figures, our numbers beside the published ones. NAME is one of the studies below.
equirelax study --help explains how to write your own."""
VERBS = ("run", "estimate", "show")


def main(words: Sequence[str]) -> int:
    """Run the command line `words`, which begins with "study" or "reproduce"; returns the exit code."""
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
    given = options.parse(parser, rest, jobs=JOBS, **({"stack": JOBS} if verb == "run" else {}))
    if verb == "show" and (Path(given.study).is_dir() or Path(given.study).name == JOURNAL):
        return _show_folder(Path(given.study))
    study = read_study(find_file(given.study), given.small)
    if verb == "show":
        from equirelax_lab.report.comparison import described  # imports matplotlib, which help does not need

        print(described(study, trials(study)) + _terms(study))
        return 0
    return run_study(study, _folder(study, given), given) if verb == "run" else _estimate(study, given)


def _parser(command: str, verb: str, what: str) -> options.ArgumentParser:
    about = REPRODUCE if command == "reproduce" else DESCRIPTION
    parser = options.parser([command] if command == "reproduce" else [command, verb], about)
    parser.add_argument("study", metavar=what, help="study file, or name of one that comes with equirelax")
    parser.add_argument("--small", action="store_true", help="the small variant, for a laptop")
    parser.add_argument("-o", "--out", help="folder of the study (default: runs/studies/NAME, or NAME-small)")
    add_execution(parser, ray=verb != "show")
    if verb in ("run", ""):
        add_stack(parser)
    return parser


def add_stack(parser: argparse.ArgumentParser) -> None:
    """Add --stack."""
    parser.add_argument(
        "--stack",
        type=int,
        default=1,
        help="number of runs that one process trains, all in each step; they differ only in the seed",
    )


def add_execution(parser: argparse.ArgumentParser, ray: bool = True) -> None:
    """Add the flags that say where many runs execute, and on which data: --jobs, --ray (unless False), --data."""
    parser.add_argument(
        "--jobs", type=int, help="processes at the same time (default: the file's, else one for every core)"
    )
    if ray:
        parser.add_argument(
            "--ray", help="run on a Ray cluster: HOST:PORT, or auto for the one of this machine"
        )
    parser.add_argument("--data", help=options.DATA)


def _reproduce(rest: list[str]) -> int:
    if not rest or {"-h", "--help"} & set(rest):
        _parser("reproduce", "", "NAME").print_help() if rest else None
        titles = {name: read_study(ready_file(name)).title for name in ready_names()}
        print(filled("\n".join(["studies that come with equirelax:", *rows(titles.items())]), columns()))
        return 0 if rest else 2
    given = options.parse(_parser("reproduce", "", "NAME"), rest, jobs=JOBS, stack=JOBS)
    study = read_study(ready_file(given.study), given.small)
    return run_study(study, _folder(study, given), given)


def run_study(study: Study, out: Path, given: argparse.Namespace) -> int:
    """Run what is left of a study, print its comparisons, our numbers beside the published ones, and the failed runs.

    Args:
        study: The study, from a file or made by a comparison. Comparisons are not put beside published numbers.
        out: Its folder.
        given: The parsed flags of `add_execution` and `add_stack`.

    Returns:
        The exit code: 0; 1 if a run failed; 130 if interrupted, in which case nothing is compared.

    Raises:
        ConfigError: `out` is the folder of another study, data are missing, or the study's settings are wrong.
    """
    check_owner(study, out)
    found = trials(study, out)
    left = [trial.config for trial in found if trial.status == "waiting"]
    check_data(left, named_root(given.data))
    code = schedule(study, out, given, Source(found), len(left), len(found), given.stack)
    if code == 130:
        return code
    from equirelax_lab.report.comparison import beside, compare_grids

    show(compare_grids(study, found, out))
    if study.name:
        show(beside(study, out))
    print(failures(found), end="")
    return code


def schedule(
    study: Study,
    out: Path,
    given: argparse.Namespace,
    source: Source,
    left: int,
    total: int,
    stack: int = 1,
) -> int:
    """Run the trials of `source`, and show their progress.

    Args:
        study: The study, which may be a search.
        out: Its folder.
        given: The parsed flags of `add_execution`.
        source: Where its trials come from.
        left: How many trials are left.
        total: How many there are in all.
        stack: The largest number of runs that one process trains.

    Returns:
        The exit code of `Scheduler.run`.

    Raises:
        ConfigError: Stacks are requested on a Ray cluster.
    """
    if stack > 1 and given.ray is not None:
        raise ConfigError("--stack is for the runs of this machine: leave out --ray, or --stack.")
    with machines_of(given.ray) as machines:
        study = decided(study, machines)
        jobs = fair_jobs(study, given.jobs, left, machines)
        state = counts(source.trials, total)
        print(f"{study.title}: {state}; {jobs} at a time {machines.place}, in {out}.", flush=True)
        # a stack's pace is not known from single runs
        if stack == 1 and (forecast := _forecast(study, source.trials, jobs, machines.place, given)):
            print(forecast, flush=True)
        with Board(f"{study.title}{_terms(study)}", total) as board:
            code = Scheduler(study, out, source, given.data, jobs, board.show, machines, stack).run()
    if code == 130:
        print("Interrupted; the same command goes on.", file=sys.stderr)
    return code


def _forecast(study: Study, found: Sequence[Trial], jobs: int, place: str, given: argparse.Namespace) -> str:
    """How long the runs take, in one line; empty if nothing is left or the time is short."""
    if all(trial.status != "waiting" for trial in found):
        return ""
    from equirelax_lab.studies.estimate import forecast  # imports training code, which help does not need

    torch.set_num_threads(study.machine.threads)
    return forecast(found, study, jobs, place, named_root(given.data))


def machines_of(ray: str | None) -> contextlib.AbstractContextManager[Machines]:
    """Where runs execute: on this machine, or on the Ray cluster at an address."""
    if ray is None:
        return contextlib.nullcontext(LocalMachine())
    from equirelax_lab.studies.cluster import connected  # a help text needs no cluster

    return connected(ray)


def _estimate(study: Study, given: argparse.Namespace) -> int:
    """Time a little of every kind of run that has runs left."""
    from equirelax_lab.studies import estimate  # imports training code, which help does not need

    out = _folder(study, given)
    found = trials(study, out)
    waiting = [trial for trial in found if trial.status == "waiting"]
    if not waiting:
        print(f"Nothing is left to do: {counts(found)}; in {out}.")
        return 0
    with machines_of(given.ray) as machines:
        study = decided(study, machines)
        jobs, place = fair_jobs(study, given.jobs, len(waiting), machines), machines.place
        threads = threads_each(jobs, study.machine.devices, study.on_gpu, machines)
    torch.set_num_threads(threads)
    imports = time.process_time()  # the process of every run needs as long as this one has so far
    costs: dict[tuple[str, str], estimate.Cost] = {}
    for trial in waiting:
        if (key := (trial.grid, trial.kind)) not in costs:
            print(f"timing {trial.kind} ({len(costs) + 1})", file=sys.stderr, flush=True)
            root = named_root(given.data)
            cost = estimate.measure(trial.config, root, devices=study.machine.devices)
            costs[key] = dataclasses.replace(cost, start=cost.start + imports)
    print(estimate.text(found, costs, study, jobs, threads, place))
    return 0


def _folder(study: Study, given: argparse.Namespace) -> Path:
    name = f"{study.name}-small" if study.small else study.name
    return Path(given.out) if given.out else Path("runs") / "studies" / name


def _terms(study: Study) -> str:
    """The terms of every run, in brackets; empty for runs of one process on CPUs without a timeout."""
    devices = study.machine.devices
    terms = [f"{devices} processes each"] if devices > 1 else []
    terms += ["on GPUs"] if study.on_gpu else []
    terms += [f"at most {duration(study.timeout)} a try"] if study.timeout is not None else []
    return f" ({', '.join(terms)})" if terms else ""


def _show_folder(path: Path) -> int:
    """Print the state of the study in a folder, and its tables."""
    from equirelax_lab.report.comparison import TABLE

    out = path.parent if path.name == JOURNAL else path
    journal = read_journal(out)
    runs = recorded(out)
    finished, failed = (sum(run.status == status for run in runs) for status in ("finished", "failed"))
    print(f"{journal['title']}: {finished} of {len(runs)} runs finished, {failed} failed.\n")
    for table in sorted(out.glob(f"**/{TABLE}")):
        show(table.read_text(encoding="utf-8"))
    print(failures(runs), end="")
    return 0
