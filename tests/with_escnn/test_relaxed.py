"""Relaxed escnn networks: trained, projected, saved, copied, audited."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from escnn import nn as enn
from escnn_networks import OFF_THE_GRID, ON_THE_GRID, Network, draw, fill, network
from torch import Tensor, nn

import equirelax as er
from equirelax.auditing import audit
from equirelax.relaxation.layers import get_family
from equirelax.relaxation.regularizers import LieDerivative
from equirelax.symmetry import Cyclic, as_representation
from equirelax.symmetry.escnn import element_matrix
from equirelax.symmetry.kernels import maps_grid

SIZE = 7  # odd: turns and flips keep the pixel in the middle


def error(model: Network, x: Tensor) -> float:
    """Largest relative equivariance error over escnn's own elements that map the grid onto itself."""
    space = model.in_type.gspace
    fiber = space.fibergroup
    if fiber.continuous:
        quarter = (0, torch.pi / 2) if fiber.name == "O(2)" else torch.pi / 2
        elements = [fiber.element(quarter, "radians")]
    else:
        elements = list(fiber.elements)
    found = 0.0
    with torch.no_grad():
        for g in (element_matrix(space, e) for e in elements):
            if maps_grid(g):
                y, moved = model(x), model(as_representation(model.in_type).apply(g, x))
                expected = as_representation(model.out_type).apply(g, y)
                found = max(found, float((moved - expected).abs().max() / y.abs().max()))
    return found


def train(model: nn.Module, x: Tensor, steps: int = 3) -> er.ACE:
    method = er.ACE(er.relax(model), dual_lr=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(steps):
        y = model(x)
        loss = (y - torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype)).square().mean() + method.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.step()
    return method


@pytest.mark.parametrize("mode", ["drop", "fold"])
@pytest.mark.parametrize("space", ["C4", "D4", "flips", "C8", "SO(2)"])
def test_relaxed_trained_projected(space: str, mode: str) -> None:
    """Exactly equivariant again, in training and in evaluation mode; of C8 and SO(2) under turns by 90 degrees."""
    model, x = network(space), draw(4, 3, SIZE, SIZE)
    train(model, x)
    model.eval()
    assert error(model, x) > 1e-6
    er.project(model, mode=mode)
    assert error(model, x) < 1e-10
    evaluated = model(x)
    for layer in (model.first, model.second, model.last):
        layer.train()  # expands its kernel anew at every call
    assert torch.allclose(model(x), evaluated, rtol=0, atol=1e-10)


