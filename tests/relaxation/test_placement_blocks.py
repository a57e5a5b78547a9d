"""Blocks that are called with features and coordinates and return both."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import PlacementError, RelaxationStateError
from equirelax.relaxation import Adds, AddTo, Argument, Blocks, Dense, Reads
from equirelax.relaxation.graphs import Graphs, group_means, mean_where, neighbourhood_mean
from equirelax.relaxation.spec import decode, encode
from equirelax.symmetry import E, On, positions, trivial, vector

torch.set_num_threads(1)


class Block(nn.Module):
    """A layer that names its arguments in its own way; nodes are on axis -2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.edge = nn.Sequential(nn.Linear(2 * channels + 1, 8), nn.SiLU(), nn.Linear(8, channels + 1))

    def forward(self, where: Tensor, feats: Tensor, there: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r = where[:, :, None] - where[:, None]
        shape = (*r.shape[:3], feats.shape[-1])
        pairs = (
            feats[:, :, None].expand(shape),
            feats[:, None].expand(shape),
            r.square().sum(-1, keepdim=True),
        )
        out = self.edge(torch.cat(pairs, -1))
        if there is not None:
            out = out * (there[:, None] & there[:, :, None])[..., None]
        return where + (out[..., :1].tanh() * r).sum(2), feats + out[..., 1:].sum(2)


class Net(nn.Module):
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(channels) for _ in range(2))

    def forward(self, h: Tensor, x: Tensor, there: Tensor | None = None) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            x, h = block(x, feats=h, there=there)
        return h, x


READS = (Reads("feats", "4x0e"), Reads("where", "1x1o", centred=True))
ADDS = (Adds(1, "4x0e", slot="h"), Adds(0, "1x1o", slot="x"))
PLACE = Blocks("Block", READS, ADDS, mask="there")
SCALARS = trivial(E(3), 4)
AS_IT_IS = Blocks(
    "Block",
    (Reads("feats", SCALARS), Reads("where", positions(E(3)))),
    (Adds(1, SCALARS, slot="h"), Adds(0, vector(E(3)), slot="x")),
)


def sample() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    h, x = (torch.randn(3, 5, n, generator=generator, dtype=torch.float64) for n in (4, 3))
    return h, x


def relaxed(placement: Blocks = PLACE) -> tuple[Net, er.relaxation.Relaxation]:
    torch.manual_seed(0)
    model = Net().double()
    relaxation = er.relax(model, placement)
    for parameter in relaxation.residual_parameters().values():
        nn.init.normal_(parameter, std=0.3)
    relaxation.set_gamma(0.5)
    return model, relaxation


def test_two_residuals_a_block_and_the_same_network_back() -> None:
    model, relaxation = relaxed()
    assert list(relaxation.residuals) == ["blocks.0:h", "blocks.0:x", "blocks.1:h", "blocks.1:x"]
    assert [(r.in_rep.dim, r.out_rep.dim) for _, r in relaxation] == [(7, 4), (7, 3)] * 2
    torch.manual_seed(0)
    author = Net().double()
    before = model(*sample())
    assert not torch.allclose(before[1], author(*sample())[1], atol=1e-3)
    er.project(model)
    assert list(model.state_dict()) == list(author.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model(*sample()), author(*sample()), strict=True))


@pytest.mark.parametrize("centred", [True, False])
def test_what_is_relaxed(centred: bool) -> None:
    """Rotations always; translations only where coordinates are read as they are."""
    model, relaxation = relaxed(PLACE if centred else AS_IT_IS)
    reps = (None, positions(E(3)))
    report = er.audit(model, sample(), reps, reps, samples=4)
    assert report.after.relative < 1e-12 < 1e-2 < report.relative
    moved = {row.name: row.relative for row in report.lie.generators if "translation" in row.name}
    assert len(moved) == 3
    assert (max(moved.values()) < 1e-12) is centred
    assert report.first_break == "blocks.0"
    assert {row.relaxes for row in relaxation.summary().with_status("relaxed")} == {
        "O(3)" if centred else "E(3), translations too"
    }


