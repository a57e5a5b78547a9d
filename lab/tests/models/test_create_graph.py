"""Gradients that are to be differentiated again equal plain ones, and theirs those of ordinary operations, for every model.

Defect M1: formulas whose inputs depend on one another were differentiated past their inputs under ``create_graph=True``.
Defect M6: saved tensors were unpacked twice, which non-reentrant checkpointing refuses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from equirelax_lab import models
from equirelax_lab.models import fast, planes
from equirelax_lab.models.canonical import VNCanonicalizer
from model_inputs import batch_graphs, bodies, full_graph
from molecule_inputs import equiformer, molecules, se3_transformer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from equirelax.symmetry import Cyclic, regular, trivial

Example = tuple[nn.Module, tuple[Any, ...]]


def systems() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three systems of four bodies: positions, velocities, charges, edges."""
    return (*bodies(torch.Generator().manual_seed(1), 12), batch_graphs(full_graph(4), 4, 3))


def product(irreps: str) -> Example:
    m = models.TensorProduct(irreps, "1x0e+1x1o", irreps)
    return Twice(m), (torch.randn(5, m.irreps_in1.dim), torch.randn(5, 4))


class Twice(nn.Module):
    """A map whose weight and second input are read twice: the shortest path on which contributions can be mixed up."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        first: Tensor = self.layer(x, *others)
        second: Tensor = self.layer(first, *others)
        return second


def segnn(**sizes: Any) -> Example:
    return models.SEGNN(**{"hidden": 8, "layers": 2, **sizes}), systems()


def molecular_segnn(forces: bool, **sizes: Any) -> Example:
    numbers, where, batch = molecules()
    edges = torch.cat([full_graph(4), full_graph(6) + 5], dim=1)
    model: nn.Module = models.MolecularSEGNN(hidden=8, layers=2, elements=(1, 6, 7, 8), **sizes)
    if forces:
        return models.ConservativeForces(OnEdges(model, edges)), (numbers, where, batch)
    return model, (numbers, where, edges, batch)


class OnEdges(nn.Module):
    """A network of given edges, as `ConservativeForces` calls it."""

    def __init__(self, network: nn.Module, edges: Tensor) -> None:
        super().__init__()
        self.network, self.edges = network, edges

    def forward(self, numbers: Tensor, positions: Tensor, batch: Tensor) -> Tensor:
        energies: Tensor = self.network(numbers, positions, self.edges, batch)
        return energies[:, 0]


def egnn() -> Example:
    return models.EGNN(8, 2), systems()


def egno() -> Example:
    x, v, q, edges = systems()
    sizes = {"hidden": 6, "layers": 2, "steps": 3, "in_features": 1, "edge_features": 1, "time_features": 4}
    return models.EGNO(**sizes), (x, v, q, edges, q[edges[0]] * q[edges[1]], torch.arange(12) // 4)


def transformer() -> Example:
    x, v, q, _ = systems()
    return models.Transformer(bodies=4, hidden=8, layers=2, heads=2, in_features=1, steps=3), (x, v, q)


def schnet() -> Example:
    pytest.importorskip("torch_geometric")
    return models.pyg_schnet(hidden=8, layers=2, cutoff=3.0, gaussians=6), molecules()


def nequip() -> Example:
    pytest.importorskip("nequip")
    sizes = {"layers": 2, "features": 4, "radial_width": 8, "cutoff": 3.0, "elements": (1, 6, 7, 8)}
    return models.NequIP(**sizes), molecules()


def cloud(model: nn.Module) -> Example:
    return model, (torch.randn(3, 16, 3),)


def plane(name: str, symmetry: str) -> Example:
    kernel = 5 if symmetry == "scale" else 3
    sizes = {"frames": 2, "hidden": 4, "layers": 4, "kernel": kernel, "group": "C4", "size": 7}
    return planes.build(name, symmetry, **sizes), (torch.randn(3, 2, 2, 7, 7),)  # type: ignore[arg-type]


def group_convolution() -> Example:
    group = Cyclic(4)
    rep = 2 * regular(group)
    parts = (
        models.GroupConv2d(trivial(group), rep, 3, padding=1),
        models.FieldBatchNorm(rep),
        nn.SiLU(),
        models.GroupPool(rep),
    )
    return nn.Sequential(*parts), (torch.randn(3, 1, 7, 7),)


EXAMPLES: dict[str, Callable[[], Example]] = {
    "TensorProduct": lambda: product("2x0e+2x1o"),
    "TensorProduct, l = 2": lambda: product("2x0e+2x1o+1x2e"),
    "SEGNN": segnn,
    "SEGNN, centred": lambda: segnn(centre=True),
    "SEGNN, l = 2": lambda: segnn(l_max=2, lmax_attributes=2),
    "MolecularSEGNN": lambda: molecular_segnn(False, l_max=1, lmax_attributes=1),
    "MolecularSEGNN, l = 2": lambda: molecular_segnn(False, l_max=2, lmax_attributes=2),
    "ConservativeForces of MolecularSEGNN": lambda: molecular_segnn(True, l_max=1, lmax_attributes=1),
    "EGNN": egnn,
    "EGNO": egno,
    "Transformer": transformer,
    "pyg_schnet": schnet,
    "NequIP": nequip,
    "Equiformer": lambda: (equiformer(), molecules()),
    "ConservativeForces of Equiformer": lambda: (models.ConservativeForces(equiformer()), molecules()),
    "SE3Transformer": lambda: (se3_transformer(), molecules()),
    "AtomTransformer": lambda: (models.AtomTransformer(8, 2, 2), molecules()),
    "VNPointNet": lambda: cloud(models.VNPointNet(classes=5, neighbours=6, width=0.125)),
    "VNDGCNN": lambda: cloud(models.VNDGCNN(classes=5, neighbours=6, width=0.125)),
    "VNCanonicalizer": lambda: cloud(VNCanonicalizer(8, 2, 6)),
    "PointNet": lambda: cloud(models.PointNet(5, 0.125)),
    "DGCNN": lambda: cloud(models.DGCNN(5, 6, 0.125)),
    "PlaneClassifier": lambda: (models.PlaneClassifier(4, "C4", 4, 2), (torch.randn(3, 1, 12, 12),)),
    "PlainClassifier": lambda: (models.PlainClassifier(4, 4, 2), (torch.randn(3, 1, 12, 12),)),
    "GroupConv2d, FieldBatchNorm, GroupPool": group_convolution,
    **{
        f"{name} on planes, {symmetry}": lambda name=name, symmetry=symmetry: plane(name, symmetry)  # type: ignore[misc]
        for name in planes.MODELS
        for symmetry in ("rotation", "scale")
    },
}
EVERY = pytest.mark.parametrize("name", EXAMPLES)


def test_every_model_has_an_example() -> None:
    built = {type(module) for make in EXAMPLES.values() for module in make()[0].modules()}
    public = [getattr(models, name) for name in models.__all__]
    assert not {m.__name__ for m in public if inspect.isclass(m)} - {m.__name__ for m in built}


def loss(outputs: Any) -> Tensor:
    """A fixed function that is not linear in the outputs."""
    parts = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    total: Tensor = sum((x.square() * torch.linspace(1, 2, x.numel()).view_as(x)).sum() for x in parts)  # type: ignore[assignment]
    return total


def watched(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[Tensor]]:
    """The inputs, those of floating point with gradients; and these with the model's parameters."""
    given = tuple(x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs)
    return given, [*(x for x in given if x.requires_grad), *model.parameters()]


