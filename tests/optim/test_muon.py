"""Muon: on matrices against slow references and PyTorch's own, path by path on e3nn's layers, elsewhere against Adam."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from e3nn import o3
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import ConfigError
from equirelax.optim import Matrices, Muon, matrices_of
from equirelax.optim.muon import COEFFICIENTS, orthogonalised


class VNLinear(nn.Module):
    """A vector neuron: (batch, in, 3, points) -> (batch, out, 3, points)."""

    channel_axis, vector_axis = 1, 2

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,bcvn->bovn", self.weight, x)


def network(*parameters: Tensor) -> nn.Module:
    """A module with these parameters."""
    return nn.ParameterList(nn.Parameter(p) for p in parameters)


def slow_orthogonalised(gradient: Tensor) -> Tensor:
    """Newton-Schulz on one matrix, written with its singular values: the polynomial acts on each by itself."""
    u, s, vh = torch.linalg.svd(gradient / gradient.norm(), full_matrices=False)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s).to(u) @ vh


def slow_steps(start: Tensor, gradients: list[Tensor], lr: float) -> Tensor:
    """Muon on one matrix."""
    weight, momentum = start.clone(), torch.zeros_like(start)
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * gradient
        step = slow_orthogonalised(0.05 * gradient + 0.95 * momentum)
        weight = weight - lr * max(weight.shape) ** 0.5 * step
    return weight


def run_steps(
    optimizer: torch.optim.Optimizer, model: nn.Module, steps: int, seed: int = 0
) -> list[list[Tensor]]:
    """Steps with random gradients; returns them, parameter by parameter."""
    generator = torch.Generator().manual_seed(seed)
    drawn: list[list[Tensor]] = [[] for _ in model.parameters()]
    for _ in range(steps):
        for p, own in zip(model.parameters(), drawn, strict=True):
            p.grad = torch.randn(
                p.shape, generator=generator, dtype=torch.promote_types(p.dtype, torch.float64)
            ).to(p)
            own.append(p.grad.clone())
        optimizer.step()
    return drawn


SHAPES = [(8, 5), (5, 8), (6, 6), (6, 6), (2, 40)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_plain_matrices_take_the_slow_reference_s_steps(dtype: torch.dtype) -> None:
    model = network(*(torch.randn(shape, dtype=dtype) for shape in SHAPES))
    starts = [p.detach().clone() for p in model.parameters()]
    drawn = run_steps(Muon(model, 0.03), model, 4)
    for p, start, gradients in zip(model.parameters(), starts, drawn, strict=True):
        torch.testing.assert_close(p.detach(), slow_steps(start, gradients, 0.03), rtol=1e-9, atol=1e-11)


needs_pytorchs = pytest.mark.skipif(
    not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9"
)


@needs_pytorchs
def test_equals_pytorchs_on_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch's computes in bfloat16; without that rounding both are the same to the last digits
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    ours = network(*(torch.randn(shape, dtype=torch.float64) for shape in SHAPES))
    theirs = copy.deepcopy(ours)
    run_steps(Muon(ours, 0.03, rms=0.2, weight_decay=0.1), ours, 4)
    other = torch.optim.Muon(theirs.parameters(), 0.03, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    run_steps(other, theirs, 4)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@needs_pytorchs
def test_stays_within_bfloat16_of_pytorchs_as_it_is() -> None:
    ours = network(torch.randn(16, 24))
    theirs, start = copy.deepcopy(ours), ours[0].detach().clone()
    run_steps(Muon(ours, 0.1, rms=0.2), ours, 3)
    other = torch.optim.Muon(theirs.parameters(), 0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    run_steps(other, theirs, 3)
    assert (ours[0] - theirs[0]).norm() < 0.03 * (ours[0] - start).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_everything_else_is_adams(dtype: torch.dtype) -> None:
    ours = network(
        *(torch.randn(shape, dtype=dtype) for shape in [(7,), (), (1, 9), (9, 1), (4, 1, 1), (0, 3)])
    )
    theirs = copy.deepcopy(ours)
    run_steps(Muon(ours, 0.01, weight_decay=0.1), ours, 5)
    run_steps(torch.optim.AdamW(theirs.parameters(), 0.01, weight_decay=0.1), theirs, 5)
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_orthogonalised_brings_singular_values_near_one_and_leaves_zero() -> None:
    matrices = torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(1))
    matrices[1] = 0
    result = orthogonalised(matrices)
    assert not result[1].any()
    values = torch.linalg.svdvals(result[[0, 2]])
    assert values.min() > 0.6
    assert values.max() < 1.3
    torch.testing.assert_close(result[2], slow_orthogonalised(matrices[2]), rtol=1e-3, atol=1e-4)
    assert orthogonalised(matrices.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("bias", [False, True])
def test_the_paths_of_a_linear_map_are_orthogonalised_one_by_one(bias: bool) -> None:
    layer = o3.Linear("4x0e+3x1o+2x0e", "5x0e+2x1o+1x1o", biases=bias).double()
    start, adams = layer.weight.detach().clone(), copy.deepcopy(layer)
    gradients = run_steps(Muon(layer, 0.01), layer, 3)[
        [n for n, _ in layer.named_parameters()].index("weight")
    ]
    run_steps(torch.optim.Adam(adams.parameters(), 0.01), adams, 3)
    at, matrices = 0, 0
    for instruction in layer.instructions:
        if instruction.i_in < 0:
            continue
        rows, columns = instruction.path_shape
        where = slice(at, at + rows * columns)
        at = where.stop
        if min(rows, columns) > 1:
            matrices += 1
            own = [g[where].view(rows, columns) for g in gradients]
            expected = slow_steps(start[where].view(rows, columns), own, 0.01).reshape(-1)
        else:
            expected = adams.weight.detach()[where]
        torch.testing.assert_close(layer.weight.detach()[where], expected, rtol=1e-9, atol=1e-12)
    assert matrices == 3  # 4x0e -> 5x0e, 2x0e -> 5x0e, 3x1o -> 2x1o; 3x1o -> 1x1o has one column
    if bias:
        assert torch.equal(layer.bias, adams.bias)


def test_a_tensor_product_has_a_matrix_for_every_path_and_channel_of_its_second_input() -> None:
    layer = o3.FullyConnectedTensorProduct("4x0e+3x1o", "2x0e+1x1o", "5x0e+2x1o").double()
    start = layer.weight.detach().clone()
    ((gradient,),) = run_steps(Muon(layer, 0.01), layer, 1)
    at = 0
    for instruction in layer.instructions:
        shape = instruction.path_shape
        where = slice(at, at + shape[0] * shape[1] * shape[2])
        at = where.stop
        before, after, slope = (t[where].view(shape) for t in (start, layer.weight.detach(), gradient))
        for v in range(shape[1]):
            expected = slow_steps(before[:, v], [slope[:, v]], 0.01)
            torch.testing.assert_close(after[:, v], expected, rtol=1e-9, atol=1e-12)
    assert at == layer.weight.numel()


def test_which_parameters_hold_matrices() -> None:
    elementwise = o3.TensorProduct(
        "4x0e", "4x0e", "4x0e", [(0, 0, 0, "uvu", True), (0, 0, 0, "uuw", True)], internal_weights=True,
        shared_weights=True,
    )  # fmt: skip
    (only,) = matrices_of(elementwise)[elementwise.weight]  # the path "uvu" mixes no channels
    assert (only.start, only.size) == (16, (4, 4))
    table, bag = nn.Embedding(5, 4), nn.EmbeddingBag(5, 4)
    assert matrices_of(table)[table.weight] == matrices_of(bag)[bag.weight] == ()
    head = nn.Linear(4, 5, bias=False)
    head.weight = table.weight
    for order in ([table, head], [head, table]):  # tied, wherever the table stands
        assert matrices_of(nn.Sequential(*order)) == {table.weight: ()}
    grouped = nn.Conv2d(6, 4, 5, groups=2)
    (both,) = matrices_of(grouped)[grouped.weight]
    torch.testing.assert_close(both.view(grouped.weight.detach().flatten()), grouped.weight.view(2, 2, 75))
    kernel = nn.Conv2d(3, 4, 5)
    assert [each.size for each in matrices_of(kernel)[kernel.weight]] == [(4, 75)]
    assert matrices_of(kernel)[kernel.bias] == ()


class Contracter(nn.Module):
    """As Allegro's product: a weight for every channel and path."""

    def __init__(self) -> None:
        super().__init__()
        self.mul, self.weights = 4, nn.Parameter(torch.randn(4, 3))


