"""REMUL's E and E' over data: their definitions, batches, and the audit's own numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from equirelax.auditing import On, audit, label_free
from equirelax.errors import AuditError, NonFiniteError
from equirelax.symmetry import SO, Cyclic, E, positions, vector


class Skewed(nn.Module):
    """Nearly equivariant: (..., 3) -> (..., 3), with an anisotropy of 10 %."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.norm(dim=-1, keepdim=True) * torch.tensor([1.1, 1.0, 1.0], dtype=x.dtype)


def cloud(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_they_are_their_definitions() -> None:
    model, x, space = Skewed(), cloud(7, 3), vector(SO(3))
    found = label_free(model, [x], space, space, samples=5, seed=2)
    elements = SO(3).sample(5, generator=torch.Generator().manual_seed(2))
    e = e_prime = 0.0
    for row in x:
        gaps = [model(row @ g.T) - model(row) @ g.T for g in elements]
        e += float(torch.stack(gaps).mean(0).norm()) / 7
        e_prime += sum(float(gap.norm()) for gap in gaps) / 5 / 7
    assert found.e == pytest.approx(e, rel=1e-12)
    assert found.e_prime == pytest.approx(e_prime, rel=1e-12)
    assert found.size == pytest.approx(float(model(x).norm(dim=1).mean()), rel=1e-12)
    assert (found.rows, found.elements) == (7, 5)
    assert 0 < found.e <= found.e_prime
    assert 0.02 < found.relative < 0.2


def test_they_are_those_of_the_audit() -> None:
    x, space = cloud(6, 4, 3), vector(SO(3))
    report = audit(Skewed(), x, space, space, samples=9, seed=3, lie=False, per_layer=False)
    found = label_free(Skewed(), [x], space, space, samples=9, seed=3)
    # a row is an entry of the first axis in both
    assert found.e == pytest.approx(report.before.e, rel=1e-12)
    assert found.e_prime == pytest.approx(report.before.e_prime, rel=1e-12)


def test_batches_of_any_sizes_are_one_data_set() -> None:
    x, space = cloud(9, 3), vector(SO(3))
    whole = label_free(Skewed(), [x], space, space)
    parts = label_free(Skewed(), iter((x[:2], x[2:3], x[3:])), space, space)
    assert parts.rows == whole.rows
    for name in ("e", "e_prime", "size"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-12)


def test_invariants_other_axes_subgroups_and_affine_actions() -> None:
    space = vector(SO(3))
    assert label_free(lambda x: x.norm(dim=-1), [cloud(4, 3)], space, None).e_prime < 1e-14
    lengths = label_free(lambda x: x.norm(dim=1), [cloud(4, 3, 5)], On(space, 1), None)
    assert lengths.e_prime < 1e-14
    assert lengths.size > 0
    place = positions(E(3))
    centre = label_free(lambda x: x - x.mean(0), [cloud(4, 3)], place, vector(E(3)))
    assert centre.e_prime < 1e-14
    quarter = label_free(lambda x: x.abs(), [cloud(4, 2)], vector(Cyclic(4)), None, samples=3)
    assert quarter.e_prime > 0.1
    stretched = label_free(Skewed(), [cloud(4, 3)], space, space, SO(3))
    assert stretched.e_prime > 0.01


def test_the_model_comes_back_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = label_free(model, [cloud(5, 3).float()], vector(SO(3)), None)
    assert found.e_prime > 0
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model[0].weight.dtype == torch.float32
    assert torch.equal(state, torch.get_rng_state())


def test_what_cannot_be_measured_is_refused() -> None:
    space = vector(SO(3))
    with pytest.raises(AuditError, match="at least one group element"):
        label_free(Skewed(), [cloud(2, 3)], space, space, samples=0)
    with pytest.raises(AuditError, match="no batch"):
        label_free(Skewed(), [], space, space)
    with pytest.raises(AuditError, match="nothing transforms"):
        label_free(Skewed(), [cloud(2, 3)], None, None)
    with pytest.raises(AuditError, match="2 floating tensors"):
        label_free(lambda x: (x, x), [cloud(2, 3)], space, (space, space))
    with pytest.raises(AuditError, match="first axis"):
        label_free(lambda x: x.norm(), [cloud(2, 3)], space, None)
    with pytest.raises(NonFiniteError):
        label_free(lambda x: x / 0, [cloud(2, 3)], space, space)
