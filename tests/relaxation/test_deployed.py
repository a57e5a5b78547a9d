"""Networks that are deployed relaxed: pruned, exported, saved with their method; and what old files still give."""

from __future__ import annotations

import copy

import pytest
import stream_toys
import torch
from handle_toys import DECLARED, Pair, Part, X, both_relaxed, fill, linear, nothing_left
from torch import nn

import equirelax as er
from equirelax.errors import CheckpointError, MethodError, PlacementError, RelaxationStateError
from equirelax.relaxation import read_strict

pytestmark = pytest.mark.usefixtures("float64")


def test_pruning_removes_what_has_no_strength():
    model, relaxation, author = both_relaxed()
    for gamma, (_, residual) in zip((0.5, -1e-4, 0.0, -0.3), relaxation, strict=True):
        residual.set_gamma(gamma)
    twin = copy.deepcopy(model)
    er.relaxation_of(twin)["enc.b"].set_gamma(0.0)
    report = relaxation.prune(1e-3)
    assert [(r.key, r.gamma) for r in report.residuals] == [("enc.b", pytest.approx(-1e-4)), ("dec.a", 0.0)]
    assert list(relaxation.residuals) == ["enc.a", "dec.b"]
    assert torch.equal(model(X), twin(X))
    assert nothing_left(model.enc.b)
    assert not any("enc.b.equirelax" in key for key in model.state_dict())
    relaxation.set_gamma(0.0)
    relaxation.prune()
    assert nothing_left(model)
    assert list(model.state_dict()) == list(author.state_dict())
    with pytest.raises(PlacementError, match="threshold is -1"):
        relaxation.prune(-1)


def test_a_pruned_network_is_saved_and_loaded(tmp_path):
    model, relaxation, _ = both_relaxed()
    relaxation["dec.a"].set_gamma(0.0)
    relaxation.prune()
    er.save(model, tmp_path / "model.pt")
    twin = Pair()
    assert list(er.load(twin, tmp_path / "model.pt").residuals) == ["enc.a", "enc.b", "dec.b"]
    assert torch.equal(twin(X), model(X))
    er.project(twin)
    assert nothing_left(twin)


def test_a_stream_keeps_the_steps_that_a_later_residual_needs(tmp_path):
    model, relaxation = stream_toys.relaxed()
    sample, keys = stream_toys.atoms(n=9), list(relaxation.residuals)
    model.eval()
    for gamma, (_, residual) in zip((0.0, 0.5, 0.0), relaxation, strict=True):
        residual.set_gamma(gamma)
    expected = model(*sample)
    assert [r.key for r in relaxation.prune().residuals] == keys[2:]
    assert torch.equal(model(*sample), expected)
    relaxation[keys[1]].set_gamma(0.0)
    assert [r.key for r in relaxation.prune().residuals] == keys[:2]
    assert nothing_left(model)


@pytest.mark.parametrize("strict", [True, False])
def test_a_relaxed_network_is_exported(strict, tmp_path):
    model, relaxation, _ = both_relaxed()
    method = er.ResilientACE(relaxation, primal_lr=0.01, dual_lr=0.1)
    relaxation.set_gamma(0.4)
    ((model(X) - 1).square().sum() + method.penalty()).backward()
    model.eval()
    expected = model(X)
    exported = torch.export.export(model, (X,), strict=strict)
    torch.testing.assert_close(exported.module()(X), expected, rtol=1e-13, atol=1e-13)
    torch.export.save(exported, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(again(X), expected, rtol=1e-13, atol=1e-13)


def train(model, method, optimizer, steps: int) -> None:
    for _ in range(steps):
        loss = (model(X) - 1).square().mean() + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.step()


def test_a_method_travels_with_its_model(tmp_path):
    author = Pair()

    def build():
        model = copy.deepcopy(author)
        method = er.ACE(er.relax(model, DECLARED, generator=torch.Generator().manual_seed(0)), dual_lr=0.3)
        return model, method, torch.optim.SGD(model.parameters(), lr=0.01)

    whole, method, optimizer = build()
    train(whole, method, optimizer, 5)
    er.save(whole, tmp_path / "model.pt", method=method)
    train(whole, method, optimizer, 3)
    again, other, optimizer = build()
    er.load(again, tmp_path / "model.pt", method=other)
    train(again, other, optimizer, 3)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
    )
    with pytest.raises(CheckpointError, match="other residuals"):
        er.load(again, tmp_path / "model.pt", method=method)
    with pytest.raises(CheckpointError, match="other residuals"):
        er.save(again, tmp_path / "other.pt", method=method)
    model = copy.deepcopy(author)
    er.load(model, tmp_path / "model.pt")  # without the method, for deployment
    with pytest.raises(MethodError):
        er.load(model, tmp_path / "model.pt", method=er.Scheduled(er.relaxation_of(model), total_steps=4))


def test_a_file_without_a_methods_state_says_so(tmp_path):
    model = Part()
    relaxation = er.relax(model, DECLARED)
    er.save(model, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="saved without method="):
        er.load(model, tmp_path / "model.pt", method=er.ACE(relaxation, dual_lr=0.3))


def test_a_relaxed_model_of_other_residuals_is_left_as_it_was(tmp_path):
    model = Pair()
    fill(er.relax(model, DECLARED))
    er.save(model, tmp_path / "model.pt")
    other = Pair()
    fill(er.relax(other.enc, DECLARED))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"dec\.a"):
        er.load(other, tmp_path / "model.pt")
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_of_files_of_0_1_the_strict_weights_are_read(tmp_path):
    author = Part()
    residual = {f"a.equirelax_residual.{name}": torch.ones(()) for name in ("gamma", "map.weight")}
    old = {
        "format": "equirelax-relaxed-model-1",
        "placement": {"kind": "layers"},
        "learnt": [],
        "enabled": {"a": True},
        "model": {**author.state_dict(), **residual},
    }
    torch.save(old, tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match=r"0\.1.*read_strict"):
        er.load(Part(), tmp_path / "old.pt")
    twin = Part()
    twin.load_state_dict(read_strict(tmp_path / "old.pt"))
    assert torch.equal(twin(X), author(X))
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="format is None"):
        read_strict(tmp_path / "other.pt")
    relaxed = fill(er.relax(twin, DECLARED))
    er.save(relaxed, tmp_path / "new.pt")
    assert list(read_strict(tmp_path / "new.pt")) == list(author.state_dict())


def test_a_relaxed_network_is_not_scripted_and_a_projected_copy_is():
    author = nn.Sequential(linear(), linear())
    model = copy.deepcopy(author)
    fill(er.relax(model, DECLARED))
    with pytest.raises(RelaxationStateError, match=r"^0: .*torch\.export"):
        torch.jit.script(model)
    twin = copy.deepcopy(model)
    er.project(twin)
    assert torch.equal(torch.jit.script(twin)(X), author(X))


def test_a_network_that_keeps_the_code_of_its_first_call_is_refused():
    """As NequIP's CompileGraphModel does, which says so by an attribute."""
    model = Pair()
    model.enc.is_compile_graph_model = True
    with pytest.raises(RelaxationStateError, match="compile_mode"):
        er.relax(model, DECLARED)
    assert nothing_left(model)