def test_nodes_that_are_not_there_do_not_move_the_mean() -> None:
    model, _ = relaxed()
    h, x = sample()
    there = torch.ones(3, 5, dtype=torch.bool)
    there[:, 3:] = False
    away = x.clone()
    away[:, 3:] += 100.0
    for a, b in zip(model(h, x, there), model(h, away, there), strict=True):
        torch.testing.assert_close(a[:, :3], b[:, :3], rtol=1e-10, atol=1e-10)
    nobody = model(h, x, torch.zeros_like(there))
    assert all(bool(torch.isfinite(t).all()) for t in nobody)


def test_training_reaches_the_strict_network_again() -> None:
    model, relaxation = relaxed(dataclasses.replace(PLACE, residual=Dense()))
    method = er.Scheduled(relaxation, total_steps=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(4):
        h, x = model(*sample())
        (h.square().mean() + (x - 1).square().mean() + method.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        method.step()
    copied = copy.deepcopy(model)
    er.project(model)
    reps = (None, positions(E(3)))
    assert er.audit(model, sample(), reps, reps, samples=4, lie=False).relative < 1e-12
    assert len(er.relaxation_of(copied)) == 4


def test_it_can_be_stored() -> None:
    assert decode(encode(PLACE)) == PLACE


def test_wrong_declarations_are_explained() -> None:
    with pytest.raises(PlacementError, match=r"names blocks.*and a module around it"):
        er.relax(Net(), dataclasses.replace(PLACE, target="blocks.*"))
    with pytest.raises(PlacementError, match=r"'Blok' is neither a class nor a path.*Did you mean 'Block'"):
        er.relax(Net(), dataclasses.replace(PLACE, target="Blok"))
    with pytest.raises(
        PlacementError, match=r"blocks.0 .*no argument 'h', only \['where', 'feats', 'there'\]"
    ):
        er.relax(Net(), Blocks("Block", Reads("h", "4x0e"), Adds(1, "4x0e")))
    with pytest.raises(PlacementError, match=r"of E\(3\).*one group"):
        er.relax(Net(), Blocks("Block", (READS[0], Reads("where", positions(E(3)))), ADDS))
    for wrong in ({"reads": ()}, {"adds": "1x1o"}, {"one_graph": True, "batch": "there"}):
        with pytest.raises(PlacementError, match="Block"):
            dataclasses.replace(PLACE, **wrong)
    full = f"{Block.__module__}.Block"
    assert len(er.relax(Net(), dataclasses.replace(PLACE, target=full))) == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: Reads("where", "1x0e+1x1o", centred=True),
        lambda: Reads("where", positions(E(3)), centred=True),
        lambda: Reads("where", "1x1o", channels=4),
        lambda: Adds(0, "1x1o", channel_axis=-2),
        lambda: Adds(0, "1x1o", span=(3, 3)),
    ],
)
def test_declarations_that_cannot_be_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(PlacementError, match=r"Reads\(|Adds\("):
        make()


@pytest.mark.parametrize(
    ("reads", "adds", "words"),
    [
        (Reads("there", "4x0e"), Adds(1, "4x0e"), "argument 'there' is declared to be a tensor, .* NoneType"),
        (Reads("feats", "9x0e"), Adds(1, "4x0e"), "argument 'feats' does not have the declared axes"),
        (Reads("feats", "4x0e"), Adds(2, "4x0e"), "a tuple of 2, which has no entry 2"),
        (Reads("feats", "4x0e"), Adds(None, "4x0e"), "returned a tuple"),
        (Reads("feats", "4x0e"), Adds(1, "5x0e"), "of the output, expected 5 components"),
        (Reads("feats", On("5x0e", -2)), Adds(1, "4x0e"), r"shape \(3, 4, 4\).* as \(3, 5, 4\)"),
        (
            (Reads("feats", "4x0e"), Reads("where", On("5x0e", -2))),
            Adds(1, "4x0e"),
            r"'where' has rows \(3, 3\)",
        ),
        (Reads("feats", "2x0e", span=(3, 5)), Adds(1, "4x0e"), "entries 3 to 5 of the last axis"),
        (Reads("feats", "1x0e", item=0), Adds(1, "4x0e"), "blocks.0: the argument 'feats' has no entry 0"),
        (Reads((5, "more"), "1x0e"), Adds(1, "4x0e"), "blocks.0: the call leaves out the argument 'more'"),
    ],
)
def test_calls_that_do_not_fit_are_explained(reads: object, adds: Adds, words: str) -> None:
    model = Net().double()
    er.relax(model, Blocks("Block", reads, adds))
    with pytest.raises(er.EquirelaxError, match=words):
        model(*sample())


