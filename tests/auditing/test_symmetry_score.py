"""The symmetry score, against a loop over examples that differentiates by a weight, and what it must refuse."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.auditing import SymmetryScore
from equirelax.errors import AuditError, NonFiniteError
from equirelax.symmetry import Cyclic, equivariant_projection, from_irreps, regular, trivial, vector

IN, OUT = "2x0e+2x1o", "1x0e+1x1o"


class Graphs(nn.Module):
    """Sums messages over the edges that it finds itself, and reads one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.node = nn.Linear(8, 8, bias=False)
        self.edge = nn.Linear(8, 4, bias=False)
        with torch.no_grad():
            for layer, (in_rep, out_rep) in ((self.node, (IN, IN)), (self.edge, (IN, OUT))):
                reps = from_irreps(in_rep), from_irreps(out_rep)
                layer.weight.copy_(equivariant_projection(layer.weight, *reps))

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        sent, got = torch.nonzero((graph[:, None] == graph) & (torch.cdist(x, x) < 4), as_tuple=True)
        x = self.node(self.node(x))
        messages = self.edge(x[sent] - x[got])
        return torch.zeros(len(x), 4, dtype=x.dtype).index_add(0, got, messages)


PLACEMENT = er.Layers(declare=(er.Linear("node", IN, IN), er.Linear("edge", IN, OUT)))


def graphs(count: int = 7) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Graphs of 2 to 4 nodes, (features, graph, targets) each."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in range(count):
        nodes = 2 + index % 3
        x, y = (torch.randn(nodes, dim, generator=generator) for dim in (8, 4))
        found.append((x, torch.zeros(nodes, dtype=torch.long), y + torch.tensor([0.0, 0.0, 0.0, 1.0])))
    return found


def joined(samples: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    graph = torch.cat([index + one[1] for index, one in enumerate(samples)])
    return torch.cat([one[0] for one in samples]), graph, torch.cat([one[2] for one in samples])


def loss(model: nn.Module, batch: Any) -> Tensor:
    x, graph, y = batch
    each = (model(x, graph) - y).square().sum(1)
    return torch.zeros(int(graph.max()) + 1, dtype=each.dtype).index_add(0, graph, each)


def model() -> Graphs:
    torch.manual_seed(0)
    return Graphs().double()


def doubled(samples: list[tuple[Tensor, Tensor, Tensor]]) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [(x.double(), graph, y.double()) for x, graph, y in samples]


def by_weights(samples: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, list[Tensor]]:
    """A_i from autograd: the gradient by a dense weight of 0 (and a bias) that is added to the layer."""
    net, found = model(), {"node": [], "edge": []}  # type: ignore[var-annotated]
    for sample in samples:
        extra = {
            key: torch.zeros(dim, 9, dtype=torch.float64, requires_grad=True)
            for key, dim in (("node", 8), ("edge", 4))
        }
        handles = [
            getattr(net, key).register_forward_hook(lambda _m, x, y, w=w: y + x[0] @ w[:, :-1].T + w[:, -1])
            for key, w in extra.items()
        ]
        gradients = torch.autograd.grad(loss(net, sample).sum(), list(extra.values()))
        for (key, out), gradient in zip((("node", IN), ("edge", OUT)), gradients, strict=True):
            inside = equivariant_projection(gradient, from_irreps(IN + "+1x0e"), from_irreps(out))
            found[key].append((gradient - inside).flatten())
        for handle in handles:
            handle.remove()
    return found


def same(a: SymmetryScore, b: SymmetryScore, z: bool = True) -> None:
    assert [one.key for one in a.layers] == [one.key for one in b.layers]
    assert a.examples == b.examples
    for x, y in zip((*a.layers, a.whole), (*b.layers, b.whole), strict=True):
        names = ("score", "ratio", "size", *(("z",) if z else ()))
        for name in names:
            assert getattr(x, name) == pytest.approx(getattr(y, name), rel=1e-9, abs=1e-12), (x.key, name)


def test_it_is_the_loop_over_examples_with_explicit_weights() -> None:
    samples = doubled(graphs())
    found = er.symmetry_score(model(), joined(samples), loss, placement=PLACEMENT)
    n = len(samples)
    assert found.examples == n
    assert not found.skipped
    scaled = []
    for one, (key, moments) in zip(found.layers, by_weights(samples).items(), strict=True):
        gram = torch.stack(moments) @ torch.stack(moments).T
        mean, squares = float(gram.sum()) / n**2, float(gram.trace()) / n
        assert one.key == key
        assert one.score == pytest.approx((n * mean - squares) / (n - 1))
        assert one.ratio == pytest.approx(one.score / squares)
        steps = gram.tril(-1).sum(1)
        assert one.z == pytest.approx(float(steps.sum() / steps.norm()))
        scaled.append(steps / squares)
    total = torch.stack(scaled).sum(0)
    assert found.whole.z == pytest.approx(float(total.sum() / total.norm()))
    assert found.whole.ratio == pytest.approx(sum(found.ratios.values()) / 2)


def test_batches_single_examples_and_a_relaxed_model_give_the_same() -> None:
    samples = doubled(graphs())
    whole = er.symmetry_score(model(), joined(samples), loss, placement=PLACEMENT)
    parts = [joined(samples[:3]), joined(samples[3:4]), joined(samples[4:])]
    same(er.symmetry_score(model(), iter(parts), loss, placement=PLACEMENT), whole)
    alone = er.symmetry_score(model(), iter(samples), lambda m, b: loss(m, b)[0], placement=PLACEMENT)
    same(alone, whole)
    relaxed = model()
    relaxation = er.relax(relaxed, PLACEMENT)
    with torch.no_grad():
        for parameter in relaxation.residual_parameters().values():
            parameter.normal_()
    relaxation.set_gamma(0.7)
    er.Strict(relaxation)
    same(er.symmetry_score(relaxed, joined(samples), loss), whole)
    shuffled = [samples[i] for i in (4, 0, 6, 2, 1, 5, 3)]
    same(er.symmetry_score(model(), joined(shuffled), loss, placement=PLACEMENT), whole, z=False)


@pytest.mark.parametrize("relaxed", [False, True])
def test_the_model_is_left_as_it_was(relaxed: bool) -> None:
    net = model().train()
    net.register_buffer("calls", torch.zeros(()))

    def count(module: Any, _x: Any, _y: Any) -> None:
        module.calls.add_(1)

    net.register_forward_hook(count)
    if relaxed:
        er.relax(net, PLACEMENT).set_gamma(0.3)
    before = copy.deepcopy(net.state_dict())
    modules, state = [type(m) for m in net.modules()], torch.get_rng_state()
    er.symmetry_score(net, joined(doubled(graphs())), loss, placement=None if relaxed else PLACEMENT)
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert [type(m) for m in net.modules()] == modules
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in net.parameters())
    hooks = sum(len(m._forward_hooks) for m in net.modules())
    assert hooks == 1 + 2 * relaxed
    if relaxed:
        assert er.relaxation_of(net).gammas().tolist() == pytest.approx([0.3, 0.3])


