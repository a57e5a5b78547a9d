"""ACE's stream on PyTorch Geometric's own SchNet, unedited, placed by hand."""

from __future__ import annotations

import copy

import pytest
import torch

import equirelax as er
from equirelax.errors import PlacementError, UnfoldableError
from equirelax.relaxation import Streams
from equirelax.symmetry import E, positions, trivial

geometric = pytest.importorskip("torch_geometric.nn.models")


pytestmark = pytest.mark.usefixtures("float64")


def graph(pos, batch):
    """All pairs within a molecule and 10 A, without compiled extensions."""
    near = (torch.cdist(pos, pos) < 10) & (batch[:, None] == batch) & ~torch.eye(len(pos), dtype=torch.bool)
    edges = near.nonzero().T
    return edges, (pos[edges[0]] - pos[edges[1]]).norm(dim=1)


def schnet():
    torch.manual_seed(1)
    return geometric.SchNet(hidden_channels=16, num_filters=12, num_interactions=6, interaction_graph=graph)


def molecules():
    batch = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    return torch.tensor([6, 1, 1, 8, 7, 6, 1, 1, 1]), 2 * torch.randn(9, 3), batch


AS_IT_IS, CENTRED = (
    Streams("InteractionBlock", "hidden_channels", centred=centred) for centred in (False, True)
)


def relaxed(placement=AS_IT_IS, gamma=0.5):
    model = schnet()
    relaxation = er.relax(model, placement)
    relaxation.set_gamma(gamma)
    model(*molecules())  # running statistics that are not the initial ones
    return model, relaxation


def test_six_blocks_have_six_strengths():
    relaxation = er.relax(schnet(), AS_IT_IS)
    assert list(relaxation.residuals) == [f"interactions.{i}" for i in range(6)]
    assert relaxation.gammas().tolist() == [0.0] * 6
    step = 16 * 17 + 2 * 16
    rows = relaxation.summary().with_status("relaxed")
    assert [row.parameters for row in rows] == [4 * 16 + step] + [step] * 5
    assert {row.relaxes for row in rows} == {"E(3), translations too"}
    assert "stream 'positions', from an input of the model" in rows[0].reason
    assert {row.relaxes for row in er.relax(schnet(), CENTRED).summary().with_status("relaxed")} == {"O(3)"}


def test_projected_is_an_untouched_schnet_bit_for_bit():
    untouched, model, sample = schnet(), schnet(), molecules()
    assert torch.equal(model(*sample), untouched(*sample))
    relaxation = er.relax(model, AS_IT_IS)
    assert torch.equal(model(*sample), untouched(*sample))
    method = er.ACE(relaxation, dual_lr=1e-3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        loss = model(*sample).square().mean() + method.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.step()
    untouched.load_state_dict(relaxation.strict_state_dict())
    assert not torch.equal(model(*sample), untouched(*sample))
    er.project(model)
    assert type(model) is geometric.SchNet
    assert torch.equal(model(*sample), untouched(*sample))
    assert str(model) == str(untouched)
    assert all(torch.equal(value, untouched.state_dict()[key]) for key, value in model.state_dict().items())


def test_the_stream_is_added_to_the_node_features_of_every_block():
    model, relaxation = relaxed()
    model.eval()
    z, pos, batch = molecules()
    h = model.embedding(z)
    edges, distances = graph(pos, batch)
    attributes = model.distance_expansion(distances)
    streams = [residual.delta(pos) for _, residual in relaxation]
    with relaxation.strict():
        for interaction, stream in zip(model.interactions, streams, strict=True):
            h = h + interaction(h, edges, distances, attributes) + stream
        expected = model.readout(model.lin2(model.act(model.lin1(h))), batch, dim=0)
    torch.testing.assert_close(model(z, pos, batch), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(z, batch=batch, pos=pos), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
def test_what_is_relaxed(training):
    """Translations by the published placement, not by the centred one; rotations by both."""
    z, pos, batch = molecules()
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    for placement, moves in ((AS_IT_IS, True), (CENTRED, False)):
        model, _ = relaxed(placement)
        model.train(training)
        before = model(z, pos, batch)
        away = copy.deepcopy(model)(z, pos + torch.tensor([3.0, -2.0, 5.0]) * (batch[:, None] + 1), batch)
        assert torch.allclose(away, before, atol=1e-9) is not moves
        assert not torch.allclose(copy.deepcopy(model)(z, pos @ turn.T, batch), before, atol=1e-3)
        er.project(model)
        torch.testing.assert_close(
            model(z, pos @ turn.T + 7, batch), model(z, pos, batch), rtol=1e-9, atol=1e-10
        )


def test_one_molecule_without_its_number():
    model, _ = relaxed(CENTRED)
    model.eval()
    z, pos, _ = molecules()
    torch.testing.assert_close(model(z, pos), model(z, pos, torch.zeros_like(z)), rtol=1e-12, atol=1e-12)


def test_the_audit_names_the_first_block():
    model, relaxation = relaxed()
    z, pos, batch = molecules()
    sample, in_rep = (z, pos, batch), (None, positions(E(3)), None)
    report = er.audit(model, sample, in_rep, trivial(E(3)))
    assert report.relative > 1e-3
    assert report.localisation.first.path == "interactions.0"
    with relaxation.strict():
        assert er.audit(model, sample, in_rep, trivial(E(3)), per_layer=False, lie=False).relative < 1e-10
    er.project(model)
    assert er.audit(model, sample, in_rep, trivial(E(3)), lie=False).relative < 1e-10


def test_the_lie_penalty_of_the_centred_stream_ignores_translations():
    z, pos, batch = molecules()
    found = []
    for shift in (0.0, 9.0):
        model, relaxation = relaxed(CENTRED)
        penalty = er.relaxation.regularizers.LieDerivative(relaxation)
        model(z, pos + shift, batch)
        penalty()
        found.append([float(terms["lie"]) for terms in penalty.terms.values()])
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert min(found[0]) > 0


def test_other_models_are_refused():
    with pytest.raises(PlacementError, match="InteractionBlock"):
        er.relax(torch.nn.Linear(3, 3), Streams("InteractionBlock", 3))
    with pytest.raises(PlacementError, match=r"no module 'encoder'"):
        er.relax(schnet(), Streams("InteractionBlock", 16, source="encoder"))
    with pytest.raises(PlacementError, match="Linear has no integer attribute 'width'"):
        er.relax(torch.nn.Linear(3, 3), Streams("Linear", "width"))
    with pytest.raises(PlacementError, match=r"no argument 'where'.*'pos'"):
        er.relax(schnet(), Streams("InteractionBlock", 16, "where"))
    with pytest.raises(UnfoldableError, match="residual stream"):
        er.project(relaxed()[0], mode="fold")
    assert er.project(relaxed()[0], mode="fold", unfoldable="drop").residuals[0].note.startswith("not folded")
