"""Invalid values, settings, files and command lines, made from valid ones by a seeded generator."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from equirelax_lab.tasks.methods import CHOICES, is_wrapper, needs_residuals
from equirelax_lab.tasks.registry import TASKS, defaults
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.tasks.task import NO_PLACEMENT
from refused_recipes import REFUSED

ODD: tuple[Any, ...] = (
    None, True, False, "", " ", "x", "nan", "null", "-1", "1e400", "a.b", "*", "é🦆\u202e", "\x00",
    "n" * 5000, float("nan"), float("inf"), -float("inf"), 1e300, 1e-320, -1e-3, 0.5, -1, 0, 1, 2, 3,
    10**12, -(10**30), 10**400, [], [1], [[1, 2], [3]], ["a", None], {}, {"a": 1}, {"a": {"b": []}},
    {1: 2}, {None: None}, b"\xff",
)  # fmt: skip
"""Values that replace valid ones. Some are valid too, and none builds a large network."""
ODD_WORDS = (
    "", " ", "-", "--", "---", "=", "--=", "-1", "0", "1", "nan", "inf", "-inf", "1e400", "9" * 5000,
    "0x10", "1_0", "true", "null", "None", "[]", "[1", "{", "{}", "{a: 1}", "'", '"', "a,b", ",", ",,",
    "a=b", "@x", "../..", "/proc/sys/kernel", ".", "/dev/null", "/nowhere/at/all", "n" * 5000, "é🦆\u202e", "%s", "{0}",
    "$HOME", "*", "!!python/name:os.system", "\n",
)  # fmt: skip
"""Words that replace valid ones. The folder outside is a small one in which nothing can be written: commands that read all
of a folder would find on another, as on `/`, whatever the machine has.
"""
TINY_NETWORK = {
    "layers": 2,
    "hidden": 8,
    "width": 2,
    "size": "small",
    "filters": 4,
    "gaussians": 4,
    "heads": 2,
}
"""Small values for the settings that a network has. Lift expansion needs more layers."""


@dataclass(frozen=True)
class Fuzzed:
    """Something that went wrong on purpose.

    Attributes:
        value: What it is: settings, the text of a file, or words.
        culprits: What an error must name one of; empty where it is not known what is wrong.
    """

    value: Any
    culprits: tuple[str, ...] = ()


def tiny_settings(config: RunConfig) -> dict[str, Any]:
    """The settings, in the form of config.yaml, of a network that is built in milliseconds."""
    values = config.to_dict()
    network = values["network"]
    for key, small in TINY_NETWORK.items():
        if key in network:
            network[key] = small
    if config.model == "lift":
        network["layers"] = 4
    if config.model in ("vn-pointnet", "vn-dgcnn", "pointnet", "dgcnn"):
        network["width"] = 0.0625
    if config.benchmark == "smoke":
        values["dataset"]["size"] = 8
    values["dataset"].update({key: 8 for key in ("train", "val", "test") if key in values["dataset"]})
    return values


@functools.cache
def runs() -> list[RunConfig]:
    """The settings of every valid combination of benchmark, model and method, except wrappers, which need data."""
    methods = [name for name in CHOICES if not is_wrapper(name)]
    found = [
        defaults(benchmark, model, method)
        for benchmark, task in TASKS.items()
        for model in task.models
        for method in methods
        if (benchmark, model, method) not in REFUSED
    ]
    return [c for c in found if c.residual.placement != NO_PLACEMENT or not needs_residuals(c.method)]


def misspelt(draw: random.Random, word: str) -> str:
    """The word with a letter lost, doubled, changed or moved."""
    if not word:
        return "x"
    at = draw.randrange(len(word))
    kind = draw.randrange(4)
    if kind == 0:
        return word[:at] + word[at + 1 :]
    if kind == 1:
        return word[:at] + word[at] + word[at:]
    if kind == 2:
        return word[:at] + draw.choice("qxzé_-0") + word[at + 1 :]
    return word[at:] + word[:at]


def spoil_mapping(draw: random.Random, values: dict[str, Any]) -> Fuzzed:
    """Copy nested settings with one error in a value, a key, or the nesting."""
    spoilt = copy.deepcopy(values)
    inside, key = draw.choice(list(_places(spoilt)))
    kind = draw.randrange(6)
    if kind <= 2:
        inside[key] = copy.deepcopy(draw.choice(ODD))
        inner = [str(name) for name in inside[key]] if isinstance(inside[key], dict) else []
        return Fuzzed(spoilt, (str(key), f"'{inside[key]}'", *inner))
    if kind == 3:
        other = misspelt(draw, str(key))
        inside[other] = inside.pop(key)
        return Fuzzed(spoilt, (str(key), other))
    if kind == 4:
        del inside[key]
        return Fuzzed(spoilt, (str(key),))
    new = draw.choice(("surprise", "", "é", 7, None, "layers.hidden"))
    inside[new] = copy.deepcopy(draw.choice(ODD))
    return Fuzzed(spoilt, (str(new),))


def _places(values: dict[str, Any]) -> list[tuple[dict[Any, Any], Any]]:
    """(mapping, key) for every key of nested mappings."""
    found: list[tuple[dict[Any, Any], Any]] = []
    for key, value in values.items():
        found.append((values, key))
        if isinstance(value, dict):
            found += _places(value)
    return found


def yaml_text(values: Any) -> str:
    """Write values as YAML; PyYAML can write everything in `ODD`."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def spoil_text(draw: random.Random, text: str) -> bytes:
    """Damage the text of a file: cut it, repeat or reorder lines, insert odd bytes, or replace it by something else."""
    lines = text.splitlines()
    kind = draw.randrange(9)
    at = draw.randrange(len(lines))
    if kind == 0:
        return text.encode()[: draw.randrange(len(text) + 1)]
    if kind == 1:
        return "\n".join([*lines, lines[at]]).encode()
    if kind == 2:
        draw.shuffle(lines)
        return "\n".join(lines).encode()
    if kind == 3:
        damaged = bytearray(text.encode())
        for _ in range(draw.randint(1, 8)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        return bytes(damaged)
    if kind == 4:
        lines[at] = "\t" + lines[at]
        return "\n".join(lines).encode()
    if kind == 5:
        lines[at] = lines[at].replace(
            ": ", draw.choice((":", ": : ", ": [", ": {", ": *", ": &", ": !!", ": |", ": >"))
        )
        return "\n".join(lines).encode()
    if kind == 6:
        return draw.choice(WHOLE_FILES)
    if kind == 7:
        lines[at] = draw.choice(
            ("- 1", "? a", "...", "---", "%YAML 9.9", "<<: 3", "<<: {epochs: 1}", "é: 🦆", ": 1")
        )
        return "\n".join(lines).encode()
    return "\n".join(
        [draw.choice(("epochs: 2", "'epochs': 3", "epochs: !!int 'x'", "seed: 2001-99-99")), *lines]
    ).encode()


LAUGHS = "\n".join(
    [
        f"a0: &a0 [{','.join('1' * 9)}]",
        *(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)),
    ]
)
WHOLE_FILES = (
    b"", b"\x00", b"\xff\xfe\x00", b"null", b"[]", b"3", b"text", b"- a\n- b\n", b"{" * 3000, b"[" * 3000,
    b"a: &a [*a]", b"a: &a {b: *a}", b"epochs: &e {x: *e}", LAUGHS.encode(),
    (LAUGHS + "\nepochs: *a9").encode(), b"epochs: " + b"9" * 5000, b"? [1, 2]\n: 3", b"? {a: b}\n: 3",
    b"a: !!python/object/apply:os.system ['touch bombed']", b"!!set {a, b}", b"epochs: 2001-12-32",
    b"epochs: 12:30:45", b"epochs: !!binary 'x'", b"a: b: c", b"\xef\xbb\xbfepochs: 3", b"epochs: 1\r\n\r",
)  # fmt: skip
"""Files that are not settings."""