def test_convolutions_are_scored_kernel_by_kernel() -> None:
    from equirelax.relaxation import Convolution, GridKernels, GridSite
    from equirelax.relaxation.placements import Placed, Placement, Survey

    group = Cyclic(4)
    in_rep, out_rep = vector(group), regular(group)
    symmetry = GridKernels(in_rep, out_rep, 3)
    convolution = Convolution((3, 3), symmetry, (1, 1), (1, 1), (1, 1))
    net = nn.Conv2d(2, 4, 3, padding=1, bias=False).double()
    net.weight.data = symmetry.project(net.weight.data)

    class One(Placement):
        def survey(self, model: nn.Module) -> Survey:
            return Survey((Placed(GridSite("", in_rep, out_rep, convolution=convolution), er.Dense()),), ())

    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(5, c, 6, 6, generator=generator, dtype=torch.float64) for c in (2, 4))
    found = er.symmetry_score(
        net, (x, y), lambda m, b: (m(b[0]) - b[1]).square().flatten(1).sum(1), placement=One()
    )
    moments = []
    for one, target in zip(x, y, strict=True):
        weight, bias = net.weight.detach().requires_grad_(), torch.zeros(4, dtype=x.dtype, requires_grad=True)
        out = nn.functional.conv2d(one[None], weight, bias, padding=1)
        kernel, shift = torch.autograd.grad((out - target).square().sum(), (weight, bias))
        shift = shift - equivariant_projection(shift[:, None], trivial(group), out_rep)[:, 0]
        moments.append(torch.cat([(kernel - symmetry.project(kernel)).flatten(), shift]))
    alone = er.symmetry_score(
        net, zip(x, y, strict=True), lambda m, b: (m(b[0]) - b[1]).square().sum(), placement=One()
    )  # fields without a batch
    same(alone, found)
    gram = torch.stack(moments) @ torch.stack(moments).T
    assert found.layers[0].size == pytest.approx(float(gram.trace()) / 5)
    assert found.layers[0].score == pytest.approx((float(gram.sum()) - float(gram.trace())) / 20)


