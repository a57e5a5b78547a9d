"""`equirelax train`: train one model with one method."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from equirelax.errors import ConfigError
from equirelax_lab.cli import options
from equirelax_lab.cli.hints import Hints
from equirelax_lab.cli.terminal import show
from equirelax_lab.data.root import named_root
from equirelax_lab.recipes import VARIANTS
from equirelax_lab.tasks.registry import TASKS
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.tasks.task import heading
from equirelax_lab.training.folder import CONFIG
from equirelax_lab.training.parent import follow_parent

DESCRIPTION = """Train one model with one method, select on the validation set, and read the test set once.

The defaults are those of a recipe, by default the one that produced the published number (equirelax recipe shows it). Every
flag below changes one of its settings. The run's folder receives config.yaml, metrics.csv (a row per epoch), last.ckpt
(resumable), best.ckpt (selected weights), result.json, and tensorboard/ if tensorboard is installed. Ctrl-C ends the run
after the current epoch. The same command with --resume continues it: on one CPU, bit for bit as if it had not been interrupted.

{shorter}

examples:
{examples}"""

SHORTER = """A flag may be written without its section, the part before the dot, if no other flag has the same ending
(--dual_lr for --strength.dual_lr), and with - for _ (--learning-rate). Lists go in brackets: --milestones [0.8,0.9]."""

EXAMPLES = """  equirelax train {benchmark} --model {model} --method ace --seed 0
  equirelax train {benchmark} --model {model} --method scheduled --epochs 20 --out runs/quick
  equirelax train {benchmark} --model {model} --method strict --learning_rate 1e-3
  equirelax train {benchmark} --config runs/{benchmark}/{model}-ace-seed0/config.yaml --seed 1"""

ADVICE = {
    "models": "A run has one model: --model. equirelax compare takes several.",
    "methods": "A run has one method: --method. equirelax compare takes several.",
    "seeds": "A run has one seed: --seed. equirelax compare takes several.",
    "sweep": "equirelax compare sweeps over the values of a setting; a run has one.",
}
"""Option of `compare` -> advice for somebody who trains one run."""


def main(words: Sequence[str]) -> int:
    """`words` begins with "train"."""
    words = list(words[1:])
    benchmark = options.benchmark_of("train", words)
    if benchmark is None:
        _parser(None).print_help()
        return 0
    rest = words[1:]
    _refuse_several(benchmark, rest)
    config = options.starting_config(benchmark, rest)
    parser = _parser(config)
    parsed = options.parse(parser, rest, Hints(config, advice=ADVICE))
    config = options.config_from(parsed, config)
    folder = Path(parsed.out) if parsed.out else default_folder(config)
    machine = options.machine_from(parsed)
    follow_parent()
    # Imported here because Lightning takes seconds to import, and help and error messages need not wait for it.
    from equirelax_lab.training.run import train

    if parsed.resume and not (folder / CONFIG).exists():
        print(f"Nothing to go on with in {folder}: a new run begins there.", file=sys.stderr)
    go_on = f"Interrupted; go on with the same command and --resume (run in {folder})."
    try:
        result = train(config, folder, named_root(parsed.data), resume=parsed.resume, machine=machine)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(go_on) from None
    if result is None:
        print(go_on, file=sys.stderr)
        return 130
    if result:
        show(describe(result, folder))
    return 0


def _parser(config: RunConfig | None) -> ArgumentParser:
    """The parser of a run with the default settings `config`; None is for help about any benchmark."""
    names = {"benchmark": "nbody", "model": "segnn"}
    if config is not None:
        names = {"benchmark": config.benchmark, "model": config.model}
    usage = (
        "[--model MODEL] [--method METHOD] [--seed N]\n       [--out OUT] [--resume] [--SETTING VALUE ...]"
    )
    more = ""
    if config is None:
        more = (
            f"benchmarks:\n  {', '.join(TASKS)}\n\nequirelax train BENCHMARK --help lists all settings.\n\n"
        )
    parser = options.parser(
        ["train", names["benchmark"] if config else "BENCHMARK"],
        DESCRIPTION.format(shorter=SHORTER, examples=EXAMPLES.format(**names)),
        more + options.methods_text(),
        usage,
    )
    add_names(parser, config)
    parser.add_argument("-o", "--out", help="the run's folder (default: runs/BENCHMARK/MODEL-METHOD-seedN)")
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder, or start it")
    if config is not None:
        options.add_settings(parser, config)
    options.add_machine(parser)
    return parser


def _refuse_several(benchmark: str, words: Sequence[str]) -> None:
    """Raise `ConfigError` if --model or --method has several names."""
    for name, value in options.peek(words, "model", "method").items():
        if value is not None and "," in value:
            raise ConfigError(
                f"--{name} is '{value}': a run has one {name}. To train several: equirelax compare {benchmark} "
                f"--{name}s {value}."
            )


def add_names(parser: ArgumentParser, config: RunConfig | None) -> None:
    """Add flags for the names of a run, and for the sources of its settings and data."""
    model, method, seed = ("", "strict", 0) if config is None else (config.model, config.method, config.seed)
    parser.add_argument(
        "--model", default=model or None, help="model of the benchmark; equirelax list names them"
    )
    parser.add_argument("--method", default=method, help="method; listed below")
    parser.add_argument(
        "--seed",
        type=int,
        default=seed,
        help="seed of the weights, the order of samples and the augmentation",
    )
    parser.add_argument(
        "--recipe",
        default="published" if config is None else config.recipe,
        help=f"variant of the recipe: {', '.join(VARIANTS)}; see equirelax recipe",
    )
    parser.add_argument(
        "--trained_as",
        default=None if config is None else config.trained_as,
        help="METHOD or 'METHOD VARIANT': take the training settings and the data of that recipe",
    )
    parser.add_argument("--config", help="YAML file of settings, such as the config.yaml of a run; flags win")
    parser.add_argument("--data", help=options.DATA)


def default_folder(config: RunConfig) -> Path:
    """runs/BENCHMARK/MODEL-METHOD-seedN."""
    return Path("runs") / config.benchmark / f"{config.model}-{config.method}-seed{config.seed}"


def describe(result: dict[str, Any], folder: Path) -> str:
    """The outcome in a few lines."""
    error = result["equivariance_error"]

    def line(split: str) -> str:
        # not every residual can be folded
        found = {form: value for form, value in result[split].items() if value is not None}
        if len(set(found.values())) == 1:  # a network without residuals has one form
            return f"    {split:4}  {next(iter(found.values())):.3f}"
        return f"    {split:4}  {', '.join(f'{value:.3f} {form}' for form, value in found.items())}"

    return "\n".join(
        [
            f"{result['benchmark']} {result['model']} {result['method']} seed {result['seed']}: "
            f"epoch {result['selected_epoch']} of {result['epochs']} selected, {result['seconds']:.0f} s",
            f"  recipe {_recipe(result['recipe'])}",
            f"  {heading(result['metric'])}:",
            line("val"),
            line("test"),
            "  equivariance error: n/a"
            if error is None
            else f"  equivariance error ({error['group']}, {error['dtype']}): "
            f"{error['before']:.2g} relaxed, {error['after']:.2g} projected",
            f"  {folder / 'result.json'}",
        ]
    )


def _recipe(recipe: dict[str, Any]) -> str:
    """The recipe that a run started from, and the changed settings."""
    trained_as = f", trained as {recipe['trained_as']}" if recipe["trained_as"] else ""
    changed = (f"{key} {own['here']} ({own['recipe']})" for key, own in recipe["changed"].items())
    return f"{recipe['variant']}{trained_as}; changed: {', '.join(changed) or 'nothing'}"
