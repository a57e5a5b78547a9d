"""Damaged checkpoints: every flipped bit and every cut is an error that names the file, or changes nothing that is loaded."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from e3nn import o3
from fault_ledger import Ledger

import equirelax as er
from equirelax.errors import CheckpointError
from equirelax.relaxation.checkpoint import read
from equirelax.training.folder import BEST, LAST
from equirelax.training.machine import Machine
from equirelax.training.run import train

QUICK, MANY = 200, 3_000
"""Bits flipped by `make test` in every kind of file, and by the slow tests."""
BIT, CUT, BURST = "bit flipped in a checkpoint", "checkpoint cut short", "bytes of a checkpoint overwritten"


def plain(value: Any) -> Any:
    """A loaded checkpoint as something that compares bit by bit."""
    if isinstance(value, dict):
        return [(key, plain(inner)) for key, inner in value.items()]
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), value.shape, value.contiguous().view(-1).view(torch.uint8).tolist())
    return (type(value), repr(value))


@pytest.fixture(scope="module")
def files(
    tiny_root: Path, tiny_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The bytes of a run's two checkpoints and of a file by `equirelax.save`."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config("ace", network={"layers": 1, "hidden": 4}, epochs=1)
    train(config, folder, tiny_root, machine=Machine(progress=False, tensorboard=False))
    er.save(er.relax(small_model()), folder / "saved.pt")
    return {name: (folder / name).read_bytes() for name in (BEST, LAST, "saved.pt")}


def small_model() -> torch.nn.Module:
    return torch.nn.Sequential(o3.Linear("2x0e + 1x1o", "1x0e + 2x1o"))


def outcomes(content: bytes, damaged: Iterable[bytes], path: Path) -> tuple[int, int, int]:
    """How many of the damaged files were refused by name, loaded as if they were whole, and loaded as something else."""
    path.write_bytes(content)
    whole = plain(read(path))
    refused = same = other = 0
    for each in damaged:
        path.write_bytes(each)
        try:
            loaded = plain(read(path))
        except CheckpointError as error:
            refused += str(path) in str(error)
            other += str(path) not in str(error)
        else:
            same += loaded == whole
            other += loaded != whole
    return refused, same, other


def flipped(content: bytes, places: Iterable[int]) -> Iterable[bytes]:
    for place in places:
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        yield bytes(changed)


def overwritten(content: bytes, times: int, rng: random.Random) -> Iterable[bytes]:
    """Runs of bytes that are zeroed, drawn anew, copied from elsewhere, left out, or put in twice."""
    for turn in range(times):
        start, length = rng.randrange(len(content)), rng.randrange(1, 600)
        head, middle, tail = content[:start], content[start : start + length], content[start + length :]
        there = rng.randrange(len(content))
        elsewhere = content[there : there + len(middle)]
        forms = (bytes(len(middle)), rng.randbytes(len(middle)), elsewhere, b"", middle * 2)
        yield head + forms[turn % len(forms)] + tail


def check(ledger: Ledger, fault: str, found: tuple[int, int, int]) -> None:
    refused, same, other = found
    ledger.note(fault, survived=True, times=refused + same)
    if other:
        ledger.note(fault, survived=False, times=other)
    assert other == 0
    assert refused > 0


@pytest.mark.parametrize("name", [BEST, LAST, "saved.pt"])
@pytest.mark.parametrize("bits", [QUICK, pytest.param(MANY, marks=pytest.mark.slow)])
def test_flipped_bits(name: str, bits: int, files: dict[str, bytes], tmp_path: Path, ledger: Ledger) -> None:
    """Half of them anywhere, half in the last part of the file: the directory, which has no checksum of its own."""
    content, rng = files[name], random.Random(bits)
    entries = zipfile.ZipFile(io.BytesIO(content)).infolist()
    directory = len(content) - 120 * len(entries)
    places = [rng.randrange(8 * len(content)) for _ in range(bits // 2)]
    places += [rng.randrange(8 * max(directory, 0), 8 * len(content)) for _ in range(bits // 2)]
    check(ledger, BIT, outcomes(content, flipped(content, places), tmp_path / name))


@pytest.mark.slow
def test_every_bit_of_a_small_file(files: dict[str, bytes], tmp_path: Path, ledger: Ledger) -> None:
    content = files["saved.pt"]
    found = outcomes(content, flipped(content, range(8 * len(content))), tmp_path / "saved.pt")
    check(ledger, BIT, found)
    assert (
        found[0] > 8 * 500
    )  # what holds the weights and the placement is refused, whichever of its bits it is


@pytest.mark.parametrize("name", [BEST, LAST, "saved.pt"])
def test_cut_short(name: str, files: dict[str, bytes], tmp_path: Path, ledger: Ledger) -> None:
    content, rng = files[name], random.Random(1)
    lengths = [0, 1, 100, len(content) - 1, *(rng.randrange(len(content)) for _ in range(100))]
    found = outcomes(content, (content[:length] for length in lengths), tmp_path / name)
    assert found[1] == 0
    check(ledger, CUT, found)


@pytest.mark.parametrize("name", [BEST, LAST, "saved.pt"])
def test_overwritten_bytes(name: str, files: dict[str, bytes], tmp_path: Path, ledger: Ledger) -> None:
    content = files[name]
    check(ledger, BURST, outcomes(content, overwritten(content, 150, random.Random(2)), tmp_path / name))


def test_torch_alone_would_not_have_noticed(files: dict[str, bytes], tmp_path: Path) -> None:
    """The reason for our own check: torch loads other weights from a file with a flipped bit."""
    content, path = files["saved.pt"], tmp_path / "saved.pt"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entry = max((e for e in archive.infolist() if "/data/" in e.filename), key=lambda e: e.file_size)
        place = content.index(archive.read(entry))
    path.write_bytes(next(iter(flipped(content, [8 * place + 30]))))
    path_whole = tmp_path / "whole.pt"
    path_whole.write_bytes(content)
    assert plain(torch.load(path, weights_only=True)) != plain(torch.load(path_whole, weights_only=True))
    with pytest.raises(CheckpointError, match=r"saved\.pt .*damaged.*checksum of .*/data/"):
        read(path)
    with pytest.raises(CheckpointError, match=r"saved\.pt"):
        er.load(small_model(), path)
