"""Damaged checkpoints: every flipped bit and every cut raises an error that names the file, or changes nothing."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import cut, flipped, flipped_at_random, note, outcomes, overwritten
from e3nn import o3
from equirelax_lab.training.folder import BEST, LAST
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.run import train
from fault_ledger import Ledger

import equirelax as er
from equirelax.errors import CheckpointError
from equirelax.relaxation.checkpoint import read

QUICK, MANY = 50, 3_000
"""Bits flipped by `make test` in every kind of file, and by the slow tests."""
BIT, CUT, BURST = "bit flipped in a checkpoint", "checkpoint cut short", "bytes of a checkpoint overwritten"


def plain(value: Any) -> Any:
    """Convert a loaded checkpoint to something that compares bit by bit."""
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


def read_plain(content: bytes, path: Path) -> Callable[[], Any]:
    """Write `content` to `path`; return a function that reads it for comparison."""
    path.write_bytes(content)
    return lambda: plain(read(path))


@pytest.mark.parametrize("name", [BEST, LAST, "saved.pt"])
@pytest.mark.parametrize("bits", [QUICK, pytest.param(MANY, marks=pytest.mark.slow)])
def test_flipped_bits(name: str, bits: int, files: dict[str, bytes], tmp_path: Path, ledger: Ledger) -> None:
    content, path = files[name], tmp_path / name
    reads = read_plain(content, path)
    note(ledger, BIT, outcomes(path, flipped_at_random(content, bits, seed=bits), reads))


@pytest.mark.slow
def test_every_bit_of_a_small_file(files: dict[str, bytes], tmp_path: Path, ledger: Ledger) -> None:
    content, path = files["saved.pt"], tmp_path / "saved.pt"
    reads = read_plain(content, path)
    found = outcomes(path, flipped(content, range(8 * len(content))), reads)
    note(ledger, BIT, found)
    assert (
        found.refused > 8 * 500
    )  # what holds the weights and the placement is refused, whichever of its bits it is


@pytest.mark.parametrize("name", [BEST, LAST, "saved.pt"])
def test_cut_short(name: str, files: dict[str, bytes], tmp_path: Path, ledger: Ledger) -> None:
    content, path = files[name], tmp_path / name
    reads = read_plain(content, path)
    found = outcomes(path, cut(content, 100, seed=1), reads)
    assert found.same == 0
    note(ledger, CUT, found)


@pytest.mark.parametrize("name", [BEST, LAST, "saved.pt"])
def test_overwritten_bytes(name: str, files: dict[str, bytes], tmp_path: Path, ledger: Ledger) -> None:
    content, path = files[name], tmp_path / name
    reads = read_plain(content, path)
    note(ledger, BURST, outcomes(path, overwritten(content, 150, seed=2), reads))


def test_torch_alone_would_not_have_noticed(files: dict[str, bytes], tmp_path: Path) -> None:
    """Without our own check torch loads other weights from a file with a flipped bit."""
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
