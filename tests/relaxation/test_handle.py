"""One handle for what is there: parts relaxed one by one, modules under several names, looking from inside and outside."""

from __future__ import annotations

import copy
import threading

import pytest
import stream_toys
import torch
from handle_toys import DECLARED, VECTORS, Pair, Part, X, both_relaxed, fill, linear, nothing_left
from torch import nn

import equirelax as er
from equirelax.auditing import breaking
from equirelax.errors import CheckpointError, RelaxationStateError
from equirelax.relaxation import Linear

pytestmark = pytest.mark.usefixtures("float64")


NAMES = [("a", "b"), ("c", "d")]


@pytest.mark.parametrize("other", NAMES)
def test_m2_a_handle_holds_the_residuals_of_all_parts(other):
    model, relaxation, author = both_relaxed(other)
    assert list(relaxation.residuals) == ["enc.a", "enc.b", f"dec.{other[0]}", f"dec.{other[1]}"]
    assert list(relaxation.placements) == ["enc", "dec"]
    with relaxation.strict():
        assert torch.equal(model(X), author(X))
    assert not torch.equal(model(X), author(X))
    assert list(relaxation.strict_state_dict()) == list(author.state_dict())
    relaxation.load_strict(Pair(other).state_dict())
    relaxation.load_strict(author.state_dict())
    rows = {row.path: row.status for row in relaxation.summary().rows}
    assert [key for key, status in rows.items() if status == "relaxed"] == list(relaxation.residuals)
    assert relaxation.module("enc.b") is model.enc.b
    assert relaxation.path(f"dec.{other[1]}") == f"dec.{other[1]}"


@pytest.mark.parametrize("mode", ["drop", "fold"])
@pytest.mark.parametrize("other", NAMES)
def test_m2_projecting_the_whole_leaves_nothing_in_any_part(other, mode):
    model, relaxation, author = both_relaxed(other)
    traces = {key: residual.map.weight.detach().trace() / 3 for key, residual in relaxation}
    report = er.project(model, mode)
    assert [r.key for r in report.residuals] == list(traces)
    assert nothing_left(model)
    assert list(model.state_dict()) == list(author.state_dict())
    for key, weight in author.state_dict().items():
        path = key.removesuffix(".weight")
        added = 0.7 * traces[path] * torch.eye(3) if mode == "fold" else 0
        torch.testing.assert_close(model.state_dict()[key], weight + added, rtol=1e-13, atol=1e-13)
    with pytest.raises(RelaxationStateError):
        er.relaxation_of(model)
    er.relax(model, DECLARED)  # may be relaxed anew, as a whole


@pytest.mark.parametrize("other", NAMES)
def test_m2_an_audit_takes_all_residuals_off_for_the_strict_error(other):
    model, _, _ = both_relaxed(other)
    report = er.audit(model, X, VECTORS, VECTORS)
    assert report.before.relative > 1e-3
    assert report.after is not None
    assert report.after.relative < 1e-12
    assert [found.key for found in breaking(er.relaxation_of(model), X, VECTORS, VECTORS)] == [
        "enc.a", "enc.b", f"dec.{other[0]}", f"dec.{other[1]}",
    ]  # fmt: skip


@pytest.mark.parametrize("other", NAMES)
def test_m2_saved_and_loaded_with_the_placements_of_all_parts(other, tmp_path):
    model, relaxation, _ = both_relaxed(other)
    relaxation["enc.b"].learn_gamma(0.2)
    er.save(model, tmp_path / "model.pt")
    twin = Pair(other)
    loaded = er.load(twin, tmp_path / "model.pt")
    assert torch.equal(twin(X), model(X))
    assert list(loaded.residuals) == list(relaxation.residuals)
    assert loaded.placements == relaxation.placements
    assert [residual.is_learnt for _, residual in loaded] == [False, True, False, False]


def test_n4_saving_a_model_of_which_a_part_is_relaxed_writes_all_of_it(tmp_path):
    model = Pair()
    fill(er.relax(model.enc, DECLARED))
    er.save(model, tmp_path / "model.pt")
    twin = Pair()
    er.load(twin, tmp_path / "model.pt")
    assert torch.equal(twin(X), model(X))
    assert list(er.relaxation_of(twin).residuals) == ["enc.a", "enc.b"]
    summary = er.relaxation_of(twin).summary()
    assert next(row for row in summary.rows if row.path == "dec.a").status == "skipped"


