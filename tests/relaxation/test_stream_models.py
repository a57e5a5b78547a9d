"""The life of a model with residual streams: copies, files, strict and projected, checkpointing, errors, methods."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from stream_toys import Net, atoms, close, gradients, perturb, relaxed
from torch import nn
from torch.utils.checkpoint import checkpoint

import equirelax as er
from equirelax.errors import PlacementError, RelaxationStateError, RepresentationError, UnfoldableError
from equirelax.relaxation import Streams
from equirelax.relaxation.kinds import StreamStep
from equirelax.symmetry import O, trivial

STREAM = Streams("interactions.?", "hidden_channels", centred=False)


pytestmark = pytest.mark.usefixtures("float64")


def test_copies_are_of_their_own():
    model, relaxation = relaxed()
    z, pos = atoms()
    model(z, pos)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.eval()(z, pos), model.eval()(z, pos))
        er.relaxation_of(other).set_gamma(0.1)
        assert not torch.allclose(other(z, pos), model(z, pos))
        mine, theirs = relaxation["interactions.0"], er.relaxation_of(other)["interactions.0"]
        assert theirs.shared is not mine.shared
        assert [id(r) for r in theirs.shared.members] == [id(r) for _, r in er.relaxation_of(other)]
        er.project(other)
        assert [id(r) for r in mine.shared.members] == [id(r) for _, r in relaxation]


def test_a_copy_made_midway_carries_no_forward():
    model, relaxation = relaxed()
    first = relaxation["interactions.0"]
    first.shared.begin(model, atoms(), {})
    first.shared.advance(first)  # from here on it holds a graph, which no copy can carry
    assert first.shared.source is not None
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert er.relaxation_of(other)["interactions.0"].shared.source is None


def test_state_dicts_and_files_bring_everything_back(tmp_path):
    model, relaxation = relaxed(residual=StreamStep(spectral=True))
    z, pos = atoms()
    relaxation["interactions.1"].learn_gamma(0.7)
    model(z, pos)
    other = Net()
    fresh = er.relax(other, relaxation.placements[""])
    fresh["interactions.1"].learn_gamma()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(z, pos), model.eval()(z, pos))
    er.save(model, tmp_path / "model.pt")
    loaded = Net()
    again = er.load(loaded, tmp_path / "model.pt")
    assert again.placements == relaxation.placements
    assert torch.equal(loaded.eval()(z, pos), model(z, pos))
    assert again["interactions.1"].is_learnt


def test_strict_and_projected_models_are_the_authors():
    plain = Net()
    z, pos = atoms()
    expected, keys = plain(z, pos), list(plain.state_dict())
    model = copy.deepcopy(plain)
    relaxation = er.relax(model, STREAM)
    assert torch.equal(model(z, pos), expected)  # gamma is 0
    perturb(relaxation)
    assert not torch.allclose(model(z, pos), expected)
    statistics = relaxation["interactions.0"].map.norm.running_mean.clone()
    with relaxation.strict():
        assert torch.equal(model(z, pos), expected)
    assert torch.equal(relaxation["interactions.0"].map.norm.running_mean, statistics)
    assert list(relaxation.strict_state_dict()) == keys
    with pytest.raises(UnfoldableError, match=r"interactions\.0 .*step of the residual stream 'positions'"):
        er.project(model, mode="fold")
    er.project(model)
    assert torch.equal(model(z, pos), expected)
    assert list(model.state_dict()) == keys
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._forward_hooks_with_kwargs
        assert not module._forward_hooks_always_called
        assert not module._forward_pre_hooks_with_kwargs
    er.relax(model, STREAM)  # and once more


def test_the_users_hooks_stay():
    model = Net()
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append("before"))
    model.register_forward_hook(lambda *_: calls.append("after"), always_call=True)
    er.relax(model, STREAM).set_gamma(1.0)
    er.project(model)
    model(*atoms())
    assert calls == ["before", "after"]


def test_parameters_are_all_there_and_once():
    model, relaxation = relaxed()
    gammas = [residual.gamma for _, residual in relaxation]
    listed = [
        *relaxation.strict_parameters().values(),
        *relaxation.residual_parameters().values(),
        *gammas,
    ]
    assert len({id(p) for p in listed}) == len(listed) == len(list(model.parameters()))
    assert (
        sum(p.numel() for p in relaxation.residual_parameters().values()) == relaxation.summary().parameters
    )
    assert "interactions.0.start.weight" in relaxation.residual_parameters()


def test_without_gradients():
    model, _ = relaxed()
    z, pos = atoms()
    with torch.no_grad():
        out = model(z, pos)
    assert not out.requires_grad
    close(out, model(z, pos))


def test_a_forward_that_raises_leaves_nothing():
    model, relaxation = relaxed()
    stream = relaxation["interactions.0"].shared
    z, pos = atoms()
    model.eval()
    expected = model(z, pos)
    model.fails_after = 2
    with pytest.raises(FloatingPointError):
        model(z, pos + 1)
    assert stream.source is None
    assert stream.path == ()
    model.fails_after = 3
    assert torch.equal(model(z, pos), expected)
    with pytest.raises(IndexError):
        model(torch.tensor([99]), pos[:1])  # before the first block
    assert torch.equal(model(z, pos), expected)
    with pytest.raises(PlacementError, match="pos"):
        model(z)
    assert torch.equal(model(z, pos), expected)


@pytest.mark.parametrize("spectral", [False, True])
def test_two_forwards_before_a_backward(spectral):
    model, _ = relaxed(residual=StreamStep(spectral=spectral))
    other = copy.deepcopy(model)
    samples = [atoms(), atoms(5)]
    sum(model(*sample).square().sum() for sample in samples).backward()
    for sample in samples:
        other(*sample).square().sum().backward()
    for (name, a), b in zip(gradients(model).items(), gradients(other).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("spectral", [False, True])
def test_checkpointing_the_whole_model_changes_nothing(spectral):
    model, relaxation = relaxed(residual=StreamStep(spectral=spectral))
    other = copy.deepcopy(model)
    handles = relaxation, er.relaxation_of(other)
    penalties = [er.relaxation.regularizers.LieDerivative(handle) for handle in handles]
    z, pos = atoms()
    for _ in range(2):
        model(z, pos).square().sum().backward()
        checkpoint(other, z, pos, use_reentrant=False).square().sum().backward()
    for (name, a), b in zip(gradients(model).items(), gradients(other).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, msg=name)
    assert all(torch.equal(v, other.state_dict()[key]) for key, v in model.state_dict().items())
    assert [len(r.take_inputs()) for _, r in penalties[1].relaxation] == [2, 2, 2]


def test_checkpointing_single_blocks_is_refused():
    model, relaxation = relaxed()
    z, pos = atoms()
    block = model.interactions[1]

    class Checkpointed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, h, weights):
            return checkpoint(self.inner, h, weights, use_reentrant=False)

    model.interactions[1] = Checkpointed(block)
    out = model(z, pos)
    with pytest.raises(RelaxationStateError, match=r"interactions\.1: checkpoint the whole relaxed model"):
        out.sum().backward()
    assert relaxation["interactions.1"].shared.source is None


def test_blocks_outside_their_model_are_refused():
    model, relaxation = relaxed()
    z, pos = atoms()
    for call in (
        lambda: model.interactions[0](torch.randn(9, 6), torch.eye(9)),
        lambda: model.forward(z, pos),
    ):
        with pytest.raises(RelaxationStateError, match=r"interactions\.0: call the whole model"):
            call()
    with relaxation.strict():
        model.forward(z, pos)


def test_one_residual_switched_off_lets_the_stream_pass():
    model, relaxation = relaxed()
    model.eval()
    z, pos = atoms()
    relaxation["interactions.1"].enabled = False
    off = model(z, pos)
    relaxation["interactions.1"].enabled = True
    relaxation["interactions.1"].set_gamma(0.0)
    close(off, model(z, pos))


def test_a_relaxed_model_inside_another():
    model, _ = relaxed()

    class Outer(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, z, pos):
            return self.net(z, pos=pos).sum(0)

    outer = Outer(model)
    z, pos = atoms()
    close(outer.eval()(z, pos), model(z, pos).sum(0))
    inner = copy.deepcopy(model)
    er.project(inner)
    placed = er.relax(
        Outer(inner), Streams("net.interactions.?", "hidden_channels", source="net", centred=False)
    )
    assert list(placed.residuals) == [f"net.interactions.{i}" for i in range(3)]
    placed.model.load_state_dict({f"net.{key}": v for key, v in model.state_dict().items()})
    close(placed.model.eval()(z, pos), outer(z, pos))


def test_sizes_that_do_not_fit_are_named():
    model, _ = relaxed()
    z, pos = atoms()
    with pytest.raises(RepresentationError, match="placed for 3 input features"):
        model(z, pos[:, :2])
    with pytest.raises(RepresentationError, match=r"interactions\.0: .* at least 2 rows"):
        model(z[:1], pos[:1])
    assert torch.isfinite(model.eval()(z[:1], pos[:1])).all()


def test_streams_are_made_of_steps_and_nothing_else_is():
    with pytest.raises(PlacementError, match="StreamStep, and not of MLP"):
        er.relax(Net(), Streams("interactions.?", "hidden_channels", residual=er.MLP()))
    scalars = trivial(O(3), 6)
    layers = er.relaxation.Layers(
        declare=(er.relaxation.Linear("*.lin", scalars, scalars),), residual=StreamStep()
    )
    with pytest.raises(PlacementError, match="StreamStep"):
        er.relax(Net(), layers)


def test_autocast_is_near_and_statistics_are_exact():
    model, relaxation = relaxed()
    model.float()
    other = copy.deepcopy(model)
    z, pos = atoms()
    exact = model(z, pos.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = other(z, pos.float())
    assert (cast.float() - exact).norm() < 3e-2 * exact.norm()
    for key, residual in er.relaxation_of(other):
        assert torch.equal(residual.map.norm.running_var, relaxation[key].map.norm.running_var)


# With methods


@pytest.mark.parametrize("spectral", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda r: er.ACE(r, dual_lr=1e-3),
        lambda r: er.ResilientACE(r, dual_lr=1e-3, primal_lr=1e-2),
        lambda r: er.Scheduled(r, total_steps=6),
    ],
    ids=["ace", "resilient", "scheduled"],
)
def test_methods_train_every_part(make, spectral):
    model = Net()
    method = make(
        er.relax(model, Streams("interactions.?", "hidden_channels", residual=StreamStep(spectral=spectral)))
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    method.attach(optimizer)
    z, pos = atoms()
    model(z, pos)
    method.relaxation.set_gamma(0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(5):
        loss = (model(z, pos) - pos.sum()).square().mean() + method.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    # the start's bias, and with it the norms' shift of the mean, falls out of what is normalised
    idle = {"interactions.0.equirelax_residual.map.start.bias"} | {
        f"interactions.{i}.equirelax_residual.map.{part}.bias"
        for i in range(2)
        for part in ("norm", "linear")
    }
    for name, p in model.named_parameters():
        if name not in idle:
            assert not torch.equal(p, before[name]), name


@pytest.mark.slow
def test_compiled_is_eager():
    torch.compiler.reset()
    model, _ = relaxed(residual=StreamStep(spectral=True))
    other = copy.deepcopy(model)
    compiled = torch.compile(other)
    z, pos = atoms()
    for _ in range(2):
        a, b = model(z, pos), compiled(z, pos)
        close(a, b)
        a.square().sum().backward()
        b.square().sum().backward()
    for (name, x), y in zip(gradients(model).items(), gradients(other).values(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-9, msg=name)
    assert all(torch.allclose(v, other.state_dict()[key]) for key, v in model.state_dict().items())


def test_a_checkpoint_file_holds_no_code():
    model, _ = relaxed()
    file = io.BytesIO()
    torch.save(er.relaxation.relaxation_state(er.relaxation_of(model)), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["parts"][""]["placement"]["kind"] == "streams"
    assert state["parts"][""]["placement"]["residual"] == {
        "kind": "stream-step",
        "spectral": False,
        "first": False,
        "iterations": 1,
        "plain_start": False,
    }


def test_a_slope_is_computed_on_the_models_device():
    """Also that of a stream with the input's width, which starts as the identity."""
    relaxation = er.relax(Net(width=3), STREAM)
    residual = relaxation["interactions.1"]
    assert residual.default_path()[0].map.start is None
    slope = residual.slope()
    with torch.device("meta"):  # tensors that name no device are made on another than the model's
        assert residual.slope() == slope
