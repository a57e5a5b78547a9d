"""Deployment of NequIP networks (Batzner et al., arXiv 2101.03164) in memory, relaxed or projected.

A network can become an ASE calculator of the nequip package, or a file compiled by AOTInductor.

`nequip-package` and `nequip-compile` begin with a checkpoint of `nequip-train`, which holds only the author's weights. They are
the way to deploy a projected network. The functions here are for a network that is deployed relaxed, whose residuals those
programs leave out, and for one that was trained in your own loop.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from equirelax.auditing import AuditReport, card
from equirelax.errors import AuditError, CheckpointError
from equirelax.integrations.inside import fill
from equirelax.relaxation import Placement, Relaxation, Residual, relax

CARD = "equirelax_card"
"""Key of the model card in the metadata of a compiled file."""
SUFFIX = ".nequip.pt2"


def calculator(network: nn.Module, device: str = "cpu", species: Mapping[str, str] | None = None) -> Any:
    """Make a `nequip.ase.NequIPCalculator` for a network in memory, which may be relaxed.

    Args:
        network: The network that a model builder of NequIP returned (a `GraphModel`). It is put into evaluation mode and
            moved to the device.
        device: The device on which to compute.
        species: Chemical symbol -> name of the type in the network; None if the names of the types are the symbols.
    """
    from nequip.ase import NequIPCalculator
    from nequip.integrations.utils import basic_transforms

    model: Any = network.eval()
    types = model.metadata["type_names"].split()
    symbols = {name: name for name in types} if species is None else dict(species)
    transforms = basic_transforms(model.metadata, float(model.metadata["r_max"]), types, symbols)
    return NequIPCalculator(model, device, transforms=transforms)


def load_relaxed(path: str | os.PathLike[str], placement: Placement | None = None) -> Relaxation:
    """Load the network of a `nequip-train` checkpoint with its residuals, which NequIP's own programs leave out.

    Weights and residuals are those that NequIP deploys: the averages if the training averaged (`EMALightningModule`). NequIP
    unpickles the file to build the network, so load only files from people whom you trust.

    Args:
        path: A checkpoint of a training run with `RelaxationCallback` on `module: model.sole_model`.
        placement: The callback's placement; None is the default of `relax`.

    Returns:
        The handle, whose `model` is the network.

    Raises:
        CheckpointError: The checkpoint has no state of the callback, or is of a network with other residuals.
    """
    from nequip.model.saved_models.load_utils import load_saved_model
    from nequip.utils.global_state import set_global_state

    set_global_state()
    saved = torch.load(path, map_location="cpu", weights_only=True)["callbacks"]
    state = next((one for key, one in saved.items() if key.startswith("RelaxationCallback")), None)
    if not state:
        raise CheckpointError(
            f"{os.fspath(path)} has no state of a RelaxationCallback: name the callback in the trainer's configuration, or load "
            f"the network with NequIP's own programs"
        )
    relaxation = relax(load_saved_model(str(path)), placement)
    fill(relaxation, state["residuals"], "the network")
    parameters = [p for residual in relaxation.residuals.values() for p in residual.parameters()]
    with torch.no_grad():
        for average in state["averages"].values():
            for i, parameter in enumerate(parameters):
                parameter.copy_(average[f"ema_weight_{i}"])
    return relaxation


def compile_network(
    network: nn.Module,
    path: str | os.PathLike[str],
    frame: Any,
    *,
    report: AuditReport | None = None,
    target: str = "ase",
    device: str = "cpu",
    species: Mapping[str, str] | None = None,
) -> None:
    """Compile a network with its residuals by AOTInductor, as `nequip-compile` does.

    The file no longer needs equirelax. `NequIPCalculator.from_compiled_model` loads it, and so does LAMMPS if it is the target.
    Before the function returns, NequIP compares the file with the network on the frame. The network itself is left as it is.

    Args:
        network: As for `calculator`.
        path: The file to write; its name ends with `.nequip.pt2`.
        frame: `ase.Atoms` with at least three atoms and three neighbours, like the systems that will be computed.
        report: The audit of this network. Its model card becomes the entry `equirelax_card` of the file's metadata.
        target: The use of the file: "ase", "pair_nequip" (LAMMPS) or "batch".
        device, species: As for `calculator`.

    Raises:
        AuditError: The network is relaxed and there is no report. The deployed file must state the network's error.
        ValueError: The path has another suffix, or the target is unknown.
    """
    from nequip.scripts._compile_utils import COMPILE_TARGET_DICT
    from nequip.utils.aot import aot_export_model
    from nequip.utils.aoti_metadata import (
        NEQUIP_AOTI_INPUTS_KEY,
        NEQUIP_AOTI_OUTPUTS_KEY,
        serialize_aoti_keys,
    )
    from nequip.utils.dtype import torch_default_dtype
    from nequip.utils.global_state import get_latest_global_state

    if not os.fspath(path).endswith(SUFFIX):
        raise ValueError(
            f"path is {os.fspath(path)!r}; NequIP loads compiled networks from files that end with {SUFFIX}"
        )
    if target not in COMPILE_TARGET_DICT:
        raise ValueError(f"target is {target!r}; expected one of {', '.join(COMPILE_TARGET_DICT)}")
    if report is None and any(isinstance(module, Residual) for module in network.modules()):
        raise AuditError(
            f"{type(network).__name__} is relaxed, and so not equivariant: give report=equirelax.audit(...) of it, which is "
            f"kept in the file, or project it first"
        )
    wanted = COMPILE_TARGET_DICT[target]
    model = copy.deepcopy(network)  # NequIP removes the gradients of the network that it compiles
    dims = {kind: torch.export.Dim(f"num_{kind}s", min=2) for kind in ("graph", "node", "edge")}
    flags = {
        key: str(int(value)) for key, value in get_latest_global_state(only_metadata_related=True).items()
    }
    metadata = {
        **model.metadata,  # type: ignore[dict-item]
        **flags,
        NEQUIP_AOTI_INPUTS_KEY: serialize_aoti_keys(wanted["input"]),
        NEQUIP_AOTI_OUTPUTS_KEY: serialize_aoti_keys(wanted["output"]),
    }
    if report is not None:
        metadata[CARD] = card(report)
    with torch_default_dtype(torch.float64):  # as in NequIP's programs: coordinates have this dtype
        data = wanted["data_settings"](calculator(model, device, species).atoms_to_data(frame))
        aot_export_model(
            model=model,
            device=device,
            input_fields=wanted["input"],
            output_fields=wanted["output"],
            data=data,
            batch_map=wanted["batch_map_settings"](dims),
            output_path=os.fspath(path),
            inductor_configs={"aot_inductor.metadata": metadata},
        )
