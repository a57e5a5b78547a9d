"""`equirelax compare`: train methods x seeds in parallel processes, then write a table and a picture."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equirelax.errors import ConfigError
from equirelax.settings import JOBS, check
from equirelax_lab.cli import options
from equirelax_lab.cli.help import Filled
from equirelax_lab.cli.hints import Hints
from equirelax_lab.cli.study import add_execution, add_stack, run_study
from equirelax_lab.cli.train import default_folder
from equirelax_lab.recipes import VARIANTS
from equirelax_lab.studies.keys import Keys, merged, nested, read_value
from equirelax_lab.studies.study import Grid, Study
from equirelax_lab.studies.trials import full_keys, left_out, setting_names
from equirelax_lab.tasks.from_recipe import is_earlier
from equirelax_lab.tasks.matching import about, matched
from equirelax_lab.tasks.methods import CHOICES
from equirelax_lab.tasks.registry import TASKS, defaults, task_class
from equirelax_lab.tasks.settings import RunConfig, read_yaml
from equirelax_lab.training.machine import Machine

DESCRIPTION = """Train several methods over several seeds, and compare them.

A comparison is a study without a file (see equirelax study). Every run is a separate process with its own folder,
OUT/METHOD-seedN (OUT/MODEL-METHOD-seedN with several models). Finished runs are kept: the same command continues where an
interrupted one stopped. At the end OUT receives summary.md (the table), curves.png, all results in runs.json.gz and
curves.csv.gz, and study.json, the state of every run. A sweep over one number also writes sweep.png. The settings of
equirelax train apply to all runs; with the name of a method or model in front, they apply to that one only.

All rows match: they take the learning rate, optimiser, epochs, augmentation and data (everything except the settings that
define a method) from the recipe of the relaxed method that the comparison is about. That is the first learnt one unless
--about names another. With --as_published every row is trained as in its own paper.

