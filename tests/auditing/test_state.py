"""An audit gives everything back: parameters, buffers, flags, gradients, switches, the sample; also after an
error.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from equirelax.auditing import On, audit
from equirelax.auditing.state import full_precision, measuring
from equirelax.symmetry import SO, vector

torch.set_num_threads(1)


class Everything(nn.Module):
    """Parameters and buffers of several dtypes, a tied weight, constants kept as attributes, state that a
    forward changes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Parameter(torch.randn(3, 3).half())
        self.single = nn.Linear(3, 3)
        self.exact = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))
        self.tied = self.single.weight
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Dropout(0.5).eval()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("odd", torch.randn(3).bfloat16(), persistent=False)
        self.constant = torch.randn(3, 3)
        self.constants = (torch.randn(3), "name")
        self.last: Tensor | None = None
        self.fails = False
        self.seen: list[tuple[object, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.odd.add_(1)
        self.last = x
        self.fresh = x
        self.seen.append(
            (x.dtype, self.coarse.dtype, self.constant.dtype, self.training, self.frozen.training)
        )
        x = self.frozen(self.single(x @ self.coarse @ self.constant @ self.tied @ self.exact))
        x = self.norm(x) + self.odd + self.constants[0] + torch.zeros(3)
        x.sum().backward(retain_graph=True)
        if self.fails and self.count > 3:
            raise FloatingPointError("the model's own error")
        return x


def snapshot(model: nn.Module) -> list[object]:
    found: list[object] = []
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        version = tensor._version if isinstance(tensor, nn.Parameter) else None
        found.append((name, id(tensor), tensor.data_ptr(), tensor.dtype, version, tensor.detach().clone()))
        found.append((name, tensor.grad if tensor.grad is None else tensor.grad.clone()))
    found += [(id(module), module.training) for module in model.modules()]
    return found


def equal(a: list[object], b: list[object]) -> bool:
    def same(x: object, y: object) -> bool:
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            # bit for bit
            return x.dtype == y.dtype and bool(
                (x.flatten().view(torch.uint8) == y.flatten().view(torch.uint8)).all()
            )
        return x == y

    return len(a) == len(b) and all(
        len(p) == len(q) and all(same(x, y) for x, y in zip(p, q, strict=True))
        for p, q in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_given_back(fails: bool, training: bool) -> None:
    torch.manual_seed(0)
    model = Everything().train(training)
    model.frozen.eval()
    model.single.weight.grad = torch.randn(3, 3)
    model.fails = fails
    x = torch.randn(5, 3, requires_grad=True)
    before, keys = snapshot(model), list(model.state_dict())
    plain = (model.constant, model.constant.dtype, model.constants)
    sample, random = x.detach().clone(), torch.get_rng_state()
    if fails:
        with pytest.raises(FloatingPointError, match="the model's own error"):
            audit(model, x, vector(SO(3)), vector(SO(3)))
    else:
        audit(model, x, vector(SO(3)), vector(SO(3)))
    assert equal(snapshot(model), before)
    assert list(model.state_dict()) == keys
    assert model.constant is plain[0]
    assert model.constant.dtype == plain[1]
    assert model.constants is plain[2]
    assert model.last is None
    assert "fresh" not in model.__dict__
    assert torch.equal(x, sample)
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_default_dtype() == torch.float32
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    double = (torch.float64, torch.float64, torch.float64, False, False)
    assert set(model.seen) == {double}


def test_training_goes_on_as_if_nothing_had_been(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Audits between backward and step, and inside autocast, change no later parameter."""

    def train(audited: bool) -> list[Tensor]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(4, 2))
        optimizer = torch.optim.Adam(model.parameters())
        along = On(vector(SO(3)), -2)
        other = nn.Linear(4, 2, bias=False)
        for _ in range(3):
            x = torch.randn(6, 3, 4)
            loss = model(x).square().sum()
            if audited:
                audit(model, x, along, along, samples=2)
            loss.backward()
            if audited:
                with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
                    assert audit(other, x, along, along, samples=2).relative < 1e-12
                audit(model, x, along, along, samples=2)
            optimizer.step()
            optimizer.zero_grad()
        return [tensor.clone() for tensor in model.state_dict().values()]

    for a, b in zip(train(False), train(True), strict=True):
        assert torch.equal(a, b)


def test_inference_mode() -> None:
    """Models that differentiate inside their forward can be audited by callers who have gradients off."""

    def force(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        energy = x.square().sum() + x[:, 0].square().sum() ** 2
        return torch.autograd.grad(energy, x)[0]

    x = torch.randn(4, 2, 3)
    with torch.no_grad():
        assert audit(force, x, vector(SO(3)), vector(SO(3))).equivariant
    with torch.inference_mode():
        report = audit(force, x.clone(), vector(SO(3)), vector(SO(3)))
    assert report.equivariant
    assert report.lie.method == "central finite differences"
    assert "detached" in report.lie.reason
    assert report.lie.relative < 1e-8


def test_switches() -> None:
    backends = torch.backends
    saved = backends.cuda.matmul.allow_tf32
    backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.autocast("cpu", torch.bfloat16):
            with full_precision():
                assert not torch.is_autocast_enabled("cpu")
                assert backends.cuda.matmul.fp32_precision == "ieee"
                assert backends.cudnn.conv.fp32_precision == "ieee"
            assert torch.is_autocast_enabled("cpu")
        assert backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        backends.cuda.matmul.allow_tf32 = saved


def test_lstm_and_scripted_modules() -> None:
    """Modules that keep their parameters in lists of their own, or outside Python."""
    lstm = nn.LSTM(3, 3)
    with measuring(lstm, torch.float64):
        assert lstm(torch.randn(2, 1, 3, dtype=torch.float64))[0].dtype == torch.float64
    assert lstm(torch.randn(2, 1, 3))[0].dtype == torch.float32
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 3)))
    before = copy.deepcopy(scripted.state_dict())
    with measuring(scripted, torch.float64):
        assert scripted(torch.randn(2, 3, dtype=torch.float64)).dtype == torch.float64
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), scripted.state_dict().values(), strict=True)
    )
    assert scripted(torch.randn(2, 3)).dtype == torch.float32


def test_escnn_like_caches_made_by_eval_are_dropped() -> None:
    """A layer that expands its filter into a buffer on eval() and deletes it on train()."""

    class Expanded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def train(self, mode: bool = True) -> Expanded:
            if mode and "filter" in self._buffers:
                del self._buffers["filter"]
            elif not mode and self.training:
                self.register_buffer("filter", self.scale * torch.eye(3))
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.filter if not self.training else self.scale * torch.eye(3, dtype=x.dtype))

    model = Expanded()
    keys = list(model.state_dict())
    assert audit(model, torch.randn(4, 3), vector(SO(3)), vector(SO(3))).equivariant
    assert list(model.state_dict()) == keys
    assert model.training


def test_a_dtype_kept_as_an_attribute() -> None:
    """Networks that cast to a dtype which they remember are measured in the audit's."""

    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(3, 3)
            self.out_dtype, self.table_dtype = torch.float32, torch.int32

        def forward(self, x: Tensor) -> Tensor:
            return self.map(x.square().sum(-1, keepdim=True).sqrt().to(self.out_dtype) * torch.ones(3))

    model = Casting()
    assert audit(model, torch.randn(4, 3), vector(SO(3)), None).relative < 1e-14
    with measuring(model, torch.float64):
        assert (model.out_dtype, model.table_dtype) == (torch.float64, torch.int32)
    assert (model.out_dtype, model.table_dtype) == (torch.float32, torch.int32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 8, bias=False)).cuda()
        x = torch.randn(16, 3, 64, device="cuda")
        along = On(vector(SO(3)), -2)
        report = audit(model, x, along, along)
        assert report.relative < 1e-12
        assert audit(model, x, along, along, dtype=torch.float32).relative < 1e-6
        assert torch.backends.cuda.matmul.allow_tf32
        biased = nn.Sequential(nn.Linear(64, 64).cuda(), nn.Linear(64, 8, bias=False).cuda())
        assert audit(biased, x, along, along).first_break == "0"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
