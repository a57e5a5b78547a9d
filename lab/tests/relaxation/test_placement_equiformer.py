"""CR's residuals on the Equiformer: what they read, that forces stay exact, and the way there and back."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from equirelax_lab.models import ConservativeForces
from equirelax_lab.placements import EquiformerBlocks
from molecule_inputs import equiformer, molecules
from torch import Tensor, nn
from torch.autograd import gradcheck

import equirelax as er
from equirelax.errors import PlacementError, RelaxationStateError, RepresentationError
from equirelax.relaxation import MLP, Residual
from equirelax.relaxation.placements import get

PLACEMENTS = ("equiformer", "layers")


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def relaxed(placement: str = "equiformer", gamma: float = 0.5) -> tuple[ConservativeForces, er.Relaxation]:
    """Energies and forces, with residuals that do something."""
    model = ConservativeForces(equiformer())
    relaxation = er.relax(model, placement)
    for parameter in relaxation.residual_parameters().values():
        nn.init.normal_(parameter, std=0.2)
    relaxation.set_gamma(gamma)
    return model, relaxation


def rotation(seed: int = 0, sign: float = 1.0) -> Tensor:
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)))[0]
    return sign * q * torch.det(q)


def error(model: nn.Module, turn: Tensor, shift: float = 0.0) -> float:
    """Largest difference of energies and turned forces, relative to their sizes."""
    numbers, where, batch = molecules()
    energies, forces = model(numbers, where, batch)
    moved = model(numbers, where @ turn.T + shift, batch)
    pairs = ((moved[0], energies), (moved[1], forces @ turn.T))
    return max(float((a - b).detach().abs().max() / b.detach().abs().max()) for a, b in pairs)


def test_the_summary_says_what_is_relaxed() -> None:
    model = ConservativeForces(equiformer())
    relaxation = er.relax(model, "equiformer")
    assert [key for key, _ in relaxation] == ["energy_model.blocks.0.ffn", "energy_model.blocks.1.ffn"]
    text = str(relaxation.summary())
    assert "O(3)" in text
    hidden = model.energy_model.hidden_irreps.dim
    for _, residual in relaxation:
        assert (residual.in_rep.dim, residual.out_rep.dim) == (hidden + 1 + 3, hidden)
        assert [layer.out_features for layer in residual.map.layers] == [hidden, hidden]  # type: ignore[union-attr]


def test_every_linear_map_has_a_residual_in_the_second_placement() -> None:
    from e3nn import o3

    model = ConservativeForces(equiformer())
    linear = {path for path, module in model.named_modules() if isinstance(module, o3.Linear)}
    relaxation = er.relax(model)
    invariant = {"energy_model.embedding", "energy_model.head"}  # from invariants to invariants
    assert {key for key, _ in relaxation} == linear - invariant
    assert len(linear) == 2 * 7 + 4


def test_the_output_starts_at_a_hundredth() -> None:
    torch.manual_seed(3)
    plain = MLP(layers=2)
    built = [
        dataclasses.replace(plain, scale=scale).build(
            er.symmetry.from_irreps("6x0e"),
            er.symmetry.from_irreps("4x0e"),
            -1,
            torch.Generator().manual_seed(5),
        )
        for scale in (1.0, 0.01)
    ]
    x = torch.randn(9, 6)
    torch.testing.assert_close(built[1](x), 0.01 * built[0](x))
    assert float(built[0](x).abs().max()) > 0.05
    assert get("equiformer").residual.scale == 0.01  # type: ignore[attr-defined]


def test_residuals_read_features_attributes_and_centred_positions() -> None:
    model, relaxation = relaxed()
    numbers, where, batch = molecules()
    seen: dict[str, tuple[Tensor, ...]] = {}
    for i, block in enumerate(model.energy_model.blocks):
        block.ffn.register_forward_pre_hook(
            lambda _, args, key=f"energy_model.blocks.{i}.ffn": seen.__setitem__(key, args)
        )
    for _, residual in relaxation:
        residual.keep_inputs = True
    model(numbers, where, batch)
    means = torch.stack([where[batch == b].mean(0) for b in range(3)])[batch]
    for key, residual in relaxation:
        (kept,) = residual.take_inputs()
        torch.testing.assert_close(kept, torch.cat([*seen[key], where - means], -1).detach())


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_relaxed_breaks_rotations_keeps_translations_and_permutations_projected_breaks_nothing(
    placement: str,
) -> None:
    model, _relaxation = relaxed(placement)
    assert error(model, rotation()) > 1e-3
    assert error(model, torch.eye(3), shift=2.0) < 1e-9
    numbers, where, batch = molecules()
    energies, forces = model(numbers, where, batch)
    order = torch.randperm(len(numbers))
    again = model(numbers[order], where[order], batch[order])
    torch.testing.assert_close(again, (energies, forces[order]), rtol=1e-9, atol=1e-9)
    er.project(model, mode="drop")
    for sign in (1.0, -1.0):
        assert error(model, rotation(sign=sign)) < 1e-9
    fresh = ConservativeForces(equiformer())
    assert model.state_dict().keys() == fresh.state_dict().keys()
    torch.testing.assert_close(model(numbers, where, batch), fresh(numbers, where, batch))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("project", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_forces_are_the_exact_gradient_and_do_no_work_on_a_loop(placement: str, project: bool) -> None:
    model, _relaxation = relaxed(placement)
    if project:
        er.project(model, mode="drop")
    model.eval()
    numbers, where, batch = molecules()
    with torch.no_grad():
        _, forces = model(numbers, where, batch)
        direction = torch.randn_like(where)
        energy = [model(numbers, where + s * direction, batch)[0].sum() for s in (1e-5, -1e-5)]
        slope = (energy[0] - energy[1]) / 2e-5
        torch.testing.assert_close((forces * direction).sum(), -slope, rtol=1e-6, atol=1e-8)
        # a closed loop by the rectangle rule, which converges faster than any power for periodic integrands
        other, work, steps = torch.randn_like(where), 0.0, 24
        for k in range(steps):
            angle = torch.tensor(2 * torch.pi * k / steps)
            place = where + 0.02 * (angle.cos() * direction + angle.sin() * other)
            velocity = 0.02 * (angle.cos() * other - angle.sin() * direction)
            work += float((model(numbers, place, batch)[1] * velocity).sum()) * 2 * torch.pi / steps
        size = 0.02 * 2 * torch.pi * float(forces.norm())
        assert abs(work) < 1e-6 * size


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_loss_of_forces_trains_the_residuals_right(placement: str) -> None:
    model, relaxation = relaxed(placement)
    inputs = molecules(sizes=(3,))
    residual = next(iter(relaxation))[1]
    parameter = next(residual.map.parameters())

    def loss(change: Tensor) -> Tensor:
        state = {"weight": parameter + change * torch.linspace(-1, 1, parameter.numel()).view_as(parameter)}
        name = next(n for n, p in model.named_parameters() if p is parameter)
        forces = torch.func.functional_call(model, {name: state["weight"]}, inputs)[1]
        return forces.square().mean()

    assert gradcheck(loss, torch.zeros((), requires_grad=True))


def test_copies_and_pickles_capture_for_themselves() -> None:
    model, _ = relaxed()
    inputs = molecules()
    expected = model(*inputs)
    copied, restored = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    er.relaxation_of(model).set_gamma(0.0)
    for twin in (copied, restored):
        torch.testing.assert_close(twin(*inputs), expected)
        captures = {id(r.shared) for r in twin.modules() if isinstance(r, Residual)}  # type: ignore[attr-defined]
        assert len(captures) == 1
        assert next(r for r in twin.modules() if isinstance(r, Residual)).shared.value is None  # type: ignore[attr-defined]


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, _ = relaxed()
    er.save(model, tmp_path / "relaxed.pt")
    fresh = ConservativeForces(equiformer())
    er.load(fresh, tmp_path / "relaxed.pt")
    torch.testing.assert_close(fresh(*molecules()), model(*molecules()))


def test_no_hook_is_left_after_projection_and_none_of_a_forward_that_failed() -> None:
    model, relaxation = relaxed()
    numbers, where, batch = molecules()
    with pytest.raises(RepresentationError, match="99"):
        model(torch.full_like(numbers, 99), where, batch)
    residual = next(iter(relaxation))[1]
    assert residual.shared.value is None  # type: ignore[attr-defined]
    er.project(model, mode="drop")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_pruned_residuals_leave_the_capture_to_the_others() -> None:
    author = ConservativeForces(equiformer())
    model = copy.deepcopy(author)
    relaxation = er.relax(model, "equiformer")
    for parameter in relaxation.residual_parameters().values():
        nn.init.normal_(parameter, std=0.2)
    relaxation.set_gamma(0.5)
    first, *others = relaxation.residuals
    relaxation[first].set_gamma(0.0)
    inputs = molecules()
    expected = model(*inputs)
    assert [r.key for r in relaxation.prune().residuals] == [first]
    assert list(relaxation.residuals) == others
    assert all(torch.equal(a, b) for a, b in zip(model(*inputs), expected, strict=True))
    with relaxation.strict():
        assert all(torch.equal(a, b) for a, b in zip(model(*inputs), author(*inputs), strict=True))
    with pytest.raises(RelaxationStateError, match="project the whole"):
        er.project(model.energy_model.blocks)
    relaxation.set_gamma(0.0)
    relaxation.prune()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_block_alone_says_what_it_lacks() -> None:
    model, relaxation = relaxed()
    x = torch.randn(4, model.energy_model.hidden_irreps.dim)
    with pytest.raises(RelaxationStateError, match="call the whole model"):
        model.energy_model.blocks[0].ffn(x, torch.ones(4, 1))
    with relaxation.strict():
        assert model.energy_model.blocks[0].ffn(x, torch.ones(4, 1)).shape == x.shape


def test_other_networks_are_refused() -> None:
    with pytest.raises(PlacementError, match="holds 0 modules"):
        er.relax(nn.Linear(3, 3), "equiformer")
    with pytest.raises(PlacementError, match="holds 2 modules"):
        er.relax(nn.ModuleList([equiformer(), equiformer()]), "equiformer")
    with pytest.raises(PlacementError, match=r"no module at 'layers\.\*'"):
        er.relax(equiformer(), EquiformerBlocks(pattern="layers.*"))