examples:
{examples}"""

EXAMPLES = """  equirelax compare {benchmark} --model {model} --methods strict,scheduled,ace --seeds 3
  equirelax compare {benchmark} --model {model} --methods strict,ace --seeds 0,1,2,3 --epochs 40
  equirelax compare {benchmark} --methods strict,ace --ace.strength.dual_lr 1e-3
  equirelax compare {benchmark} --methods strict,scheduled --sweep lie_weight+norm_weight=0,0.001,0.01"""

OTHERS = {
    "mocap": "  equirelax compare mocap --subject run --methods strict,scheduled,ace,resilient",
    "smoke": "  equirelax compare smoke --models e2cnn,conv,mlp --methods strict,scheduled,ace --e2cnn.network.hidden 24",
}
"""Benchmark -> an example specific to it."""

METHODS = "strict,scheduled,ace"

ADVICE = {
    "method": "A comparison has several methods: --methods, separated by commas. equirelax train has one.",
    "seed": "A comparison has --seeds: how many, or a list with commas. equirelax train has one.",
    "trained_as": "All rows are trained as one method is: --about names it.",
    "resume": "A comparison goes on by itself: repeat the command without it.",
}
"""Option of `train` -> advice for somebody who compares."""


def main(words: Sequence[str]) -> int:
    """Run the command line `words`, which begins with "compare"; returns the exit code."""
    words = list(words[1:])
    benchmark = options.benchmark_of("compare", words)
    if benchmark is None or {"-h", "--help"} & set(words):
        _parser(benchmark or "BENCHMARK").print_help()
        return 0
    models_here = list(task_class(benchmark).models)
    own, special = split_settings(words[1:], [*CHOICES, *models_here])
    try:
        known, common = _parser(benchmark).parse_known_args(own)
    except argparse.ArgumentError as error:
        said = options.explain(str(error), options.flags(_parser(benchmark)), Hints())
        raise ConfigError(f"{said} See equirelax compare --help.") from error
    check(known.jobs, JOBS, "--jobs")
    check(known.stack, JOBS, "--stack")
    methods = _names(known.methods, "--methods")
    models = _models(known, benchmark)
    for name in special:
        if name not in (*methods, *models):
            raise ConfigError(
                f"There are settings for {name} (--{name}. ...), but it is not among "
                f"{'--models' if name in models_here else '--methods'}."
            )
    begun = _begun(benchmark, models, methods, known) if known.config else {}
    # Flags are read with the settings of the first run that they concern.
    configs = {
        (model, method): options.with_kind(
            begun.get((model, method)) or defaults(benchmark, model, method), common
        )
        for model in models
        for method in methods
    }
    settings, machine = _given(configs[models[0], methods[0]], common, machine=True, methods=methods)
    _check_common(settings, configs)
    grid = Grid(
        name="",
        benchmark=benchmark,
        models=tuple(models),
        methods=tuple(methods),
        seeds=_seeds(known.seeds),
        recipe=known.recipe,
        about=known.about,
        as_published=known.as_published,
        settings=settings,
        per_model={m: _given(configs[m, methods[0]], special[m], m)[0] for m in models if m in special},
        per_method={m: _given(configs[models[0], m], special[m], m)[0] for m in methods if m in special},
        sweep=_sweep(known.sweep),
        begun=begun,
    )
    study = Study(
        name="",
        title=task_class(benchmark).title,
        grids=(grid,),
        jobs=known.jobs,
        machine=machine,
        share_cores=False,
    )
    if skipped := left_out(grid):
        print(f"Left out, because there is nothing to relax: {', '.join(skipped)}.", flush=True)
    default = default_folder(configs[models[0], methods[0]]).parent / f"compare-{'-'.join(models)}"
    return run_study(study, Path(known.out) if known.out else default, known)


def _parser(benchmark: str) -> argparse.ArgumentParser:
    known = benchmark in TASKS
    names = {"benchmark": benchmark if known else "nbody", "model": "segnn"}
    if known:
        names["model"] = next(iter(task_class(benchmark).models))
    examples = "\n".join([EXAMPLES.format(**names), *([OTHERS[benchmark]] if benchmark in OTHERS else [])])
    parser = argparse.ArgumentParser(
        prog=f"equirelax compare {benchmark}",
        description=DESCRIPTION.format(examples=examples),
        epilog="All other flags are settings: equirelax train BENCHMARK --help lists them.\n\n"
        + options.methods_text(),
        formatter_class=Filled,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--model", help="model of the benchmark (default: its first)")
    parser.add_argument("--models", help="several models, separated by commas")
    parser.add_argument(
        "--methods", default=METHODS, help=f"methods, separated by commas (default: {METHODS})"
    )
    parser.add_argument(
        "--seeds", default="3", help="how many seeds, from 0 on, or a list with commas: 3,4,5 (default: 3)"
    )
    variants = ", ".join(VARIANTS)
    parser.add_argument(
        "--recipe",
        default="published",
        help=f"variant of the recipes: {variants}; see equirelax recipe (default: published)",
    )
    parser.add_argument("--about", help="the relaxed method whose training settings and data all rows take")
    parser.add_argument(
        "--as_published", "--as-published", action="store_true", help="train every row as in its own paper"
    )
    parser.add_argument(
        "--sweep",
        help="KEY=VALUE,VALUE,...: a run for every value of a setting, for the methods that have it; KEY+KEY=... sets "
        "several to the same value",
    )
    parser.add_argument("--config", help="YAML file of settings, such as the config.yaml of a run; flags win")
    parser.add_argument(
        "-o", "--out", help="folder of the comparison (default: runs/BENCHMARK/compare-MODEL)"
    )
    add_execution(parser)
    add_stack(parser)
    return parser


def split_settings(words: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Separate flags such as --ace.strength.dual_lr 1e-3 from `words`: (the others, model or method -> its flags)."""
    common: list[str] = []
    special: dict[str, list[str]] = {}
    index = 0
    while index < len(words):
        head, dot, tail = words[index].removeprefix("--").partition(".")
        if words[index].startswith("--") and dot and head in names:
            taken = [f"--{tail}"]
            if "=" not in tail and index + 1 < len(words) and not words[index + 1].startswith("--"):
                index += 1
                taken.append(words[index])
            special.setdefault(head, []).extend(taken)
        else:
            common.append(words[index])
        index += 1
    return common, special