def spoil_words(draw: random.Random, words: Sequence[str]) -> Fuzzed:
    """Put one to three errors into a command line; the command itself stays."""
    spoilt, culprits = list(words), []
    changes = draw.choice((1, 1, 1, 2, 3))
    for _ in range(changes):
        at = draw.randrange(1, len(spoilt))
        culprits += spoilt[at - 1 : at + 2]
        kind = draw.randrange(7)
        if kind == 0 and len(spoilt) > 2:
            del spoilt[at]
        elif kind <= 2:
            spoilt[at] = draw.choice(ODD_WORDS)
        elif kind == 3:
            spoilt[at] = misspelt(draw, spoilt[at])
        elif kind == 4:
            spoilt.insert(at, draw.choice(ODD_WORDS))
        elif kind == 5:
            spoilt.insert(at, spoilt[at])
        else:
            spoilt.insert(
                at, draw.choice(("--surprise", "--network.surprise", "--é", "--seed.x", "--dataset"))
            )
        culprits += spoilt[at - 1 : at + 2]
    return Fuzzed(spoilt, tuple(filter(None, map(_called, culprits))) if changes == 1 else ())


def _called(word: str) -> str:
    """How an error may call a word: a flag by its last part, another word by its beginning, in quotes if it is blank."""
    if not word.strip():
        return f"'{word.strip(chr(10))}'"
    flag = word.removeprefix("--").partition("=")[0].rpartition(".")[2] if word.startswith("--") else ""
    # a word of "=" alone has no beginning: it is called as it is
    return flag.replace("-", "_") or word.partition("=")[0][:20].strip() or word
