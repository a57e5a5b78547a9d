"""`save` and `load` for relaxed models. The placement is in the file, so that loading needs only the model."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from torch import Tensor, nn

from equirelax.errors import CheckpointError, PlacementError
from equirelax.files import atomic_write
from equirelax.relaxation.attach import attach
from equirelax.relaxation.entries import detach, find, of_residual
from equirelax.relaxation.placements import Placement
from equirelax.relaxation.relaxation import Relaxation, derived_keys, refresh
from equirelax.relaxation.residual import Residual
from equirelax.relaxation.sites import join
from equirelax.relaxation.spec import decode, encode
from equirelax.zips import check_complete

FORMAT = "equirelax-relaxed-model-2"
OLD_FORMAT = "equirelax-relaxed-model-1"
"""The format of equirelax 0.1, of which only the strict weights can still be read."""


class Stateful(Protocol):
    """The part of a method that `save` and `load` need."""

    relaxation: Relaxation

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain data."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict()`. A state that does not fit changes nothing."""


def relaxation_state(relaxation: Relaxation) -> dict[str, Any]:
    """The state from which `load_relaxation_state` rebuilds a relaxed model: plain data and tensors.

    Raises:
        CheckpointError: a residual belongs to a module outside the model, which holds its placement; or its module was
            moved to a path where the placement chooses no residual.
    """
    model = relaxation.model
    for one in relaxation.entries():
        if one.root is None:
            raise CheckpointError(
                f"{one.key or type(model).__name__}: its placement, which is needed to rebuild it, is held by a module around "
                f"this {type(model).__name__}: save the module that was given to relax(), or one around it"
            )
    chosen = {root: _chosen(relaxation, root) for root in relaxation.placements}
    for one in relaxation.entries():
        if one.has_moved and one.key not in chosen[one.root or ""]:
            raise CheckpointError(
                f"{one.key or type(model).__name__}: its module was at {one.residual.site.path!r} when it was relaxed; at "
                f"its present path the placement chooses none, so it cannot be rebuilt. Save before modules are rearranged or "
                f"wrapped; or project, rearrange and relax again"
            )
    derived = derived_keys(model)
    return {
        "format": FORMAT,
        "parts": {root: _part(relaxation, root, keys) for root, keys in chosen.items()},
        "learnt": sorted(key for key, residual in relaxation if residual.is_learnt),
        "enabled": {key: residual.enabled for key, residual in relaxation},
        "model": {key: value for key, value in _whole(model).items() if key not in derived},
    }


def _whole(model: nn.Module) -> dict[str, Any]:
    """The model's state dict with all residuals, including those that `equirelax.integrations` leaves out."""
    state = model.state_dict()
    if any(map(of_residual, state)):
        return state
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Residual):
            for name, value in module.state_dict().items():
                state[f"{path}.{name}"] = value
    return state


def _chosen(relaxation: Relaxation, root: str) -> dict[str, str]:
    """What the placement of a relaxed module chooses in the module as it is now: key -> key as seen from that module."""
    survey = relaxation.placements[root].survey(relaxation.model.get_submodule(root))
    return {join(root, placed.site.key): placed.site.key for placed in survey.placed}


def _part(relaxation: Relaxation, root: str, chosen: Mapping[str, str]) -> dict[str, Any]:
    """The state of a relaxed module: its placement, and the residuals of it that have since been removed."""
    left_out = [own for key, own in chosen.items() if key not in relaxation.residuals]
    return {"placement": encode(relaxation.placements[root]), "left_out": left_out}


def load_relaxation_state(
    model: nn.Module, state: dict[str, Any], placement: Placement | None = None
) -> Relaxation:
    """Relax a strict model as the state says, and load its weights.

    A model that already has the same residuals only gets the weights.

    Args:
        model: the author's model, or one that has the same residuals.
        state: The state from `relaxation_state`.
        placement: A placement to use instead of the stored one, for classes that are not registered.

    Raises:
        CheckpointError: the state has another format or is of another model. The model is left as it was.
    """
    _check_format(state)
    if any(isinstance(module, Residual) for module in model.modules()):
        relaxation = Relaxation(model)
        _check_fits(relaxation, state)
    else:
        try:
            relaxation = _relaxed(model, state, placement)
            _check_fits(relaxation, state)
        except (CheckpointError, PlacementError) as error:
            detach(model, find(model))
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{_other(model)}: {error}") from error
    _fill(relaxation, state)
    return relaxation


