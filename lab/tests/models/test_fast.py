"""Fast products against e3nn's modules with the same parameters, under everything that torch does to a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from e3nn.math import normalize2mom
from e3nn_twins import E3nnDepthwise, E3nnProduct
from equirelax_lab import models
from equirelax_lab.models import SEGNN, TensorProduct, fast
from equirelax_lab.models.fast.depthwise import DepthwiseProduct
from equirelax_lab.models.fast.gating import SIGMOID_CONSTANT, SILU_CONSTANT
from equirelax_lab.models.fast.linear import SteerableLinear
from equirelax_lab.models.gate import Gate
from model_inputs import batch_graphs, bodies, full_graph, irregular_graph
from molecule_inputs import equiformer, molecules, se3_transformer
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.utils.checkpoint import checkpoint

from equirelax.errors import RepresentationError

Example = tuple[nn.Module, nn.Module, tuple[Tensor, ...]]
MEMBERS = 3


class Depthwise(nn.Module):
    """Our depth-wise product of features and spherical harmonics."""

    def __init__(self, product: DepthwiseProduct) -> None:
        super().__init__()
        self.product = product

    def forward(self, x: Tensor, harmonics: Tensor, weights: Tensor) -> Tensor:
        out: Tensor = self.product(x, self.product.couplings(harmonics.t()), weights)
        return out


def product(*irreps: str) -> Example:
    ours = TensorProduct(*irreps)
    return ours, E3nnProduct(ours), (torch.randn(4, ours.irreps_in1.dim), torch.randn(4, ours.irreps_in2.dim))


def gate(irreps: str) -> Example:
    ours = Gate(irreps)
    gates = ours.irreps_in[0].mul - ours.scalars
    gated = [m for m in ours.irreps_out if m.ir.l > 0]
    activations = [[nn.functional.silu], [torch.sigmoid]]
    theirs = e3nn_nn.Gate(f"{ours.scalars}x0e", activations[0], f"{gates}x0e", activations[1], gated)
    return ours, theirs, (torch.randn(4, ours.irreps_in.dim),)


def depthwise(irreps: str, l_max: int, wanted: str) -> Example:
    ours = DepthwiseProduct(o3.Irreps(irreps), o3.Irreps.spherical_harmonics(l_max), o3.Irreps(wanted))
    sizes = (ours.irreps_in.dim, ours.harmonics.dim)
    inputs = (*(torch.randn(4, size) for size in sizes), torch.randn(ours.weight_numel, 4))
    return Depthwise(ours), E3nnDepthwise(ours), inputs


def linear(irreps_in: str, irreps_out: str) -> Example:
    ours, theirs = SteerableLinear(irreps_in, irreps_out), o3.Linear(irreps_in, irreps_out, biases=True)
    with torch.no_grad():
        ours.bias.normal_()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, (torch.randn(4, ours.irreps_in.dim),)


def messages() -> Example:
    """SEGNN, whose messages are computed at once; its twin is made of e3nn's modules."""
    torch.manual_seed(0)
    ours, theirs = SEGNN(hidden=4, layers=1), SEGNN(hidden=4, layers=1)
    theirs.load_state_dict(ours.state_dict())
    for path, module in list(theirs.named_modules()):
        if isinstance(module, TensorProduct):
            parent, _, name = path.rpartition(".")
            setattr(theirs.get_submodule(parent), name, E3nnProduct(module))
    inputs = (*bodies(torch.Generator().manual_seed(1), 8), batch_graphs(full_graph(4), 4, 2))
    return ours, theirs, inputs


EXAMPLES: dict[str, Callable[[], Example]] = {
    "product": lambda: product("3x0e+2x1o+2x0e+4x1o+1x0e", "1x0e+1x1o", "2x0e+3x1o"),
    "product of vectors": lambda: product("2x1o", "1x0e+1x1o", "3x0e"),
    "product of scalars": lambda: product("2x0e", "1x0e+1x1o", "3x0e+2x1o"),
    "product, l = 2": lambda: product("2x0e+2x1o+1x2e", "1x0e+1x1o+1x2e", "2x0e+1x1o+2x2e"),
    "gate": lambda: gate("2x0e+3x1o+2x2e"),
    "depthwise": lambda: depthwise("2x0e+2x1o+3x1e+1x2e", 2, "0e+1e+1o+2o"),
    "depthwise, an input that leads nowhere": lambda: depthwise("2x0e+1x0o", 1, "1o"),
    "linear": lambda: linear("3x1o+2x0e", "2x0e+4x1o"),
    "messages": messages,
}
EVERY = pytest.mark.parametrize("name", EXAMPLES)
TRAINING = pytest.mark.parametrize("training", [True, False])