def test_an_example_whose_loss_depends_on_others_is_refused() -> None:
    class Normed(Graphs):
        def forward(self, x: Tensor, graph: Tensor) -> Tensor:
            y = super().forward(x, graph)
            return y - y.mean(0)

    samples = doubled(graphs())
    torch.manual_seed(0)
    with pytest.raises(AuditError, match="iterator over batches of one example"):
        er.symmetry_score(Normed().double(), joined(samples), loss, placement=PLACEMENT)
    assert er.symmetry_score(Normed().double(), iter(samples), loss, placement=PLACEMENT).examples == 7


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        (er.Linear("node", *2 * (2 * er.symmetry.vector(er.symmetry.Lorentz()),)), "not orthogonal"),
        (
            er.Linear(
                "node",
                *2 * (er.symmetry.trivial(er.symmetry.E(3), 5) + er.symmetry.positions(er.symmetry.E(3)),),
            ),
            "positions",
        ),
    ],
    ids=["boosts", "translations"],
)
def test_what_has_no_orthogonal_projection_is_named(declared: er.Linear, reason: str) -> None:
    data = joined(doubled(graphs()))
    with pytest.raises(AuditError, match=reason):
        er.symmetry_score(model(), data, loss, placement=er.Layers(include=("node",), declare=(declared,)))
    both = er.Layers(declare=(declared, er.Linear("edge", IN, OUT)))
    found = er.symmetry_score(model(), data, loss, placement=both)
    assert list(found.skipped) == ["node"]
    assert reason in found.skipped["node"]
    assert [one.key for one in found.layers] == ["edge"]
    assert reason in str(found)
    assert reason in found._repr_html_()