def gradients(model: nn.Module, inputs: tuple[Any, ...], create_graph: bool) -> list[Tensor | None]:
    """Those of `loss` with respect to inputs and parameters."""
    given, leaves = watched(model, inputs)
    torch.manual_seed(3)  # dropout
    value = loss(model(*given))
    return list(torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True))


def second_gradients(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor | None]:
    """Those of a loss of "forces", the gradient of `loss` with respect to the first floating-point input."""
    given, leaves = watched(model, inputs)
    torch.manual_seed(3)
    (force,) = torch.autograd.grad(loss(model(*given)), leaves[:1], create_graph=True)
    return list(torch.autograd.grad(loss(force), leaves, allow_unused=True))


def assert_equal(found: list[Tensor | None], expected: list[Tensor | None], tolerance: float) -> None:
    """Equal to `tolerance` of the largest number among all gradients of the model."""
    present = [x for x in expected if x is not None and x.numel()]
    largest = max(float(x.detach().abs().max()) for x in present)
    assert largest > 0
    for a, b in zip(found, expected, strict=True):
        given = next((x for x in (a, b) if x is not None), None)
        if given is not None:  # no gradient is one of 0
            pair = [torch.zeros_like(given) if x is None else x.detach() for x in (a, b)]
            torch.testing.assert_close(*pair, rtol=tolerance, atol=tolerance * largest)


