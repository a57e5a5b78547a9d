"""ACE's streams on h and on x of EGNO, and the variant that leaves translations exact."""

from __future__ import annotations

import copy

import pytest
import torch
from equirelax_lab.models.egno import EGNO
from equirelax_lab.placements import EGNOStreams
from torch import nn

import equirelax as er
from equirelax.errors import PlacementError, RelaxationStateError
from equirelax.relaxation.kinds import StreamStep
from equirelax.symmetry import E, O, positions, vector

STEPS = 5
NAMES = ("egno", "egno-centred")


pytestmark = pytest.mark.usefixtures("float64")


def network(layers=3):
    torch.manual_seed(1)
    return EGNO(hidden=12, layers=layers, in_features=2, edge_features=1, steps=STEPS)


def walkers(count=3, joints=4):
    """positions, velocities, features, edge_index, edge_features, graph of `count` skeletons (a ring of joints)."""
    ring = torch.tensor([(i, (i + s) % joints) for i in range(joints) for s in (1, -1)]).T
    edges = torch.cat([ring + joints * k for k in range(count)], dim=1)
    n = count * joints
    x, v = torch.randn(n, 3) + torch.tensor([0.0, 4.0, 1.0]), torch.randn(n, 3)
    features = torch.stack([v.norm(dim=1), torch.arange(n) % joints / joints], dim=1)
    length = (x[edges[0]] - x[edges[1]]).square().sum(1, keepdim=True)
    return x, v, features, edges, length, torch.arange(count).repeat_interleave(joints)


IN = (positions(E(3)), vector(E(3)), None, None, None, None)


def relaxed(name, gamma=0.5, layers=3):
    model = network(layers)
    relaxation = er.relax(model, name)
    relaxation.set_gamma(gamma)
    for _ in range(3):
        model(*walkers())
    return model, relaxation


def of(relaxation, slot):
    return [residual for _, residual in relaxation if residual.site.slot == slot]


def test_six_layers_have_the_twelve_strengths_of_ace():
    relaxation = er.relax(network(6), "egno")
    assert list(relaxation.residuals) == [f"layers.{i}:{slot}" for i in range(6) for slot in "hx"]
    h, x = of(relaxation, "h"), of(relaxation, "x")
    assert h[0].map.start.weight.shape == (12, 2 + 32)  # features and time embedding
    assert all(r.map.linear.weight.shape == (12, 12) for r in h)
    assert all(r.map.linear.weight.shape == (3, 3) and r.map.start is None for r in x)
    assert all(hasattr(r.map.linear, "effective_weight") for _, r in relaxation)
    rows = relaxation.summary().with_status("relaxed")
    assert sum(row.parameters for row in rows) == sum(
        p.numel() for p in relaxation.residual_parameters().values()
    )


def test_the_summary_says_what_each_relaxes():
    for name, words in (("egno", "E(3), translations too"), ("egno-centred", "O(3)")):
        rows = {row.path: row for row in er.relax(network(), name).summary().with_status("relaxed")}
        assert rows["layers.0:h"].relaxes == "nothing, if the scalar inputs are invariant"
        assert rows["layers.0:x"].relaxes == words
        assert "from an input of embedding" in rows["layers.0:h"].reason


@pytest.mark.parametrize("name", NAMES)
def test_relaxed_breaks_projected_does_not(name):
    model, sample = network(), walkers()
    strict, keys = model(*sample), list(model.state_dict())
    relaxation = er.relax(model, name)
    assert torch.equal(model(*sample), strict)
    relaxation.set_gamma(0.5)
    assert er.audit(model, sample, IN, positions(E(3)), per_layer=False, lie=False).relative > 1e-3
    with relaxation.strict():
        assert torch.equal(model(*sample), strict)
    table = str(er.project(model))
    assert "nan" not in table
    assert "n/a" in table
    assert list(model.state_dict()) == keys
    assert torch.equal(model(*sample), strict)
    # E(3) has reflections; the scalar inputs are held fixed
    assert er.audit(model, sample, IN, positions(E(3)), per_layer=False, lie=False).relative < 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_the_stream_on_h_alone_relaxes_nothing(name):
    model, relaxation = relaxed(name)
    for residual in of(relaxation, "x"):
        residual.set_gamma(0.0)
    sample = walkers()
    before = model.eval()(*sample)
    assert er.audit(model, sample, IN, positions(E(3)), per_layer=False, lie=False).relative < 1e-10
    with relaxation.strict():
        assert not torch.allclose(model(*sample), before)


