"""`equirelax compare`: methods x seeds in parallel processes, then a table and a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from equirelax.errors import ConfigError
from equirelax.settings import JOBS, SEED, SEEDS, check
from equirelax_lab.cli import options, sweep
from equirelax_lab.cli.train import default_folder
from equirelax_lab.recipes import VARIANTS
from equirelax_lab.report.comparison import compare_folders
from equirelax_lab.studies.trials import check_known
from equirelax_lab.tasks.from_recipe import is_earlier
from equirelax_lab.tasks.matching import about, check_variant, matched
from equirelax_lab.tasks.methods import CHOICES, choice, needs_residuals
from equirelax_lab.tasks.registry import build_task, defaults, task_class
from equirelax_lab.tasks.settings import RunConfig, read_yaml
from equirelax_lab.tasks.task import NO_PLACEMENT
from equirelax_lab.training.folder import CONFIG, changed_settings
from equirelax_lab.training.jobs import Job, run_jobs
from equirelax_lab.training.machine import cores

DESCRIPTION = """Train several methods over several seeds, and compare them.

Every run is a process of its own with a folder of its own, OUT/METHOD-seedN (OUT/MODEL-METHOD-seedN with several
models); finished runs are kept, so the same command goes on where an interrupted one stopped. At the end OUT
receives summary.md (the table), curves.png, and all results in runs.json.gz and curves.csv.gz; a sweep over one number also
sweep.png. Settings as for equirelax train hold for all runs; with the name of a method or model in front for that one.

All rows match: they take the learning rate, optimiser, epochs, augmentation and data (everything but what makes a method
what it is) of the recipe of the relaxed method that the comparison is about, the first learnt one unless --about names
another. With --as_published every row is trained as its own paper trained it.

examples:
  equirelax compare nbody --model segnn --methods strict,scheduled,ace --seeds 3
  equirelax compare nbody --methods strict,ace --seeds 0,1,2,3 --epochs 200 --ace.strength.dual_lr 1e-3
  equirelax compare modelnet40 --methods strict,scheduled --sweep lie_weight+norm_weight=0,0.001,0.01,0.1
  equirelax compare mocap --dataset.subject run --methods strict,scheduled,ace,resilient
  equirelax compare smoke --models e2cnn,conv,mlp --methods strict,scheduled,ace --e2cnn.network.hidden 24"""


def main(words: Sequence[str]) -> int:
    """`words` begins with "compare"."""
    words = list(words[1:])
    benchmark = options.benchmark_of("compare", words)
    if benchmark is None or {"-h", "--help"} & set(words):
        _parser(benchmark or "BENCHMARK").print_help()
        return 0
    models_here = list(task_class(benchmark).models)
    own, settings = split_settings(words[1:], [*CHOICES, *models_here])
    try:
        known, common = _parser(benchmark).parse_known_args(own)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}. See equirelax compare --help.") from error
    check(known.jobs, JOBS, "--jobs")
    methods = _names(known.methods)
    models = _models(known.models, options.peek(common, "model")["model"], benchmark)
    for name in settings:
        if name not in (*methods, *models):
            raise ConfigError(
                f"There are settings for {name} (--{name}. ...), but it is not among "
                f"{'--models' if name in models_here else '--methods'}."
            )
    pairs = _pairs(benchmark, models, methods)
    out = Path(known.out) if known.out else _default_out(benchmark, models)
    check_variant(benchmark, pairs, known.recipe)
    reference = None if known.as_published else about(methods, known.about)
    begun = [] if _names_recipe(common) else [known.recipe]
    keys, values = sweep.parse(known.sweep)
    check_known(keys, [defaults(benchmark, model, method) for model, method in pairs], "--sweep")
    jobs = []
    for seed in _seeds(known.seeds):
        for model, method in pairs:
            for variant in sweep.variants(defaults(benchmark, model, method), keys, values):
                flags = [*common, *settings.get(model, []), *settings.get(method, []), *variant.flags]
                flags += ["--model", model, "--method", method, "--seed", str(seed)]
                for wanted in begun:
                    recipe, trained_as = matched(benchmark, model, method, reference, wanted)
                    flags += ["--recipe", recipe, *(["--trained_as", trained_as] if trained_as else [])]
                name = f"{model}-{method}" if len(models) > 1 else method
                jobs.append(_job(benchmark, method, flags, out / f"{name}{variant.name}-seed{seed}"))
    _check_data([job.config for job in jobs], known.data)
    code = run_jobs(jobs, known.data, known.jobs or cores())
    if code == 130:
        return code
    print(compare_folders(out, [job.folder for job in jobs]))
    return code


def _parser(benchmark: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"equirelax compare {benchmark}",
        description=DESCRIPTION,
        epilog="All other flags are settings: see equirelax train BENCHMARK --help.\n\n"
        + options.methods_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--models", help="models, separated by commas, for which --model stands for one")
    parser.add_argument("--methods", default="strict,scheduled,ace", help="methods, separated by commas")
    parser.add_argument(
        "--seeds", default="3", help="how many seeds, from 0 on; or a list with commas: 3,4,5"
    )
    parser.add_argument(
        "--recipe",
        default="published",
        help=f"variant of the recipes: {', '.join(VARIANTS)}; see equirelax recipe",
    )
    parser.add_argument("--about", help="the relaxed method whose training settings and data all rows take")
    parser.add_argument(
        "--as_published", "--as-published", action="store_true", help="train every row as its own paper did"
    )
    parser.add_argument(
        "--sweep",
        help="KEY=VALUE,VALUE,...: a run for every value of a setting, of the methods that have it; KEY+KEY=... sets "
        "several to the same value",
    )
    parser.add_argument("--out", help="folder of the comparison (default: runs/BENCHMARK/compare-MODEL)")
    parser.add_argument("--jobs", type=int, help="runs at the same time (default: one for every core)")
    parser.add_argument("--data", help="data root (default: EQUIRELAX_DATA, else the user's cache folder)")
    return parser


def split_settings(words: Sequence[str], methods: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Take flags such as --ace.strength.dual_lr 1e-3 out of `words`: (the others, method -> its flags)."""
    common: list[str] = []
    special: dict[str, list[str]] = {}
    index = 0
    while index < len(words):
        head, dot, tail = words[index].removeprefix("--").partition(".")
        if words[index].startswith("--") and dot and head in methods:
            taken = [f"--{tail}"]
            if "=" not in tail and index + 1 < len(words) and not words[index + 1].startswith("--"):
                index += 1
                taken.append(words[index])
            special.setdefault(head, []).extend(taken)
        else:
            common.append(words[index])
        index += 1
    return common, special


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError("--methods names no method.")
    for name in names:
        choice(name)
    return names