def test_relaxing_around_a_relaxed_part_is_refused_and_its_other_parts_may_be_relaxed():
    model = Pair()
    er.relax(model.enc, DECLARED)
    with pytest.raises(RelaxationStateError, match=r"part already \(enc\).*one by one"):
        er.relax(model, DECLARED)
    er.relax(model.dec, DECLARED)
    assert len(er.relaxation_of(model)) == 4
    with pytest.raises(RelaxationStateError, match="relaxed already"):
        er.relax(model.dec, DECLARED)


def test_from_inside_keys_are_relative_to_the_part_and_projecting_it_leaves_the_rest():
    author = Pair()
    model = copy.deepcopy(author)
    whole = fill(er.relax(model, DECLARED))
    inner = er.relaxation_of(model.enc)
    assert list(inner.residuals) == ["a", "b"]
    assert inner["a"] is whole["enc.a"]
    with inner.strict():
        assert torch.equal(model.enc(X), author.enc(X))
        assert not torch.equal(model.dec(X), author.dec(X))
    assert [row.path for row in inner.summary().rows if row.status == "relaxed"] == ["a", "b"]
    report = er.project(model.enc, "fold")
    assert [r.key for r in report.residuals] == ["a", "b"]
    assert nothing_left(model.enc)
    assert list(er.relaxation_of(model).residuals) == ["dec.a", "dec.b"]
    er.project(whole)  # a handle that was made before
    assert nothing_left(model)


def test_a_part_without_its_placement_is_not_saved(tmp_path):
    model = Pair()
    er.relax(model, DECLARED)
    with pytest.raises(CheckpointError, match=r"^a: .*given to relax\(\)"):
        er.save(model.enc, tmp_path / "part.pt")
    assert not list(tmp_path.iterdir())


def test_the_rest_of_a_model_is_saved_after_a_part_was_projected(tmp_path):
    model = Pair()
    fill(er.relax(model, DECLARED))
    er.project(model.enc)
    er.save(model, tmp_path / "model.pt")
    twin = Pair()
    assert list(er.load(twin, tmp_path / "model.pt").residuals) == ["dec.a", "dec.b"]
    assert torch.equal(twin(X), model(X))
    row = next(row for row in er.relaxation_of(twin).summary().rows if row.path == "enc.a")
    assert row.status == "skipped"
    assert "removed" in row.reason


def test_a_residual_of_a_container_around_is_named_from_inside():
    model = nn.Sequential(nn.Sequential(linear(), nn.Identity()))
    er.relax(model, er.Layers(declare=(Linear("0", VECTORS, VECTORS),)))
    assert list(er.relaxation_of(model[0]).residuals) == [""]
    with pytest.raises(RelaxationStateError, match="'0'"):
        er.relaxation_of(model[0][1])


def test_a_part_of_a_residual_stream_is_projected_with_the_whole_only():
    model, relaxation = stream_toys.relaxed()
    with pytest.raises(RelaxationStateError, match="project the whole"):
        er.project(model.interactions)
    assert len(er.relaxation_of(model)) == len(relaxation)
    er.project(model)
    assert nothing_left(model)


def test_wrappers_of_compile_and_parallel_training_are_looked_through():
    model, _, _ = both_relaxed()
    for wrapped in (torch.compile(model), nn.DataParallel(model), nn.DataParallel(torch.compile(model))):
        assert list(er.relaxation_of(wrapped).residuals) == list(er.relaxation_of(model).residuals)
        assert er.relaxation_of(wrapped).model is model


