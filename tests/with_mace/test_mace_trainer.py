"""MACE in its own training function, and what its package makes of the network afterwards: files, calculators, TorchScript."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from torch import nn

import equirelax as er
from equirelax.auditing import card
from equirelax.errors import MethodError, RelaxationStateError

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "lab" / "tests" / "samples"
TEST = SAMPLES / "md17" / "rmd17_ethanol_test.xyz"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """`examples/mace_rmd17.py`, on the small sample of ethanol."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUIRELAX_DATA", str(SAMPLES))
        patch.syspath_prepend(str(ROOT / "examples"))
        import mace_rmd17

        yield mace_rmd17
    del sys.modules["mace_rmd17"]


@pytest.fixture(scope="module")
def ran(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any, Any, Path]:
    """The example, run for two epochs: the projected network, both audits and the folder of its files."""
    folder = tmp_path_factory.mktemp("mace")
    return (*example.main(epochs=2, folder=folder), folder)


class Small:
    """A small MACE, its data, and what `mace.tools.train` wants besides."""

    def __init__(self, example: ModuleType) -> None:
        from mace import modules, tools

        torch.manual_seed(0)
        self.network = modules.ScaleShiftMACE(
            r_max=4.0, num_bessel=4, num_polynomial_cutoff=5, max_ell=1, num_interactions=2, num_elements=3,
            interaction_cls=example.BLOCKS["RealAgnosticResidualInteractionBlock"], gate=nn.functional.silu,
            interaction_cls_first=example.BLOCKS["RealAgnosticInteractionBlock"],
            hidden_irreps=example.o3.Irreps("4x0e + 4x1o"), MLP_irreps=example.o3.Irreps("4x0e"),
            atomic_energies=np.full(3, -468.0), avg_num_neighbors=8, correlation=1, atomic_numbers=[1, 6, 8],
            atomic_inter_scale=1.0, atomic_inter_shift=0.0,
        )  # fmt: skip
        frames = ase.io.read(TEST, ":8")
        self.train, self.valid = example.loader(frames[:4], 2), example.loader(frames[4:], 4)
        self.loss = modules.WeightedEnergyForcesLoss()
        self.tools = tools

    def run(
        self, folder: Path, optimizer: torch.optim.Optimizer, epochs: int = 2, ema: Any = None
    ) -> list[dict]:
        """Train; returns what MACE logged."""
        logger = self.tools.MetricsLogger(str(folder), "log")
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        self.checkpoints = self.tools.CheckpointHandler(directory=str(folder), tag="small")
        self.tools.train(
            self.network, self.loss, self.train, {"Default": self.valid}, optimizer, schedule, start_epoch=0,
            max_num_epochs=epochs, patience=9, checkpoint_handler=self.checkpoints, logger=logger, eval_interval=1,
            output_args={"forces": True, "virials": False, "stress": False}, device=torch.device("cpu"),
            log_errors="PerAtomMAE", ema=ema,
        )  # fmt: skip
        self.state = self.tools.CheckpointState(self.network, optimizer, schedule)
        return [json.loads(line) for line in Path(logger.path).read_text().splitlines()]

    def validated(self) -> float:
        """The validation loss as MACE computes it, of the network as it is."""
        from mace.tools.train import evaluate

        outputs = {"forces": True, "virials": False, "stress": False}
        return evaluate(self.network, self.loss, self.valid, outputs, torch.device("cpu"))[0]


def same(atoms: Any, one: Any, other: Any) -> None:
    """Energies and forces of two calculators are equal, to the bit."""
    found = []
    for calculator in (one, other):
        atoms = atoms.copy()
        atoms.calc = calculator
        found.append((atoms.get_potential_energy(), atoms.get_forces()))
    assert found[0][0] == found[1][0]
    assert np.array_equal(found[0][1], found[1][1])


def energy_and_forces(network: nn.Module, frames: Any, example: ModuleType) -> tuple[torch.Tensor, ...]:
    out = network(next(iter(example.loader(frames, len(frames)))).to_dict())
    return out["energy"].detach(), out["forces"].detach()


def test_the_trained_network_is_the_authors(ran: tuple[nn.Module, Any, Any, Path]) -> None:
    network, relaxed, projected, _ = ran
    assert projected.relative < 1e-9 < 1e-3 < relaxed.relative
    assert relaxed.after.relative < 1e-9
    assert not any("equirelax" in key for key in network.state_dict())
    assert not any(type(module).__module__.startswith("equirelax") for module in network.modules())