def test_the_stream_on_h_breaks_what_the_scalar_inputs_break():
    """Height as a feature, as published: not invariant to rotations about a horizontal axis."""
    model, relaxation = relaxed("egno")
    for residual in of(relaxation, "x"):
        residual.set_gamma(0.0)
    x, v, features, *rest = walkers()

    def heights(x):
        return torch.stack([features[:, 0], x[:, 1] / x[:, 1].max()], dim=1)

    def out(x, v):
        return model.eval()(x, v, heights(x), *rest)

    upright, tilt = torch.eye(3), torch.eye(3)
    c, s = torch.tensor(0.8), torch.tensor(0.6)
    upright[0, 0], upright[0, 2], upright[2, 0], upright[2, 2] = c, s, -s, c
    tilt[0, 0], tilt[0, 1], tilt[1, 0], tilt[1, 1] = c, s, -s, c
    torch.testing.assert_close(
        out(x @ upright.T, v @ upright.T), out(x, v) @ upright.T, rtol=1e-9, atol=1e-10
    )
    assert not torch.allclose(out(x @ tilt.T, v @ tilt.T), out(x, v) @ tilt.T, atol=1e-4)


def test_the_stream_on_h_reads_features_and_time_and_never_h():
    model, relaxation = relaxed("egno")
    for _, residual in relaxation:
        residual.keep_inputs = True
    sample = walkers()
    model(*sample)
    n = len(sample[0])
    for i in range(3):
        (rows,) = relaxation[f"layers.{i}:h"].take_inputs()
        assert rows.shape == (STEPS * n, 2 + 32)
        torch.testing.assert_close(rows[:, :2], sample[2].repeat(STEPS, 1))
        times = rows[:, 2:].view(STEPS, n, 32)
        assert torch.equal(times, times[:, :1].expand_as(times))
        assert len(torch.unique(times[:, 0], dim=0)) == STEPS
        (where,) = relaxation[f"layers.{i}:x"].take_inputs()
        assert torch.equal(where, sample[0])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_translations_are_exact_where_positions_are_centred(name, training):
    """Every graph moved by itself: batch normalisation over all of them must not notice."""
    model, _ = relaxed(name)
    model.train(training)
    x, *rest = walkers()
    shift = (torch.randn(3, 3) * 10)[rest[-1]]
    moved = copy.deepcopy(model)(x + shift, *rest) - model(x, *rest)
    exact = torch.allclose(moved, shift[:, None].expand_as(moved), rtol=0, atol=1e-10)
    assert exact is (name == "egno-centred")


def test_a_graph_does_not_see_the_others_when_evaluated():
    model, _ = relaxed("egno-centred")
    model.eval()
    x, v, features, edges, lengths, graph = walkers(2)
    first = edges[0] < 4
    alone = model(x[:4], v[:4], features[:4], edges[:, first], lengths[first])  # graph=None: one graph
    torch.testing.assert_close(
        model(x, v, features, edges, lengths, graph)[:4], alone, rtol=1e-10, atol=1e-11
    )


def test_positions_are_moved_alike_at_all_times():
    model, relaxation = relaxed("egno")
    model.eval()
    sample = walkers()
    outputs = []
    handle = model.layers[2].register_forward_hook(lambda _, __, output: outputs.append(output[1]))
    model(*sample)
    relaxation["layers.2:x"].set_gamma(0.0)
    model(*sample)
    handle.remove()
    delta = (outputs[0] - outputs[1]).view(STEPS, -1, 3)
    relaxation["layers.2:x"].set_gamma(0.5)
    expected = relaxation["layers.2:x"].delta(sample[0])
    torch.testing.assert_close(delta, expected.expand_as(delta), rtol=1e-9, atol=1e-11)


