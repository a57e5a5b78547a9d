"""Models whose modules are rearranged, compiled or scripted in part, and relaxing that fails half-way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from handle_toys import nothing_left
from torch import nn

import equirelax as er
from equirelax.errors import CheckpointError, PlacementError, RelaxationStateError
from equirelax.relaxation import Adds, AheadSite, Blocks, Placed, Placement, Reads, Survey
from equirelax.relaxation.kinds import EquivariantDense
from equirelax.symmetry import O, vector

X = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


pytestmark = pytest.mark.usefixtures("float64")


class Vectors(nn.Module):
    channel_axis, vector_axis = -2, -1

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels) / channels**0.5)

    def forward(self, x):
        return self.weight @ x


def relaxed(count: int) -> tuple[nn.Sequential, er.Relaxation]:
    model = nn.Sequential(*(Vectors() for _ in range(count)))
    relaxation = er.relax(model, residual=EquivariantDense("normal", std=0.3))
    relaxation.set_gamma(1.0)
    return model, relaxation


def test_a_layer_is_taken_out_of_a_relaxed_sequential(tmp_path):
    model, relaxation = relaxed(3)
    residuals = list(relaxation.residuals.values())
    del model[0]
    before = model(X)
    again = er.relaxation_of(model)
    assert list(again.residuals.items()) == [("0", residuals[1]), ("1", residuals[2])]
    assert [again.module(key) for key in again.residuals] == list(model)
    check_saved(model, nn.Sequential(Vectors(), Vectors()), tmp_path / "model.pt")
    er.project(model, mode="fold")
    assert nothing_left(model)
    torch.testing.assert_close(model(X), before)


def check_saved(model: nn.Module, twin: nn.Module, path: Path) -> None:
    """The file relaxes a model that is arranged alike, and fills it."""
    er.save(model, path)
    er.load(twin, path)
    assert torch.equal(twin(X), model(X))


def test_a_residual_whose_module_stands_where_the_placement_chooses_none_is_not_saved(tmp_path):
    class Two(nn.Module):
        def __init__(self, own: nn.Module) -> None:
            super().__init__()
            self.own, self.beside = own, nn.Linear(3, 3)

    model, rep = nn.Sequential(nn.Linear(3, 3, bias=False)), vector(O(3))
    er.relax(model, er.Layers(declare=er.Linear("?", rep, rep)))
    model[0] = Two(model[0])
    with pytest.raises(CheckpointError, match=r"^0\.own: .*'0'"):
        er.save(model, tmp_path / "model.pt")
    er.project(model)
    assert nothing_left(model)


def test_a_layer_is_put_in_front_of_a_relaxed_one_and_what_is_folded_stays_with_it(tmp_path):
    model, _ = relaxed(2)
    model.insert(0, Vectors())
    before = model(X)
    assert list(er.relaxation_of(model).residuals) == ["1", "2"]
    check_saved(model, nn.Sequential(*(Vectors() for _ in range(3))), tmp_path / "model.pt")
    er.project(model, mode="fold")
    assert nothing_left(model)
    torch.testing.assert_close(model(X), before)


class Ahead(Placement):
    def survey(self, model: nn.Module) -> Survey:
        rep = vector(O(3))
        kind = er.Dense("normal", std=1.0)
        return Survey((Placed(AheadSite("1", rep, rep, adds_to="2"), kind),), {})


def test_a_residual_is_found_by_the_module_it_reads_and_not_by_the_one_it_is_added_to():
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
    er.relax(model, Ahead())
    del model[0]
    assert list(er.relaxation_of(model).residuals) == ["0"]
    er.project(model)
    assert nothing_left(model)


def test_two_residuals_of_one_module_are_refused():
    model, relaxation = relaxed(2)
    for module in model:
        module._forward_hooks.clear()  # nothing says any more what they relax
    del model[0].equirelax_residual
    model[0].first, model[0].second = relaxation["1"], model[1].equirelax_residual
    model[1] = nn.Identity()
    model[0].register_forward_hook(relaxation["1"].hook, with_kwargs=True)
    assert list(er.relaxation_of(model).residuals) == ["0"]
    model[0].second = relaxation["0"]
    model[0].register_forward_hook(relaxation["0"].hook, with_kwargs=True)
    with pytest.raises(RelaxationStateError, match="'0'"):
        er.relaxation_of(model)


def test_the_module_inside_a_compiled_one_is_relaxed_and_projected():
    model = nn.Sequential(torch.compile(Vectors(), backend="eager"), Vectors())
    keys, before = list(model.state_dict()), model[0]._orig_mod(X)
    relaxation = er.relax(model, residual=er.Dense("normal", std=1.0))
    assert list(relaxation.residuals) == ["0._orig_mod", "1"]
    relaxation.set_gamma(1.0)
    assert not torch.equal(model[0]._orig_mod(X), before)
    er.project(model)
    assert list(model.state_dict()) == keys
    assert torch.equal(model[0]._orig_mod(X), before)
    with pytest.raises(RelaxationStateError):
        er.relaxation_of(model)


def test_a_declared_compiled_module_is_projected():
    model = nn.Sequential(torch.compile(nn.Linear(3, 3, bias=False), backend="eager"))
    keys = list(model.state_dict())
    rep = vector(O(3))
    er.relax(model, er.Layers(declare=er.relaxation.Linear("0", rep, rep)))
    er.project(model)
    assert list(model.state_dict()) == keys
    assert nothing_left(model)


@pytest.mark.slow
def test_a_compiled_relaxed_module_keeps_its_key_and_is_folded_into():
    model, _ = relaxed(2)
    before = model(X)
    model[0] = torch.compile(model[0], backend="eager")
    assert list(er.relaxation_of(model).residuals) == ["0", "1"]
    er.project(model, mode="fold")
    assert nothing_left(model)
    torch.testing.assert_close(model(X), before)


class Scripted(Vectors):
    def __init__(self) -> None:
        super().__init__()
        self.channel_axis, self.vector_axis = -2, -1


def test_a_script_module_inside_is_skipped_and_refused_where_it_is_named():
    model = nn.Sequential(Vectors(), torch.jit.script(Scripted()))
    relaxation = er.relax(model)
    assert list(relaxation.residuals) == ["0"]
    row = next(row for row in relaxation.summary().rows if row.path == "1")
    assert (row.status, "script" in row.reason) == ("skipped", True)
    er.project(model)
    with pytest.raises(PlacementError, match="1"):
        er.relax(model, Blocks("?", Reads("x", "4x0e"), Adds(None, "4x0e")))
    assert nothing_left(model)


def test_a_placement_that_fails_half_way_leaves_the_model_as_it_was():
    model = nn.ModuleDict({"b": nn.ModuleList([nn.Sequential(nn.Linear(4, 4)), nn.Sequential()])})
    keys = list(model.state_dict())
    with pytest.raises(PlacementError):
        er.relax(model, Blocks("b.?", Reads("input", "4x0e"), Adds(None, "4x0e")))
    assert nothing_left(model)
    assert list(model.state_dict()) == keys
    assert len(er.relax(model, Blocks("b.0", Reads("input", "4x0e"), Adds(None, "4x0e")))) == 1


def test_nothing_waits_for_its_module_after_a_forward_that_raised():
    class Raising(nn.Module):
        def forward(self, x):
            raise ValueError

    model = nn.Sequential(nn.Identity(), nn.Linear(3, 3), nn.Sequential(Raising()))
    er.relax(model, Ahead()).set_gamma(1.0)
    model[1].register_forward_hook(lambda *_: Raising()(None))
    with pytest.raises(ValueError):
        model(X)
    with pytest.raises(RelaxationStateError, match="without 1"):
        model[2](X)
    er.project(model)
    assert not model._forward_hooks