def _other(model: nn.Module) -> str:
    return f"the checkpoint is of another model than {type(model).__name__}"


def _check_format(state: Any) -> None:
    found = state.get("format") if isinstance(state, dict) else type(state).__name__
    if found == OLD_FORMAT:
        raise CheckpointError(
            f"a relaxed model that was saved by equirelax 0.1 ({found}): its residuals can no longer be read. The "
            f"weights of the author's own model can: model.load_state_dict(equirelax.relaxation.read_strict(path))"
        )
    if found != FORMAT:
        raise CheckpointError(f"not a relaxed model: its format is {found!r}, expected {FORMAT!r}")


def _relaxed(model: nn.Module, state: dict[str, Any], placement: Placement | None) -> Relaxation:
    parts = state["parts"]
    if placement is not None and len(parts) != 1:
        raise CheckpointError(
            f"the checkpoint has {len(parts)} relaxed parts ({', '.join(parts)}), each with its placement; register those "
            f"with @equirelax.relaxation.spec instead of giving one"
        )
    for root, part in parts.items():
        try:
            module = model.get_submodule(root)
        except AttributeError as error:
            raise CheckpointError(
                f"the checkpoint is of another model than {type(model).__name__}, which has no {root!r}"
            ) from error
        attach(module, decode(part["placement"]) if placement is None else placement, tuple(part["left_out"]))
    return Relaxation(model)


def _check_fits(relaxation: Relaxation, state: dict[str, Any]) -> None:
    """Check residuals, keys and shapes, so that loading cannot fail halfway."""
    model = relaxation.model
    if set(state["enabled"]) != set(relaxation.residuals):
        raise CheckpointError(
            f"{_other(model)}: it has the residuals {sorted(state['enabled'])}, this one {sorted(relaxation.residuals)}"
        )
    derived = derived_keys(model)
    own = {key: value for key, value in _whole(model).items() if key not in derived}
    given = state["model"]
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys() - derived)
    if missing or unexpected:
        raise CheckpointError(f"{_other(model)}: missing are {missing[:5]}, unexpected {unexpected[:5]}")
    for key, value in own.items():
        if isinstance(value, Tensor) and value.shape != given[key].shape:
            raise CheckpointError(
                f"{_other(model)}: {key} has shape {tuple(given[key].shape)} there and {tuple(value.shape)} here"
            )


def _fill(relaxation: Relaxation, state: dict[str, Any]) -> None:
    """Load weights and strengths into a model that has the state's residuals."""
    for key, residual in relaxation:
        if key in state["learnt"]:
            residual.learn_gamma()
        else:
            residual.fix_gamma()
        residual.enabled = bool(state["enabled"][key])
    # Whether derived buffers exist depends on the training mode: they are neither required nor loaded.
    own = _whole(relaxation.model)
    derived = derived_keys(relaxation.model)
    given = {key: value for key, value in state["model"].items() if key not in derived}
    kept = {key: own[key] for key in derived & set(own)}
    relaxation.model.load_state_dict({**given, **kept})
    refresh(relaxation.model)


def save(
    model: nn.Module | Relaxation, path: str | os.PathLike[str], *, method: Stateful | None = None
) -> None:
    """Save a relaxed model (weights, residuals, strengths, placements) to a file, which is replaced atomically.

    Args:
        model: the relaxed model, a module that contains relaxed parts, or a handle; the whole module is written.
        path: Path of the file.
        method: A method whose state (multipliers, slacks, number of steps) is written too. To continue training, give
            `load` a method with the same settings. The optimizer's state is not in the file.

    Raises:
        CheckpointError: see `relaxation_state`; or the method belongs to another model.
        StorageError: the disk is full, or the path is not writable. An older file stays intact.
    """
    relaxation = model if isinstance(model, Relaxation) else Relaxation(model)
    state = relaxation_state(relaxation)
    if method is not None:
        _check_owner(relaxation, method)
        state["method"] = method.state_dict()
    write(state, path)


