"""The placements of the papers on SEGNN and EGNN, projected and audited."""

from __future__ import annotations

import pytest
import torch
from equirelax_lab.placements import EGNNBlocks, SEGNNUpdates
from torch import nn

import equirelax as er
from equirelax.errors import UnfoldableError
from equirelax.relaxation.kinds import EquivariantDense
from equirelax.relaxation.regularizers import residual_terms
from equirelax.symmetry import E, O, positions, vector

pytest.importorskip("e3nn")
from equirelax_lab.models import EGNN, SEGNN

pytestmark = pytest.mark.usefixtures("float64")


def systems(count=3, bodies=5):
    one = torch.tensor([(i, j) for i in range(bodies) for j in range(bodies) if i != j]).T
    edges = torch.cat([one + bodies * k for k in range(count)], dim=1)
    n = count * bodies
    return torch.randn(n, 3), torch.randn(n, 3), torch.randn(n, 1).sign(), edges


def segnn():
    return SEGNN(hidden="8x0e+8x1o", layers=3)


def egnn():
    return EGNN(hidden=12, layers=3, in_features=1, edge_features=1)


def segnn_case():
    position, velocity, charge, edges = systems()
    group = O(3)
    return (position, velocity, charge, edges), (vector(group), vector(group), None, None), vector(group)


def egnn_case():
    position, velocity, charge, edges = systems()
    group = E(3)
    inputs = (position, velocity, charge, edges, charge[edges[0]] * charge[edges[1]])
    return inputs, (positions(group), vector(group), None, None, None), positions(group)


CASES = {
    "segnn-cr": (segnn, segnn_case, 6),
    "segnn-ace": (segnn, segnn_case, 6),
    "segnn-equivariant": (segnn, segnn_case, 6),
    "egnn": (egnn, egnn_case, 6),
    "egnn-centred": (egnn, egnn_case, 6),
    "egnn-equivariant": (egnn, egnn_case, 6),
}


def randomise(relaxation, gamma=0.5):
    for p in relaxation.residual_parameters().values():
        nn.init.normal_(p, std=0.3)
    relaxation.set_gamma(gamma)


@pytest.mark.parametrize("name", CASES)
def test_relaxed_breaks_projected_does_not(name):
    build, case, count = CASES[name]
    model = build()
    inputs, in_rep, out_rep = case()
    strict, keys = model(*inputs), {k: v.shape for k, v in model.state_dict().items()}
    relaxation = er.relax(model, name)
    assert len(relaxation) == count
    assert torch.equal(model(*inputs), strict)
    randomise(relaxation)
    relaxed = er.audit(model, inputs, in_rep, out_rep, per_layer=False, lie=False)
    assert (relaxed.relative < 1e-10) == name.endswith("equivariant")
    with relaxation.strict():
        assert torch.equal(model(*inputs), strict)
    er.project(model)
    assert {k: v.shape for k, v in model.state_dict().items()} == keys
    assert torch.equal(model(*inputs), strict)
    assert er.audit(model, inputs, in_rep, out_rep, per_layer=False, lie=False).relative < 1e-10


def test_four_layers_of_segnn_have_the_eight_residuals_of_ace():
    model = SEGNN()
    relaxation = er.relax(model, "segnn-ace")
    assert len(relaxation) == 8
    assert all(len(r.map.layers) == 3 for _, r in relaxation)
    er.project(model)
    relaxation = er.relax(model, "segnn-cr")
    assert relaxation["layers.0.update_1"].map.weight.shape == (128, 256)  # behind the gate
    assert relaxation["layers.0.update_2"].map.weight.shape == (128, 128)
    assert relaxation["layers.0.update_1"].map.weight.detach().std().item() == pytest.approx(1e-4, rel=0.05)
    assert all(r.map.bias is None for _, r in relaxation)


def test_segnn_folds_what_is_equivariant():
    model = segnn()
    inputs, in_rep, out_rep = segnn_case()
    relaxation = er.relax(model, SEGNNUpdates(EquivariantDense()))
    randomise(relaxation)
    for i in range(3):
        relaxation[f"layers.{i}.update_1"].set_gamma(0.0)  # behind the gate: no layer can express it
    relaxed = model(*inputs)
    er.project(model, mode="fold", unfoldable="drop")
    torch.testing.assert_close(model(*inputs), relaxed, rtol=1e-10, atol=1e-10)
    relaxation = er.relax(model, "segnn-cr")
    randomise(relaxation)
    report = er.project(model, mode="fold", unfoldable="drop")
    assert all((0 < r.error < 1) == r.key.endswith("update_2") for r in report.residuals)
    assert er.audit(model, inputs, in_rep, out_rep, per_layer=False, lie=False).relative < 1e-10


def test_blocks_and_perceptrons_do_not_fold_and_say_why():
    model = egnn()
    er.relax(model, "egnn")
    with pytest.raises(UnfoldableError, match=r"layers\.0:h .*block-level"):
        er.project(model, mode="fold")
    model = segnn()
    er.relax(model, "segnn-ace")
    with pytest.raises(UnfoldableError, match=r"layers\.0\.update_1 .*block-level"):
        er.project(model, mode="fold")


def test_the_centred_placement_keeps_translations_exact():
    inputs, _, _ = egnn_case()
    shifted = (inputs[0] + torch.tensor([3.0, -2.0, 5.0]), *inputs[1:])
    for centred in (True, False):
        model = egnn()
        relaxation = er.relax(model, EGNNBlocks(er.MLP(layers=2), centred=centred))
        randomise(relaxation)
        moved = model(*shifted) - model(*inputs)
        exact = torch.allclose(moved, torch.tensor([3.0, -2.0, 5.0]).expand_as(moved), atol=1e-10)
        assert exact is centred
        assert (
            all("translations" in row.relaxes for row in relaxation.summary().with_status("relaxed"))
            is not centred
        )


def test_block_penalties_see_what_a_block_breaks():
    model = egnn()
    inputs, _, _ = egnn_case()
    relaxation = er.relax(model, "egnn-equivariant")
    randomise(relaxation)
    penalty = er.relaxation.regularizers.LieDerivative(relaxation)
    model(*inputs)
    for _, residual in penalty.relaxation:
        lie, norm = residual_terms(residual, residual.take_inputs())
        assert lie <= 1e-20 * norm
        assert norm > 0
    er.project(model)
    relaxation = er.relax(model, "egnn")
    randomise(relaxation)
    penalty = er.relaxation.regularizers.LieDerivative(relaxation)
    model(*inputs)
    penalty().backward()
    assert all(float(t["lie"]) > 0 for t in penalty.terms.values())


def test_the_summary_names_every_module_of_a_segnn():
    relaxation = er.relax(segnn(), "segnn-cr")
    rows = {row.path: row for row in relaxation.summary().rows}
    assert rows["layers.0.update_1"].status == "relaxed"
    assert rows["layers.0.message_1"].reason == "is no node update of a SEGNN"
    assert rows["embedding"].status == "skipped"


def test_every_product_of_a_segnn_is_relaxed_where_all_are_included():
    """Hooks on the first message product must be honoured by the network's fast path."""
    model = segnn()
    inputs, in_rep, out_rep = segnn_case()
    relaxation = er.relax(model, include="*")
    assert len(relaxation) == 3 * 4 + 3
    before = model(*inputs)
    randomise(relaxation, 0.0)
    for _, residual in relaxation:
        relaxation.set_gamma(0.0)
        residual.set_gamma(0.3)
        assert not torch.allclose(model(*inputs), before)
    er.project(model)
    assert er.audit(model, inputs, in_rep, out_rep, per_layer=False, lie=False).relative < 1e-10