def _seeds(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(
            f"--seeds is '{text}'; give a number of seeds, or seeds separated by commas."
        ) from error
    if not numbers or numbers == [0]:
        raise ConfigError(f"--seeds is '{text}'; at least one seed is needed.")
    if "," not in text:
        check(numbers[0], SEEDS, "--seeds")
        return list(range(numbers[0]))
    for number in numbers:
        check(number, SEED, "--seeds")
    return numbers


def _models(text: str | None, one: str | None, benchmark: str) -> list[str]:
    """The models of --models or --model; by default the benchmark's first."""
    if text is not None and one is not None:
        raise ConfigError("Give --model or --models, not both.")
    if text is None:
        return [defaults(benchmark, one, "strict").model]
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError("--models names no model.")
    for name in names:
        defaults(benchmark, name, "strict")
    return names


def _pairs(benchmark: str, models: Sequence[str], methods: Sequence[str]) -> list[tuple[str, str]]:
    """(model, method) for all that go together; with several models, says which do not and leaves them out."""
    pairs: list[tuple[str, str]] = []
    left_out: list[tuple[str, str]] = []
    for model in models:
        for method in methods:
            placement = defaults(benchmark, model, method).residual.placement
            fits = len(models) == 1 or placement != NO_PLACEMENT or not needs_residuals(method)
            (pairs if fits else left_out).append((model, method))
    if left_out:
        names = ", ".join(f"{method} on {model}" for model, method in left_out)
        print(f"Left out, for there is nothing to relax: {names}.", flush=True)
    if not pairs:
        raise ConfigError("None of --models has anything to relax: choose a method that needs no residuals.")
    return pairs


def _names_recipe(words: Sequence[str]) -> bool:
    """Whether a file of settings is given that says which recipe it begins with, as the config.yaml of a run does."""
    path = options.peek(words, "config")["config"]
    stored = {} if path is None else read_yaml(path)
    return "recipe" in stored or is_earlier(stored)


def _default_out(benchmark: str, models: Sequence[str]) -> Path:
    config = defaults(benchmark, models[0], "strict")
    return default_folder(config).parent / f"compare-{'-'.join(models)}"


def _job(benchmark: str, method: str, flags: list[str], folder: Path) -> Job:
    """The run of one method, variant and seed, its settings checked."""
    config = options.starting_config(benchmark, flags, method)
    parser = options.parser(["compare", benchmark], "")
    for name in ("model", "method", "config", "recipe", "trained_as"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--seed", type=int)
    options.add_settings(parser, config)
    options.add_machine(parser)
    parsed = options.parse(parser, flags)
    config = options.config_from(parsed, config)
    if (folder / CONFIG).exists() and (found := changed_settings(config, folder)):
        raise ConfigError(
            f"{folder} holds a run with other settings: {'; '.join(found)}. "
            "Name another folder with --out, or remove it."
        )
    machine = options.machine_from(parsed)
    return Job(config, folder, machine)


def _check_data(configs: Sequence[RunConfig], root: str | None) -> None:
    """Fail before any process starts when data is missing, of any data set that the runs need."""
    seen = []
    for config in configs:
        if config.dataset not in seen:
            seen.append(config.dataset)
            task = build_task(config, options.optional_path(root))
            task.load("train")
            task.load("val")
            task.load("test")
