"""PointNet and DGCNN: sizes, permutations, bad clouds, and what their fast paths compute."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from equirelax_lab.models import DGCNN, PointNet
from equirelax_lab.models.dgcnn import EdgeConv
from equirelax_lab.models.neighbours import knn
from equirelax_lab.models.pointnet import TNet
from torch import Tensor, nn

from equirelax.errors import NonFiniteError, RepresentationError

WIDTH = 0.125
MODELS = {
    "pointnet": lambda: PointNet(5, WIDTH),
    "plain pointnet": lambda: PointNet(5, WIDTH, feature_transform=False),
    "dgcnn": lambda: DGCNN(5, 6, WIDTH),
}


def build(name: str) -> nn.Module:
    """In evaluation, with norms and predicted matrices that are not trivial."""
    torch.manual_seed(2)
    model = MODELS[name]()
    for _ in range(3):
        model(torch.randn(6, 30, 3))
    for module in model.modules():
        if isinstance(module, TNet):
            nn.init.normal_(module.matrix.weight, std=0.05)
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight, 1.0, 0.5)  # also negative ones
            nn.init.normal_(module.bias)
    return model.eval()


@pytest.fixture
def clouds(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 24, 3, generator=generator)


def test_the_published_sizes() -> None:
    """3.47 million parameters (PointNet's paper says 3.5) and 1.81 million."""

    def weights(model: nn.Module) -> list[tuple[int, ...]]:
        return [tuple(p.shape) for p in model.parameters() if p.dim() == 2]

    pointnet, dgcnn = PointNet(), DGCNN()
    tail = [(512, 1024), (256, 512), (40, 256)]
    tnet = [(64, 3), (128, 64), (1024, 128), (512, 1024), (256, 512), (9, 256)]
    inner = [(64, 64), (128, 64), (1024, 128), (512, 1024), (256, 512), (4096, 256)]
    assert weights(pointnet) == [*tnet, (64, 3), (64, 64), *inner, (64, 64), (128, 64), (1024, 128), *tail]
    edges = [(64, 6), (64, 128), (128, 128), (256, 256)]
    assert weights(dgcnn) == [*edges, (1024, 512), (512, 2048), (256, 512), (40, 256)]
    assert sum(p.numel() for p in pointnet.parameters()) == 3_473_969
    assert sum(p.numel() for p in dgcnn.parameters()) == 1_809_576
    assert PointNet(width=0.5).readout.in_features == 128


@pytest.mark.parametrize("name", MODELS)
def test_the_order_of_points_does_not_matter_and_rotations_do(name: str, clouds: Tensor) -> None:
    model = build(name)
    logits = model(clouds).detach()
    assert logits.shape == (4, 5)
    spread = float(logits.std(0).mean())
    assert spread > 1e-3
    order = torch.randperm(24)
    torch.testing.assert_close(model(clouds[:, order]), logits, rtol=0, atol=1e-11 * spread)
    turn = torch.linalg.qr(torch.randn(3, 3))[0]
    assert (model(clouds @ turn) - logits).abs().max() > 1e-2 * spread


@pytest.mark.parametrize("name", MODELS)
def test_objects_do_not_touch_each_other(name: str, clouds: Tensor) -> None:
    model = build(name)
    alone = torch.cat([model(cloud[None]) for cloud in clouds])
    torch.testing.assert_close(alone, model(clouds))


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_parameter(name: str, clouds: Tensor) -> None:
    model = build(name).train()
    clouds.requires_grad_()
    nn.functional.cross_entropy(model(clouds), torch.arange(4)).backward()
    for path, parameter in [*model.named_parameters(), ("points", clouds)]:
        assert parameter.grad is not None, path
        assert torch.isfinite(parameter.grad).all(), path
        assert parameter.grad.any(), path


@pytest.mark.parametrize("name", MODELS)
def test_copies_and_float32(name: str, clouds: Tensor) -> None:
    model = build(name)
    logits = model(clouds).detach()
    assert torch.equal(copy.deepcopy(model)(clouds), logits)
    assert torch.equal(pickle.loads(pickle.dumps(model))(clouds), logits)
    single = copy.deepcopy(model).float()(clouds.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), logits, rtol=1e-3, atol=float(1e-3 * logits.std()))


