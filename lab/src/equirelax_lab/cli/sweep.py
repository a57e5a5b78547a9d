"""`--sweep KEY[+KEY]=VALUE,VALUE,...`: one run of a method for every value of its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from equirelax.errors import ConfigError
from equirelax_lab.studies.trials import full_keys
from equirelax_lab.tasks.settings import RunConfig


@dataclass(frozen=True)
class Variant:
    """One point of a sweep: what its folder is called besides the method, and the flags that make it."""

    name: str
    flags: tuple[str, ...]


PLAIN = Variant("", ())


def parse(text: str | None) -> tuple[list[str], list[str]]:
    """(keys, values) of KEY+KEY=VALUE,VALUE; nothing for None.

    Raises:
        ConfigError: no keys or no values.
    """
    if text is None:
        return [], []
    keys, equals, values = text.partition("=")
    found = (
        [k.strip() for k in keys.split("+") if k.strip()],
        [v.strip() for v in values.split(",") if v.strip()],
    )
    if not equals or not found[0] or not found[1]:
        raise ConfigError(
            f"--sweep is '{text}'; expected KEY=VALUE,VALUE,... or KEY+KEY=..., such as lie_weight+norm_weight=0,0.01."
        )
    return found


def variants(config: RunConfig, keys: Sequence[str], values: Sequence[str]) -> list[Variant]:
    """A variant for every value where the method of `config` has all the keys, else the method as it is."""
    full = [full_keys(config, key) for key in keys]
    if not keys or not all(full):
        return [PLAIN]
    for key, found in zip(keys, full, strict=True):
        if len(found) > 1:
            raise ConfigError(f"--sweep: '{key}' may be {' or '.join(found)}; write one of them in full.")
    return [
        Variant(f"-{keys[0]}{value}", tuple(word for found in full for word in (f"--{found[0]}", value)))
        for value in values
    ]