def test_without_exact_bases_an_error_of_single_precision_stays() -> None:
    """escnn samples its bases in float32: that is why `exact_bases` is there."""
    x = draw(4, 3, SIZE, SIZE)
    rough, exact = network("D4", exact=False).eval(), network("D4").eval()
    assert 1e-10 < error(rough, x) < 1e-5
    assert error(exact, x) < 1e-12
    assert torch.allclose(rough(x), exact(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("space", ON_THE_GRID)
def test_penalty_is_zero_for_the_layers_own_kernels(space: str) -> None:
    model = network(space)
    for _, residual in er.relax(model):
        kernel = model.get_submodule(residual.site.path).expand_parameters()[0].detach()
        assert residual.site.convolution is not None
        assert residual.site.convolution.symmetry.measures == "group difference"
        assert float(residual.site.convolution.symmetry.lie(kernel)) <= 1e-20 * float(kernel.square().sum())


@pytest.mark.parametrize("space", OFF_THE_GRID)
def test_off_the_grid_the_penalty_is_the_squared_distance_to_the_layers_basis(space: str) -> None:
    """Zero for every kernel that the layer can make; of another one what folding, which is tested apart, would lose."""
    model = network(space)
    for _, residual in er.relax(model):
        layer, convolution = model.get_submodule(residual.site.path), residual.site.convolution
        assert convolution is not None
        assert convolution.symmetry.measures == "distance to the basis"
        kernel = layer.expand_parameters()[0].detach()
        size = float(kernel.square().sum())
        assert size > 0
        assert float(convolution.symmetry.lie(kernel)) <= 1e-20 * size
        other = draw(*kernel.shape)
        folded = get_family("escnn-convolution", layer).fold(layer, residual.site, other, None).weight
        lost = float((other - folded).square().sum())
        assert lost > 0.1 * float(other.square().sum())
        assert float(convolution.symmetry.lie(other)) == pytest.approx(lost, rel=1e-10)


def test_penalties_need_no_inputs() -> None:
    relaxation = er.relax(network("C4"))
    penalty = LieDerivative(relaxation)
    with torch.no_grad():
        for parameter in relaxation.residual_parameters().values():
            parameter.normal_()
    assert float(penalty().detach()) > 0


@pytest.mark.parametrize(("saved", "loaded"), [(True, False), (False, True), (False, False)])
def test_save_and_load_between_training_and_evaluation(saved: bool, loaded: bool, tmp_path: Path) -> None:
    """escnn's keys differ between the two (escnn issue 1); the outputs must not."""
    model, x = network("C4"), draw(4, 3, SIZE, SIZE)
    train(model, x)
    model.train(saved)
    er.save(model, tmp_path / "model.pt")
    other = network("C4")
    fill(other, seed=5)
    other.train(not loaded).train(loaded)
    er.load(other, tmp_path / "model.pt")
    assert torch.equal(other.eval()(x), model.eval()(x))


@pytest.mark.parametrize("mode", [True, False])
def test_a_pretrained_strict_network_is_loaded_in_any_mode(mode: bool) -> None:
    pretrained, x = network("D4"), draw(2, 3, SIZE, SIZE)
    fill(pretrained, seed=3)
    state = {key: value.clone() for key, value in pretrained.train(not mode).train(mode).state_dict().items()}
    expected = pretrained.eval()(x)
    model = network("D4").eval()
    relaxation = er.relax(model)
    relaxation.load_strict(state)
    assert torch.allclose(model(x), expected, rtol=0, atol=1e-12)
    assert set(relaxation.strict_state_dict()) == set(network("D4").eval().state_dict())


def test_deepcopies_are_independent() -> None:
    model, x = network("D4"), draw(2, 3, SIZE, SIZE)
    train(model, x)
    twin = copy.deepcopy(model)
    expected = twin.eval()(x)
    er.project(model, mode="fold")
    assert torch.equal(twin(x), expected)
    assert len(er.relaxation_of(twin)) == 3


def test_strict_shows_what_dropping_gives() -> None:
    model, x = network("C4"), draw(2, 3, SIZE, SIZE)
    relaxation = train(model, x).relaxation
    model.eval()
    with relaxation.strict():
        strict = model(x)
    er.project(model)
    assert torch.equal(model(x), strict)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [8, 10])
def test_the_audit_names_the_layer_that_the_grid_breaks(size: int, training: bool) -> None:
    """A stride of 2 on an even size; nothing of what the audit computes is left in the model."""
    model = network("C4", stride=2).train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x, out = draw(2, 3, size, size), as_representation(model.out_type)
    report = audit(model, x, as_representation(model.in_type), out, samples=4, lie=False)
    assert report.relative > 1e-3
    assert "first break: second (R2Conv)" in str(report)
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_the_audit_of_a_float32_network_in_training_mode() -> None:
    """Its kernels are expanded in float64 for the audit, and are gone afterwards."""
    model = Network(network("C4").in_type.gspace)
    model.train(False).train(True)
    field = as_representation(model.in_type)
    report = audit(
        model, torch.randn(2, 3, 9, 9), field, as_representation(model.out_type), samples=4, lie=False
    )
    assert report.relative < 1e-5
    assert not hasattr(model.first, "filter")
    assert model(torch.randn(2, 3, 9, 9)).dtype == torch.float32


def test_fields_of_larger_groups_are_audited_by_the_turns_of_the_grid() -> None:
    model = network("C8")
    field, out = as_representation(model.in_type), as_representation(model.out_type)
    report = audit(model, draw(2, 3, SIZE, SIZE), field, out, group=Cyclic(4), lie=False)
    assert report.relative < 1e-12


def test_geometric_tensors_are_audited_as_they_are() -> None:
    model = network("D4")
    sample = enn.GeometricTensor(draw(2, 3, SIZE, SIZE), model.in_type)
    field, out = as_representation(model.in_type), as_representation(model.first.out_type)
    report = audit(model.first, sample, field, out, samples=4, lie=False)
    assert report.relative < 1e-12