def test_its_own_calculator_loads_it(ran: tuple[nn.Module, Any, Any, Path], example: ModuleType) -> None:
    """Energies and forces are those of the projected network in Python."""
    from mace.calculators import MACECalculator

    network, *_, folder = ran
    frames = ase.io.read(TEST, ":2")
    energies, forces = energy_and_forces(network, frames, example)
    calculator = MACECalculator(
        model_paths=str(folder / "ethanol.model"), device="cpu", default_dtype="float32"
    )
    for i, frame in enumerate(frames):
        frame.calc = calculator
        assert frame.get_potential_energy() == pytest.approx(float(energies[i]), rel=1e-6)
        assert np.allclose(frame.get_forces(), forces[9 * i : 9 * i + 9], rtol=1e-4, atol=1e-6)
    same(
        frames[0],
        calculator,
        MACECalculator(models=copy.deepcopy(network), device="cpu", default_dtype="float32"),
    )


def test_torchscript_is_that_of_a_network_never_relaxed(
    ran: tuple[nn.Module, Any, Any, Path], example: ModuleType, tmp_path: Path
) -> None:
    """MACE compiles with e3nn's TorchScript, for LAMMPS too."""
    from e3nn.util import jit

    network = ran[0]
    frames = ase.io.read(TEST, ":2")
    torch.jit.save(jit.compile(copy.deepcopy(network)), tmp_path / "compiled.model")
    found = energy_and_forces(torch.jit.load(tmp_path / "compiled.model"), frames, example)
    for one, other in zip(energy_and_forces(network, frames, example), found, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_training_adds_the_penalty_and_evaluates_without_residuals(
    example: ModuleType, tmp_path: Path
) -> None:
    from equirelax.integrations.mace import training

    small = Small(example)
    relaxation = er.relax(small.network)
    method = er.ACE(relaxation, dual_lr=0.1)
    optimizer = torch.optim.Adam(small.network.parameters(), lr=1e-2)
    hooks = len(small.network._forward_hooks), len(small.network._forward_pre_hooks)
    with training(method.attach(optimizer), small.loss):
        logs = small.run(tmp_path, optimizer=optimizer)
    assert (len(small.network._forward_hooks), len(small.network._forward_pre_hooks)) == hooks
    assert not small.loss._forward_hooks
    assert relaxation.history.steps == 4  # two epochs of two batches
    assert method.multipliers.abs().min() > 0
    with relaxation.strict():
        assert logs[-1]["loss"] == pytest.approx(small.validated(), rel=1e-6)
    assert logs[-1]["loss"] != pytest.approx(small.validated(), rel=1e-3)  # with the residuals
    small.checkpoints.load_latest(small.state)  # its checkpoints hold the residuals
    er.project(small.network)
    assert min(log["loss"] for log in logs[1:] if log["mode"] == "eval") == pytest.approx(
        small.validated(), rel=1e-6
    )


def test_averaged_weights_are_evaluated_without_residuals(example: ModuleType, tmp_path: Path) -> None:
    """MACE's own averages, made after relax, are of the author's weights and of the residuals."""
    from torch_ema import ExponentialMovingAverage

    from equirelax.integrations.mace import training

    small = Small(example)
    relaxation = er.relax(small.network)
    optimizer = torch.optim.Adam(small.network.parameters(), lr=1e-2)
    ema = ExponentialMovingAverage(small.network.parameters(), decay=0.5)
    with training(er.ACE(relaxation, dual_lr=0.1).attach(optimizer), small.loss):
        logs = small.run(tmp_path, epochs=1, ema=ema, optimizer=optimizer)
    with relaxation.strict():
        assert logs[-1]["loss"] != pytest.approx(small.validated(), rel=1e-4)
        with ema.average_parameters():
            assert logs[-1]["loss"] == pytest.approx(small.validated(), rel=1e-6)
    small.checkpoints.load_latest(small.state)
    er.project(small.network)
    assert logs[-1]["loss"] == pytest.approx(small.validated(), rel=1e-6)


def test_the_penalty_is_minimised(example: ModuleType, tmp_path: Path) -> None:
    """With large multipliers every strength falls, whatever the data say."""
    from equirelax.integrations.mace import training

    small = Small(example)
    method = er.ACE(er.relax(small.network), dual_lr=0.1)
    method.multipliers.fill_(1e6)
    optimizer = torch.optim.Adam(small.network.parameters(), lr=1e-2)
    with training(method.attach(optimizer), small.loss):
        small.run(tmp_path, epochs=1, optimizer=optimizer)
    assert method.relaxation.gammas().max() < 0.99


def test_a_method_that_deploys_relaxed_is_evaluated_relaxed(example: ModuleType, tmp_path: Path) -> None:
    """MACE keeps the whole module in a file, residuals and all, and its calculator loads it."""
    from mace.calculators import MACECalculator

    from equirelax.integrations.mace import training

    small = Small(example)
    relaxation = er.relax(small.network, residual=er.Dense("normal", std=0.1))
    optimizer = torch.optim.Adam(small.network.parameters(), lr=1e-2)
    method = er.ResilientACE(relaxation, primal_lr=1e-2, dual_lr=0.1).attach(optimizer)
    with training(method, small.loss):
        logs = small.run(tmp_path, epochs=1, optimizer=optimizer)
    assert logs[-1]["loss"] == pytest.approx(small.validated(), rel=1e-6)
    torch.save(small.network, tmp_path / "relaxed.model")
    loaded = MACECalculator(
        model_paths=str(tmp_path / "relaxed.model"), device="cpu", default_dtype="float32"
    )
    assert list(er.relaxation_of(loaded.models[0]).residuals) == list(relaxation.residuals)
    frame = ase.io.read(TEST, "0")
    same(
        frame,
        loaded,
        MACECalculator(models=copy.deepcopy(small.network), device="cpu", default_dtype="float32"),
    )
    frame.calc = loaded
    relaxed = frame.get_potential_energy()
    frame = frame.copy()
    with relaxation.strict():
        frame.calc = MACECalculator(models=small.network, device="cpu", default_dtype="float32")
        assert abs(frame.get_potential_energy() - relaxed) > 1e-4
    sample = (next(iter(small.valid)).to_dict(),)
    outputs = {"forces": example.V, "node_feats": 4 * example.S + 4 * example.V + 4 * example.S}
    report = er.audit(small.network, sample, example.INPUTS, outputs, samples=2, lie=False, per_layer=False)
    assert "deployed relaxed" in card(report)


def test_a_relaxed_mace_is_not_scripted(example: ModuleType) -> None:
    """A relaxed one would run without its residuals, or not at all: the reason is given."""
    from e3nn.util import jit

    small = Small(example)
    er.relax(small.network)
    with pytest.raises(RelaxationStateError, match=r"torch\.export"):
        jit.compile(small.network)


def test_a_loss_that_was_not_named_is_no_silent_training_without_penalty(
    example: ModuleType, tmp_path: Path
) -> None:
    from equirelax.integrations.mace import training

    small = Small(example)
    relaxation = er.relax(small.network)
    optimizer = torch.optim.Adam(small.network.parameters(), lr=1e-2)
    method = er.ACE(relaxation, dual_lr=0.1).attach(optimizer)
    with training(method), pytest.raises(MethodError, match="penalty"):
        small.run(tmp_path, epochs=1, optimizer=optimizer)


def test_a_method_that_needs_moved_samples_is_refused(example: ModuleType, tmp_path: Path) -> None:
    from equirelax.integrations.mace import training

    small = Small(example)
    method = er.methods.get("remul")(er.relax(small.network))
    optimizer = torch.optim.Adam(small.network.parameters(), lr=1e-2)
    with training(method.attach(optimizer), small.loss), pytest.raises(MethodError, match="moved"):
        small.run(tmp_path, epochs=1, optimizer=optimizer)
    assert not small.network._forward_pre_hooks


def test_mace_rebuilds_a_network_without_its_residuals(example: ModuleType) -> None:
    """What docs/how_to/mace.md warns of: MACECalculator(compile_mode=...) and enable_cueq make a network of the configuration."""
    from mace.tools.scripts_utils import extract_model

    small = Small(example)
    relaxation = er.relax(small.network, residual=er.Dense("normal", std=0.1))
    relaxation.set_gamma(1.0)
    frames = ase.io.read(TEST, ":2")
    rebuilt = extract_model(small.network)
    found = energy_and_forces(rebuilt, frames, example)
    assert not torch.allclose(found[1], energy_and_forces(small.network, frames, example)[1], rtol=1e-2)
    with relaxation.strict():
        assert torch.allclose(
            found[1], energy_and_forces(small.network, frames, example)[1], rtol=1e-4, atol=1e-6
        )


def test_the_code_of_its_page_runs() -> None:
    from doc_pages import ROOT, run

    printed = run(ROOT / "docs" / "how_to" / "mace.md")[1]
    assert "[[" in printed
