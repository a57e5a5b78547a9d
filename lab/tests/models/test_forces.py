"""Forces: the exact gradient of the energy, strict, relaxed and projected; smooth; equivariant."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from e3nn import o3
from equirelax_lab.models import AtomTransformer, ConservativeForces
from molecule_inputs import NETWORKS, SIZES, molecules
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import NonFiniteError, RepresentationError
from equirelax.symmetry import E, On, positions, trivial, vector
from equirelax.testing import ModelConformance

Build = Callable[..., Any]


class _Conformance(ModelConformance):
    network = NETWORKS[0]

    def build(self) -> tuple[nn.Module, Any, Any, Any]:
        group = E(3)
        model = ConservativeForces(type(self).network())
        out_rep = (trivial(group, len(SIZES)), On(vector(group), -1))
        return model, molecules(), (None, positions(group), None), out_rep

    def permute(self, sample: Any, generator: torch.Generator) -> tuple[Any, Callable[[Tensor], Tensor]]:
        order = torch.randperm(len(sample[0]), generator=generator)

        def back(output: Tensor) -> Tensor:
            return output[order.argsort()] if output.dim() == 2 else output

        return tuple(entry[order] for entry in sample), back


class TestEquiformerForces(_Conformance):
    # shifts of all energies, and an odd function of them
    unused = ("energy_model.head.bias",)
    network = staticmethod(NETWORKS[0])


class TestSE3TransformerForces(_Conformance):
    network = staticmethod(NETWORKS[1])


def relaxed(build: Build) -> tuple[nn.Module, Any]:
    """A network of forces with perturbed residuals at gamma = 0.5."""
    model = ConservativeForces(build())
    relaxation = er.relax(model)
    with torch.no_grad():
        for parameter in relaxation.residual_parameters().values():
            parameter.normal_(std=0.05)
    relaxation.set_gamma(0.5)
    return model, relaxation


def rotation_error(model: nn.Module) -> tuple[float, float]:
    """Relative errors of energies and forces under a reflection with rotation, a translation and a permutation."""
    numbers, where, batch = molecules()
    g, order = -o3.rand_matrix(), torch.randperm(len(numbers))
    energies, forces = model(numbers, where, batch)
    moved = model(numbers[order], (where @ g.t() + torch.tensor([1.0, 2.0, -3.0]))[order], batch[order])
    return (
        float(((moved[0] - energies).norm() / energies.norm()).detach()),
        float(((moved[1] - (forces @ g.t())[order]).norm() / forces.norm()).detach()),
    )


@pytest.mark.parametrize("build", NETWORKS)
@pytest.mark.parametrize("mode", ["drop", "fold"])
def test_equivariant_before_relaxing_and_after_projecting(build: Build, mode: str) -> None:
    assert max(rotation_error(ConservativeForces(build()))) < 1e-9
    model, _ = relaxed(build)
    assert min(rotation_error(model)) > 1e-4
    er.project(model, mode=mode)
    assert max(rotation_error(model)) < 1e-9


def slope_by_differences(model: Any, direction: Tensor, step: float = 1e-4) -> float:
    """dE along a direction, by central differences of fourth order."""
    numbers, where, batch = molecules()

    def energy(t: float) -> Tensor:
        with torch.no_grad():
            total: Tensor = model.energy_model(numbers, where + t * step * direction, batch).sum()
        return total

    return float((8 * (energy(1) - energy(-1)) - (energy(2) - energy(-2))) / (12 * step))


@pytest.mark.parametrize("build", [*NETWORKS, lambda: AtomTransformer(8, 2, 2)])
@pytest.mark.parametrize("state", ["strict", "relaxed", "projected"])
def test_forces_are_differences_of_the_energy(build: Build, state: str) -> None:
    if state == "strict" or build not in NETWORKS:
        model: nn.Module = ConservativeForces(build())
    else:
        model, _ = relaxed(build)
    if state == "projected" and build in NETWORKS:
        er.project(model)
    direction = torch.randn(sum(SIZES), 3)
    _, forces = model(*molecules())
    along = -float((forces * direction).sum().detach())
    assert abs(along) > 1e-3
    assert slope_by_differences(model, direction) == pytest.approx(along, rel=1e-7)


@pytest.mark.parametrize("build", NETWORKS)
@pytest.mark.parametrize("state", ["strict", "relaxed"])
def test_no_work_along_a_loop(build: Build, state: str) -> None:
    whole = functools.partial(build, cutoff=8.0)  # no neighbour crosses it: smooth in t
    model: nn.Module = ConservativeForces(whole()) if state == "strict" else relaxed(whole)[0]
    numbers, where, batch = molecules(sizes=(5,))
    a, b = 0.1 * torch.randn(2, 5, 3)
    steps, work, total = 32, 0.0, 0.0
    for k in range(steps):  # the trapezoid rule is exact to rounding for smooth periodic functions
        t = torch.tensor(2 * torch.pi * k / steps)
        with torch.no_grad():
            _, forces = model(numbers, where + a * t.cos() + b * t.sin(), batch)
        power = float((forces * (b * t.cos() - a * t.sin())).sum())
        work, total = work + power, total + abs(power)
    assert total > 1e-2
    assert abs(work) < 1e-9 * total


@pytest.mark.parametrize("build", NETWORKS)
def test_training_differentiates_forces(build: Build) -> None:
    """Gradients of a loss of the forces, by differences in one weight; for a relaxed network, in a residual's too."""
    model, relaxation = relaxed(build)
    inputs = molecules()

    def loss() -> Tensor:
        energies, forces = model(*inputs)
        return energies.square().mean() + 80 * forces.square().mean()

    loss().backward()
    chosen = [p for n, p in model.named_parameters() if n.endswith("radial.weights.0")][:1]
    chosen += list(relaxation.residual_parameters().values())[2:4]
    for parameter in chosen:
        assert parameter.grad is not None
        where = int(parameter.grad.abs().argmax())
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.view(-1)[where] += step
            values.append(float(loss().detach()))
            with torch.no_grad():
                parameter.view(-1)[where] -= step
        slope = float(parameter.grad.flatten()[where])
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("build", NETWORKS)
def test_second_derivatives_by_autograd(build: Build) -> None:
    numbers, where, batch = molecules(sizes=(3, 1))
    model = ConservativeForces(build(hidden="4x0e+2x1o+2x2e", blocks=1) if build is NETWORKS[0] else build())
    assert torch.autograd.gradcheck(lambda x: model(numbers, x, batch)[1], where.requires_grad_())


