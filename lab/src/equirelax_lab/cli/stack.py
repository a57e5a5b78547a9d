"""`equirelax stack`: train several runs that differ only in the seed in one process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from equirelax.errors import ConfigError
from equirelax_lab.cli import options
from equirelax_lab.cli.terminal import show
from equirelax_lab.cli.train import describe
from equirelax_lab.data.root import named_root
from equirelax_lab.studies.scheduler import BAD_INPUT
from equirelax_lab.studies.stacks import NOT_STACKABLE
from equirelax_lab.tasks.registry import config_from_dict
from equirelax_lab.tasks.settings import RunConfig, read_yaml
from equirelax_lab.training.folder import CONFIG, LOG
from equirelax_lab.training.parent import follow_parent

DESCRIPTION = """Train runs that differ only in the seed in one process: every step is one computation for all of them.

`equirelax compare --stack N` and `equirelax study run --stack N` call this command. Each FOLDER holds the config.yaml of a run,
or a run to be continued, and receives what `equirelax train` writes there; numbers differ by rounding. If the numbers of a run
are no longer finite, only that run fails. Runs that cannot be stacked are refused with the reason (exit code 3); train them
one at a time.

examples:
  equirelax stack runs/nbody/compare-segnn/ace-seed0 runs/nbody/compare-segnn/ace-seed1"""


def main(words: Sequence[str]) -> int:
    """Run the command; `words` begins with "stack"."""
    parser = options.parser(
        ["stack"], DESCRIPTION, usage="FOLDER [FOLDER ...] [--data DATA] [--FLAG VALUE ...]"
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a run's folder, with its config.yaml")
    parser.add_argument("--data", help=options.DATA)
    options.add_machine(parser)
    parsed = options.parse(parser, words[1:])
    folders = [Path(folder) for folder in parsed.folders]
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{folder} is named twice: name every folder once.")
    configs = [_config(folder) for folder in folders]
    follow_parent()
    # Imported here because Lightning takes seconds to import, and help and error messages need not wait for it.
    from equirelax_lab.training.stack import StackError
    from equirelax_lab.training.stacked_run import StackedRun, train_stack

    runs = [StackedRun(config, folder) for config, folder in zip(configs, folders, strict=True)]
    try:
        ended = train_stack(runs, named_root(parsed.data), machine=options.machine_from(parsed))
    except StackError as error:
        print(f"These runs cannot be stacked: {error}", file=sys.stderr)
        return NOT_STACKABLE
    for run in runs:
        if run.result is not None:
            show(describe(run.result, run.folder))
        elif run.failure:
            _report(run.folder, run.failure)
    if not ended:
        print("Interrupted; go on with the same command.", file=sys.stderr)
        return 130
    return BAD_INPUT if any(run.failure for run in runs) else 0


def _config(folder: Path) -> RunConfig:
    if not (folder / CONFIG).exists():
        raise ConfigError(f"{folder} holds no {CONFIG}: name folders of runs.")
    return config_from_dict(read_yaml(folder / CONFIG))


def _report(folder: Path, failure: str) -> None:
    """Report why a run failed, also in its own log, where the scheduler of a comparison reads it."""
    print(f"equirelax: error: {folder}: {failure}", file=sys.stderr)
    with (folder / LOG).open("a", encoding="utf-8") as log:
        log.write(f"equirelax: error: {failure}\n")