@EVERY
def test_gradients_with_create_graph_equal_plain_ones(name: str) -> None:
    """M1."""
    model, inputs = EXAMPLES[name]()
    model.train()
    assert_equal(gradients(model, inputs, True), gradients(model, inputs, False), 1e-12)


@EVERY
def test_second_derivatives_are_those_of_ordinary_operations(name: str) -> None:
    """M1."""
    model, inputs = EXAMPLES[name]()
    model.train()
    found = second_gradients(model, inputs)
    with fast.set_enabled(False):
        assert_equal(found, second_gradients(model, inputs), 1e-10)


def test_third_derivatives(generator: torch.Generator) -> None:
    model, (x, a) = product("2x0e+2x1o")
    model.train()
    x, a = x[:2], a[:2].requires_grad_()

    def slope(a: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(model(x, a).pow(3).sum(), a, create_graph=True)
        return first

    assert torch.autograd.gradgradcheck(slope, (a,))


class Counted(TorchDispatchMode):
    """Counts operations, those of backward passes too."""

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def test_the_cost_of_create_graph_is_linear_in_depth() -> None:
    """M1: the whole history was walked once more from every layer, so that depth d cost d^2."""
    layer, a = models.TensorProduct("2x0e+2x1o", "1x0e+1x1o", "2x0e+2x1o").train(), torch.randn(3, 4)

    def operations(depth: int) -> int:
        x = torch.randn(3, 8)
        for _ in range(depth):
            x = layer(x, a)
        with Counted() as counted:
            torch.autograd.grad(x.square().sum(), layer.weight, create_graph=True)
        return counted.operations

    two, four, six = (operations(depth) for depth in (2, 4, 6))
    assert six - four == four - two


def test_forces_in_training_are_those_in_evaluation() -> None:
    """M1: they differed by 2e-3."""
    model, inputs = EXAMPLES["ConservativeForces of MolecularSEGNN"]()
    trained, evaluated = model.train()(*inputs)[1], model.eval()(*inputs)[1]
    torch.testing.assert_close(trained, evaluated, rtol=1e-12, atol=1e-14)


CHECKPOINTED = ("SEGNN", "SEGNN, l = 2", "MolecularSEGNN", "Equiformer", "SE3Transformer", "TensorProduct")


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_checkpointing(name: str, reentrant: bool) -> None:
    """M6: "already unpacked once"."""
    model, inputs = EXAMPLES[name]()
    model.train()
    plain, kept = [], []
    for found, call in (
        (plain, model),
        (kept, lambda *args: checkpoint(model, *args, use_reentrant=reentrant)),
    ):
        model.zero_grad()
        given, leaves = watched(model, inputs)
        loss(call(*given)).backward()
        found.extend(leaf.grad for leaf in leaves)
    assert_equal(kept, plain, 1e-13)


@pytest.mark.parametrize("name", CHECKPOINTED[:4])
def test_second_derivatives_under_checkpointing(name: str) -> None:
    """M1 and M6 together: forces that are trained, recomputed."""
    model, inputs = EXAMPLES[name]()
    model.train()

    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model

        def forward(self, *args: Tensor) -> Any:
            return checkpoint(self.network, *args, use_reentrant=False)

    assert_equal(second_gradients(Kept(), inputs), second_gradients(model, inputs), 1e-11)