def test_modes_of_autograd() -> None:
    model = ConservativeForces(NETWORKS[0]())
    inputs = molecules()
    energies, forces = model(*inputs)
    assert energies.requires_grad
    assert forces.requires_grad
    assert not inputs[1].requires_grad
    with torch.no_grad():
        quiet = model(*inputs)
    with torch.inference_mode():
        inferred = model(*(x.clone() for x in inputs))
    for found in (quiet, inferred):
        assert not found[0].requires_grad
        assert not found[1].requires_grad
        torch.testing.assert_close(found, (energies.detach(), forces.detach()))
    # positions that are functions of something keep their history
    scale = torch.ones((), requires_grad=True)
    model(inputs[0], scale * inputs[1], inputs[2])[0].sum().backward()
    radial = -(forces * inputs[1]).sum().detach()
    torch.testing.assert_close(scale.grad, radial)


@pytest.mark.parametrize("build", NETWORKS)
def test_smooth_where_a_neighbour_passes_the_cutoff(build: Build) -> None:
    """Energies, forces and their slopes of a pair just inside and just outside: differences vanish with the distance."""
    model = ConservativeForces(build(cutoff=2.0))
    numbers, batch = torch.tensor([6, 8]), torch.zeros(2, dtype=torch.long)

    def state(r: float) -> Tensor:
        where = torch.tensor([[0.0, 0.0, 0.0], [r, 0.0, 0.0]], requires_grad=True)
        energies, forces = model(numbers, where, batch)
        (slope,) = torch.autograd.grad(forces[1, 0], where, allow_unused=True, materialize_grads=True)
        return torch.cat([energies, forces[1], slope[1]]).detach()

    outside = state(2.0 + 1e-9)
    assert bool((state(1.9) - outside).abs().max() > 1e-4)
    for gap in (1e-4, 1e-6):
        assert float((state(2.0 - gap) - outside).abs().max()) < 2e3 * gap
    assert bool(torch.isfinite(state(2.0)).all())
    assert float(outside[1:].abs().max()) == 0


