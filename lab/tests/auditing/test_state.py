"""An audit gives everything back: parameters, buffers, flags, gradients, switches, the sample; also after an
error.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equirelax.auditing import On, audit
from equirelax.auditing.state import full_precision, measuring
from equirelax.errors import AuditError
from equirelax.symmetry import SO, vector

torch.set_num_threads(1)


SEEN: list[tuple[object, ...]] = []
"""What `Everything` saw; a list of its own would be given back as it was."""


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

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.odd.add_(1)
        self.last = x
        self.fresh = x
        SEEN.append((x.dtype, self.coarse.dtype, self.constant.dtype, self.training, self.frozen.training))
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
    SEEN.clear()
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
    assert set(SEEN) == {double}


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


def test_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # elsewhere those of CUDA are left alone
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


class Caching(nn.Module):
    """What M7 found left behind: caches in containers, a buffer updated in place with a gradient, replaced objects."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("running", torch.zeros(3))
        self.register_buffer("table", torch.eye(3))
        self.register_buffer("other", torch.ones(3))
        self.alias = self.table
        self.cache: dict[int, Tensor] = {}
        self.nested = {"rows": [torch.ones(3)], "steps": {"n": 0}}
        self.history: collections.deque[Tensor] = collections.deque(maxlen=4)
        self.seen: set[int] = set()
        self.first: Tensor | None = None
        self.extra = nn.Linear(1, 1)
        self.fails_at = 0
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        assert self.alias is self.table
        self.calls += 1
        self.running.mul_(0.9).add_(self.weight * x.detach().mean())
        if x.shape[0] not in self.cache:
            self.cache[x.shape[0]] = torch.ones(x.shape[0], 1, dtype=x.dtype)
        self.nested["rows"].append(x.detach())
        self.nested["rows"][0] += 1
        self.nested["steps"]["n"] += 1
        self.history.append(x)
        self.seen.add(self.calls)
        self.first = x * self.weight
        self.added = [x]
        self.other.mul_(self.weight)
        self.weight.requires_grad_(False).requires_grad_(True)
        self.extra = nn.Linear(1, 1)
        self.bias = nn.Parameter(torch.zeros(1))
        random.random()
        np.random.rand()
        torch.rand(1)
        if self.fails_at == self.calls:
            raise FloatingPointError("the model's own error")
        return self.weight * (x @ self.table) * self.cache[x.shape[0]]


@pytest.mark.parametrize("fails_at", [0, 1, 4])
def test_caches_buffers_and_containers_are_given_back(fails_at: int) -> None:
    """Also after an error, at the first call or later."""
    model = Caching()
    model.cache[7] = torch.ones(7, 1)
    model.weight.grad = torch.ones(())
    model.table.requires_grad_(True)
    held = {key: value for key, value in model.__dict__.items() if key != "training"}
    objects = {
        name: (tensor, tensor._version, tensor.detach().clone())
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    plain = copy.deepcopy(
        {key: getattr(model, key) for key in ("cache", "nested", "history", "seen", "calls")}
    )
    x = torch.randn(4, 3)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    model.fails_at = fails_at
    with pytest.raises(FloatingPointError) if fails_at else contextlib.nullcontext():
        audit(model, x, vector(SO(3)), vector(SO(3)), samples=2)
    model.fails_at = 0
    assert list(model._modules) == ["extra"]
    for key, value in held.items():
        assert model.__dict__[key] is value or key == "fails_at"
    for name, (tensor, version, value) in objects.items():
        now = dict((*model.named_parameters(), *model.named_buffers()))[name]
        assert now is tensor
        assert (now._version, now.dtype, now.grad_fn, now.requires_grad) == (
            version, torch.float32, None, name in ("weight", "table", "extra.weight", "extra.bias"),
        )  # fmt: skip
        assert torch.equal(now, value)
    assert model.alias is model.table
    for key, value in plain.items():
        assert str(getattr(model, key)) == str(value)
    assert "bias" not in dict(model.named_parameters())
    assert "added" not in model.__dict__
    assert model.first is None
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.get_rng_state())
    twin = copy.deepcopy(model)
    assert torch.equal(twin.eval()(torch.ones(7, 3)), torch.ones(7, 3))


def test_a_pending_backward_of_the_user_still_runs() -> None:
    """A buffer that a graph has saved must not have been written to."""
    model = nn.BatchNorm1d(3)
    model.register_buffer("count_up", torch.ones(3))
    model.register_forward_hook(
        lambda module, args, output: module.count_up.add_(1).neg_().neg_() * 0 + output
    )
    x = torch.randn(5, 3, requires_grad=True)
    loss = (x * model.count_up).sum()
    audit(model, torch.randn(5, 3, 3), vector(SO(3)), vector(SO(3)), samples=1, per_layer=False, lie=False)
    loss.backward()
    assert torch.equal(x.grad, torch.ones(5, 3))


def test_what_eval_merges_into_weights_is_undone_on_the_copies() -> None:
    """Adapters merge themselves into the weight on eval() and take themselves out on train()."""

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.adapter = nn.Parameter(torch.ones(())), nn.Parameter(torch.tensor(0.1))
            self.merged = False

        def train(self, mode: bool = True) -> Adapted:
            if mode == self.merged:
                self.weight.data += self.adapter.data * (-1 if mode else 1)
                self.merged = not mode
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.weight if self.merged else self.weight + self.adapter)

    model = Adapted()
    audit(model, torch.randn(2, 3), vector(SO(3)), vector(SO(3)), samples=2)
    assert (float(model.weight), model.merged, model.training) == (1.0, False, True)


def test_buffers_that_are_not_plain_tensors() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mix", torch.eye(4).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            return self.mix @ x

    model = Sparse()
    held = model.mix
    assert audit(model, torch.randn(4, 3), vector(SO(3)), vector(SO(3)), samples=2, lie=False).equivariant
    assert model.mix is held
    assert model.mix.dtype == torch.float32


def test_a_compiled_model_is_measured_in_eager_mode() -> None:
    """Hooks on the modules inside broke the compilation."""
    model = torch.compile(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2, bias=False)), backend="eager")
    along = On(vector(SO(3)), -2)
    report = audit(model, torch.randn(5, 3, 4), along, along, samples=2)
    assert report.first_break.endswith("0")


def test_a_lazy_module_is_to_be_called_first() -> None:
    with pytest.raises(AuditError, match="call it once"):
        audit(nn.LazyLinear(3), torch.randn(2, 3), vector(SO(3)), vector(SO(3)))


def test_a_relaxed_model_is_given_back() -> None:
    from equirelax_lab.models.vector_neurons import VNLinear

    import equirelax as er

    model = nn.Sequential(VNLinear(3, 4), VNLinear(4, 2))
    relaxation = er.relax(model, residual=er.Dense("normal", std=0.1))
    relaxation.set_gamma(0.5)
    x = torch.randn(5, 3, 3)
    before, keys = model(x).detach().clone(), list(model.state_dict())
    hooks = [len(module._forward_hooks) for module in model.modules()]
    for _ in range(2):
        audit(model, x, vector(SO(3)), vector(SO(3)), samples=2, deployed="relaxed")
    assert torch.equal(model(x), before)
    assert list(model.state_dict()) == keys
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    assert torch.equal(copy.deepcopy(model)(x), before)