def test_a_wrapper_that_hides_its_name_in_the_state_is_looked_through(tmp_path):
    checkpoint = pytest.importorskip("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    author = Pair()
    model = copy.deepcopy(author)
    fill(er.relax(model, DECLARED))
    model.enc = checkpoint.checkpoint_wrapper(model.enc)
    relaxation = er.relaxation_of(model)
    assert list(relaxation.residuals) == ["enc.a", "enc.b", "dec.a", "dec.b"]
    assert list(relaxation.strict_state_dict()) == list(author.state_dict())
    er.save(model, tmp_path / "model.pt")
    twin = Pair()
    er.load(twin, tmp_path / "model.pt")
    assert torch.equal(twin(X), model(X))


# M5: modules under several names


class Named(nn.Module):
    """A layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = linear()
        self.box = nn.ModuleDict({"again": self.one, "other": linear()})

    def forward(self, x):
        return self.box["other"](self.box["again"](self.one(x)))


def test_m5_a_layer_under_two_names_counts_once():
    author = Named()
    model = copy.deepcopy(author)
    relaxation = fill(er.relax(model, DECLARED))
    assert list(relaxation.residuals) == ["one", "box.other"]
    assert "box.again.equirelax_residual.gamma" in model.state_dict()
    assert list(relaxation.strict_state_dict()) == list(author.state_dict())
    relaxation.load_strict(author.state_dict())
    with relaxation.strict():
        assert torch.equal(model(X), author(X))
    assert [row.path for row in relaxation.summary().rows if row.status == "relaxed"] == ["one", "box.other"]
    assert "box.again" in next(row.reason for row in relaxation.summary().rows if row.path == "one")
    assert set(relaxation.strict_parameters()) == {"one.weight", "box.other.weight"}
    assert list(er.relaxation_of(model.box).residuals) == ["again", "other"]
    er.project(model)
    assert nothing_left(model)
    assert torch.equal(model(X), author(X))


def test_m5_a_layer_under_two_names_is_saved_and_loaded(tmp_path):
    model = Named()
    fill(er.relax(model, DECLARED))
    er.save(model, tmp_path / "model.pt")
    twin = Named()
    er.load(twin, tmp_path / "model.pt")
    assert torch.equal(twin(X), model(X))


@pytest.mark.parametrize("alone", [True, False])
def test_m5_two_containers_that_share_an_activation_are_relaxed(alone, tmp_path):
    def build() -> nn.Module:
        act = nn.Tanh()
        parts = (
            [nn.Sequential(linear(), act), nn.Sequential(linear(), act)]
            if alone
            else [nn.Sequential(act)] * 1
        )
        if not alone:
            parts = [nn.Sequential(act, nn.Sequential(act)), nn.Sequential(act)]
        return nn.Sequential(*parts)

    author = build()
    model = copy.deepcopy(author)
    placement = er.Layers(declare=(Linear("0", VECTORS, VECTORS), Linear("1", VECTORS, VECTORS)))
    relaxation = fill(er.relax(model, placement))
    assert list(relaxation.residuals) == ["0", "1"]
    weights = [relaxation[key].map.weight.detach() for key in ("0", "1")]
    first = author[0](X) + 0.7 * X @ weights[0].T
    torch.testing.assert_close(model(X), author[1](first) + 0.7 * first @ weights[1].T)
    assert list(relaxation.strict_state_dict()) == list(author.state_dict())
    er.save(model, tmp_path / "model.pt")
    twin = build()
    er.load(twin, tmp_path / "model.pt")
    assert torch.equal(twin(X), model(X))
    with er.relaxation_of(copy.deepcopy(model)).strict() as strict:
        assert torch.equal(strict(X), author(X))
    er.project(model)
    assert nothing_left(model)
    assert torch.equal(model(X), author(X))


# N14: strict() takes the hooks off


def test_n14_strict_takes_the_hooks_off_and_puts_them_back_in_their_order():
    model, relaxation, _ = both_relaxed()
    layer, order = model.enc.a, []
    handles = [layer.register_forward_hook(lambda *_: order.append("after"))]
    layer.register_forward_hook(lambda *_: order.append("before"), prepend=True)
    before = [dict(m._forward_hooks) for m in model.modules()]
    keys = list(layer._forward_hooks)
    with relaxation.strict():
        assert not model.enc.b._forward_hooks
        assert not model.enc.b._forward_hooks_with_kwargs
        model(X)
        assert order == ["before", "after"]
        with pytest.raises(ZeroDivisionError), er.relaxation_of(model.enc).strict():
            1 / 0  # noqa: B018 - an exception in a nested block
        assert not model.enc.b._forward_hooks
        handles.append(layer.register_forward_hook(lambda *_: None))
    assert list(layer._forward_hooks)[:-1] == keys
    handles.pop().remove()
    assert [dict(m._forward_hooks) for m in model.modules()] == before
    assert layer._forward_hooks_with_kwargs
    handles.pop().remove()
    assert list(layer._forward_hooks) == keys[:-1]


def test_n14_hooks_of_streams_are_off_and_back_too():
    model, relaxation = stream_toys.relaxed()
    relaxation.set_gamma(0.5)
    tables = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_always_called",
        "_forward_hooks_with_kwargs",
    )
    state = [[list(getattr(m, name)) for name in tables] for m in model.modules()]
    sample = stream_toys.atoms(n=9)
    expected = model(*sample)
    with relaxation.strict():
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert not torch.equal(model(*sample), expected)
    assert [[list(getattr(m, name)) for name in tables] for m in model.modules()] == state
    assert torch.equal(model(*sample), expected)


def test_n14_a_copy_made_inside_stays_strict_until_it_is_enabled():
    model, relaxation, author = both_relaxed()
    relaxed = model(X)
    with relaxation.strict():
        twin = copy.deepcopy(model)
    assert torch.equal(model(X), relaxed)
    assert torch.equal(twin(X), author(X))
    handle = er.relaxation_of(twin)
    assert list(handle.residuals) == list(relaxation.residuals)
    with handle.strict():
        assert torch.equal(twin(X), author(X))
    assert torch.equal(twin(X), author(X))
    handle.enable()
    assert torch.equal(twin(X), relaxed)
    with handle.strict():
        other = copy.deepcopy(twin)
    er.project(other)
    assert nothing_left(other)


def test_n14_saved_inside_strict_the_model_is_relaxed(tmp_path):
    model, relaxation, _ = both_relaxed()
    with relaxation.strict():
        er.save(model, tmp_path / "model.pt")
    twin = Pair()
    er.load(twin, tmp_path / "model.pt")
    assert torch.equal(twin(X), model(X))


def test_n14_blocks_of_several_threads_overlap():
    model, relaxation, author = both_relaxed()
    relaxed, inside, done = model(X), threading.Event(), threading.Event()

    def other() -> None:
        with er.relaxation_of(model).strict():
            inside.set()
            done.wait(5)

    thread = threading.Thread(target=other)
    with relaxation.strict():
        thread.start()
        inside.wait(5)
    assert torch.equal(model(X), author(X))
    done.set()
    thread.join()
    assert torch.equal(model(X), relaxed)


def test_compiled_code_looks_at_hooks():
    # by default torch.compile reuses what it compiled for a model of the same classes, whatever hooks there are
    torch.compiler.reset()
    author, backend = Part(), "eager"
    torch.compile(author, backend=backend)(X)
    model = copy.deepcopy(author)
    relaxation = fill(er.relax(model, DECLARED))
    compiled = torch.compile(model, backend=backend)
    assert torch.equal(compiled(X), model(X))
    with relaxation.strict():
        assert torch.equal(compiled(X), author(X))
    assert torch.equal(compiled(X), model(X))
    assert torch.equal(torch.compile(author, backend=backend)(X), author(X))
    assert torch.equal(compiled(X), model(X))
    assert not torch.equal(compiled(X), author(X))


def test_a_gamma_that_its_dtype_cannot_hold_is_refused():
    model = Pair().float()
    relaxation = er.relax(model, DECLARED)
    relaxation.set_gamma(0.5)
    with pytest.raises(RelaxationStateError, match="1e\\+300"):
        relaxation.set_gamma(1e300)
    assert set(relaxation.gammas().tolist()) == {0.5}
    model.double()
    relaxation.set_gamma(1e300)
    assert set(relaxation.gammas().tolist()) == {1e300}


def test_strengths_on_several_devices_come_to_the_first_ones():
    relaxation = both_relaxed()[1]
    first, *others = relaxation.residuals.values()
    first.to("meta")  # the device that every machine has beside the CPU
    assert {residual.gamma.device.type for residual in others} == {"cpu"}
    gammas = relaxation.gammas()
    assert (gammas.device.type, gammas.shape) == ("meta", (4,))
