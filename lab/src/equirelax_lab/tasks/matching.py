"""Matched comparisons: every row is trained like the relaxed method that the comparison is about."""

from __future__ import annotations

from collections.abc import Sequence

from equirelax.errors import ConfigError
from equirelax_lab.recipes import variants
from equirelax_lab.tasks.methods import choice, is_learnt, needs_residuals

CONTROLS = ("equivariant-control",)
"""Methods whose residuals relax nothing."""


def about(methods: Sequence[str], named: str | None = None) -> str | None:
    """The method that a comparison of `methods` is about.

    Args:
        methods: The methods of its rows.
        named: The user's choice. None chooses the first method whose strengths are learnt, else the first one that relaxes;
            the result is None if no method relaxes.

    Raises:
        ConfigError: `named` is not among `methods`.
    """
    if named is not None:
        choice(named)
        if named not in methods:
            raise ConfigError(
                f"The comparison is to be about '{named}', which is none of its methods: {', '.join(methods)}."
            )
        return named
    relaxing = [name for name in methods if _relaxes(name)]
    return next((name for name in relaxing if is_learnt(name)), next(iter(relaxing), None))


def _relaxes(method: str) -> bool:
    return needs_residuals(method) and method not in CONTROLS


def matched(
    benchmark: str, model: str, method: str, about: str | None, variant: str = "published"
) -> tuple[str, str | None]:
    """(recipe, trained_as) of one row; see `equirelax_lab.recipes.read`.

    Args:
        benchmark, model, method: The row.
        about: The method whose training settings and data the row takes; None takes its own.
        variant: The variant; a method without it takes the published one.
    """

    def of(name: str) -> str:
        return variant if variant in variants(benchmark, model, name) else "published"

    own = of(method)
    if about is None or about == method:
        return own, None
    theirs = of(about)
    trained_as = about if theirs == "published" else f"{about} {theirs}"
    return ("fair" if own == "published" else own), trained_as


def check_variant(
    benchmark: str, pairs: Sequence[tuple[str, str]], variant: str, about: str | None = None
) -> None:
    """Check that a comparison can be made with a variant of the recipes.

    Args:
        benchmark: The benchmark.
        pairs: (model, method) of its rows.
        variant: The variant.
        about: The method whose training settings all rows take; None lets every row take its own.

    Raises:
        ConfigError: No row has the variant, or a row has it but the method whose training settings it takes does not: its data
            and training would be of another variant than its network.
    """
    known = [name for model, method in pairs for name in variants(benchmark, model, method)]
    if variant not in known:
        raise ConfigError(
            f"No method here has a recipe '{variant}'. There are: {', '.join(dict.fromkeys(known))}."
        )
    if about is None:
        return
    having = [(model, method) for model, method in pairs if variant in variants(benchmark, model, method)]
    for model, method in having:
        if variant not in variants(benchmark, model, about):
            other = next((name for _, name in having if _relaxes(name)), None)
            instead = (
                f"--about {other} (in a study's file about: {other})" if other else "take another recipe"
            )
            raise ConfigError(
                f"{about} has no recipe '{variant}', and {method}, which is trained as {about}, has one: leave {about} out, "
                f"or {instead}."
            )