class Flat(nn.Module):
    """A layer on the nodes of several graphs, one behind the other, as in PyTorch Geometric."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def update(self, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return h + self.mix(h).tanh(), x * 1.0


class Unnumbered(Flat):
    def forward(self, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.update(h, x)


class WithBatch(Flat):
    def forward(self, h: Tensor, x: Tensor, batch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.update(h, x)


class WithNumbers(Flat):
    def forward(self, h: Tensor, x: Tensor, numbers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.update(h, x)


class WithEdges(Flat):
    def forward(self, h: Tensor, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        return self.update(h, x)


FLAT = Blocks("b", (Reads("h", "4x0e"), Reads("x", "1x1o", centred=True)), (Adds(0, "4x0e"), Adds(1, "1x1o")))
GRAPH = torch.tensor([0, 0, 0, 1, 1, 2, 2])
EDGES = torch.tensor([(i, j) for i in range(7) for j in range(7) if i != j and GRAPH[i] == GRAPH[j]]).T


@pytest.mark.parametrize("by_keyword", [True, False])
@pytest.mark.parametrize("form", ["batch", "numbers", "edges"])
def test_graphs_of_a_flat_batch_are_centred_one_by_one_n3(form: str, by_keyword: bool) -> None:
    torch.manual_seed(0)
    block = {"batch": WithBatch, "numbers": WithNumbers, "edges": WithEdges}[form]().double()
    name = {"batch": "batch", "numbers": "numbers", "edges": "edge_index"}[form]
    told = "numbers" if form == "numbers" else None
    relaxation = er.relax(nn.ModuleDict({"b": block}), dataclasses.replace(FLAT, batch=told))
    for p in relaxation.residual_parameters().values():
        nn.init.normal_(p)
    relaxation.set_gamma(1.0)
    value = EDGES if form == "edges" else GRAPH
    h, x = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        return block(h, x, **{name: value}) if by_keyword else block(h, x, value)

    shift = torch.zeros_like(x)
    shift[GRAPH == 1] = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    before, after = run(x), run(x + shift)
    torch.testing.assert_close(after[0], before[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after[1], before[1] + shift, rtol=1e-12, atol=1e-12)
    alone = [run(x)[0][GRAPH == 1]]
    value = EDGES[:, EDGES[0] < 2] if form == "edges" else torch.zeros(2, dtype=torch.long)
    if form != "edges":
        where = GRAPH == 1
        h, x = h[where], x[where]
        torch.testing.assert_close(run(x)[0], alone[0], rtol=1e-12, atol=1e-12)


def test_rows_without_graph_numbers_are_one_graph() -> None:
    torch.manual_seed(0)
    block = WithBatch().double()
    relaxation = er.relax(nn.ModuleDict({"b": block}), FLAT)
    for p in relaxation.residual_parameters().values():
        nn.init.normal_(p)
    relaxation.set_gamma(1.0)
    h, x = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    for a, b in zip(block(h, x), block(h, x, torch.zeros(5, dtype=torch.long)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("call", [{}, {"edge_index": None}])
@pytest.mark.parametrize("numbered", [False, True])
def test_rows_without_edges_are_one_graph(call: dict[str, None], numbered: bool) -> None:
    batch = Argument(3, "batch") if numbered else None
    graphs = Graphs(batch=batch, edges=Argument(2, "edge_index"))
    h, x = torch.randn(5, 4), torch.randn(5, 3)
    torch.testing.assert_close(graphs.mean(x, (h, x), call, "b"), x.mean(0, keepdim=True))


def test_rows_that_nothing_tells_apart_are_not_centred() -> None:
    """Graphs that are centred together would move one another."""
    torch.manual_seed(0)
    h, x = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    block = Unnumbered().double()
    relaxation = er.relax(nn.ModuleDict({"b": block}), FLAT)
    with pytest.raises(
        PlacementError, match=r"b: nothing says which of the 7 rows .* batch=.* edges=.* one_graph=True"
    ):
        block(h, x)
    er.project(relaxation)
    relaxation = er.relax(nn.ModuleDict({"b": block}), dataclasses.replace(FLAT, one_graph=True))
    relaxation.set_gamma(1.0)
    torch.testing.assert_close(block(h, x + 2.0)[0], block(h, x)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("told", ["numbers", (2, "numbers"), (2, "numbers", "graph")])
def test_the_batch_of_a_placement_is_stored(told: object) -> None:
    placement = dataclasses.replace(FLAT, batch=told)
    assert decode(encode(placement)) == placement


class Several(nn.Module):
    """Takes a tuple (invariants, vectors (nodes, channels, 3)) and a mapping, gives a mapping with both, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(2, 2, bias=False)

    def forward(self, x: tuple[Tensor, Tensor], edges: dict[str, Tensor]) -> dict[str, Tensor]:
        s, v = x
        vectors = self.mix(v.mT).mT * edges["scale"][:, None, None]
        return {"v": vectors, "all": torch.cat([edges["where"], s], dim=-1), "n": s.shape[0]}


