"""Blocks of vector-neuron networks beside their equations written out, and graphs of neighbours."""

from __future__ import annotations

import pytest
import torch
from equirelax_lab.models.neighbours import edge_features, gather, knn
from equirelax_lab.models.vector_neurons import VNLinear
from equirelax_lab.models.vn_blocks import VNBatchNorm, VNBlock, VNFrame, VNMaxPool, pool
from hypothesis import given, settings
from hypothesis import strategies as st
from model_inputs import random_orthogonal
from torch import Tensor, nn

from equirelax.errors import RepresentationError

SHAPES = st.lists(st.integers(1, 4), min_size=0, max_size=2)  # features of 3, 4 and 5 dimensions


def slow_linear(weight: Tensor, x: Tensor) -> Tensor:
    """The map, written by its indices."""
    return torch.einsum("oc,bcvp->bovp", weight, x.flatten(3) if x.dim() > 3 else x[..., None]).reshape(
        x.shape[0], weight.shape[0], *x.shape[2:]
    )


def slow_norm(bn: nn.BatchNorm1d, p: Tensor) -> Tensor:
    """Batch norm of the lengths as the golden outputs' description has it."""
    length = p.norm(dim=2) + 1e-6
    out = bn(length.flatten(2) if length.dim() > 2 else length).view_as(length)
    return p / length.unsqueeze(2) * out.unsqueeze(2)