def _given(
    config: RunConfig,
    words: Sequence[str],
    owner: str = "",
    machine: bool = False,
    methods: Sequence[str] = (),
) -> tuple[dict[str, Any], Machine]:
    """The settings that flags set, in the layout of config.yaml, and where and how all runs execute.

    Args:
        config: A run that has the settings.
        words: The flags, without the name of the method or model that they apply to.
        owner: That name; empty if they apply to all runs.
        machine: Whether flags of the machine are allowed.
        methods: All methods of the comparison, if the flags apply to all of them.
    """
    config = options.with_kind(config, words)
    parser = options.parser(["compare", config.benchmark], "")
    options.add_settings(parser, config)
    if machine:
        options.add_machine(parser)
    if owner:
        everybody = {name: f"It is for all runs: write --{name}." for name in Machine.__dataclass_fields__}
        hints = Hints(config, advice=everybody, prefix=f"--{owner}.")
    else:
        hints = Hints(config, tuple(options.flags(_parser(config.benchmark))), ADVICE, tuple(methods))
    parsed = options.parse(parser, words, hints)
    settings: dict[str, Any] = {}
    for word in words:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--") and name not in Machine.__dataclass_fields__:
            (full,) = full_keys(config, name)
            settings = merged(settings, nested(full, parsed[full]))
    return settings, options.machine_from(parsed) if machine else Machine()


def _check_common(settings: Mapping[str, Any], configs: Mapping[tuple[str, str], RunConfig]) -> None:
    """Raise `ConfigError` unless all runs have the settings that apply to all of them."""
    wanted = [
        f"{key}.{inner}" if isinstance(value, dict) else key
        for key, value in settings.items()
        for inner in (value if isinstance(value, dict) else (key,))
    ]
    names = {run: set(setting_names(config)) for run, config in configs.items()}
    for key in wanted:
        lacking = [run for run in configs if key not in names[run]]
        if not lacking:
            continue
        # The part of a run's name, model or method, in which the runs that have the setting differ from the others.
        part = 0 if key.startswith("network.") else 1
        others = [run[part] for run in configs if run not in lacking]
        raise ConfigError(
            f"--{key} is no setting of {', '.join(dict.fromkeys(run[part] for run in lacking))}: write --{others[0]}.{key}."
        )


def _begun(
    benchmark: str, models: Sequence[str], methods: Sequence[str], known: argparse.Namespace
) -> dict[tuple[str, str], RunConfig]:
    """(model, method) -> the settings from which its runs start, if a file of settings is given.

    The recipe is the file's if it names one, as the config.yaml of a run does.
    """
    stored = read_yaml(known.config)
    reference = None if known.as_published else about(methods, known.about)
    begun = {}
    for model in models:
        for method in methods:
            flags = ["--config", known.config, "--model", model]
            if "recipe" not in stored and not is_earlier(stored):
                recipe, trained_as = matched(benchmark, model, method, reference, known.recipe)
                flags += ["--recipe", recipe, *(["--trained_as", trained_as] if trained_as else [])]
            begun[model, method] = options.starting_config(benchmark, flags, method)
    return begun


def _sweep(text: str | None) -> dict[str, tuple[Any, ...]]:
    """The swept settings of KEY+KEY=VALUE,VALUE, with values as in a study's file."""
    if text is None:
        return {}
    keys, _, values = text.partition("=")
    key = "+".join(part.strip() for part in keys.split("+") if part.strip())
    found = tuple(read_value(part.strip()) for part in values.split(",") if part.strip())
    if not key or not found:
        raise ConfigError(
            f"--sweep is '{text}'; expected KEY=VALUE,VALUE,... or KEY+KEY=..., such as lie_weight+norm_weight=0,0.01."
        )
    return {key: found}


def _names(text: str, flag: str) -> list[str]:
    """Names separated by commas, without duplicates."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError(f"{flag} gives no name.")
    return names


def _seeds(text: str) -> tuple[int, ...]:
    """The seeds, from their number or from a list separated by commas."""
    parts = [read_value(part) for part in text.split(",") if part.strip()]
    return Keys({"--seeds": parts if "," in text else (parts or [text])[0]}, ("--seeds",)).seeds("--seeds")


def _models(known: argparse.Namespace, benchmark: str) -> list[str]:
    """The models of --models or --model; by default the benchmark's first."""
    if known.models is not None and known.model is not None:
        raise ConfigError("Give --model or --models, not both.")
    if known.model is not None and "," in known.model:
        raise ConfigError(f"--model is '{known.model}'; several models are named with --models.")
    if known.models is None:
        return [defaults(benchmark, known.model, "strict").model]
    return _names(known.models, "--models")