def test_the_penalty_of_h_has_no_lie_term_and_that_of_x_has():
    model, relaxation = relaxed("egno")
    penalty = er.relaxation.regularizers.LieDerivative(relaxation)
    model(*walkers())
    penalty().backward()
    for key, terms in penalty.terms.items():
        assert float(terms["norm"]) > 0
        assert (float(terms["lie"]) > 0) is key.endswith("x")


def test_an_equivariant_stream_on_x_has_no_lie_term():
    """Multiples of the identity, statistics alike in all directions; centred, as a shift is no vector."""
    model = network()
    relaxation = er.relax(model, "egno-centred")
    with torch.no_grad():
        for residual in of(relaxation, "x"):
            residual.map.linear.weight.copy_(2 * torch.eye(3))
            residual.map.linear.bias.zero_()
            residual.map.linear.reset_estimate()
    relaxation.set_gamma(0.5)
    model.eval()
    sample = walkers()
    for residual in of(relaxation, "x"):
        lie, norm = er.relaxation.regularizers.residual_terms(residual, [sample[0]])
        assert float(lie) <= 1e-20 * float(norm)
    assert er.audit(model, sample, IN, positions(E(3)), per_layer=False, lie=False).relative < 1e-10


def test_the_audit_names_the_layer():
    model, relaxation = relaxed("egno")
    relaxation.set_gamma(0.0)
    relaxation["layers.1:x"].set_gamma(0.5)
    report = er.audit(model, walkers(), IN, positions(E(3)))
    assert report.localisation.first.path == "layers.1"


@pytest.mark.parametrize("name", NAMES)
def test_saved_with_its_placement(name, tmp_path):
    model, relaxation = relaxed(name)
    er.save(model, tmp_path / "model.pt")
    again = er.load(network(), tmp_path / "model.pt")
    assert again.placements[""] == relaxation.placements[""] == er.relaxation.placements.get(name)
    sample = walkers()
    assert torch.equal(again.model.eval()(*sample), model.eval()(*sample))


def test_a_forward_that_no_hook_sees_is_refused_and_forgotten():
    model, relaxation = relaxed("egno")
    sample = walkers()
    with pytest.raises(RelaxationStateError, match=r"layers\.0:x: call the whole model"):
        model.forward(*sample)  # the stream on h has begun by then
    for _, residual in relaxation:
        residual.keep_inputs = True
    model(*sample)
    for i in range(3):
        for slot in "hx":
            residual = relaxation[f"layers.{i}:{slot}"]
            residual.take_inputs()
            assert [len(path) for path in residual.paths] == [i + 1]


def test_inside_another_module():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.egno = network()

        def forward(self, *sample):
            return self.egno(*sample)[:, -1]

    model, sample = Outer(), walkers()
    relaxation = er.relax(model, EGNOStreams(StreamStep(), root="egno."))
    assert relaxation["egno.layers.0:h"].site.source == "egno.embedding"
    assert relaxation["egno.layers.0:x"].site.source == "egno"
    before = model(*sample)
    relaxation.set_gamma(1.0)
    assert not torch.allclose(model(*sample), before)
    er.project(model)
    assert torch.equal(model(*sample), before)


def test_other_models_are_refused():
    from equirelax_lab.models import EGNN

    with pytest.raises(PlacementError, match="EGNN is no EGNO"):
        er.relax(EGNN(hidden=4), "egno")

    class NoGraph(EGNO):
        def forward(self, positions, velocities, features, edge_index, edge_features=None):
            return super().forward(positions, velocities, features, edge_index, edge_features)

    with pytest.raises(PlacementError, match="expected `positions` first, and `graph`"):
        er.relax(NoGraph(hidden=4, layers=1), "egno")


def test_groups_of_the_sites():
    for name, group in (("egno", E(3)), ("egno-centred", O(3))):
        relaxation = er.relax(network(), name)
        assert relaxation["layers.0:x"].in_rep == (positions(group) if name == "egno" else vector(group))
        assert relaxation["layers.0:x"].out_rep == vector(group)
        assert relaxation["layers.0:h"].in_rep.invariant
