"""`--sweep KEY[+KEY]=VALUE,VALUE,...`: one run of a method for every value of its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from equirelax.benchmarks.settings import RunConfig
from equirelax.errors import ConfigError
from equirelax.files import did_you_mean


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
    flat = {
        f"{section}.{key}" if isinstance(value, dict) else section: None
        for section, value in config.to_dict().items()
        for key in (value if isinstance(value, dict) else (section,))
    }
    full = [[known for known in flat if known == key or known.endswith(f".{key}")] for key in keys]
    if not keys or not all(full):
        return [PLAIN]
    for key, found in zip(keys, full, strict=True):
        if len(found) > 1:
            raise ConfigError(f"--sweep: '{key}' may be {' or '.join(found)}; write one of them in full.")
    return [
        Variant(f"-{keys[0]}{value}", tuple(word for found in full for word in (f"--{found[0]}", value)))
        for value in values
    ]


def check_used(keys: Sequence[str], configs: Sequence[RunConfig]) -> None:
    """Every key must be a setting of some method.

    Raises:
        ConfigError: one is not, with a suggestion.
    """
    known = sorted({name for config in configs for name in _names(config)})
    for key in keys:
        if key not in known:
            raise ConfigError(f"--sweep: no method here has the setting '{key}'.{did_you_mean(key, known)}")


def _names(config: RunConfig) -> set[str]:
    names: set[str] = set()
    for section, value in config.to_dict().items():
        inner = value if isinstance(value, dict) else {}
        names |= {section, *inner, *(f"{section}.{key}" for key in inner)}
    return names