@pytest.mark.parametrize("name", MODELS)
def test_duplicates_and_single_points_are_fine(name: str, clouds: Tensor) -> None:
    model = build(name).train()
    for x in (clouds[:, :1], clouds[:, :1].expand(-1, 24, -1), clouds[:, :4]):
        x = x.clone().requires_grad_()
        logits = model(x)
        logits.square().sum().backward()
        assert torch.isfinite(logits).all()
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", MODELS)
def test_bad_clouds_are_refused(name: str, clouds: Tensor) -> None:
    model = build(name)
    kind = type(model).__name__
    for wrong in (clouds[0], clouds.mT, clouds[:, :0], clouds.long(), clouds[..., :2]):
        with pytest.raises(RepresentationError, match=rf"{kind}: expected points of shape \(batch, n, 3\)"):
            model(wrong)
    clouds[2, 3, 1] = torch.nan
    with pytest.raises(NonFiniteError, match=f"{kind}: NaN .* in 1 of 4 clouds .* number 2"):
        model(clouds)


def test_bad_sizes_are_refused() -> None:
    for make in (lambda: PointNet(0), lambda: PointNet(width=0), lambda: DGCNN(neighbours=0)):
        with pytest.raises(RepresentationError, match="at least 1 and width above 0"):
            make()


def test_a_tnet_starts_as_the_identity(clouds: Tensor) -> None:
    assert torch.equal(TNet(3, WIDTH)(clouds), torch.eye(3).expand(4, 3, 3))


def test_pointnet_against_a_loop_over_points(clouds: Tensor) -> None:
    model = build("pointnet")
    assert isinstance(model, PointNet)
    assert model.feature_transform is not None

    def matrix(net: TNet, rows: list[Tensor]) -> Tensor:
        pooled = torch.stack([net.point(row[None])[0] for row in rows]).max(0).values
        return net.matrix(net.cloud(pooled[None])).view(net.size, net.size)

    for cloud, logits in zip(clouds, model(clouds), strict=True):
        turn = matrix(model.input_transform, list(cloud))
        rows = [model.point1((point @ turn)[None])[0] for point in cloud]
        turn = matrix(model.feature_transform, rows)
        rows = [model.point2((row @ turn)[None])[0] for row in rows]
        pooled = torch.stack(rows).max(0).values
        torch.testing.assert_close(model.readout(model.cloud(pooled[None]))[0], logits)


@pytest.mark.parametrize("training", [True, False])
def test_edge_convolution_against_a_loop_over_edges(training: bool, generator: torch.Generator) -> None:
    """Also where the norm's weight is negative, so that the maximum after it is not the one before it."""
    conv = EdgeConv(7, 4).train(training)
    nn.init.normal_(conv.norm.weight)
    nn.init.normal_(conv.norm.bias)
    conv.norm.running_mean.normal_()  # type: ignore[union-attr]
    slow = copy.deepcopy(conv)
    x = torch.randn(2, 9, 7, generator=generator)
    graph = knn(x.mT, 3)
    edges = torch.stack(
        [
            conv.weight @ torch.cat([x[b, j] - x[b, i], x[b, i]])
            for b in range(2) for i in range(9) for j in graph[b, i].tolist()
        ]
    )  # fmt: skip
    expected = nn.functional.leaky_relu(slow.norm(edges), 0.2).view(2, 9, 3, 4).max(2).values
    torch.testing.assert_close(conv(x, graph), expected)
    torch.testing.assert_close(conv.norm.running_var, slow.norm.running_var)


def test_dgcnn_takes_a_precomputed_graph(clouds: Tensor) -> None:
    model = build("dgcnn")
    logits = model(clouds)
    torch.testing.assert_close(model(clouds, knn(clouds.mT, 6)), logits)
    assert not torch.allclose(model(clouds, knn(clouds.mT, 3)), logits)
    with pytest.raises(RepresentationError, match=r"DGCNN: expected neighbours of shape \(4, 24, k\)"):
        model(clouds, knn(clouds[:2].mT, 6))


def test_dgcnn_uses_all_points_of_a_small_cloud(clouds: Tensor) -> None:
    torch.manual_seed(3)
    few, many = DGCNN(5, 4, WIDTH), DGCNN(5, 20, WIDTH)
    many.load_state_dict(few.state_dict())
    torch.testing.assert_close(few.eval()(clouds[:, :4]), many.eval()(clouds[:, :4]))