def test_a_network_that_differentiates_itself_is_not_scored_there() -> None:
    class Force(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.behind = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            energy = self.inside(x).square().sum()
            return self.behind(torch.autograd.grad(energy, x, create_graph=True)[0].detach())

    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    found = er.symmetry_score(
        Force(), x, lambda m, b: m(b).square().sum(1),
        placement=er.Layers(declare=(er.Linear("*", "1x1o", "1x1o"),)),
    )  # fmt: skip
    assert list(found.skipped) == ["inside"]
    assert [one.key for one in found.layers] == ["behind"]


def test_bad_losses_are_named() -> None:
    data = joined(doubled(graphs()))

    def score(of: Any) -> SymmetryScore:
        return er.symmetry_score(model(), data, of, placement=PLACEMENT)

    with pytest.raises(AuditError, match="needs at least two"):
        score(lambda m, b: loss(m, b).mean())
    with pytest.raises(AuditError, match="one loss for every example"):
        score(lambda m, b: m(b[0], b[1]))
    with pytest.raises(AuditError, match="reaches no layer"):
        score(lambda m, b: b[2].sum(1))
    with pytest.raises(NonFiniteError):
        score(lambda m, b: loss(m, b) * float("nan"))
    relaxed = model()
    er.relax(relaxed, PLACEMENT)
    with pytest.raises(AuditError, match="placement"):
        er.symmetry_score(relaxed, data, loss, placement=PLACEMENT)
    with pytest.raises(AuditError, match="strict"), er.relaxation_of(relaxed).strict():
        er.symmetry_score(relaxed, data, loss)
    with pytest.raises(AuditError, match="Relaxation"):
        er.symmetry_score(er.relaxation_of(relaxed), data, loss)  # type: ignore[arg-type]
    with pytest.raises(AuditError, match="NoneType"):
        score(None)
    with pytest.raises(AuditError, match="none"):
        er.symmetry_score(model(), iter([]), loss, placement=PLACEMENT)


class Three(nn.Module):
    """A layer that is used, in float32; one behind it in float64; and two of which the output does not depend."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.last, self.aside, self.fixed = (nn.Linear(3, 3, bias=False) for _ in range(4))
        for layer in self.children():
            nn.init.eye_(layer.weight)
        self.last.double()

    def forward(self, x: Tensor) -> Tensor:
        self.aside(x)
        with torch.no_grad():
            self.fixed(x)
        masked = torch.cat([x, torch.full_like(x[:1], float("nan"))])  # as padded rows are
        given = torch.where(masked.isnan(), 0.0, self.used(masked))[:-1]
        return self.last(given.double())


VECTORS = er.Layers(declare=(er.Linear("*", "1x1o", "1x1o"),))


def of_vectors(net: nn.Module, of: Any, unit: float = 1.0) -> SymmetryScore:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    y = x + torch.tensor([0.0, 0.0, 1.0])
    return er.symmetry_score(net, (x, y), lambda m, b: unit * of(m, b), placement=VECTORS)


def squares(m: nn.Module, b: Any) -> Tensor:
    return (m(b[0]) - b[1]).square().sum(1)


def test_layers_without_a_gradient_are_named_dtypes_stay_and_rows_without_a_gradient_do_not_count() -> None:
    found = of_vectors(Three(), squares)
    assert sorted(found.skipped) == ["aside", "fixed"]
    alone = nn.Sequential(nn.Linear(3, 3, bias=False))
    nn.init.eye_(alone[0].weight)
    expected = of_vectors(alone, squares)
    for one in found.layers:
        assert one.ratio == pytest.approx(expected.layers[0].ratio, rel=1e-6)
    assert found.whole.ratio == pytest.approx(
        expected.whole.ratio, rel=1e-6
    )  # the others are no zeros in the mean


def test_ratio_and_z_have_no_unit() -> None:
    found = [of_vectors(Three(), squares, unit).layers[0] for unit in (1.0, 1e-15)]
    assert found[1].ratio == pytest.approx(found[0].ratio, rel=1e-5)
    assert found[1].z == pytest.approx(found[0].z, rel=1e-5)


class Gated(Graphs):
    """The same with a nonlinearity: vectors are scaled by a function of their lengths and of the scalars."""

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        scalars, vectors = x[:, :2], x[:, 2:].unflatten(1, (2, 3))
        gated = vectors * torch.sigmoid(vectors.norm(dim=2, keepdim=True) + scalars[..., None])
        return super().forward(torch.cat([scalars.tanh(), gated.flatten(1)], 1), graph)


def node_means(model: nn.Module, batch: Any) -> Tensor:
    return loss(model, batch) / batch[1].bincount()


@pytest.mark.parametrize("of", [loss, node_means])
def test_whole_orbits_cancel_at_every_layer(of: Any) -> None:
    """Graphs of different sizes through a layer that is called twice, moved by all 48 symmetries of the cube: mean A = 0."""
    turns = torch.stack(
        [
            torch.diag(torch.tensor(signs, dtype=torch.float64))[list(order)]
            for signs in itertools.product((1.0, -1.0), repeat=3)
            for order in itertools.permutations(range(3))
        ]
    )
    moves_in, moves_out = (from_irreps(rep).matrix(turns) for rep in (IN, OUT))
    orbits = [
        (x @ move.T, graph, y @ moved.T)
        for x, graph, y in doubled(graphs(3))
        for move, moved in zip(moves_in, moves_out, strict=True)
    ]
    torch.manual_seed(0)
    net = Gated().double()
    found = er.symmetry_score(net, joined(orbits), of, placement=PLACEMENT)
    for one in found.layers:
        assert one.size > 1e-3
        assert one.ratio == pytest.approx(-1 / (len(orbits) - 1), rel=1e-9)
    some = er.symmetry_score(net, joined(orbits[::7]), of, placement=PLACEMENT)
    assert all(abs(one.ratio + 1 / (some.examples - 1)) > 1e-4 for one in some.layers)


def test_rounding_is_no_asymmetry() -> None:
    """Gradients that are equivariant for every example alone: what is left of them after P is rounding, and shared."""
    rep = 4 * regular(Cyclic(4))
    net = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Tanh())
    with torch.no_grad():
        weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
        net[0].weight.copy_(equivariant_projection(weight, rep, rep))
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(64, 4, 1, generator=generator).expand(64, 4, 4).reshape(64, 16) for _ in range(2))
    found = er.symmetry_score(net, (x, y), squares, placement=er.Layers(declare=(er.Linear("0", rep, rep),)))
    assert found.layers[0].score == found.layers[0].z == found.whole.z == 0.0


def test_what_a_layer_reads_must_be_finite() -> None:
    class Bad(Three):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nan_to_num(self.used(x)) + self.used(x * torch.inf).sigmoid()

    with pytest.raises(NonFiniteError):
        of_vectors(Bad(), squares)
