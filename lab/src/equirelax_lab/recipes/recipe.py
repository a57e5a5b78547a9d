"""One recipe: the settings of a benchmark, model, method and variant, resolved from the files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean
from equirelax_lab.recipes.commented import Branch, Leaf, parse

VARIANTS = {
    "published": "the setting that produced the published number, without its code's defects",
    "released": "the same with the defects of the released code",
    "printed": "as in the paper's text, where that differs",
    "fair": "a baseline trained as well as the relaxed run that it is compared with",
    "small": "fits two cores",
}
"""Variant -> its description."""
SECTIONS = ("dataset", "network", "residual", "strength")
"""The sections of a run's settings; every other key is a setting of training."""
MATCHED = "dataset"
"""The section that a run takes, with the training settings, from the recipe that it is trained as."""
METHODS = "methods"
ALL = "all"
"""The sections of a file that apply to every model."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a run, and their sources.

    Attributes:
        benchmark, model, method, variant: The recipe's names.
        trained_as: METHOD or METHOD VARIANT whose training settings and data these are; None for its own.
        settings: The settings in the layout of config.yaml, not to be changed. Settings that are missing take the default of
            their dataclass.
        comments: Dotted key -> comment.
        notes: Comments on the method and the variant as a whole.
    """

    benchmark: str
    model: str
    method: str
    variant: str
    trained_as: str | None
    settings: dict[str, Any]
    comments: dict[str, str]
    notes: str


def benchmarks() -> list[str]:
    """The benchmarks that have recipes."""
    names = (entry.name for entry in files(__package__).iterdir())
    return sorted(name[:-5] for name in names if name.endswith(".yaml") and name != f"{METHODS}.yaml")


@cache
def read(
    benchmark: str, model: str, method: str, variant: str = "published", trained_as: str | None = None
) -> Recipe:
    """Resolve a recipe.

    Args:
        benchmark, model, method: Names as on the command line.
        variant: One of `VARIANTS`. Settings that a variant does not state are as published.
        trained_as: METHOD or METHOD VARIANT: take the training settings and the data of that recipe, except for the settings
            that define the method. The variant `fair` is `published` with the `trained_as` that its file names.

    Raises:
        ConfigError: There is no such recipe, or the file says why the model cannot be trained with the method.
    """
    sections = _sections(benchmark, model, method)
    if variant not in (known := variants(benchmark, model, method)):
        what = VARIANTS.get(variant)
        hint = f" ('{variant}': {what}.)" if what else did_you_mean(variant, known)
        raise ConfigError(
            f"{benchmark} {model} {method} has no recipe '{variant}'.{hint} It has: {', '.join(known)}."
        )
    chosen = _settings(sections, method, variant)
    if trained_as is None:
        trained_as = chosen.text("trained_as")
    chosen = Branch({k: v for k, v in chosen.items.items() if k != "trained_as"}, chosen.comment)
    if trained_as is not None and trained_as != method:
        chosen = _matched(chosen, benchmark, model, method, trained_as)
    return Recipe(
        benchmark=benchmark,
        model=model,
        method=method,
        variant=variant,
        trained_as=trained_as,
        settings=chosen.plain(),
        comments=dict(_comments(chosen)),
        notes=chosen.comment,
    )


def variants(benchmark: str, model: str, method: str) -> list[str]:
    """The variants of a model and a method."""
    found = {key for section in _sections(benchmark, model, method) for key in section.items}
    return [name for name in VARIANTS if name in found or name == "published"]


def _matched(chosen: Branch, benchmark: str, model: str, method: str, trained_as: str) -> Branch:
    """`chosen` with the training and the data of another recipe."""
    name, _, variant = trained_as.partition(" ")
    sections = _sections(benchmark, model, name)
    other = _settings(sections, name, variant or "published")
    keeps = _keeps(_sections(benchmark, model, method), method)
    own = {k: v for k, v in chosen.items.items() if (k in SECTIONS and k != MATCHED) or k in keeps}
    theirs = {k: v for k, v in other.items.items() if k not in SECTIONS or k == MATCHED}
    theirs.pop("trained_as", None)
    # a setting that the other does not state is at its default there, and so it is here
    return Branch({**theirs, **own}, chosen.comment)


def _settings(sections: list[Branch], method: str, variant: str) -> Branch:
    """The settings of a variant from the sections in order, and those that define the method."""
    merged = Branch({})
    for name in dict.fromkeys(("published", variant)):
        for section in sections:
            merged = merged.merged(section.branch(name))
    for name in _chain(method):
        merged = merged.merged(_file(METHODS).branch(name).branch("is"))
    notes = "\n".join(filter(None, (section.comment for section in sections)))
    return Branch(merged.items, "\n".join(filter(None, (notes, merged.comment))))


def _sections(benchmark: str, model: str, method: str) -> list[Branch]:
    """The sections of a model for a method, the general ones first."""
    content = _model(benchmark, model)
    chain = list(_chain(method))
    for name in chain:
        if reason := content.branch(name).text("refused"):
            raise ConfigError(reason)
    return [content.branch(name) for name in ("common", *chain)]


def _model(benchmark: str, model: str) -> Branch:
    """All sections of a model, those of every model first."""
    content = _file(benchmark)
    return content.branch(ALL).merged(content.branch(model))


def _chain(method: str) -> Iterator[str]:
    """The chain of methods that a method starts from, with the method itself last."""
    base = _file(METHODS).branch(method).text("from")
    if base is not None:
        yield from _chain(base)
    yield method


def _keeps(sections: list[Branch], method: str) -> set[str]:
    """Training settings that a method keeps when it is trained as another one."""
    stated = [*sections, *(_file(METHODS).branch(name) for name in _chain(method))]
    leaves = [section.items.get("keeps") for section in stated]
    return {word for leaf in leaves if isinstance(leaf, Leaf) for word in leaf.value}


@cache
def _file(name: str) -> Branch:
    try:
        text = (files(__package__) / f"{name}.yaml").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"There are no recipes for '{name}'. There are: {', '.join(benchmarks())}."
        ) from error
    return parse(text, f"{name}.yaml")


def _comments(branch: Branch, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in branch.items.items():
        if value.comment:
            yield f"{prefix}{key}", value.comment
        if isinstance(value, Branch):
            yield from _comments(value, f"{prefix}{key}.")
