"""Norms of the equivariant part of every residual and of the rest, against projections made slowly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import PenaltyError
from equirelax.methods import REMUL
from equirelax.relaxation.kinds import EquivariantDense
from equirelax.relaxation.regularizers import LieDerivative, ProjectionNorms, Regularizer, get
from equirelax.symmetry import SO, Cyclic, Dihedral, O, Representation, regular, trivial, vector
from equirelax.testing import MethodConformance

REPS = {
    "SO(2)": (trivial(SO(2), 2) + 2 * vector(SO(2)), trivial(SO(2)) + 3 * vector(SO(2))),
    "O(3)": (trivial(O(3), 2) + 2 * vector(O(3)), trivial(O(3), 3) + vector(O(3))),
    "C4": (regular(Cyclic(4)) + trivial(Cyclic(4)), 2 * regular(Cyclic(4))),
    "D4": (regular(Dihedral(4)), trivial(Dihedral(4), 2) + regular(Dihedral(4))),
}
KINDS: dict[str, er.relaxation.ResidualKind] = {
    "dense": er.Dense("normal", std=0.5),
    "bias": er.Dense("normal", std=0.5, bias=True),
    "equivariant": EquivariantDense("normal", std=0.5),
    "low rank": er.LowRank(2, "normal", std=0.5),
}


def relaxed(
    kind: er.relaxation.ResidualKind, reps: tuple[Representation, Representation]
) -> er.relaxation.Relaxation:
    in_rep, out_rep = reps
    model = nn.Sequential(
        nn.Linear(in_rep.dim, out_rep.dim, dtype=torch.float64),
        nn.Linear(out_rep.dim, in_rep.dim, dtype=torch.float64),
    )
    declared = (er.Linear("0", in_rep, out_rep), er.Linear("1", out_rep, in_rep))
    generator = torch.Generator().manual_seed(0)
    return er.relax(model, er.Layers(residual=kind, declare=declared), generator=generator)


def slowly(weight: Tensor, in_rep: Representation, out_rep: Representation) -> Tensor:
    """The projection by the null space of all conditions at once; of a finite group the mean over its elements."""
    group = in_rep.group
    if not group.algebra_dim:
        moved = [
            torch.linalg.solve(out_rep.matrix(g), weight @ in_rep.matrix(g))
            for g in group.elements().double()
        ]
        return torch.stack(moved).mean(0)
    eye_in = torch.eye(in_rep.dim, dtype=torch.float64)
    eye_out = torch.eye(out_rep.dim, dtype=torch.float64)
    conditions = [
        torch.kron(b, eye_in) - torch.kron(eye_out, a.T.contiguous())
        for a, b in zip(in_rep.generators(), out_rep.generators(), strict=True)
    ]
    for g in group.discrete(dtype=torch.float64):
        conditions.append(
            torch.kron(out_rep.matrix(g), eye_in) - torch.kron(eye_out, in_rep.matrix(g).T.contiguous())
        )
    _, values, vh = torch.linalg.svd(torch.cat(conditions))
    basis = vh[int((values > 1e-9).sum()) :]
    return (basis.T @ (basis @ weight.flatten())).view_as(weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REPS)
def test_the_norms_are_those_of_the_slow_projection_with_their_gradients(name: str, kind: str) -> None:
    relaxation = relaxed(KINDS[kind], REPS[name])
    regularizer = ProjectionNorms(relaxation, 0.3, 0.7)
    value, expected = regularizer(), torch.zeros((), dtype=torch.float64)
    for key, residual in relaxation:
        map_ = residual.linear_map
        weight, bias = map_.effective_weight(), map_.effective_bias()
        parts = [(weight, slowly(weight, residual.in_rep, residual.out_rep))]
        if bias is not None:
            one = trivial(residual.out_rep.group)
            parts.append((bias, slowly(bias[:, None], one, residual.out_rep)[:, 0]))
        inside = torch.cat([p.flatten() for _, p in parts]).norm()
        rest = torch.cat([(w - p).flatten() for w, p in parts]).norm()
        terms = regularizer.terms[key]
        torch.testing.assert_close(terms["equivariant"], inside.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(terms["rest"], rest.detach(), rtol=1e-12, atol=1e-12)
        assert (float(rest) < 1e-12) is (kind == "equivariant")
        expected = expected + 0.3 * inside + (0.0 if kind == "equivariant" else 0.7 * rest)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    parameters = list(relaxation.residual_parameters().values())
    found = torch.autograd.grad(value, parameters)
    slow = torch.autograd.grad(expected, parameters)
    for mine, theirs in zip(found, slow, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_kernels_are_projected_as_their_layers_are() -> None:
    rep = regular(Cyclic(4))
    convolution = nn.Conv2d(4, 4, 3, bias=False, dtype=torch.float64)
    field = er.GridField(rep)
    placement = er.Layers(residual=er.Dense("normal", std=0.5), declare=(er.Linear("0", field, field),))
    relaxation = er.relax(nn.Sequential(convolution), placement)
    ProjectionNorms(relaxation)()
    regularizer = ProjectionNorms(relaxation, 1.0, 1.0)
    regularizer()
    weight = relaxation["0"].linear_map.effective_weight()
    moved = [  # g turns the offsets, and the channels of input and output
        torch.einsum("ab,bcij,cd->adij", rep.matrix(g), torch.rot90(weight, k, (2, 3)), rep.matrix(g).T)
        for sign in (1,)
        for k, g in ((sign * k, g) for k, g in enumerate(Cyclic(4).elements().double()))
    ]
    inside = torch.stack(moved).mean(0)
    terms = regularizer.terms["0"]
    torch.testing.assert_close(terms["equivariant"], inside.norm().detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(terms["rest"], (weight - inside).norm().detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [er.Dense(), er.LowRank(2)])
def test_gradients_are_finite_at_zero(kind: er.relaxation.ResidualKind) -> None:
    relaxation = relaxed(kind, REPS["O(3)"])
    value = ProjectionNorms(relaxation, 1.0, 1.0)()
    assert float(value.detach()) == 0.0
    value.backward()
    for parameter in relaxation.residual_parameters().values():
        assert parameter.grad is not None
        assert not bool(parameter.grad.any())


def test_no_inputs_are_kept_and_no_forward_has_to_come_before() -> None:
    relaxation = relaxed(KINDS["dense"], REPS["SO(2)"])
    method = er.ACE(relaxation, dual_lr=0.1, regularizer=ProjectionNorms(relaxation, 0.1, 0.2))
    assert not any(residual.keep_inputs for _, residual in relaxation)
    relaxation.model.train()(torch.randn(3, REPS["SO(2)"][0].dim, dtype=torch.float64))
    assert not any(residual.take_inputs() for _, residual in relaxation)
    assert torch.isfinite(method.penalty())
    assert set(method.logs()["0"]) >= {"gamma", "equivariant", "rest"}


def test_every_computes_one_step_in_so_many() -> None:
    relaxation = relaxed(KINDS["dense"], REPS["SO(2)"])
    once, thrice = ProjectionNorms(relaxation), ProjectionNorms(relaxation, every=3)
    values = []
    for _ in range(3):
        values.append(float(thrice().detach()))
        thrice.advance()
    assert values == [pytest.approx(3 * float(once().detach())), 0.0, 0.0]


def test_it_drives_a_residual_to_the_equivariant_maps() -> None:
    relaxation = relaxed(KINDS["dense"], REPS["O(3)"])
    regularizer = ProjectionNorms(relaxation, 0.0, 1.0)
    optimizer = torch.optim.SGD(relaxation.residual_parameters().values(), lr=0.02)
    before = None
    for _ in range(200):
        optimizer.zero_grad()
        regularizer().backward()
        before = before or {key: dict(terms) for key, terms in regularizer.terms.items()}
        optimizer.step()
    assert before is not None
    for key, terms in regularizer.terms.items():
        assert float(terms["rest"]) < 0.05 < float(before[key]["rest"])
        torch.testing.assert_close(
            terms["equivariant"], before[key]["equivariant"]
        )  # the other part is left alone


def test_what_has_no_projection_is_refused() -> None:
    assert get("projection") is ProjectionNorms
    with pytest.raises(PenaltyError, match="MLPMap"):
        ProjectionNorms(relaxed(er.MLP(), REPS["O(3)"]))
    for name, wrong in (("equivariant_weight", -1.0), ("rest_weight", math.nan), ("rest_weight", math.inf)):
        with pytest.raises(PenaltyError, match=name):
            ProjectionNorms(relaxed(er.Dense(), REPS["O(3)"]), **{name: wrong})
    with pytest.raises(PenaltyError, match="every"):
        ProjectionNorms(relaxed(er.Dense(), REPS["O(3)"]), every=0)


class TestRemulWithProjectionNorms(MethodConformance):
    """A rival of REMUL's second task, beside it."""

    needs_penalty = False

    def build_method(self, relaxation: er.relaxation.Relaxation) -> REMUL:
        method = REMUL(relaxation)
        method.regularizer = self.regularizer(relaxation)
        return method

    @staticmethod
    def regularizer(relaxation: er.relaxation.Relaxation) -> Regularizer:
        return ProjectionNorms(relaxation, 0.1, 0.2)


class TestACEWithProjectionNorms(MethodConformance):
    def build_method(self, relaxation: er.relaxation.Relaxation) -> er.ACE:
        return er.ACE(relaxation, dual_lr=0.1, regularizer=ProjectionNorms(relaxation, 0.1, 0.2))


def test_it_agrees_with_the_lie_derivative_on_what_is_equivariant() -> None:
    relaxation = relaxed(KINDS["equivariant"], REPS["O(3)"])
    regularizer, lie = ProjectionNorms(relaxation, 1.0, 1.0), LieDerivative(relaxation)
    relaxation.model.train()(torch.randn(5, REPS["O(3)"][0].dim, dtype=torch.float64))
    lie()
    regularizer()
    for key, terms in regularizer.terms.items():
        assert float(terms["rest"]) < 1e-12 < float(terms["equivariant"])
        assert float(lie.terms[key]["lie"]) < 1e-24