SEVERAL = Blocks(
    "Several",
    reads=(
        Reads("x", "4x0e", item=0),
        Reads("x", On("1x1o", -1), item=1, channel_axis=-2, channels=2),
        Reads("edges", "1x1o", item="where", centred=True),
    ),
    adds=(
        Adds("v", On("1x1o", -1), channel_axis=-2, channels=2),
        Adds("all", "1x1o", span=(0, 3), slot="x"),
        Adds("all", "2x0e", span=(5, 7), slot="h"),
    ),
    batch=(1, "edges", "graph"),
    residual=Dense(init="normal", std=0.3),
)


def test_several_tensors_with_channels_entries_and_spans() -> None:
    """Reads an entry of a tuple and of a mapping, channels on their own axis, and a part of the last axis; adds likewise."""
    assert decode(encode(SEVERAL)) == SEVERAL
    torch.manual_seed(0)
    model = nn.ModuleDict({"b": Several()}).double()
    relaxation = er.relax(model, SEVERAL)
    assert list(relaxation.residuals) == ["b:v", "b:x", "b:h"]
    assert [(r.in_rep.dim, r.out_rep.dim) for _, r in relaxation] == [(13, 6), (13, 3), (13, 2)]
    relaxation.set_gamma(1.0)
    s, v, where = (torch.randn(7, *shape, dtype=torch.float64) for shape in ((4,), (2, 3), (3,)))
    edges = {"where": where, "scale": torch.rand(7, dtype=torch.float64), "graph": GRAPH}
    found = model["b"]((s, v), edges)
    with relaxation.strict():
        strict = model["b"]((s, v), edges)
    means = torch.stack([where[g == GRAPH].mean(0) for g in GRAPH])
    rows = torch.cat([s, v.flatten(1), where - means], dim=1)
    deltas = [residual.delta(rows) for _, residual in relaxation]
    torch.testing.assert_close(found["v"], strict["v"] + deltas[0].view(7, 2, 3), rtol=1e-12, atol=1e-12)
    moved = torch.cat([deltas[1], torch.zeros(7, 2, dtype=torch.float64), deltas[2]], dim=1)
    torch.testing.assert_close(found["all"], strict["all"] + moved, rtol=1e-12, atol=1e-12)
    assert found["n"] == 7


@pytest.mark.slow
def test_blocks_compile_without_a_break_and_export() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"b": Several()}).double()
    relaxation = er.relax(model, SEVERAL)
    relaxation.set_gamma(1.0)
    s, v, where = (torch.randn(7, *shape, dtype=torch.float64) for shape in ((4,), (2, 3), (3,)))
    sample = (s, v), {"where": where, "scale": torch.rand(7, dtype=torch.float64), "graph": GRAPH}
    expected = model["b"](*sample)
    compiled = torch.compile(model["b"], backend="eager", fullgraph=True)
    for made in (compiled, torch.export.export(model["b"], sample).module()):
        found = made(*sample)
        for name in ("v", "all"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12)


