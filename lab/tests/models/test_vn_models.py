"""VN-PointNet and VN-DGCNN: the published networks, their symmetries, and clouds that are not as they should be."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from equirelax_lab.models import VNDGCNN, VNPointNet
from equirelax_lab.models.neighbours import knn
from equirelax_lab.models.vector_neurons import VNLinear
from golden_files import golden
from model_inputs import random_orthogonal
from torch import Tensor, nn

from equirelax.errors import NonFiniteError, RepresentationError
from equirelax.symmetry import SO, O, trivial, vector
from equirelax.testing import ModelConformance

NETWORKS: dict[str, type[nn.Module]] = {"vn_pointnet": VNPointNet, "vn_dgcnn": VNDGCNN}
SMALL = {"classes": 7, "neighbours": 6, "width": 0.25}
BOTH = pytest.mark.parametrize("network", [VNPointNet, VNDGCNN])
POOLINGS = pytest.mark.parametrize("pooling", ["mean", "max"])


def published(model: nn.Module, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """Released weights under our names: bare maps have no `map_to_feat`, the encoder is not a module of its own."""
    own = model.state_dict()
    found = {}
    for name, value in arrays.items():
        short = name.removeprefix("feat.")
        found[short if short in own else short.replace(".map_to_feat", "")] = value.to(
            torch.float64 if value.is_floating_point() else value.dtype
        )
    return found


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_is_the_published_network(name: str) -> None:
    arrays = golden(name)
    model = NETWORKS[name]().eval()
    weights = {k.removeprefix("weight:"): v for k, v in arrays.items() if k.startswith("weight:")}
    model.load_state_dict(published(model, weights))  # strict: every parameter and every statistic
    expected = arrays["log_probabilities" if name == "vn_pointnet" else "logits"]
    with torch.no_grad():
        found = model(arrays["points"])
        given = model(arrays["points"], knn(arrays["points"].transpose(1, 2), 20))
    assert (expected - expected.mean(0)).abs().max() > 1e-2  # or any constant would do
    assert (found - expected).abs().max() < 1e-12
    torch.testing.assert_close(given, found, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("network", "maps"), [(VNPointNet, 23), (VNDGCNN, 15)])
def test_every_vector_map_is_a_vn_linear(network: type[nn.Module], maps: int) -> None:
    model = network()
    assert sum(isinstance(m, VNLinear) for m in model.modules()) == maps
    # no vector map in hiding: what has weights is a VNLinear, a batch norm, or a linear layer of the invariant head
    kinds = {type(m) for m in model.modules() if list(m.parameters(recurse=False))}
    assert kinds == {VNLinear, nn.BatchNorm1d, nn.Linear}
    assert sum(isinstance(m, nn.Linear) for m in model.modules()) == 3


@pytest.mark.parametrize(("network", "parameters"), [(VNPointNet, 1_972_745), (VNDGCNN, 2_899_830)])
def test_sizes_of_the_paper(network: type[nn.Module], parameters: int) -> None:
    assert sum(p.numel() for p in network().parameters()) == parameters


def calibrated(model: nn.Module, points: Tensor) -> nn.Module:
    """The model in evaluation, its batch norms used to such clouds: else random logits hardly differ."""
    with torch.no_grad():
        for _ in range(30):
            model.train()(points)
    return model.eval()


def clouds(generator: torch.Generator, count: int = 5, n: int = 40) -> Tensor:
    """Clouds of different shapes, float64."""
    points = torch.randn(count, n, 3, generator=generator)
    stretch = 0.2 + torch.rand(count, 1, 3, generator=generator)
    return points * stretch


def spread(logits: Tensor) -> Tensor:
    """How much the logits of different objects differ."""
    return (logits - logits.mean(0)).abs().max()


@BOTH
@POOLINGS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-2)])
def test_invariance_relative_to_the_spread(
    network: type[nn.Module], pooling: str, dtype: torch.dtype, tolerance: float, generator: torch.Generator
) -> None:
    points = clouds(generator)
    model = calibrated(network(**SMALL, pooling=pooling), points).to(dtype)
    with torch.no_grad():
        expected = model(points.to(dtype))
        assert spread(expected) > 1e-3
        for _ in range(3):
            g = random_orthogonal(generator, 1)
            moved = model((points @ g.T).to(dtype))
            assert (moved - expected).abs().max() < tolerance * spread(expected)


@pytest.mark.parametrize(("network", "invariant"), [(VNPointNet, False), (VNDGCNN, True)])
def test_reflections(network: type[nn.Module], invariant: bool, generator: torch.Generator) -> None:
    points = clouds(generator)
    model = calibrated(network(**SMALL), points)
    with torch.no_grad():
        expected = model(points)
        error = (model(points @ random_orthogonal(generator, -1).T) - expected).abs().max() / spread(expected)
    assert (error < 1e-9) == invariant
    assert invariant or error > 1e-3


@BOTH
def test_a_planted_anisotropy_is_caught(network: type[nn.Module], generator: torch.Generator) -> None:
    """One map that stretches x by 10 %: the measure above must see it."""
    points = clouds(generator)
    model = calibrated(network(**SMALL), points)
    stretch = torch.tensor([1.1, 1.0, 1.0]).view(3, 1)
    model.get_submodule("std_feature.vn1.map_to_feat").register_forward_hook(
        lambda m, args, out: out * stretch
    )
    with torch.no_grad():
        expected = model(points)
        moved = model(points @ random_orthogonal(generator, 1).T)
    assert (moved - expected).abs().max() > 1e-4 * spread(expected)


@BOTH
@POOLINGS
def test_permuting_points(network: type[nn.Module], pooling: str, generator: torch.Generator) -> None:
    """Features of the points are permuted alike; the class does not change."""
    points = clouds(generator)
    model = calibrated(network(**SMALL, pooling=pooling), points)
    order = torch.randperm(points.shape[1], generator=generator)
    seen: list[Tensor] = []
    model.get_submodule("std_feature.vn1").register_forward_hook(lambda m, args, out: seen.append(out))
    with torch.no_grad():
        expected, permuted = model(points), model(points[:, order])
    torch.testing.assert_close(permuted, expected, rtol=0, atol=1e-10)
    assert (seen[0] - seen[0].roll(1, -1)).abs().max() > 1e-3
    torch.testing.assert_close(seen[1], seen[0][..., order], rtol=0, atol=1e-10)


@pytest.mark.slow
@BOTH
@POOLINGS
@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_a_break(
    network: type[nn.Module], pooling: str, training: bool, generator: torch.Generator
) -> None:
    points = clouds(generator, 3, 12)
    model = network(**SMALL, pooling=pooling, dropout=0.0).train(training)
    expected = copy.deepcopy(model)(points)
    found = torch.compile(model, backend="aot_eager", fullgraph=True)(points)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@BOTH
def test_autocast(network: type[nn.Module], generator: torch.Generator) -> None:
    points = clouds(generator)
    model = calibrated(network(**SMALL), points).float()
    expected = model(points.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(points.float())
        found.float().sum().backward()
    assert found.dtype == torch.bfloat16 or network is VNPointNet  # log_softmax gives float32
    # eight bits in every product; random weights' spread over objects is no larger than that
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@BOTH
def test_one_thing_per_cloud(network: type[nn.Module], generator: torch.Generator) -> None:
    points = clouds(generator)
    model = calibrated(network(**SMALL), points)
    with torch.no_grad():
        together, single = model(points), torch.cat([model(cloud[None]) for cloud in points])
    torch.testing.assert_close(together, single, rtol=0, atol=1e-11)


@BOTH
@POOLINGS
@pytest.mark.parametrize("cloud", ["duplicates", "one point many times", "all at the origin", "few", "one"])
def test_odd_clouds_have_a_result(
    network: type[nn.Module], pooling: str, cloud: str, generator: torch.Generator
) -> None:
    points = clouds(generator, 4, 20)
    if cloud == "duplicates":  # point dropout: dropped points become copies of the first
        points[:, 5:] = points[:, :1]
    elif cloud == "one point many times":
        points = points[:, :1].expand(-1, 20, -1).contiguous()
    elif cloud == "all at the origin":
        points = torch.zeros_like(points)
    else:
        points = points[:, : {"few": 3, "one": 1}[cloud]]
    points.requires_grad_()
    model = network(**SMALL, pooling=pooling)
    for training in (True, False):
        model.train(training)
        model.zero_grad()
        points.grad = None
        out = model(points)
        out.square().sum().backward()
        assert out.shape == (4, 7)
        assert out.isfinite().all()
        assert points.grad is not None
        assert points.grad.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@BOTH
def test_fewer_points_than_neighbours_use_all(network: type[nn.Module], generator: torch.Generator) -> None:
    points = clouds(generator, n=5)
    model = network(**SMALL).eval()
    many = copy.deepcopy(model)
    many.neighbours = 5
    assert torch.equal(model(points), many(points))


@BOTH
def test_bad_clouds_are_refused(network: type[nn.Module], generator: torch.Generator) -> None:
    model, points = network(**SMALL).eval(), clouds(generator)
    name = network.__name__
    bad: list[Callable[[], Tensor]] = [
        lambda: points.transpose(1, 2),
        lambda: points[0],
        lambda: points[:, :0],
        lambda: points[:0],
        lambda: points.long(),
        lambda: points[..., :2],
    ]
    for make in bad:
        with pytest.raises(RepresentationError, match=f"{name}: expected points of shape"):
            model(make())
    for value in (float("nan"), float("inf")):
        broken = points.clone()
        broken[2, 3, 1] = value
        with pytest.raises(NonFiniteError, match=r"1 of 5 clouds \(the first is number 2\)"):
            model(broken)
    graph = knn(points.transpose(1, 2), 6)
    for wrong in (graph[0], graph[:3], graph.int(), graph[..., :0]):
        with pytest.raises(RepresentationError, match=f"{name}: expected neighbours"):
            model(points, wrong)


@BOTH
@pytest.mark.parametrize(
    "sizes", [{"classes": 0}, {"neighbours": 0}, {"width": 0.0}, {"pooling": "sum"}, {"negative_slope": 2.0}]
)
def test_bad_sizes_are_refused(network: type[nn.Module], sizes: dict[str, float]) -> None:
    with pytest.raises(RepresentationError):
        network(**sizes)


@BOTH
def test_a_width_multiplies_all_channels(network: type[nn.Module]) -> None:
    half = network(width=0.5)
    assert half.get_submodule("std_feature.vn1.map_to_feat").weight.shape == (170, 340)
    model = network(width=1e-3, classes=3)  # one vector each
    assert model(torch.randn(2, 6, 3)).shape == (2, 3)


class TestVNPointNet(ModelConformance):
    def build(self):  # type: ignore[no-untyped-def]
        torch.manual_seed(3)
        points = clouds(torch.Generator().manual_seed(3), 4, 24)
        group = SO(3)
        return calibrated(VNPointNet(**SMALL), points), points, vector(group), 7 * trivial(group)

    def permute(self, sample, generator):  # type: ignore[no-untyped-def]
        return sample[:, torch.randperm(sample.shape[1], generator=generator)], lambda out: out


@pytest.mark.slow  # its sister stands for it
class TestVNPointNetMax(TestVNPointNet):
    def build(self):  # type: ignore[no-untyped-def]
        torch.manual_seed(3)
        points = clouds(torch.Generator().manual_seed(3), 4, 24)
        model = VNPointNet(**SMALL, pooling="max", feature_transform=False)
        return calibrated(model, points), points, vector(SO(3)), 7 * trivial(SO(3))

    # an arg max passes no gradient to the direction that chose
    unused = ("*pool*.map_to_dir.weight",)


class TestVNDGCNN(TestVNPointNet):
    def build(self):  # type: ignore[no-untyped-def]
        torch.manual_seed(3)
        points = clouds(torch.Generator().manual_seed(3), 4, 24)
        model = VNDGCNN(**SMALL, dropout=0.0)
        return calibrated(model, points), points, vector(O(3)), 7 * trivial(O(3))
