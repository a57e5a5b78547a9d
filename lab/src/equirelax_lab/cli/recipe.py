"""`equirelax recipe`: print the settings of one published experiment, and the source of each value."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from equirelax.errors import ConfigError
from equirelax_lab.cli import options
from equirelax_lab.recipes import VARIANTS, Recipe, read, variants
from equirelax_lab.tasks.methods import CHOICES
from equirelax_lab.tasks.registry import TASKS, defaults

DESCRIPTION = """Print a recipe: all settings of a run, each with its source in the paper or its code where there is one.

The output can be used as a file for --config. Settings without a comment are ours.

variants:
{variants}

examples:
  equirelax recipe nbody ace
  equirelax recipe nbody ace --variant printed
  equirelax recipe qm9 strict --model segnn --variant fair
  equirelax recipe mocap resilient --variant released > mocap.yaml"""
WIDTH = 110
COLUMN = 40
"""The column in which comments begin."""


def main(words: Sequence[str]) -> int:
    """`words` begins with "recipe"."""
    width = max(map(len, VARIANTS))
    described = "\n".join(f"  {name:{width}}  {what}" for name, what in VARIANTS.items())
    parser = options.parser(["recipe"], DESCRIPTION.format(variants=described), options.methods_text())
    parser.add_argument("benchmark", help=f"one of {', '.join(TASKS)}")
    parser.add_argument("method", help="method; listed below")
    parser.add_argument("--model", help="model of the benchmark (default: its first)")
    parser.add_argument("--variant", default="published", help=f"one of {', '.join(VARIANTS)}")
    parser.add_argument(
        "--trained_as",
        help="METHOD or 'METHOD VARIANT': take the training settings and the data of that recipe",
    )
    given = options.parse(parser, words[1:])
    if given.benchmark in CHOICES and given.method in TASKS:
        raise ConfigError(f"The benchmark comes first: equirelax recipe {given.method} {given.benchmark}.")
    config = defaults(given.benchmark, given.model, given.method, given.variant, given.trained_as)
    recipe = read(given.benchmark, config.model, given.method, given.variant, given.trained_as)
    print(printed(recipe, config.to_dict()))
    return 0


def printed(recipe: Recipe, settings: Mapping[str, Any]) -> str:
    """The settings of a run as YAML with the comments of its recipe.

    Args:
        recipe: The recipe, which has the comments.
        settings: All settings, in the layout of config.yaml.
    """
    others = [
        name for name in variants(recipe.benchmark, recipe.model, recipe.method) if name != recipe.variant
    ]
    head = [
        f"{recipe.benchmark}, {recipe.model}, {recipe.method}, {recipe.variant}: {VARIANTS[recipe.variant]}."
    ]
    if recipe.trained_as:
        head.append(f"Training settings and data are those of {recipe.trained_as}.")
    head += [f"Other variants: {', '.join(others)}."] if others else []
    head += recipe.notes.splitlines()
    return "\n".join([*(f"# {line}" for line in head), *_lines(settings, recipe.comments)])


def _lines(settings: Mapping[str, Any], comments: Mapping[str, str], prefix: str = "") -> Iterator[str]:
    indent = "  " if prefix else ""
    for key, value in settings.items():
        comment = comments.get(f"{prefix}{key}", "").splitlines()
        if isinstance(value, Mapping):
            yield from (f"# {line}" for line in comment)
            yield f"{key}:" if value else f"{key}: {{}}"
            yield from _lines(value, comments, f"{key}.")
            continue
        text = f"{indent}{key}: {_scalar(value)}"
        if not comment:
            yield text
            continue
        # A comment of one line goes after the value, longer ones above it.
        yield from (f"{indent}# {line}" for line in comment[:-1])
        room = WIDTH - max(COLUMN, len(text) + 2) - 2
        first, *rest = textwrap.wrap(comment[-1], max(room, 20))
        yield f"{text:{COLUMN - 2}}  # {first}"
        yield from (f"{'':{COLUMN}}# {line}" for line in rest)


def _scalar(value: Any) -> str:
    """A value in YAML, on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
