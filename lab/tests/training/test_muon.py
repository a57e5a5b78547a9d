"""Muon: against PyTorch's on matrices, against Adam elsewhere, path by path on e3nn's layers, and as the method strict-muon."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from e3nn import o3
from equirelax_lab.models import TensorProduct
from equirelax_lab.models.vector_neurons import VNLinear
from equirelax_lab.tasks.registry import TASKS, defaults
from equirelax_lab.training.assembly import assemble, build_optimizer
from equirelax_lab.training.folder import read_table
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.muon import COEFFICIENTS, Muon, orthogonalised
from equirelax_lab.training.run import train
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import ConfigError
from equirelax.optim import matrices_of


def slow_orthogonalised(gradient: Tensor) -> Tensor:
    """Newton-Schulz on one matrix, written with its singular values: the polynomial acts on each by itself."""
    u, s, vt = torch.linalg.svd(gradient / gradient.norm(), full_matrices=False)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ vt


def slow_steps(start: Tensor, gradients: list[Tensor], lr: float) -> Tensor:
    """Muon on one matrix."""
    weight, momentum = start.clone(), torch.zeros_like(start)
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * gradient
        step = slow_orthogonalised(0.05 * gradient + 0.95 * momentum)
        weight = weight - lr * max(weight.shape) ** 0.5 * step
    return weight


def run_steps(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int, seed: int = 0
) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        optimizer.step()


def test_equals_pytorchs_on_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch's computes in bfloat16; without that rounding both are the same to the last digits
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    shapes = [(8, 5), (5, 8), (6, 6), (6, 6), (2, 40)]
    ours = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    theirs = copy.deepcopy(ours)
    run_steps(Muon(ours, 0.03, rms=0.2, weight_decay=0.1), ours, 4)
    run_steps(torch.optim.Muon(theirs, 0.03, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), theirs, 4)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_stays_within_bfloat16_of_pytorchs_as_it_is() -> None:
    ours = [nn.Parameter(torch.randn(16, 24))]
    theirs = copy.deepcopy(ours)
    start = ours[0].detach().clone()
    run_steps(Muon(ours, 0.1, rms=0.2), ours, 3)
    run_steps(torch.optim.Muon(theirs, 0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"), theirs, 3)
    moved = (ours[0] - start).norm()
    assert (ours[0] - theirs[0]).norm() < 0.03 * moved


def test_everything_else_is_adams() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in [(7,), (), (1, 9), (9, 1), (4, 1, 1)]]
    theirs = copy.deepcopy(ours)
    run_steps(Muon(ours, 0.01, weight_decay=0.1), ours, 5)
    run_steps(torch.optim.AdamW(theirs, 0.01, weight_decay=0.1), theirs, 5)
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_orthogonalised_brings_singular_values_near_one_and_leaves_zero() -> None:
    matrices = torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(1))
    matrices[1] = 0
    result = orthogonalised(matrices)
    assert not result[1].any()
    values = torch.linalg.svdvals(result[[0, 2]])
    assert values.min() > 0.6
    assert values.max() < 1.3
    torch.testing.assert_close(result[2], slow_orthogonalised(matrices[2]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_the_paths_of_a_linear_map_are_orthogonalised_one_by_one(bias: bool) -> None:
    layer = o3.Linear("4x0e+3x1o+2x0e", "5x0e+2x1o+1x1o", biases=bias).double()
    start, gradients = layer.weight.detach().clone(), []
    optimizer = Muon(layer.parameters(), 0.01, matrices_of(layer))
    adams = copy.deepcopy(layer)
    generator = torch.Generator().manual_seed(0)
    adam = torch.optim.Adam(adams.parameters(), 0.01)
    for _ in range(3):
        for p, q in zip(layer.parameters(), adams.parameters(), strict=True):
            p.grad = q.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        gradients.append(layer.weight.grad)
        optimizer.step()
        adam.step()
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


def test_a_tensor_product_has_a_matrix_for_every_path_and_attribute() -> None:
    for kind in (TensorProduct, o3.FullyConnectedTensorProduct):
        layer = kind("4x0e+3x1o", "2x0e+1x1o", "5x0e+2x1o").double()
        found = matrices_of(layer)[layer.weight]
        assert [each.start for each in found] == sorted(each.start for each in found)
        start, gradient = layer.weight.detach().clone(), torch.randn_like(layer.weight)
        layer.weight.grad = gradient
        Muon([layer.weight], 0.01, matrices_of(layer)).step()
        at = 0
        for instruction in layer.instructions:
            shape = instruction.path_shape
            size = shape[0] * shape[1] * shape[2]
            before, after, slope = (
                t[at : at + size].view(shape) for t in (start, layer.weight.detach(), gradient)
            )
            at += size
            for v in range(shape[1]):
                expected = slow_steps(before[:, v], [slope[:, v]], 0.01)
                torch.testing.assert_close(after[:, v], expected, rtol=1e-9, atol=1e-12)
        assert at == layer.weight.numel() == sum(each.stop - each.start for each in found)


def test_paths_that_mix_no_channels_and_tables_are_left_to_adam() -> None:
    elementwise = o3.TensorProduct(
        "4x0e", "4x0e", "4x0e", [(0, 0, 0, "uvu", True), (0, 0, 0, "uuw", True)], internal_weights=True,
        shared_weights=True,
    )  # fmt: skip
    (only,) = matrices_of(elementwise)[elementwise.weight]
    assert (only.start, only.size) == (16, (4, 4))
    table = nn.Embedding(5, 4)
    assert matrices_of(table)[table.weight] == ()
    kernel = nn.Conv2d(3, 4, 5)
    assert [each.size for each in matrices_of(kernel)[kernel.weight]] == [(4, 75)]
    assert matrices_of(kernel)[kernel.bias] == ()


def test_residuals_are_matrices_and_strengths_are_adams() -> None:
    model = nn.Sequential(VNLinear(4, 6), VNLinear(6, 5)).double()
    relaxation = er.relax(model)
    optimizer = Muon(model.parameters(), 0.01, matrices_of(model), weight_decay=0.1)
    method = er.ACE(relaxation, dual_lr=1e-3).attach(optimizer)
    x = torch.randn(8, 4, 3, dtype=torch.float64)
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
        torch.testing.assert_close(model(x @ rotation), model(x) @ rotation, rtol=1e-10, atol=1e-10)


def test_state_goes_through_a_file_and_the_run_is_the_same_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(o3.Linear("4x0e+1x1o", "4x0e+3x1o", biases=True))
    twin = copy.deepcopy(model)
    whole = Muon(model.parameters(), 0.01, matrices_of(model), weight_decay=0.1)
    run_steps(whole, list(model.parameters()), 3, seed=1)
    run_steps(whole, list(model.parameters()), 3, seed=2)
    first = Muon(twin.parameters(), 0.01, matrices_of(twin), weight_decay=0.1)
    run_steps(first, list(twin.parameters()), 3, seed=1)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = Muon(twin.parameters(), 0.5, matrices_of(twin))
    second.load_state_dict(torch.load(file, weights_only=True))
    run_steps(second, list(twin.parameters()), 3, seed=2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_closures_later_groups_and_kernels_in_other_layouts() -> None:
    layer = nn.Conv2d(3, 4, 3)
    twin = copy.deepcopy(layer)
    layer.weight = nn.Parameter(layer.weight.detach().to(memory_format=torch.channels_last))
    x = torch.randn(2, 3, 5, 5)
    for module in (layer, twin):
        optimizer = Muon([module.bias], 0.01)
        optimizer.add_param_group({"params": [module.weight]})

        def closure(module: nn.Conv2d = module) -> Tensor:
            module.zero_grad()
            loss = module(x).square().sum()
            loss.backward()
            return loss

        losses = [optimizer.step(closure).item() for _ in range(5)]
        assert losses[-1] < losses[0]
    torch.testing.assert_close(layer.weight.contiguous(), twin.weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"momentum": 1.0}, {"rms": 0.0}, {"weight_decay": float("nan")}]
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"Muon: .*{next(iter(wrong))}"):
        Muon([nn.Parameter(torch.zeros(2, 2))], **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("benchmark", "model"), [(name, model) for name, task in TASKS.items() for model in task.models]
)
def test_the_control_is_strict_training_but_for_the_optimiser(benchmark: str, model: str) -> None:
    strict, control = defaults(benchmark, model, "strict"), defaults(benchmark, model, "strict-muon")
    assert control.training.optimizer == "muon"
    assert (control.dataset, control.network, control.residual, control.strength) == (
        strict.dataset, strict.network, strict.residual, strict.strength,
    )  # fmt: skip
    assert control.training.epochs == strict.training.epochs
    assert control.training.augment == strict.training.augment
    if strict.training.optimizer == "sgd":
        assert control.training.learning_rate == 1e-3
    else:
        assert control.training.learning_rate == strict.training.learning_rate


def test_the_control_starts_from_the_strict_network_and_will_have_no_other_optimiser() -> None:
    config = defaults("nbody", "segnn", "strict-muon")
    control, strict = assemble(config), assemble(defaults("nbody", "segnn", "strict"))
    assert control.relaxation is None
    assert control.method is None
    both = zip(control.model.parameters(), strict.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in both)
    optimizer = build_optimizer(control)
    assert isinstance(optimizer, Muon)
    held = sum(
        each[1][0] * each[1][1] * each[1][2]
        for group in optimizer.param_groups
        for matrices in group["matrices"]
        for each in matrices
    )
    assert held > 0.97 * control.strict_parameters
    with pytest.raises(ConfigError, match=r"per_method: \{strict-muon: \{optimizer: muon\}\}"):
        assemble(config.updated({"optimizer": "adam"}))


@pytest.mark.parametrize("model", ["segnn", "egnn"])
def test_the_control_learns_and_is_equivariant(
    model: str, tiny_root: Path, tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    config = tiny_config("strict-muon", model, epochs=6)
    result = train(config, tmp_path, tiny_root, machine=Machine(progress=False, tensorboard=False))
    assert result is not None
    assert result["method"] == "strict-muon"
    assert result["parameters"]["strict"] == result["parameters"]["relaxed"]
    assert result["equivariance_error"]["before"] == result["equivariance_error"]["after"] < 1e-11
    losses = [float(row["train/loss"]) for row in read_table(tmp_path / "metrics.csv")]
    assert losses[-1] < losses[0]