def loss(out: Tensor) -> Tensor:
    """A fixed function that is not linear."""
    return (out.square() * torch.linspace(1, 2, out.numel()).view_as(out)).sum()


def floating(inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """The inputs, those of floating point with gradients, and these alone."""
    given = tuple(x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs)
    return given, [x for x in given if x.requires_grad]


def first(
    model: nn.Module, inputs: tuple[Tensor, ...], call: Callable[..., Tensor] | None = None
) -> list[Tensor]:
    """Output, and gradients with respect to inputs and parameters."""
    given, leaves = floating(inputs)
    out = (model if call is None else call)(*given)
    found = torch.autograd.grad(
        loss(out), [*leaves, *model.parameters()], materialize_grads=True, allow_unused=True
    )
    return [out.detach(), *found]


def second(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients of a loss of the gradients with respect to inputs and parameters."""
    given, leaves = floating(inputs)
    leaves = [*leaves, *model.parameters()]
    slopes = torch.autograd.grad(
        loss(model(*given)), leaves, create_graph=True, materialize_grads=True, allow_unused=True
    )
    value = torch.stack([loss(slope) for slope in slopes]).sum()
    return list(torch.autograd.grad(value, leaves, materialize_grads=True, allow_unused=True))


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    largest = max(float(x.abs().max()) for x in expected if x.numel())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.view_as(a), rtol=1e-10, atol=1e-12 * max(largest, 1.0))


@TRAINING
@EVERY
def test_plain_backward(name: str, training: bool) -> None:
    ours, theirs, inputs = EXAMPLES[name]()
    assert_equal(first(ours.train(training), inputs), first(theirs, inputs))


@TRAINING
@EVERY
def test_create_graph(name: str, training: bool) -> None:
    ours, theirs, inputs = EXAMPLES[name]()
    assert_equal(second(ours.train(training), inputs), second(theirs, inputs))


@pytest.mark.parametrize("reentrant", [False, True])
@EVERY
def test_activation_checkpointing(name: str, reentrant: bool) -> None:
    ours, theirs, inputs = EXAMPLES[name]()
    if reentrant:  # it knows backward() alone
        given, leaves = floating(inputs)
        out = checkpoint(ours, *given, use_reentrant=True)
        loss(out).backward()
        found = [out.detach(), *(leaf.grad for leaf in [*leaves, *ours.parameters()])]
        found = [
            torch.zeros_like(like) if x is None else x
            for x, like in zip(found, first(theirs, inputs), strict=True)
        ]
    else:
        found = first(ours, inputs, lambda *given: checkpoint(ours, *given, use_reentrant=False))
    assert_equal(found, first(theirs, inputs))


def value(model: nn.Module, parameters: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    out: Tensor = functional_call(model, parameters, inputs)
    return out


@TRAINING
@EVERY
def test_torch_func_grad(name: str, training: bool) -> None:
    ours, theirs, inputs = EXAMPLES[name]()
    ours.train(training)
    parameters = {k: p.detach() for k, p in ours.named_parameters()}
    found = torch.func.grad(lambda p, x: loss(value(ours, p, (x, *inputs[1:]))), (0, 1))(
        parameters, inputs[0]
    )
    _, of_first, *_ = expected = first(theirs, inputs)
    assert_equal([found[1], *found[0].values()], [of_first, *expected[len(expected) - len(parameters) :]])


@TRAINING
@EVERY
def test_torch_func_jvp(name: str, training: bool) -> None:
    """<u, J t> = <J^T u, t>, with J^T u of the twin."""
    ours, theirs, inputs = EXAMPLES[name]()
    ours.train(training)
    moved = torch.randn_like(inputs[0])
    primals = {k: p.detach() for k, p in ours.named_parameters()}
    tangents = {k: torch.randn_like(p) for k, p in primals.items()}
    out, tangent = torch.func.jvp(
        lambda p, x: value(ours, p, (x, *inputs[1:])), (primals, inputs[0]), (tangents, moved)
    )
    x = inputs[0].clone().requires_grad_()
    other, u = theirs(x, *inputs[1:]), torch.randn_like(out)
    slopes = torch.autograd.grad(
        other, [x, *theirs.parameters()], u, materialize_grads=True, allow_unused=True
    )
    torch.testing.assert_close(out, other.detach())
    expected = sum((a * b).sum() for a, b in zip(slopes, [moved, *tangents.values()], strict=True))
    torch.testing.assert_close((u * tangent).sum(), expected, rtol=1e-9, atol=1e-11)


def members(name: str) -> tuple[list[Example], nn.Module, dict[str, Tensor], list[Tensor]]:
    """Several examples with parameters and inputs of their own, one module of ours, and stacked parameters and inputs."""
    made = [EXAMPLES[name]() for _ in range(MEMBERS)]
    for ours, theirs, _ in made:
        with torch.no_grad():
            for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
                p.normal_()
                q.copy_(p.view_as(q))
    parameters, _ = stack_module_state([ours for ours, _, _ in made])
    inputs = [torch.stack(each) for each in zip(*(inputs for _, _, inputs in made), strict=True)]
    return made, made[0][0], parameters, inputs


@TRAINING
@EVERY
def test_vmap_over_members(name: str, training: bool) -> None:
    """Parameters and inputs with a leading axis of members, edges of a graph among them."""
    made, ours, parameters, inputs = members(name)
    ours.train(training)
    given = [x.requires_grad_() if x.is_floating_point() else x for x in inputs]
    out = torch.vmap(lambda p, *x: value(ours, p, x))(parameters, *given)
    leaves = [x for x in given if x.requires_grad] + list(parameters.values())
    total = sum(loss(each) for each in out)
    found = torch.autograd.grad(total, leaves, materialize_grads=True, allow_unused=True)
    expected = [torch.stack(each) for each in zip(*(first(theirs, x) for _, theirs, x in made), strict=True)]
    assert_equal([out.detach(), *found], expected)


@pytest.mark.parametrize(
    "name", [name for name in EXAMPLES if name.split(",")[0] not in ("gate", "depthwise")]
)
def test_vmap_of_grad(name: str) -> None:
    made, ours, parameters, inputs = members(name)
    detached = {k: p.detach() for k, p in parameters.items()}
    found = torch.vmap(torch.func.grad(lambda p, *x: loss(value(ours, p, x))))(detached, *inputs)
    gradients = [first(theirs, x)[-len(detached) :] for _, theirs, x in made]
    assert_equal(list(found.values()), [torch.stack(each) for each in zip(*gradients, strict=True)])


@pytest.mark.parametrize(
    "name", [name for name in EXAMPLES if "depthwise" not in name]
)  # torch cannot map its einsum
def test_batches_of_gradients(name: str) -> None:
    """`is_grads_batched` runs a recorded backward pass under vmap."""
    ours, theirs, inputs = EXAMPLES[name]()

    def slopes(model: nn.Module) -> list[Tensor]:
        given, leaves = floating(inputs)
        out = model(*given)
        several = torch.linspace(-1, 1, 2 * out.numel()).view(2, *out.shape)
        leaves = [*leaves, *model.parameters()]
        return list(
            torch.autograd.grad(
                out, leaves, several, is_grads_batched=True, materialize_grads=True, allow_unused=True
            )
        )

    # e3nn's compiled code cannot be mapped: one gradient at a time
    given, leaves = floating(inputs)
    out = theirs(*given)
    several = torch.linspace(-1, 1, 2 * out.numel()).view(2, *out.shape)
    leaves = [*leaves, *theirs.parameters()]
    rows = [
        torch.autograd.grad(out, leaves, row, retain_graph=True, materialize_grads=True, allow_unused=True)
        for row in several
    ]
    assert_equal(slopes(ours), [torch.stack(each) for each in zip(*rows, strict=True)])


def nodes(out: Tensor) -> set[Any]:
    """All functions in the graph of a result."""
    found, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [other for other, _ in node.next_functions]
    return found


def functions(out: Tensor) -> set[str]:
    """Their names."""
    return {type(node).__name__ for node in nodes(out)}


def ours_among(out: Tensor) -> set[str]:
    return {
        name for name in functions(out) if name in {"_FunctionBackward", "_PartialBackward", "_JoinBackward"}
    }


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "SEGNN": lambda: (SEGNN(hidden=8, layers=2), (*bodies(torch.Generator().manual_seed(1), 11), IRREGULAR)),
    "Equiformer": lambda: (equiformer(), molecules()),
    "SE3Transformer": lambda: (se3_transformer(), molecules()),
}
IRREGULAR = irregular_graph(torch.Generator().manual_seed(2))


@pytest.mark.parametrize("network", NETWORKS)
def test_one_setting_turns_all_of_it_off(network: str) -> None:
    model, inputs = NETWORKS[network]()
    model.train()
    expected = model(*inputs)
    assert ours_among(expected)
    with fast.set_enabled(False):
        assert not fast.is_enabled()
        found = model(*inputs)
        with fast.set_enabled(True):
            assert fast.is_enabled()
        assert not fast.is_enabled()
    assert fast.is_enabled()
    assert not ours_among(found)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_where_derivatives_by_hand_are_used() -> None:
    layer, _, inputs = EXAMPLES["product"]()
    assert "_FunctionBackward" in functions(layer.train()(*inputs))
    assert "_FunctionBackward" not in functions(layer.eval()(*inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "_FunctionBackward" not in functions(layer.train()(*inputs))


def test_members_are_computed_by_hand_one_by_one() -> None:
    """On a CPU; where edges differ between members, and where another transform runs, ordinary operations are used."""
    _, ours, parameters, inputs = members("messages")
    ours.train()

    def of(p: dict[str, Tensor], *x: Tensor) -> Tensor:
        return value(ours, p, x)

    differ = torch.vmap(of)(parameters, *inputs)
    shared = torch.vmap(of, in_dims=(0, *(0 for _ in inputs[:-1]), None))(
        parameters, *inputs[:-1], inputs[-1][0]
    )
    torch.testing.assert_close(shared, differ, rtol=1e-10, atol=1e-12)
    by_hand = [type(node).__name__ for node in nodes(shared)].count("_FunctionBackward")
    assert by_hand > [type(node).__name__ for node in nodes(differ)].count("_FunctionBackward")
    assert by_hand % MEMBERS == 0
    with fast.set_enabled(False):
        assert not ours_among(torch.vmap(of)(parameters, *inputs))


STACKED: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "SEGNN": NETWORKS["SEGNN"],
    "EGNN": lambda: (models.EGNN(8, 2), NETWORKS["SEGNN"]()[1]),
    "VNPointNet": lambda: (
        models.VNPointNet(classes=5, neighbours=6, width=0.125).eval(),
        (torch.randn(3, 16, 3),),
    ),
    "Equiformer": NETWORKS["Equiformer"],
    "SE3Transformer": NETWORKS["SE3Transformer"],
}


@pytest.mark.parametrize("network", STACKED)
def test_whole_networks_are_stacked(network: str) -> None:
    """Members with weights of their own on one batch: values and gradients are those of each member alone."""
    made = [STACKED[network]() for _ in range(MEMBERS)]
    inputs = made[0][1]
    nets = [model for model, _ in made]
    parameters, buffers = stack_module_state(nets)

    def of(p: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
        out: Tensor = functional_call(nets[0], (p, b), inputs)
        return out

    out = torch.vmap(of, randomness="different")(parameters, buffers)
    names = list(parameters)
    found = torch.autograd.grad(sum(loss(each) for each in out), list(parameters.values()), allow_unused=True)
    for k, model in enumerate(nets):
        alone = model(*inputs)
        torch.testing.assert_close(out[k], alone, rtol=1e-10, atol=1e-12)
        expected = torch.autograd.grad(loss(alone), list(model.parameters()), allow_unused=True)
        assert [n for n, _ in model.named_parameters()] == names
        for mine, other in zip(found, expected, strict=True):
            if mine is not None and other is not None:
                torch.testing.assert_close(mine[k], other, rtol=1e-8, atol=1e-10)


def test_a_constant_first_used_within_a_transform_is_whole_afterwards() -> None:
    layer, _, inputs = EXAMPLES["gate"]()
    torch.func.grad(lambda x: layer(x).sum())(inputs[0])
    x = inputs[0].clone().requires_grad_()
    layer.train()(x).sum().backward()
    assert x.grad is not None


def test_other_shapes_are_refused_with_the_sizes_expected() -> None:
    layer, _, (x, a) = EXAMPLES["product"]()
    with fast.set_enabled(False), pytest.raises(RepresentationError, match=r"expected \(rows"):
        layer(x[:, 1:], a)


def test_constants_of_gates_are_those_of_e3nn() -> None:
    for function, constant in ((nn.functional.silu, SILU_CONSTANT), (torch.sigmoid, SIGMOID_CONSTANT)):
        assert normalize2mom(function, dtype=torch.float64).cst == pytest.approx(constant, abs=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_a_gate_of_scalars_alone(training: bool) -> None:
    """e3nn's gate does not take it."""
    layer, x = Gate("4x0e").train(training), torch.randn(5, 4)
    torch.testing.assert_close(layer(x), SILU_CONSTANT * nn.functional.silu(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("irreps", ["3x1o+2x0e", "2x0e+1x0o+3x1o", "2x1o"])
def test_gates_refuse_other_orders(irreps: str) -> None:
    with pytest.raises(RepresentationError, match="0e followed by"):
        Gate(irreps)
