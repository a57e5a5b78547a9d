"""The audit's numbers against slow references, and its inputs: trees, groups, dtypes."""

from __future__ import annotations

import json
import math
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equirelax.auditing import On, audit
from equirelax.errors import AuditError, NonFiniteError
from equirelax.symmetry import (
    SE,
    SO,
    Cyclic,
    E,
    Group,
    Lorentz,
    MatrixGroup,
    O,
    Scaling,
    positions,
    sign,
    trivial,
    vector,
)

torch.set_num_threads(1)


class Function(nn.Module):
    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function

    def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        return self.function(*args, **kwargs)


def shift(x: Tensor) -> Tensor:
    """Not equivariant: adds a fixed vector."""
    return 2 * x + torch.tensor([0.1, 0.0, 0.0], dtype=x.dtype)


def test_errors_against_a_loop() -> None:
    """absolute, relative, E and E' of ``x -> 2 x + b`` by their definitions, element by element, row by
    row.
    """
    group = SO(3)
    x = torch.randn(6, 3, dtype=torch.float64)
    report = audit(shift, x, vector(group), vector(group), samples=9, seed=4)
    drawn = group.sample(9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    absolute = relative = 0.0
    mean = torch.zeros(6, 3, dtype=torch.float64)
    norms = []
    for g in drawn:
        rows = []
        for row in x:
            difference = shift(g @ row) - g @ shift(row)
            absolute = max(absolute, float(difference.abs().max()))
            norms.append(float(difference.norm()))
            rows.append(difference)
        mean += torch.stack(rows) / len(drawn)
        found, expected = shift(x @ g.T), shift(x) @ g.T
        relative = max(relative, float((found - expected).norm() / max(found.norm(), expected.norm())))
    assert math.isclose(report.absolute, absolute, rel_tol=1e-12)
    assert math.isclose(report.relative, relative, rel_tol=1e-12)
    assert math.isclose(report.e, float(mean.norm(dim=1).mean()), rel_tol=1e-12)
    assert math.isclose(report.e_prime, sum(norms) / len(norms), rel_tol=1e-12)
    assert report.e < report.e_prime
    element = torch.tensor(report.worst.element, dtype=torch.float64)
    expected = shift(x) @ element.T
    assert math.isclose(report.worst.expected, float(expected[report.worst.entry]), rel_tol=1e-12)


@pytest.mark.parametrize(
    "group", [SO(2), SO(3), O(2), O(3), SE(2), SE(3), E(3), SO(4), Cyclic(5), Scaling(), Lorentz()], ids=str
)
def test_every_group(group: Group) -> None:
    """Linear maps over the channels of vectors are equivariant; a bias is not."""
    n = group.linear_dim
    linear = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    x = torch.randn(4, n, 3, dtype=torch.float64)
    along = On(vector(group), -2)
    report = audit(linear, x, along, along, samples=6)
    assert report.equivariant
    assert report.relative < 1e-12
    assert report.lie is None if group.order else report.lie.relative < 1e-12
    biased = nn.Linear(3, 2, dtype=torch.float64)
    assert not audit(biased, x, along, along, samples=6).equivariant
    json.dumps(report.to_dict())
    assert group.name in str(report)


def test_positions_are_affine() -> None:
    group = E(3)
    x = torch.randn(5, 3)
    assert audit(lambda x: x.mean(0), x, positions(group), positions(group)).equivariant
    assert audit(lambda x: x - x.mean(0), x, positions(group), vector(group)).equivariant
    assert not audit(lambda x: x.sum(0), x, positions(group), positions(group)).equivariant
    moved = audit(lambda x: x, x, positions(group), vector(group))
    named = {row.name: row.relative for row in moved.lie.generators}
    assert named["rotation about x"] < 1e-14
    assert named["translation x"] > 0.1


Pair = namedtuple("Pair", ["vectors", "scalars"])


@dataclass
class Result:
    force: Tensor
    energy: Tensor
    label: str = "mechanics"


def test_trees() -> None:
    """Nested samples and outputs; integers and strings pass through; tensors that are not listed are
    invariant.
    """
    group = O(3)
    v = vector(group)

    def model(state, index, scale: float = 2.0):  # type: ignore[no-untyped-def]
        assert index.dtype == torch.int64
        x, h = state["pair"].vectors, state["pair"].scalars
        force = scale * x[index] * h[index].unsqueeze(-1)
        return Result(force, h.sum()), [{"squares": x.square().sum(-1)}, index.float(), "done"]

    pair = Pair(torch.randn(4, 3), torch.randn(4))
    sample = {"state": {"pair": pair, "name": "cell"}, "index": torch.tensor([0, 2, 2]), "scale": 3.0}
    in_rep = {"state": {"pair": (v, None)}}
    out_rep = ({"force": v}, [None, None, None])
    report = audit(model, sample, in_rep, out_rep)
    assert report.equivariant
    assert set(report.before.outputs) == {
        "output[0].force",
        "output[0].energy",
        "output[1][0].squares",
        "output[1][1]",
    }
    assert report.inputs["input.index"].startswith("passed on")
    assert pair.vectors.dtype == torch.float32
    # the force declared invariant: that output alone is wrong
    wrong = audit(model, sample, in_rep, (None, None))
    assert {path for path, error in wrong.before.outputs.items() if error > 0.1} == {"output[0].force"}
    assert wrong.worst.output == "output[0].force"


def test_pyg_data() -> None:
    data_module = pytest.importorskip("torch_geometric.data")
    group = E(3)

    def model(data):  # type: ignore[no-untyped-def]
        source, target = data.edge_index
        force = torch.zeros_like(data.pos).index_add(0, target, data.pos[source] - data.pos[target])
        data.pos = data.pos + data.weight.unsqueeze(-1) * force  # writes into its own copy
        return data

    data = data_module.Data(
        pos=torch.randn(4, 3), edge_index=torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]), weight=torch.randn(4)
    )
    before = data.pos.clone()
    report = audit(model, data, {"pos": positions(group)}, {"pos": positions(group)})
    assert report.equivariant
    assert torch.equal(data.pos, before)
    batch = data_module.Batch.from_data_list([data, data])
    assert audit(model, batch, {"pos": positions(group)}, {"pos": positions(group)}).equivariant
    with pytest.raises(AuditError, match="did you mean 'pos'"):
        audit(model, data, {"poss": positions(group)}, {"pos": positions(group)})