def test_entries_of_geometric_data_are_read_and_added_to() -> None:
    data = pytest.importorskip("torch_geometric.data", reason="torch_geometric is not installed")

    class DataBlock(nn.Module):
        def forward(self, graph: Any) -> Any:
            return graph

    placement = Blocks(
        "0",
        (Reads("graph", "2x0e", item="h"), Reads("graph", "1x1o", item="pos", centred=True)),
        Adds("h", "2x0e"),
        batch=(0, "graph", "batch"),
        residual=Dense(init="normal", std=1.0),
    )
    model = nn.Sequential(DataBlock())
    er.relax(model, placement).set_gamma(1.0)
    h, x, graph = torch.randn(7, 2), torch.randn(7, 3), GRAPH
    given = data.Data(h=h, pos=x, batch=graph)
    found = model(given)
    assert type(found) is data.Data
    assert torch.equal(given.h, h)
    moved = model(data.Data(h=h, pos=x + graph[:, None], batch=graph))
    torch.testing.assert_close(moved.h, found.h)
    assert not torch.allclose(found.h, h)
    with pytest.raises(er.EquirelaxError, match="no entry 'pos'"):
        model(data.Data(h=h, batch=graph))


def test_means_are_over_the_nodes_whose_edges_arrive() -> None:
    """Of directed edges a node's mean holds the sources; of a padded molecule the nodes that are there."""
    x = torch.tensor([[0.0, 3.0], [2.0, 3.0], [7.0, 5.0]])
    directed = torch.tensor([[0, 0], [1, 2]])
    expected = torch.tensor([[0.0, 3.0], [1.0, 3.0], [3.5, 4.0]])
    torch.testing.assert_close(neighbourhood_mean(x, directed), expected)
    there = torch.tensor([True, True, False])
    torch.testing.assert_close(mean_where(x, there), torch.tensor([[1.0, 3.0]]))
    for numbers in ([2, 0, 2], [40, -1, 40], [0, 7, 0]):  # of any size: those of a part of a batch, say
        torch.testing.assert_close(
            group_means(x, torch.tensor(numbers)), torch.tensor([[3.5, 4.0], [2.0, 3.0], [3.5, 4.0]])
        )
    torch.testing.assert_close(group_means(x, torch.tensor([9, 9, 9])), x.mean(0).expand(3, 2))
    assert group_means(x[:0], torch.tensor([], dtype=torch.long)).shape == (0, 2)


def test_numbers_of_graphs_count_before_edges() -> None:
    """A call that gives both is centred on its graphs, also where these are not fully connected."""
    graphs = Graphs(batch=Argument(0, "batch"), edges=Argument(1, "edges"))
    x, batch, edges = (
        torch.tensor([[0.0], [2.0], [7.0]]),
        torch.zeros(3, dtype=torch.long),
        torch.tensor([[0], [1]]),
    )
    torch.testing.assert_close(graphs.mean(x, (batch, edges), {}, "b").expand(3, 1), torch.full((3, 1), 3.0))
    torch.testing.assert_close(graphs.mean(x, (None, edges), {}, "b"), torch.tensor([[0.0], [1.0], [7.0]]))


@pytest.mark.parametrize(
    ("item", "output"),
    [(1, (1, torch.ones(2))), (1, [1, torch.ones(2)]), ("a", {"b": 1, "a": torch.ones(2)})],
)
def test_an_output_is_not_written_into(item: Any, output: Any) -> None:
    """A block may keep what it returned."""
    target = output[item]
    found = AddTo(item).add(output, torch.full((2,), 3.0))
    assert type(found) is type(output)
    assert found[item].tolist() == [4.0, 4.0]
    assert output[item] is target
    assert target.tolist() == [1.0, 1.0]


class PassOn(nn.Module):
    """Returns its first argument."""

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return x


class InARow(nn.Module):
    """Runs its children one after another, as nn.Sequential does, each with what else it got."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = PassOn(), PassOn()

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        for child in self.children():
            x = child(x, *others)
        return x


@pytest.mark.parametrize("others", [0, 1])
def test_a_block_that_runs_its_children_may_not_run_the_residual_among_them(others: int) -> None:
    placement = Blocks("InARow", reads=Reads("x", "2x1o"), adds=Adds(None, "2x1o"))
    x, more = torch.randn(5, 6), [torch.randn(5)] * others
    model = nn.ModuleDict({"row": InARow()})
    relaxation = er.relax(model, placement)
    with pytest.raises(RelaxationStateError, match="row: the network calls its residual"):
        model["row"](x, *more)
    with relaxation.strict(), pytest.raises(RelaxationStateError, match="row"):
        model["row"](x, *more)
    er.project(model)
    assert torch.equal(model["row"](x, *more), x)
