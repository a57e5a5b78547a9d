"""`save` and `load`: a relaxed model with its placement, so that loading needs nothing but the model."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from equirelax.errors import CheckpointError
from equirelax.files import atomic_write
from equirelax.relaxation.attach import detach_all, relax
from equirelax.relaxation.placements import Placement
from equirelax.relaxation.relaxation import Relaxation, derived_keys, refresh
from equirelax.relaxation.spec import decode, encode
from equirelax.zips import check_complete

FORMAT = "equirelax-relaxed-model-1"


def relaxation_state(relaxation: Relaxation) -> dict[str, Any]:
    """What `load_relaxation_state` needs to rebuild a relaxed model: plain data and tensors."""
    derived = derived_keys(relaxation.root)
    return {
        "format": FORMAT,
        "placement": encode(relaxation.placement),
        "learnt": sorted(relaxation.gamma_parameters()),
        "enabled": {key: residual.enabled for key, residual in relaxation},
        "model": {key: value for key, value in relaxation.root.state_dict().items() if key not in derived},
    }


def load_relaxation_state(
    model: nn.Module, state: dict[str, Any], placement: Placement | None = None
) -> Relaxation:
    """Relax a strict model as the state says, and load its weights.

    Args:
        model: the author's model, not relaxed.
        state: from `relaxation_state`.
        placement: instead of the stored one, for classes that are not registered.

    Raises:
        CheckpointError: for a state of another format or of another model;
            the model is left as it was, unrelaxed.
    """
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"not a relaxed model: its format is {found!r}, expected {FORMAT!r}")
    relaxation = relax(model, decode(state["placement"]) if placement is None else placement)
    try:
        _check_keys(relaxation, state)
        for key in state["learnt"]:
            relaxation[key].learn_gamma()
        # Derived buffers are there or not, as the model's training mode has it: they are neither asked for nor loaded.
        own = relaxation.root.state_dict()
        kept = {key: own[key] for key in derived_keys(relaxation.root) & set(own)}
        relaxation.root.load_state_dict({**state["model"], **kept})
        refresh(relaxation.root)
        for key, enabled in state["enabled"].items():
            relaxation[key].enabled = bool(enabled)
    except RuntimeError as error:
        detach_all(relaxation)
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"the checkpoint is of another model than {type(model).__name__}: {error}"
        ) from error
    return relaxation


def _check_keys(relaxation: Relaxation, state: dict[str, Any]) -> None:
    if set(state["enabled"]) != set(relaxation.residuals):
        raise CheckpointError(
            f"the checkpoint has the residuals {sorted(state['enabled'])}, its placement finds "
            f"{sorted(relaxation.residuals)} in this {type(relaxation.root).__name__}: it was saved from "
            f"another model"
        )


def save(model: nn.Module | Relaxation, path: str | os.PathLike[str]) -> None:
    """Write a relaxed model (weights, residuals, strengths, placement) to a file,
    by way of a temporary one.
    """
    relaxation = model if isinstance(model, Relaxation) else Relaxation(model)
    write(relaxation_state(relaxation), path)


def write(content: Any, path: str | os.PathLike[str]) -> None:
    """Write tensors and plain data by way of a temporary file, for `read`.

    Raises:
        StorageError: the disk is full, or the place may not be written to; an older file stays whole.
    """
    # Through an open file: with a path, torch does not tell a full disk from any other error.
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def read(path: str | os.PathLike[str]) -> Any:
    """Read a file written by torch, tensors and plain data only; no code in it is ever run.

    Every byte that is loaded is compared with its checksum first (CRC-32, which `torch.save` writes and
    `torch.load` does not look at), so that a damaged file is an error and not other weights.

    Raises:
        CheckpointError: where the file is missing, damaged, or holds more than tensors and plain data.
    """
    name = os.fspath(path)
    if not Path(path).is_file():
        raise CheckpointError(f"no checkpoint at {name}")
    try:
        with open(path, "rb") as file:
            _verify(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{name} cannot be read as a checkpoint: it holds more than tensors and plain data, such as code, of which "
            f"nothing was run ({_first_line(error)}). Write it anew, with er.save or a state dict."
        ) from error
    # zipfile and torch.load report damage by many types (BadZipFile, RuntimeError, EOFError, KeyError, ...): all
    # mean the same here.
    except Exception as error:
        raise CheckpointError(
            f"{name} cannot be read as a checkpoint: it is damaged, or no file of torch.save "
            f"({type(error).__name__}: {_first_line(error)}). Take another copy, or write it anew."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else "no details"


def _verify(file: IO[bytes]) -> None:
    """Compare every member of an archive by `torch.save` with its CRC-32.

    Raises:
        zipfile.BadZipFile: a checksum differs, or the archive is not of the form that `torch.save` writes. What
            else damaged directories lead to (NotImplementedError, ValueError, EOFError, ...) comes from zipfile.
    """
    with zipfile.ZipFile(file) as archive:
        check_complete(file, archive)
        for entry in archive.infolist():
            # Compressed members could unpack to any size; torch reads nothing of one that is marked as a folder (bit 4).
            if entry.compress_type != zipfile.ZIP_STORED or entry.external_attr & 0x10 or entry.is_dir():
                raise zipfile.BadZipFile(f"{entry.filename} is not stored as torch stores it")
        if (broken := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"the checksum of {broken} is wrong")


def load(model: nn.Module, path: str | os.PathLike[str], placement: Placement | None = None) -> Relaxation:
    """Relax `model` as the file says and load what `save` wrote.

    Args:
        model: the author's model, built and not relaxed; only its architecture matters.
        path: of the file.
        placement: instead of the stored one, for placements that are not registered.

    Raises:
        CheckpointError: see `read` and `load_relaxation_state`.
    """
    return load_relaxation_state(model, read(path), placement)
