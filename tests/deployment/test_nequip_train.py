"""`nequip-train` with the callback named in its configuration: restarted, tested, packaged, compiled and in its calculator.

Every program runs as its users run it, in a process of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("nequip", reason="needs nequip: pip install '.[examples]'")
pytest.importorskip("lightning", reason="needs Lightning: pip install '.[lightning]'")

from nequip_networks import EXAMPLES, SAMPLES, audited, begin, differ, frames, results
from torch.utils._pytree import tree_leaves
from undisturbed import undisturbed

from equirelax.errors import CheckpointError
from equirelax.integrations.nequip import calculator, load_relaxed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]
CALLBACK = "trainer.callbacks.1"
SMALL = ["num_layers=2", "num_features=4", "radial_mlp_width=8"]


def program(name: str, *arguments: object) -> str:
    """Run one of NequIP's programs; what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "EQUIRELAX_DATA": str(SAMPLES)}
    command = [str(Path(sys.executable).with_name(name)), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return run.stdout + run.stderr


def train(folder: Path, *more: str, epochs: int = 2) -> str:
    """`nequip-train` with the example's configuration, smaller."""
    small = [f"training_module.model.{one}" for one in SMALL]
    settings = [
        "trainer.callbacks.0.monitor=null",  # a checkpoint after every epoch, better or not
        "data.train_dataloader.shuffle=false",  # NequIP shuffles anew after a restart, relaxed or not
        f"trainer.max_epochs={epochs}",
        "+trainer.accelerator=cpu",
        "+trainer.enable_progress_bar=false",
        *small,
    ]
    where = ("-cp", EXAMPLES, "-cn", "nequip", f"hydra.run.dir={folder}")
    printed = program("nequip-train", *where, *settings, *more)
    (folder / "printed.txt").write_text(printed, "utf-8")
    return printed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole training, with its test run."""
    folder = tmp_path_factory.mktemp("whole")
    printed = train(folder)
    assert "TEST RUN END" in printed
    assert "test0_epoch/forces_mae" in printed
    assert "not equivariant" not in printed  # what the callback's audit would say
    assert "no audit" not in printed
    return folder


@pytest.fixture(autouse=True)
def _undisturbed() -> Iterator[None]:
    with undisturbed():
        begin()
        yield


def saved(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=False)


def relaxation_state(checkpoint: dict) -> list[torch.Tensor]:
    """The tensors that the callback keeps in a checkpoint."""
    (state,) = (one for key, one in checkpoint["callbacks"].items() if key.startswith("RelaxationCallback"))
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]


def test_its_checkpoints_hold_the_authors_keys(trained: Path) -> None:
    checkpoint = saved(trained / "best.ckpt")
    assert not any("equirelax" in key for key in checkpoint["state_dict"])
    (state,) = (
        state for key, state in checkpoint["callbacks"].items() if key.startswith("RelaxationCallback")
    )
    assert state
    parameters = sum(key.startswith("ema.ema_weight") for key in checkpoint["state_dict"])
    from nequip.train import EMALightningModule

    module = EMALightningModule.load_from_checkpoint(trained / "best.ckpt", weights_only=False)
    assert parameters == len(list(module.model.parameters()))


def test_a_restart_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """To the bit: weights, averages, strengths, multipliers."""
    ace = (f"{CALLBACK}.method=ace", f"+{CALLBACK}.dual_lr=0.01", "run=[train]")
    train(tmp_path / "whole", *ace)
    train(tmp_path / "half", *ace, epochs=1)
    train(tmp_path / "rest", *ace, f"++ckpt_path={tmp_path / 'half' / 'last.ckpt'}")
    whole, again = saved(tmp_path / "whole" / "last.ckpt"), saved(tmp_path / "rest" / "last.ckpt")
    assert whole["global_step"] == again["global_step"] == 8
    weights = {key: value for key, value in whole["state_dict"].items() if isinstance(value, torch.Tensor)}
    assert len(weights) > 20
    assert all(torch.equal(value, again["state_dict"][key]) for key, value in weights.items())
    states = relaxation_state(whole), relaxation_state(again)
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
    half = saved(tmp_path / "half" / "last.ckpt")["state_dict"]
    assert any(not torch.equal(value, half[key]) for key, value in weights.items())


def test_it_is_packaged_and_its_calculator_loads_it(trained: Path, tmp_path: Path) -> None:
    """Energies and forces of checkpoint, package and calculator are those of the projected network in Python."""
    from nequip.ase import NequIPCalculator
    from nequip.model.saved_models.load_utils import load_saved_model

    package = tmp_path / "ethanol.nequip.zip"
    program("nequip-package", "build", trained / "best.ckpt", package)
    network = load_saved_model(str(trained / "best.ckpt"))
    own = calculator(network)
    report = audited(network, own.atoms_to_data(frames(1)[0]))
    assert report.after is None
    assert report.relative < 1e-5
    for path in (trained / "best.ckpt", package):
        theirs = NequIPCalculator._from_saved_model(path, chemical_species_to_atom_type_map=True)
        assert differ(own, theirs) == 0


def test_it_is_compiled(trained: Path, tmp_path: Path) -> None:
    """By AOTInductor; NequIP itself refuses TorchScript with this torch."""
    from nequip.ase import NequIPCalculator
    from nequip.model.saved_models.load_utils import load_saved_model

    path = tmp_path / "ethanol.nequip.pt2"
    options = ["--mode", "aotinductor", "--device", "cpu", "--target", "ase"]
    program("nequip-compile", trained / "best.ckpt", path, *options)
    compiled = NequIPCalculator.from_compiled_model(path, "cpu", chemical_species_to_atom_type_map=True)
    assert differ(calculator(load_saved_model(str(trained / "best.ckpt"))), compiled) < 1e-5


def rmse(one: Any) -> float:
    """Root of the mean squared error of the forces on the test frames, in eV/A."""
    errors = [results(one, frame)[1] - frame.arrays["F"] for frame in frames(32)]
    return float(np.sqrt(np.mean(np.square(errors))))


def test_a_network_deployed_relaxed_is_loaded_with_its_residuals(tmp_path: Path) -> None:
    """ResilientACE keeps them. NequIP's programs know the author's weights alone; `load_relaxed` gives what was tested."""
    from nequip.model.saved_models.load_utils import load_saved_model

    settings = [f"+{CALLBACK}.{one}" for one in ("primal_lr=0.01", "dual_lr=0.01")]
    train(tmp_path, f"{CALLBACK}.method=resilient", *settings, epochs=1)
    path = tmp_path / "last.ckpt"
    relaxation = load_relaxed(path)
    own = calculator(relaxation.model)
    report = audited(relaxation.model, own.atoms_to_data(frames(1)[0]), deployed="relaxed")
    assert report.relative > 1e-3
    assert report.after is not None
    assert report.after.relative < 1e-5
    theirs = calculator(load_saved_model(str(path)))
    assert differ(own, theirs) > 1e-3
    with relaxation.strict():
        assert differ(own, theirs) == 0
    tested = [
        float(x)
        for x in re.findall(r"forces_rmse\W+([\d.e-]+)", (tmp_path / "printed.txt").read_text("utf-8"))
    ]
    assert tested == [pytest.approx(rmse(own), rel=1e-4)]


def test_a_checkpoint_without_the_callback_is_refused(trained: Path, tmp_path: Path) -> None:
    checkpoint = saved(trained / "last.ckpt")
    checkpoint["callbacks"] = {}
    torch.save(checkpoint, tmp_path / "plain.ckpt")
    with pytest.raises(CheckpointError, match=r"plain\.ckpt"):
        load_relaxed(tmp_path / "plain.ckpt")