def slow_block(block: VNBlock, x: Tensor) -> Tensor:
    """p where <p, d> >= 0, else without its part along d; mixed with p by the slope."""
    p = slow_norm(block.batchnorm.bn, slow_linear(block.map_to_feat.weight, x))
    d = slow_linear(block.map_to_dir.weight, x)
    inner = (p * d).sum(2, keepdim=True)
    clipped = torch.where(inner >= 0, p, p - inner / (d.square().sum(2, keepdim=True) + 1e-6) * d)
    return block.negative_slope * p + (1 - block.negative_slope) * clipped


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(2, 3),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    points=SHAPES,
    slope=st.sampled_from([0.0, 0.2, 1.0]),
    shared=st.booleans(),
    training=st.booleans(),
)
def test_a_block_is_its_equations(
    batch: int, sizes: tuple[int, int], points: list[int], slope: float, shared: bool, training: bool
) -> None:
    torch.set_default_dtype(torch.float64)
    block = VNBlock(*sizes, negative_slope=slope, shared_direction=shared).train(training)
    nn.init.uniform_(block.batchnorm.bn.weight, 0.5, 2)
    nn.init.normal_(block.batchnorm.bn.bias)
    x = torch.randn(batch, sizes[0], 3, *points, requires_grad=True)
    found, expected = block(x), slow_block(block, x)
    assert found.shape == (batch, sizes[1], 3, *points)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(found)
    inputs = [x, *block.parameters()]
    grads = [torch.autograd.grad((y * weights).sum(), inputs) for y in (found, expected)]
    for own, slow in zip(*grads, strict=True):
        torch.testing.assert_close(own, slow, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("points", [(), (4,), (4, 3)])
def test_blocks_are_equivariant_and_act_point_by_point(
    points: tuple[int, ...], generator: torch.Generator
) -> None:
    block = VNBlock(3, 5).eval()
    x = torch.randn(2, 3, 3, *points, generator=generator)
    g = random_orthogonal(generator, -1)
    turned = torch.einsum("vw,bcw...->bcv...", g, block(x))
    torch.testing.assert_close(block(torch.einsum("vw,bcw...->bcv...", g, x)), turned, rtol=0, atol=1e-12)
    assert (turned - block(x)).abs().max() > 1e-2
    if points:
        first = block(x[..., :1])
        torch.testing.assert_close(block(x)[..., :1], first, rtol=0, atol=1e-13)


@pytest.mark.parametrize("points", [(), (4,), (4, 3)])
def test_common_vectors_are_channels_of_every_point(
    points: tuple[int, ...], generator: torch.Generator
) -> None:
    layer = VNLinear(5, 4)
    x = torch.randn(2, 3, 3, *points, generator=generator)
    common = torch.randn(2, 2, 3, generator=generator)
    wide = common.view(2, 2, 3, *(1 for _ in points)).expand(2, 2, 3, *points)
    torch.testing.assert_close(layer(x, common), layer(torch.cat([x, wide], 1)), rtol=0, atol=1e-13)
    with pytest.raises(RepresentationError, match=r"expected \(batch, 3, 3, points\.\.\.\)"):
        layer(torch.randn(2, 5, 3, *points), common)


def test_wrong_features_are_refused() -> None:
    layer = VNLinear(5, 4)
    for shape in ((2, 4, 3), (5, 3), (2, 5, 2, 7)):
        with pytest.raises(RepresentationError, match="VNLinear: expected"):
            layer(torch.randn(*shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_of_no_length(dtype: torch.dtype) -> None:
    """Neither value nor gradient of a block is lost where its vectors are 0."""
    block = VNBlock(2, 3).to(dtype)
    x = torch.zeros(2, 2, 3, 5, dtype=dtype)
    x[0, :, :, 0] = 1
    x.requires_grad_()
    out = block(x)
    out.square().sum().backward()
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def test_lengths_keep_their_direction(generator: torch.Generator) -> None:
    norm = VNBatchNorm(4)
    x = torch.randn(6, 4, 3, 5, generator=generator)
    out = norm(x)
    cosine = torch.nn.functional.cosine_similarity(x, out, dim=2)
    torch.testing.assert_close(cosine.abs(), torch.ones_like(cosine), rtol=0, atol=1e-12)
    lengths = (out * x).sum(2) / x.norm(dim=2)  # signed: batch norm makes some of them negative
    torch.testing.assert_close(lengths.mean((0, 2)), torch.zeros(4), rtol=0, atol=1e-5)


def test_max_pool_takes_the_furthest_vector(generator: torch.Generator) -> None:
    pooling = pool("max", 3)
    assert isinstance(pooling, VNMaxPool)
    x = torch.randn(2, 3, 3, 4, 6, generator=generator)
    d = slow_linear(pooling.map_to_dir.weight, x)
    found = pooling(x)
    for b in range(2):
        for c in range(3):
            for i in range(4):
                reach = [(x[b, c, :, i, j] @ d[b, c, :, i, j]).item() for j in range(6)]
                assert torch.equal(found[b, c, :, i], x[b, c, :, i, reach.index(max(reach))])


def test_frames_give_coordinates(generator: torch.Generator) -> None:
    frame = VNFrame(8).eval()
    x, common = torch.randn(2, 6, 3, 5, generator=generator), torch.randn(2, 2, 3, generator=generator)
    seen: list[Tensor] = []
    frame.vn_lin.register_forward_hook(lambda m, args, out: seen.append(out))
    found = frame(x, common)
    every = torch.cat([x, common[..., None].expand(-1, -1, -1, 5)], 1)
    torch.testing.assert_close(found, torch.einsum("bcvn,bfvn->bcfn", every, seen[0]), rtol=0, atol=1e-13)


# Graphs


def slow_knn(x: Tensor, k: int) -> list[list[set[int]]]:
    distances = (x[:, :, :, None] - x[:, :, None, :]).square().sum(1)
    return [[set(row.argsort()[:k].tolist()) for row in cloud] for cloud in distances]


@pytest.mark.parametrize("features", [1, 3, 8, 9, 30])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_nearest_neighbours(features: int, offset: float, generator: torch.Generator) -> None:
    x = torch.randn(2, features, 17, generator=generator)
    found = knn(x + offset, 5)
    assert [[set(row.tolist()) for row in cloud] for cloud in found] == slow_knn(x, 5)
    assert (found == torch.arange(17)[:, None]).any(2).all()  # a point is its own neighbour
    assert knn(x, 40).shape == (2, 17, 17)
    single = knn((x + offset / 1e3).float(), 5)
    assert [[set(row.tolist()) for row in cloud] for cloud in single] == slow_knn(x, 5)


@pytest.mark.parametrize("features", [3, 30])
def test_neighbours_in_half_precision_are_found_in_single(features: int, generator: torch.Generator) -> None:
    x = torch.randn(2, features, 40, generator=generator)
    rounded = x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [knn(rounded, 6), knn(x.float(), 6)]
    for own, exact in zip(found, (rounded.double(), x), strict=True):
        assert [[set(row.tolist()) for row in cloud] for cloud in own] == slow_knn(exact, 6)


def test_neighbours_are_refused_without_a_number() -> None:
    with pytest.raises(RepresentationError, match="k >= 1"):
        knn(torch.randn(2, 3, 5), 0)
    with pytest.raises(RepresentationError, match=r"\(batch, C, n\)"):
        knn(torch.randn(3, 5), 1)


@pytest.mark.parametrize("cross", [True, False])
def test_edge_features(cross: bool, generator: torch.Generator) -> None:
    x = torch.randn(2, 4, 3, 9, generator=generator, requires_grad=True)
    index = torch.randint(0, 9, (2, 9, 5), generator=generator)
    found = edge_features(x, index, cross)
    assert found.shape == (2, 12 if cross else 8, 3, 9, 5)
    for b, i, j in ((0, 0, 0), (1, 8, 4), (0, 3, 2)):
        around, centre = x[b, :, :, index[b, i, j]], x[b, :, :, i]
        parts = [around - centre, centre] + ([torch.linalg.cross(around, centre)] if cross else [])
        assert torch.equal(found[b, :, :, i, j], torch.cat(parts))
    assert gather(x[:, 0, 0], index).shape == (2, 9, 5)
    assert torch.autograd.gradcheck(lambda x: edge_features(x, index, cross), (x[:, :1, :, :9],))
