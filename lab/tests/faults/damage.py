"""Damage the bytes of a file, and observe what reading it does."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fault_ledger import Ledger

from equirelax.errors import EquirelaxError


class Outcome(NamedTuple):
    """How often the damaged file was refused by an error that names it, read like the intact one, or neither."""

    refused: int
    same: int
    other: list[str]


def outcomes(path: Path, damaged: Iterable[bytes], read: Callable[[], Any], name: str = "") -> Outcome:
    """Read a file in every damaged form (it is whole again afterwards).

    Args:
        path: of the file. damaged: what to put there. read: reads it, as something that compares.
        name: what errors must hold; the file's own name without its suffix if empty.
    """
    content, whole, name = path.read_bytes(), read(), name or path.stem
    refused = same = 0
    other: list[str] = []
    for number, each in enumerate(damaged):
        path.write_bytes(each)
        try:
            found = read()
        except EquirelaxError as error:
            refused += name in str(error)
            other += [] if name in str(error) else [f"{number}: {error}"]
        # a traceback is what must not be: of whatever type
        except Exception as error:
            other.append(f"{number}: {type(error).__name__}: {error}")
        else:
            same += found == whole
            other += [] if found == whole else [f"{number}: other content"]
    path.write_bytes(content)
    return Outcome(refused, same, other)


def note(ledger: Ledger, fault: str, found: Outcome) -> None:
    """Count the outcomes, and assert that there are refusals and no other outcome."""
    ledger.note(fault, survived=True, times=found.refused + found.same)
    if found.other:
        ledger.note(fault, survived=False, times=len(found.other))
    assert found.other == []
    assert found.refused > 0


def flipped(content: bytes, bits: Iterable[int]) -> Iterator[bytes]:
    """The content with one bit flipped, for each of `bits`."""
    for bit in bits:
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def flipped_at_random(content: bytes, times: int, seed: int, directory: int = 4000) -> Iterator[bytes]:
    """Flip bits, half anywhere and half in the last `directory` bytes: a zip's directory, which has no checksum."""
    rng = random.Random(seed)
    last = max(len(content) - directory, 0)
    for turn in range(times):
        byte = rng.randrange(last if turn % 2 else 0, len(content))
        yield from flipped(content, [8 * byte + rng.randrange(8)])


def cut(content: bytes, times: int, seed: int) -> Iterator[bytes]:
    """Cut the content to nothing, one byte, all but one byte, and random lengths."""
    rng = random.Random(seed)
    for length in sorted({0, 1, len(content) - 1, *(rng.randrange(len(content)) for _ in range(times))}):
        yield content[:length]


def overwritten(content: bytes, times: int, seed: int) -> Iterator[bytes]:
    """Zero, randomise, overwrite, remove or duplicate runs of bytes."""
    rng = random.Random(seed)
    for turn in range(times):
        start, length = rng.randrange(len(content)), rng.randrange(1, 600)
        head, middle, tail = content[:start], content[start : start + length], content[start + length :]
        there = rng.randrange(len(content))
        elsewhere = content[there : there + len(middle)]
        forms = (bytes(len(middle)), rng.randbytes(len(middle)), elsewhere, b"", middle * 2)
        yield head + forms[turn % len(forms)] + tail
