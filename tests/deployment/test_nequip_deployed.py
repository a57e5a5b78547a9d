"""NequIP in its ASE calculator and compiled by AOTInductor: projected as if it had never been relaxed, and with its residuals."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("nequip", reason="needs nequip: pip install '.[examples]'")

from nequip_networks import audited, differ, frames, network
from undisturbed import undisturbed

import equirelax as er
from equirelax.auditing import card
from equirelax.errors import AuditError
from equirelax.integrations.nequip import CARD, calculator, compile_network
from equirelax.relaxation import Relaxation

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _undisturbed() -> Iterator[None]:
    with undisturbed():
        yield


def trained(relaxation: Relaxation, steps: int = 2) -> None:
    """A few steps towards forces of 1 eV/A with ResilientACE, so that weights, residuals and strengths have moved."""
    model = relaxation.model
    for one in relaxation.residual_parameters().values():
        nn.init.normal_(one, std=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    method = er.ResilientACE(relaxation, primal_lr=1e-2, dual_lr=0.1).attach(optimizer)
    data = calculator(model).atoms_to_data(frames(1)[0])
    model.train()
    for _ in range(steps):
        ((model(data)["forces"] - 1).square().mean() + method.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_relaxed_network_in_its_calculator(tmp_path: Path) -> None:
    """Saved and loaded into a freshly built network it computes the same; projected it is the author's to the bit."""
    model = network()
    relaxation = er.relax(model)
    trained(relaxation)
    er.save(model, tmp_path / "ethanol.pt")
    twin = network()
    er.load(twin, tmp_path / "ethanol.pt")
    relaxed = calculator(model)
    assert differ(relaxed, calculator(twin)) == 0
    with relaxation.strict():
        strict = calculator(model)
        author = network()
        author.load_state_dict(relaxation.strict_state_dict())
        assert differ(strict, calculator(author)) == 0
    assert differ(relaxed, calculator(author)) > 1e-3
    er.project(model)
    assert differ(calculator(model), calculator(author)) == 0


def test_a_relaxed_network_is_not_compiled_without_its_error(tmp_path: Path) -> None:
    model = network()
    er.relax(model)
    with pytest.raises(AuditError, match="report="):
        compile_network(model, tmp_path / "ethanol.nequip.pt2", frames(1)[0])
    er.project(model)
    with pytest.raises(ValueError, match=r"ethanol\.pt2.*\.nequip\.pt2"):
        compile_network(model, tmp_path / "ethanol.pt2", frames(1)[0])
    with pytest.raises(ValueError, match=r"lammps.*pair_nequip"):
        compile_network(model, tmp_path / "ethanol.nequip.pt2", frames(1)[0], target="lammps")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_relaxed_network_is_compiled(tmp_path: Path) -> None:
    """The file holds the residuals and the model card; NequIP's own calculator loads it."""
    from nequip.ase import NequIPCalculator

    model = network()
    trained(er.relax(model))
    own = calculator(model)
    report = audited(model, own.atoms_to_data(frames(1)[0]), deployed="relaxed")
    path = tmp_path / "ethanol.nequip.pt2"
    with contextlib.chdir(tmp_path):
        compile_network(model, path, frames(1)[0], report=report)
    assert next(model.parameters()).requires_grad
    compiled = NequIPCalculator.from_compiled_model(path, "cpu", chemical_species_to_atom_type_map=True)
    assert differ(own, compiled) < 1e-12
    assert torch._inductor.aoti_load_package(str(path)).get_metadata()[CARD] == card(report)
    assert float(card(report).split("relative equivariance error | ")[1].split()[0]) > 1e-3