class Contraction(nn.Module):
    """As MACE's: a weight for every element, path and channel."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features, self.weights_max = 4, nn.Parameter(torch.randn(2, 3, 4))
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(2, 1, 4))])


@pytest.mark.parametrize(
    "product", [Contracter(), Contraction(), type("FastContracter", (Contracter,), {})()]
)
def test_weights_of_channels_one_by_one_are_no_matrices(product: Any) -> None:
    model = nn.Sequential(product, nn.Linear(4, 3))
    found = matrices_of(model)
    assert [found[p] for p in product.parameters()] == [()] * len(list(product.parameters()))
    assert [each.size for each in found[model[1].weight]] == [(3, 4)]


def test_matrices_may_be_named() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    stacked = {"0.weight": (Matrices(0, (2, 2, 3), (0, 1, 2)),), "1.weight": ()}
    starts, adams = [p.detach().clone() for p in model.parameters()], copy.deepcopy(model)
    gradients = run_steps(Muon(model, 0.01, matrices=stacked), model, 2)
    run_steps(torch.optim.Adam(adams.parameters(), 0.01), adams, 2)
    for half in (slice(0, 2), slice(2, 4)):
        expected = slow_steps(starts[0][half], [g[half] for g in gradients[0]], 0.01)
        torch.testing.assert_close(model[0].weight.detach()[half], expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(model[1].weight, adams[1].weight)
    with pytest.raises(ConfigError, match=r"0\.wieght.*0\.weight"):
        Muon(model, matrices={"0.wieght": ()})
    for wrong in ([Matrices(0, (5, 3), (0, 1))], [Matrices(0, (2, 3), (0, 1)), Matrices(3, (2, 3), (0, 1))]):
        with pytest.raises(ConfigError, match=r"0\.weight"):
            Muon(model, matrices={"0.weight": wrong})


def steerable() -> tuple[nn.Module, str, str]:
    gate = o3.Linear("4x0e+4x1o", "2x0e+1x1o", biases=True)
    return (
        nn.Sequential(o3.Linear("3x0e+2x1o", "4x0e+4x1o", biases=True), gate).double(),
        "3x0e+2x1o",
        "2x0e+1x1o",
    )


def test_an_equivariant_network_stays_so_and_learns() -> None:
    torch.manual_seed(0)
    model, irreps_in, irreps_out = steerable()
    x, y = (torch.randn(16, o3.Irreps(irreps).dim, dtype=torch.float64) for irreps in (irreps_in, irreps_out))
    optimizer = Muon(model, 0.02)
    losses = []
    for _ in range(20):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert er.audit(model, x, irreps_in, irreps_out).relative < 1e-12


def test_residuals_are_matrices_and_strengths_are_adams() -> None:
    model = nn.Sequential(VNLinear(4, 6), VNLinear(6, 5)).double()
    relaxation = er.relax(model)
    optimizer = Muon(model, 0.01, weight_decay=0.1)
    method = er.ACE(relaxation, dual_lr=1e-3).attach(optimizer)
    x = torch.randn(8, 4, 3, 2, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x).square().mean() + method.penalty()).backward()
        optimizer.step()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {id(p) for p in optimizer.param_groups[1]["params"]} == {id(r.gamma) for _, r in relaxation}
    for p in relaxation.residual_parameters().values():
        assert set(optimizer.state[p]) == {"momentum_buffer"}
    for p in relaxation.gamma_parameters().values():
        assert set(optimizer.state[p]) == {"step", "exp_avg", "exp_avg_sq"}
    with relaxation.strict():
        rotation = o3.rand_matrix(dtype=torch.float64)
        torch.testing.assert_close(model(rotation @ x), rotation @ model(x), rtol=1e-10, atol=1e-10)


def test_parameters_that_come_later_are_read_from_the_model() -> None:
    """`attach` adds residuals of a model that was relaxed after the optimizer was made; layers too may come later."""
    model = nn.Sequential(o3.Linear("4x0e+3x1o", "4x0e+3x1o"))
    optimizer = Muon(model, 0.01)
    method = er.ACE(er.relax(model), dual_lr=1e-3).attach(optimizer, lr=0.002)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.002, 0.002]
    (model(torch.randn(5, 13)).square().mean() + method.penalty()).backward()
    model.append(o3.Linear("4x0e+3x1o", "3x0e+2x1o"))
    optimizer.add_param_group({"params": [model[1].weight], "rms": 0.2})
    weight = model[1].weight
    start, gradient = weight.detach().clone(), torch.randn_like(weight)
    weight.grad = gradient
    optimizer.step()
    expected = start[:12].view(4, 3) - 0.01 * 0.2 * 2 * slow_orthogonalised(gradient[:12].view(4, 3))
    torch.testing.assert_close(weight.detach()[:12].view(4, 3), expected, rtol=1e-4, atol=1e-6)


def optimizer_of(model: nn.Module, lr: float = 0.01) -> Muon:
    return Muon(model, lr, weight_decay=0.1)


def through_a_file(model: nn.Module, optimizer: Muon) -> tuple[nn.Module, Muon]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = optimizer_of(model, 0.5)
    other.load_state_dict(torch.load(file, weights_only=True))
    return model, other


@pytest.mark.parametrize(
    "copied", [through_a_file, lambda *pair: copy.deepcopy(pair)], ids=["file", "deepcopy"]
)
def test_a_copy_goes_on_bit_for_bit(copied: Callable[..., tuple[nn.Module, Muon]]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(o3.Linear("4x0e+1x1o", "4x0e+3x1o", biases=True))
    twin = copy.deepcopy(model)
    whole, first = optimizer_of(model), optimizer_of(twin)
    run_steps(whole, model, 3, seed=1)
    run_steps(whole, model, 3, seed=2)
    run_steps(first, twin, 3, seed=1)
    twin, second = copied(twin, first)
    run_steps(second, twin, 3, seed=2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_copy_reads_residuals_that_come_later_off_the_network_that_it_is_attached_for() -> None:
    model, optimizer = copy.deepcopy((layer := VNLinear(8, 8), Muon(layer)))
    relaxation = er.relax(model, residual=er.relaxation.kinds.Grouped(2))
    er.Scheduled(relaxation, total_steps=5).attach(optimizer).detach()
    weight = relaxation[""].map.weight
    weight.grad = torch.randn_like(weight)
    start = weight.detach().clone()
    optimizer.step()
    expected = start - 1e-3 * 12**0.5 * torch.stack([slow_orthogonalised(0.0975 * g) for g in weight.grad])
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-6)
    with pytest.warns(er.errors.EquirelaxWarning, match="read_network"):
        copy.deepcopy(optimizer).add_param_group({"params": [nn.Parameter(torch.zeros(2, 2))]})


def test_a_group_that_is_refused_is_not_added() -> None:
    model = nn.Linear(3, 3)
    optimizer = Muon(model, params=[model.weight])
    with pytest.raises(ConfigError, match="momentum"):
        optimizer.add_param_group({"params": [model.bias], "momentum": 2.0})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [model.bias], "momentum": 0.5})
    assert len(optimizer.param_groups) == 2


def test_schedulers_groups_of_names_and_parameters_without_gradients() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    frozen, groups = model[1].bias, [{"params": [("weight", model[0].weight)], "lr": 0.1}]
    optimizer = Muon(model, 0.01, params=[*groups, {"params": [("bias", model[0].bias), ("frozen", frozen)]}])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 0.01], total_steps=8)
    start = frozen.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model[0](torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["momentum"] != 0.95  # a cycle moves the momentum too
    assert optimizer.param_groups[0]["param_names"] == ["weight"]
    assert torch.equal(frozen, start)
    assert model[1].weight not in optimizer.state


def test_closures_and_kernels_in_other_layouts() -> None:
    layer = nn.Conv2d(3, 4, 3)
    twin = copy.deepcopy(layer)
    layer.weight = nn.Parameter(layer.weight.detach().to(memory_format=torch.channels_last))
    x = torch.randn(2, 3, 5, 5)
    for module in (layer, twin):
        optimizer = Muon(module, 0.01)

        def closure(module: nn.Conv2d = module) -> Tensor:
            module.zero_grad()
            loss = module(x).square().sum()
            loss.backward()
            return loss

        losses = [optimizer.step(closure).item() for _ in range(5)]
        assert losses[-1] < losses[0]
    torch.testing.assert_close(layer.weight.contiguous(), twin.weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1.0}, {"momentum": 1.0}, {"rms": 0.0}, {"weight_decay": float("nan")}, {"adam_betas": (0.9, 1.0)},
        {"adam_eps": 0.0}, {"lr": "1e-3"}, {"momentum": None}, {"adam_betas": 0.9},
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    model = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=f"Muon: {name} "):
        Muon(model, **wrong)
    with pytest.raises(ConfigError, match=f"Muon: {name} "):
        Muon(model, params=[{"params": [model.weight], **wrong}])


def test_parameters_instead_of_the_network_and_sparse_gradients_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Muon\(model"):
        Muon(nn.Linear(2, 2).parameters())  # type: ignore[arg-type]
    table = nn.Embedding(4, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        Muon(table).step()