@settings(deadline=None, max_examples=15)
@given(
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=3), place=st.integers(0, 3), n=st.integers(2, 4)
)
def test_axes(shape: list[int], place: int, n: int) -> None:
    axis = min(place, len(shape))
    x = torch.randn(*shape[:axis], n, *shape[axis:], dtype=torch.float64)
    along = On(vector(SO(n)), axis)
    assert audit(torch.neg, x, along, along, samples=2, per_layer=False).relative < 1e-14
    squares = audit(lambda x: x.square().sum(axis), x, along, None, samples=2, per_layer=False)
    assert squares.relative < 1e-13


@pytest.mark.parametrize(
    ("in_rep", "words"),
    [
        ((vector(SO(3)),), "2 representations|1 representations|tuple of 2"),
        ((vector(SO(3)), vector(SO(3))), "int64"),
        ((2 * vector(SO(3)), None), "needs axis -1 to have size 6"),
        (({"x": vector(SO(3))}, None), "is a tensor"),
        (vector(SO(3)), "tuple of 2"),
        ((On(vector(SO(3)), 5), None), "another axis"),
    ],
)
def test_samples_and_representations_must_fit(in_rep, words: str) -> None:  # type: ignore[no-untyped-def]
    sample = (torch.randn(4, 3), torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(AuditError, match=words):
        audit(lambda x, i: x, sample, in_rep, vector(SO(3)))


def test_groups_must_fit() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(AuditError, match="no group is given"):
        audit(torch.neg, x, None, None)
    with pytest.raises(AuditError, match=r"does not contain O\(3\)"):
        audit(torch.neg, x, vector(SO(3)), vector(SO(3)), O(3))
    with pytest.raises(AuditError, match="does not contain"):
        audit(torch.neg, x, vector(SO(3)), vector(E(3)))
    with pytest.raises(AuditError, match="at least one"):
        audit(torch.neg, x, vector(SO(3)), vector(SO(3)), samples=0)


def test_subgroups() -> None:
    """SO(3) inside O(3), and rotations about z given by a generator, whose Lie derivative is theirs alone."""

    def cross(x: Tensor) -> Tensor:
        return torch.linalg.cross(x[:, 0], x[:, 1])

    x = torch.randn(5, 2, 3)
    v = vector(O(3))
    assert not audit(cross, x, v, v).equivariant
    assert audit(cross, x, v, v, SO(3)).equivariant
    about_z = torch.zeros(1, 3, 3)
    about_z[0, 0, 1], about_z[0, 1, 0] = -1.0, 1.0
    group = MatrixGroup(about_z, name="rotations about z", compact=True)
    report = audit(lambda x: x * torch.tensor([1.0, 1.0, 2.0]).to(x), x, v, v, group)
    assert report.equivariant
    assert [row.name for row in report.lie.generators] == ["rotation about z"]
    assert report.lie.relative < 1e-14
    assert not audit(lambda x: x * torch.tensor([1.0, 1.0, 2.0]).to(x), x, v, v).equivariant


def test_nothing_and_nan() -> None:
    x = torch.randn(4, 3)
    v = vector(SO(3))
    with pytest.raises(AuditError, match="nothing whose equivariance"):
        audit(lambda x: "nothing", x, v, None)
    with pytest.raises(NonFiniteError, match="`output` holds NaN or infinity on the sample as given"):
        audit(lambda x: x / 0, x, v, v)
    first = float(x[0, 0])
    with pytest.raises(NonFiniteError, match="after a rotation by"):
        audit(lambda x: x if abs(x[0, 0] - first) < 1e-6 else x / 0, x, v, v)
    axes = torch.cat(
        [torch.eye(3), -torch.eye(3)]
    )  # however they turn, some pass the threshold: one to three
    with pytest.raises(AuditError, match="size depends on the group element"):
        audit(lambda x: x[x[:, 0] > 0.3], axes, v, v)


def test_random_models_are_noted() -> None:
    v = vector(SO(3))
    noisy = audit(lambda x: x + 0.1 * torch.randn_like(x), torch.randn(4, 3), v, v)
    assert noisy.before.repeatability > 0.01
    assert any("two calls on the same input differ" in note for note in noisy.notes)
    again = audit(lambda x: x + 0.1 * torch.randn_like(x), torch.randn(4, 3), v, v, seed=1)
    assert again.before.repeatability > 0.01
    dropout = nn.Sequential(nn.Dropout(0.5)).train()
    assert audit(dropout, torch.randn(4, 3), v, v).before.repeatability == 0


def test_float32_shows_its_rounding() -> None:
    """The same sound layer in both precisions: the error is that of the precision, and named as such."""
    torch.manual_seed(0)
    linear = nn.Linear(8, 8, bias=False)
    x = torch.randn(20, 3, 8)
    along = On(vector(SO(3)), -2)
    exact = audit(linear, x, along, along)
    rounded = audit(linear, x, along, along, dtype=torch.float32)
    assert exact.relative < 1e-14 < 1e-9 < rounded.relative < 1e-6
    assert (exact.dtype, rounded.dtype) == ("float64", "float32")
    assert rounded.equivariant


def test_pseudoscalars_and_components() -> None:
    group = O(3)
    x = torch.randn(6, 3, 3)
    assert audit(torch.linalg.det, x, vector(group), None, SO(3)).equivariant
    one = audit(lambda x: torch.linalg.det(x).unsqueeze(-1), x, vector(group), sign(group))
    assert one.equivariant
    other = audit(lambda x: torch.linalg.det(x).unsqueeze(-1), x, vector(group), trivial(group))
    assert other.before.components["proper"] < 1e-12
    assert math.isclose(other.before.components["with reflection"], 2.0, rel_tol=1e-9)


def test_to_dict_holds_what_a_run_writes() -> None:
    report = audit(shift, torch.randn(4, 3), vector(SO(3)), vector(SO(3)))
    found = json.loads(json.dumps(report.to_dict()))
    assert (found["group"], found["deployed"], found["dtype"]) == ("SO(3)", "as it is", "float64")
    assert found["passes"] is False
    assert list(found["errors"]) == ["as it is"]
    assert found["errors"]["as it is"]["relative"] == report.relative
    assert len(found["errors"]["as it is"]["worst"]["element"]) == 3