@pytest.mark.parametrize("build", [*NETWORKS, lambda: AtomTransformer(8, 2, 2)])
def test_atoms_alone_and_no_atoms(build: Build) -> None:
    model = ConservativeForces(build())
    numbers, batch = torch.tensor([6, 1, 8]), torch.tensor([0, 0, 2])  # no atom is of molecule 1
    where = torch.tensor([[0.0, 0.0, 0.0], [50.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    energies, forces = model(numbers, where, batch)
    assert energies.shape == (3,)
    assert energies[1] == 0
    alone = forces[2:] if isinstance(model.energy_model, AtomTransformer) else forces
    assert torch.equal(alone.detach(), torch.zeros_like(alone))
    energies.square().sum().backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    energies, forces = model(numbers[:0], where[:0], batch[:0])
    assert energies.shape == (0,)
    assert forces.shape == (0, 3)


@pytest.mark.parametrize("build", NETWORKS)
def test_a_molecule_does_not_see_the_others(build: Build) -> None:
    numbers, where, batch = molecules()
    model = ConservativeForces(build())
    energies, forces = model(numbers, where, batch)
    for k in range(len(SIZES)):
        mine = batch == k
        alone = model(numbers[mine], where[mine], torch.zeros_like(batch[mine]))
        torch.testing.assert_close(alone, (energies[k : k + 1], forces[mine]))


@pytest.mark.parametrize("build", NETWORKS)
def test_bad_input_is_named(build: Build) -> None:
    numbers, where, batch = molecules()
    model = ConservativeForces(build())
    with pytest.raises(RepresentationError, match=r"the elements \[17\]"):
        model(torch.where(torch.arange(len(numbers)) == 2, 17, numbers), where, batch)
    together = where.clone()
    together[2] = together[1]
    with pytest.raises(NonFiniteError, match="atoms 1 and 2 of one molecule are at the same place"):
        model(numbers, together, batch)
    # of different molecules they may be
    together = where.clone()
    together[4] = together[1]
    assert bool(torch.isfinite(model(numbers, together, batch)[1]).all())
    # a position that is no number shows, in its molecule alone
    broken = where.clone()
    broken[0, 1] = torch.nan
    energies, forces = model(numbers, broken, batch)
    assert torch.isnan(energies).tolist() == [True, False, False]
    assert bool(torch.isfinite(forces[batch > 0]).all())


@pytest.mark.parametrize("build", [*NETWORKS, lambda: AtomTransformer(8, 2, 2)])
def test_other_shapes_and_dtypes_are_refused(build: Build) -> None:
    numbers, where, batch = molecules()
    model = ConservativeForces(build())
    wrong = [
        (numbers, where[:, :2], batch),
        (numbers, where[:-1], batch),
        (numbers[:-1], where, batch),
        (numbers[:, None], where, batch),
        (numbers, where, batch[:-1]),
        (numbers.double(), where, batch),
        (numbers, where, batch.double()),
    ]
    for arguments in wrong:
        with pytest.raises(RepresentationError, match=r"expected atomic numbers \(n,\) long, positions"):
            model(*arguments)


class _Detached(nn.Module):
    """An energy that forgets where it came from."""

    def forward(self, numbers: Tensor, positions: Tensor, batch: Tensor) -> Tensor:
        return positions.detach().square().sum()[None]


def test_an_energy_without_a_gradient_is_named() -> None:
    with pytest.raises(RepresentationError, match="_Detached carry no gradient of the positions"):
        ConservativeForces(_Detached())(*molecules())


def test_members_of_a_stack_are_refused() -> None:
    """Autograd cannot be called within `torch.vmap`."""
    model = ConservativeForces(AtomTransformer())
    numbers, places, batch = molecules()
    parameters, buffers = torch.func.stack_module_state([model, model])

    def of(p: dict[str, Tensor], b: dict[str, Tensor]) -> Any:
        return torch.func.functional_call(model, (p, b), (numbers, places, batch))

    with pytest.raises(RepresentationError, match="one network at a time"):
        torch.vmap(of)(parameters, buffers)
