"""Finding repeated graphs, and sums over them."""

from __future__ import annotations

import pytest
import torch
from equirelax_lab.models.stack import Stack, mean_rows, sum_rows
from model_inputs import batch_graphs, full_graph, irregular_graph


@pytest.mark.parametrize(("nodes", "copies"), [(5, 1), (5, 4), (2, 7), (3, 2), (4, 6)])
def test_finds_copies_of_a_graph(nodes: int, copies: int) -> None:
    edge_index = batch_graphs(full_graph(nodes), nodes, copies)
    stack = Stack.of(edge_index, nodes * copies)
    assert (stack.nodes, stack.copies) == (nodes, copies)
    assert torch.equal(torch.stack([stack.source, stack.target]), full_graph(nodes))


def test_takes_anything_else_as_one_graph(generator: torch.Generator) -> None:
    repeated = batch_graphs(full_graph(3), 3, 4)
    across = repeated.clone()
    across[0, -1] = 0
    shuffled = repeated[:, torch.randperm(24, generator=generator)]
    # equal steps, but from one would-be graph to the next
    joined = torch.tensor([[0, 2, 4, 6], [2, 4, 6, 8]])
    cases = [(across, 12), (shuffled, 12), (irregular_graph(generator), 11), (repeated, 13), (joined, 10)]
    for edge_index, count in cases:
        stack = Stack.of(edge_index, count)
        assert (stack.nodes, stack.copies) == (count, 1)
        assert torch.equal(torch.stack([stack.source, stack.target]), edge_index)


def test_no_edges() -> None:
    stack = Stack.of(torch.zeros(2, 0, dtype=torch.long), 4)
    assert (stack.nodes, stack.copies) == (4, 1)
    assert stack.sum_at_targets(torch.randn(3, 0, 1)).abs().max() == 0


def test_stacked_sums_are_the_sums() -> None:
    edge_index = batch_graphs(full_graph(4), 4, 3)
    stack = Stack.of(edge_index, 12)
    x, messages = torch.randn(6, 12), torch.randn(6, 36)
    assert torch.equal(stack.unstack(stack.stack(x)), x)
    gathered = stack.stack(x).index_select(1, stack.source)
    assert torch.equal(stack.unstack(gathered), x[:, edge_index[0]])
    sums = stack.unstack(stack.sum_at_targets(stack.stack(messages)))
    expected = torch.stack([messages[:, edge_index[1] == i].sum(1) for i in range(12)], dim=1)
    torch.testing.assert_close(sums, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(sum_rows(messages, edge_index[1], 12), expected, rtol=0, atol=1e-13)


def test_mean_of_nothing_is_zero() -> None:
    means = mean_rows(torch.tensor([[1.0, 3.0]]), torch.tensor([2, 2]), 4)
    assert means.tolist() == [[0.0, 0.0, 2.0, 0.0]]