def _check_owner(relaxation: Relaxation, method: Stateful) -> None:
    if set(method.relaxation.residuals.values()) != set(relaxation.residuals.values()):
        raise CheckpointError(
            f"the {type(method).__name__} drives other residuals than those of this {type(relaxation.model).__name__}: give "
            f"the model of its relaxation, method.relaxation.model"
        )


def read_strict(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the weights of the author's own model from a file that `save` wrote, also with equirelax 0.1.

    Returns:
        A state dict with the keys that the model has before `relax`.

    Raises:
        CheckpointError: see `read`; or the file was not written by `save`.
    """
    state = read(path)
    found = state.get("format") if isinstance(state, dict) else type(state).__name__
    if found not in (FORMAT, OLD_FORMAT):
        raise CheckpointError(f"not a relaxed model: its format is {found!r}, expected {FORMAT!r}")
    return {key: value for key, value in state["model"].items() if not of_residual(key)}


def write(content: Any, path: str | os.PathLike[str]) -> None:
    """Write tensors and plain data for `read`, replacing the file atomically.

    Raises:
        StorageError: the disk is full, or the path is not writable. An older file stays intact.
    """
    # Through an open file: with a path, torch does not tell a full disk from any other error.
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def read(path: str | os.PathLike[str]) -> Any:
    """Read tensors and plain data from a file written by torch. Code in the file is never run.

    The CRC-32 checksums, which `torch.save` writes and `torch.load` ignores, are verified first, so that a damaged file
    raises an error instead of giving wrong weights.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors and plain data.
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
            f"{name} cannot be read as a checkpoint: it holds more than tensors and plain data, such as code, none of "
            f"which was run ({_first_line(error)}). Save it again, with er.save or as a state dict."
        ) from error
    # zipfile and torch.load report damage by many types (BadZipFile, RuntimeError, EOFError, KeyError, ...), which
    # all mean the same here.
    except Exception as error:
        raise CheckpointError(
            f"{name} cannot be read as a checkpoint: it is damaged, or was not written by torch.save "
            f"({type(error).__name__}: {_first_line(error)}). Use another copy, or save it again."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else "no details"


def _verify(file: IO[bytes]) -> None:
    """Compare every member of an archive that `torch.save` wrote with its CRC-32.

    Raises:
        zipfile.BadZipFile: a checksum differs, or the archive is not of the form that `torch.save` writes. A damaged
            directory can raise other errors of zipfile (NotImplementedError, ValueError, EOFError, ...).
    """
    with zipfile.ZipFile(file) as archive:
        check_complete(file, archive)
        for entry in archive.infolist():
            # Compressed members could unpack to any size; torch reads nothing from one marked as a folder (bit 4).
            if entry.compress_type != zipfile.ZIP_STORED or entry.external_attr & 0x10 or entry.is_dir():
                raise zipfile.BadZipFile(f"{entry.filename} is not stored as torch stores it")
        if (broken := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"the checksum of {broken} is wrong")


def load(
    model: nn.Module,
    path: str | os.PathLike[str],
    placement: Placement | None = None,
    *,
    method: Stateful | None = None,
) -> Relaxation:
    """Load a file that `save` wrote: relax `model` as the file says, or fill a model that has the same residuals.

        er.load(model, path)                                      # to evaluate, to deploy, to start a new method

        method = er.ACE(er.relax(model), dual_lr=8e-4)            # to continue training: everything built as before ...
        er.load(model, path, method=method)                       # ... then loaded

    Args:
        model: the author's model, of which only the architecture matters; or one that has the file's residuals.
        path: Path of the file.
        placement: A placement to use instead of the stored one, for placements that are not registered.
        method: A method made on the relaxed model, which continues from the state in the file.

    Raises:
        CheckpointError: see `read` and `load_relaxation_state`; or the file holds no method's state, or the method belongs
            to another model.
        MethodError: the file holds the state of another method.
    """
    state = read(path)
    if method is None:
        return load_relaxation_state(model, state, placement)
    _check_format(state)
    if "method" not in state:
        raise CheckpointError(
            f"{os.fspath(path)} holds no method's state: it was saved without method=; load it without one"
        )
    _check_owner(Relaxation(model), method)
    relaxation = load_relaxation_state(model, state, placement)
    method.load_state_dict(state["method"])
    return relaxation
