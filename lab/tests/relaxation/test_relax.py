"""relax, the handle, project, save and load on small models; every message names the place and what to do."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from equirelax_lab.models.vector_neurons import VNLinear
from torch import nn

import equirelax as er
from equirelax.errors import (
    CheckpointError,
    NonFiniteError,
    PlacementError,
    RelaxationStateError,
    RepresentationError,
)
from equirelax.relaxation import Constant
from equirelax.relaxation.kinds import EquivariantDense
from equirelax.symmetry import O, vector

o3 = pytest.importorskip("e3nn.o3")
from relax_toys import Net, randomise, sample, shapes  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64")


def test_relax_changes_nothing_until_a_strength_is_set():
    model, inputs = Net(), sample()
    before = model(*inputs)
    kinds = [type(m) for m in model.modules()]
    relaxation = er.relax(model, residual=er.Dense("default"))
    assert list(relaxation.residuals) == ["first", "stack.0", "stack.1", "product"]
    after = model(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    relaxation.set_gamma(1.0)
    assert not torch.equal(model(*inputs)[0], before[0])
    with relaxation.strict():
        assert all(torch.equal(a, b) for a, b in zip(before, model(*inputs), strict=True))
    assert not torch.equal(model(*inputs)[0], before[0])
    assert [type(m) for m in model.modules() if not _ours(m, relaxation)] == kinds


def _ours(module, relaxation):
    return any(module in set(r.modules()) for r in relaxation.residuals.values())


def test_the_residual_is_what_it_says():
    layer = o3.Linear("3x0e+2x1o", "4x0e+4x1o")
    x = torch.randn(6, 9)
    strict = layer(x)
    relaxation = er.relax(layer)
    randomise(relaxation, 0.3)
    torch.testing.assert_close(
        layer(x), strict + 0.3 * x @ relaxation[""].map.weight.T, rtol=1e-13, atol=1e-13
    )


def test_drop_gives_the_author_back_his_model():
    model, inputs = Net(), sample()
    before, outputs = shapes(model), model(*inputs)
    relaxation = er.relax(model, residual=er.Dense("default"))
    relaxation.set_gamma(1.0)
    report = er.project(model)
    assert shapes(model) == before
    assert all(torch.equal(a, b) for a, b in zip(outputs, model(*inputs), strict=True))
    assert not any(m._forward_hooks for m in model.modules())
    assert not any("equirelax" in key for m in model.modules() for key in m.__dict__)
    assert len(str(report).splitlines()) == 5
    assert all(r.error == 1 for r in report.residuals)


def test_summary_says_what_was_touched_and_why():
    model = Net()
    relaxation = er.relax(model, include=["first", "stack.*"], exclude="stack.0")
    rows = {row.path: row for row in relaxation.summary().rows}
    assert rows["first"].status == "relaxed"
    assert rows["first"].shape == (16, 9)
    assert rows["stack.0"].reason == "excluded by a pattern"
    assert rows["product"].reason == "not included by any pattern"
    assert rows["head"].status == "unknown"
    assert rows["activation"].status == "skipped"
    assert set(rows) >= {path for path, _ in Net().named_modules()}
    assert relaxation.summary().parameters == sum(
        p.numel() for p in relaxation.residual_parameters().values()
    )
    assert "3 relaxed" not in str(relaxation.summary())
    assert "2 relaxed" in str(relaxation.summary())


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda m: er.relax(m, include="frist"), PlacementError, "Did you mean 'first'"),
        (lambda m: er.relax(m, "segn-cr"), PlacementError, "Did you mean 'segnn-cr'"),
        (lambda m: er.relax(m, "segnn-cr"), PlacementError, "does not look like a SEGNN"),
        (lambda m: er.relax(m, "egnn"), PlacementError, "not an EGNN"),
        (lambda m: er.relax(nn.Linear(2, 2)), PlacementError, "nothing to relax in Linear"),
        (
            lambda m: er.relax(m, er.Layers(), include="first"),
            PlacementError,
            "belong to the default placement",
        ),
        (lambda m: (er.relax(m), er.relax(m)), RelaxationStateError, "relaxed already"),
        (lambda m: er.project(m), RelaxationStateError, "not relaxed"),
        (lambda m: er.project(er.relax(m), mode="fodl"), PlacementError, "Did you mean 'fold'"),
        (lambda m: er.relax(torch.compile(m)), RelaxationStateError, "compiled"),
        (lambda m: er.relax(nn.DataParallel(m)), RelaxationStateError, "wrapped"),
        (lambda m: er.relax(torch.jit.script(nn.Linear(2, 2))), RelaxationStateError, "script"),
        (lambda m: er.relax("net"), PlacementError, "torch.nn.Module"),
        (lambda m: er.relax(m, residual=er.Dense("zero")), PlacementError, "zeros"),
        (lambda m: er.relax(m)["frist"], PlacementError, "Did you mean 'first'"),
        (
            lambda m: er.relax(m, er.Layers(declare=(er.relaxation.Linear("haed", "1x1o"),))),
            PlacementError,
            "Did you mean 'head'",
        ),
        (
            lambda m: er.relax(
                m, er.Layers(declare=(er.relaxation.Linear("head", vector(O(3)), vector(O(3))),))
            ),
            PlacementError,
            "weight has shape",
        ),
    ],
)
def test_mistakes_get_a_message_that_says_what_to_do(make, error, words):
    with pytest.raises(error, match=words):
        make(Net())


def test_projecting_twice_is_an_error():
    relaxation = er.relax(Net())
    er.project(relaxation)
    with pytest.raises(RelaxationStateError, match="no longer relaxed"):
        er.project(relaxation)


def test_nan_is_refused_at_projection_and_nothing_is_changed():
    model = Net()
    relaxation = er.relax(model)
    relaxation["stack.0"].map.weight.data[0, 0] = float("nan")
    before = list(model.state_dict())
    with pytest.raises(NonFiniteError, match=r"stack\.0 \(Linear\).*map\.weight"):
        er.project(model)
    assert list(model.state_dict()) == before


def test_wrong_input_size_names_the_layer():
    model = er.relax(
        nn.Sequential(nn.Identity()),
        er.Layers(declare=(er.relaxation.Linear("0", vector(O(3)), vector(O(3))),)),
    )
    with pytest.raises(RepresentationError, match=r"0 .*placed for 3 input features"):
        model.model(torch.randn(2, 4))


def test_third_party_vector_neurons_are_declared_in_one_call():
    class Theirs(nn.Module):
        """Keeps (batch, channels, 3, points), mixes channels through nn.Linear on a transposed view."""

        def __init__(self) -> None:
            super().__init__()
            self.map_to_feat = nn.Linear(4, 5, bias=False)

        def forward(self, x):
            return self.map_to_feat(x.transpose(1, -1)).transpose(1, -1)

    x = torch.randn(2, 4, 3, 7)
    theirs, ours = Theirs(), VNLinear(4, 5)
    ours.weight.data.copy_(theirs.map_to_feat.weight.data)
    torch.testing.assert_close(theirs(x), ours(x))
    # their nn.Linear is called on (batch, points, 3, channels)
    a = er.relax(
        theirs, er.Layers(declare=(er.relaxation.Linear("*map_to_feat", er.On("1x1o", -2), channel_axis=-1),))
    )
    b = er.relax(ours)
    randomise(b)
    a["map_to_feat"].map.weight.data.copy_(b[""].map.weight.data)
    a.set_gamma(0.7)
    torch.testing.assert_close(theirs(x), ours(x))
    for model in (theirs, ours):
        er.project(model, mode="fold")
    torch.testing.assert_close(theirs(x), ours(x))


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 4, 3, 5), (2, 4, 3, 5, 2)])
def test_defect_7_a_residual_on_vectors_never_mixes_points(shape):
    layer = VNLinear(4, 6)
    relaxation = er.relax(layer)
    randomise(relaxation)
    x = torch.randn(shape)
    moved = x.clone()
    index = (..., 0) if len(shape) == 4 else (..., 0, 1) if len(shape) == 5 else (0,)
    moved[index] += 1
    changed = (layer(x) != layer(moved)).any(dim=(1, 2))
    expected = (x != moved).any(dim=(1, 2))
    assert torch.equal(changed, expected)
    dense = torch.einsum("oi,bi...->bo...", relaxation[""].map.weight, x.flatten(1, 2))
    with relaxation.strict():
        torch.testing.assert_close(layer(x) + 0.7 * dense.reshape(layer(x).shape), _on(layer, relaxation, x))


def _on(layer, relaxation, x):
    relaxation.enable(True)
    result = layer(x)
    relaxation.enable(False)
    return result


def test_copies_are_independent():
    model, inputs = Net(), sample()
    relaxation = er.relax(model, residual=er.Dense("default"))
    relaxation.set_gamma(0.5)
    penalty = er.relaxation.regularizers.LieDerivative(relaxation)
    model(*inputs)
    twin = copy.deepcopy(model)
    outputs = model(*inputs)
    handle = er.relaxation_of(twin)
    assert handle.placements == relaxation.placements
    relaxation.set_gamma(0.0)
    assert all(torch.equal(a, b) for a, b in zip(outputs, twin(*inputs), strict=True))
    er.project(twin)
    assert shapes(twin) == shapes(Net())
    assert len(er.relaxation_of(model)) == 4
    assert torch.isfinite(penalty())


def test_pickles_carry_the_hook_and_not_the_batch():
    layer, x = o3.Linear("3x0e+2x1o", "4x0e+4x1o"), torch.randn(5, 9)
    relaxation = er.relax(layer, residual=er.Dense("default"))
    relaxation.set_gamma(0.5)
    penalty = er.relaxation.regularizers.LieDerivative(relaxation)
    expected = layer(x)
    twin = pickle.loads(pickle.dumps(layer))
    assert torch.isfinite(penalty())
    assert not er.relaxation_of(twin)[""].take_inputs()
    relaxation.set_gamma(0.0)
    assert torch.equal(twin(x), expected)


def test_gamma_is_a_parameter_of_one_entry_whoever_sets_it():
    relaxation = er.relax(Net())
    residual = relaxation["first"]
    parameter = residual.gamma
    assert isinstance(parameter, nn.Parameter)
    assert parameter.shape == (1,)
    assert not residual.is_learnt
    residual.learn_gamma()
    assert residual.is_learnt
    (2.0 * residual.gamma).sum().backward()
    residual.fix_gamma()
    assert residual.gamma is parameter
    assert not residual.is_learnt
    assert parameter.grad is None
    assert parameter.tolist() == [1.0]
    assert relaxation.gammas().shape == (len(relaxation),)


def test_strict_state_dict_speaks_the_authors_keys():
    model, author = Net(), Net()
    relaxation = er.relax(model)
    assert list(relaxation.strict_state_dict()) == list(author.state_dict())
    relaxation.load_strict(author.state_dict())
    inputs = sample()
    assert all(torch.equal(a, b) for a, b in zip(model(*inputs), author(*inputs), strict=True))
    wrong = author.state_dict()
    wrong["haed.weight"] = wrong.pop("head.weight")
    with pytest.raises(CheckpointError, match=r"Did you mean 'head\.weight'"):
        relaxation.load_strict(wrong)


@pytest.mark.parametrize("residual", [er.Dense("default"), er.MLP(layers=2), EquivariantDense("default")])
def test_save_and_load(residual, tmp_path):
    model, inputs = Net(), sample()
    relaxation = er.relax(
        model, er.Layers(exclude=("stack.0",), residual=residual, constants=(Constant("product"),))
    )
    relaxation.set_gamma(0.4)
    relaxation["first"].learn_gamma(0.9)
    er.save(model, tmp_path / "model.pt")
    twin = Net()
    loaded = er.load(twin, tmp_path / "model.pt")
    assert loaded["first"].is_learnt
    assert not loaded["product"].is_learnt
    assert all(torch.equal(a, b) for a, b in zip(model(*inputs), twin(*inputs), strict=True))
    assert loaded.placements == relaxation.placements
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_bad_checkpoints_are_named_and_leave_the_model_alone(tmp_path):
    path = tmp_path / "model.pt"
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        er.load(Net(), path)
    er.save(er.relax(Net()), path)
    raw = path.read_bytes()
    other = nn.Sequential(o3.Linear("1x1o", "1x1o"))
    with pytest.raises(CheckpointError, match="another model"):
        er.load(other, path)
    assert not any("equirelax" in k for k in other.state_dict())
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        er.load(Net(), path)

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was executed",))

    buffer = io.BytesIO()
    torch.save({"format": "equirelax-relaxed-model-1", "model": Bomb()}, buffer)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="more than tensors"):
        er.load(Net(), path)
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="format is None"):
        er.load(Net(), path)


def test_a_sequential_is_relaxed_as_a_whole_without_a_new_child_that_runs():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh())
    x = torch.randn(4, 3)
    before = model(x)
    relaxation = er.relax(
        nn.Sequential(model), er.Layers(declare=(er.relaxation.Linear("0", vector(O(3)), vector(O(3))),))
    )
    assert torch.equal(relaxation.model(x), before)
    randomise(relaxation, 1.0)
    torch.testing.assert_close(relaxation.model(x), before + x @ relaxation["0"].map.weight.T)
    er.project(relaxation)
    assert len(list(model.children())) == 2
    assert torch.equal(model(x), before)


def test_residuals_follow_dtype_and_device():
    model = Net().float()
    relaxation = er.relax(model)
    assert relaxation["first"].gamma.dtype == torch.float32
    model.double()
    assert relaxation["first"].map.weight.dtype == relaxation["first"].gamma.dtype == torch.float64
    assert not relaxation["first"].map.bias
    model.to("meta")
    assert relaxation["first"].gamma.device.type == "meta"
