"""A residual reads what its module is called with, also where the module puts its output there: y = block(x) + gamma f(x)."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import equirelax as er
from equirelax.errors import RelaxationStateError
from equirelax.relaxation import Adds, Blocks, Reads

ONES = torch.ones(1, 4)


class Into(nn.Module):
    """Doubles an entry of what it is called with."""

    def forward(self, data):
        data["h"] = 2 * data["h"]
        return data


class Writes(nn.Module):
    def forward(self, h):
        h.mul_(2)
        return h


def relaxed(block: nn.Module, reads: Reads, adds: Adds) -> tuple[nn.Module, er.Relaxation]:
    model = nn.Sequential(block)
    relaxation = er.relax(model, Blocks("0", reads, adds, residual=er.Dense()))
    relaxation.set_gamma(1.0)
    with torch.no_grad():
        relaxation["0"].map.weight.copy_(10 * torch.eye(4))
    return model, relaxation


def of_a_mapping() -> tuple[nn.Module, er.Relaxation]:
    return relaxed(Into(), Reads("data", "4x0e", item="h"), Adds("h", "4x0e"))


def nothing_begun(relaxation: er.Relaxation) -> bool:
    return not any(residual._begun for _, residual in relaxation)


def test_an_entry_that_the_block_replaces_is_read_before():
    model, relaxation = of_a_mapping()
    method = er.Scheduled(relaxation, total_steps=10, schedule="constant")
    assert torch.equal(model({"h": ONES})["h"], 12 * ONES)
    assert torch.equal(relaxation["0"].take_inputs()[0], ONES)
    h = ONES.clone().requires_grad_()
    for _ in range(2):  # the recomputation reads what the forward read
        out = torch.utils.checkpoint.checkpoint(lambda h: model({"h": h})["h"], h, use_reentrant=False)
        (gradient,) = torch.autograd.grad(out.sum(), h)
        assert torch.equal(gradient, 12 * ONES)
    assert nothing_begun(relaxation)
    del method


def test_an_entry_that_the_block_makes_is_read_after():
    class Makes(nn.Module):
        def forward(self, data):
            return {**data, "h": data.setdefault("x", ONES)}

    model, _ = relaxed(Makes(), Reads("data", "4x0e", item="x"), Adds("h", "4x0e"))
    assert torch.equal(model({})["h"], 11 * ONES)


@pytest.mark.parametrize(("block", "name"), [(Writes, "h"), (nn.Sequential, "input")])
def test_a_block_writes_into_a_tensor_of_which_the_residual_has_a_copy(block, name):
    made = block() if block is Writes else block(nn.ReLU(inplace=True), nn.Identity())
    model, _ = relaxed(made, Reads(name, "4x0e"), Adds(None, "4x0e"))
    assert torch.equal(model(-ONES), (-12 if block is Writes else -10) * ONES)


def test_a_module_that_writes_into_the_very_tensor_that_the_residual_reads_is_refused():
    model = nn.Sequential(Writes())
    relaxation = er.relax(model, er.Layers(declare=er.Linear("0", "1x1o", "1x1o")))
    relaxation.set_gamma(1.0)
    with pytest.raises(RelaxationStateError, match=r"^0 .*in-place"):
        model(torch.ones(1, 3))
    assert nothing_begun(relaxation)
    with torch.inference_mode():  # torch counts no writes there
        model(torch.ones(1, 3))
    with relaxation.strict():
        model(torch.ones(1, 3))
    assert nothing_begun(relaxation)


def test_what_is_written_elsewhere_matters_not():
    class Other(nn.Module):
        def forward(self, h, cache):
            cache.add_(h)
            return h

    block = Other()
    er.relax(block, er.Layers(declare=er.Linear("Other", "4x0e+1x1o", "4x0e+1x1o"))).set_gamma(1.0)
    assert torch.equal(block(torch.ones(1, 7), torch.zeros(1, 7)), torch.ones(1, 7))


def test_a_call_that_raises_leaves_nothing_and_threads_do_not_meet():
    model, relaxation = of_a_mapping()
    with pytest.raises(KeyError):
        relaxation.module("0")({})
    with pytest.raises(TypeError):
        model[0]({"h": ONES}, 1)
    assert nothing_begun(relaxation)
    gate = threading.Barrier(2)
    model[0].register_forward_pre_hook(lambda *_: gate.wait() * 0 or None)
    found: dict[int, torch.Tensor] = {}

    def call(number: int) -> None:
        found[number] = model({"h": number * ONES})["h"]

    threads = [threading.Thread(target=call, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[number], 12 * number * ONES) for number in (1, 2))


def test_a_hook_that_changes_the_call_is_read():
    model, _ = relaxed(nn.Sequential(nn.Identity()), Reads("input", "4x0e"), Adds(None, "4x0e"))
    model[0].register_forward_pre_hook(lambda module, args: (3 * args[0],))
    assert torch.equal(model(ONES), 33 * ONES)


@pytest.mark.slow
def test_compiled_and_exported_the_entry_is_read_before():
    model, relaxation = of_a_mapping()
    assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)({"h": ONES})["h"], 12 * ONES)
    exported = torch.export.export(model, ({"h": ONES},)).module()
    assert torch.equal(exported({"h": ONES})["h"], 12 * ONES)
    assert nothing_begun(relaxation)


def triple(module, args, kwargs):
    return tuple(3 * x for x in args), {key: 3 * x for key, x in kwargs.items()}


def triple_in_place(module, args, kwargs):
    for key in kwargs:
        kwargs[key] = 3 * kwargs[key]
    return args, kwargs


@pytest.mark.parametrize(
    ("hook", "compiled"), [(triple, False), (triple_in_place, False), (triple_in_place, True)]
)
def test_arguments_that_a_later_pre_hook_replaces_are_read_as_the_module_gets_them(hook, compiled):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(3, 3, bias=False)

        def forward(self, x):
            return self.map(input=x)

    model = Named()
    relaxation = er.relax(model, er.Layers(residual=er.Dense(), declare=er.Linear("map", "1x1o", "1x1o")))
    relaxation.set_gamma(1.0)
    with torch.no_grad():
        model.map.weight.copy_(torch.eye(3))
        relaxation["map"].map.weight.copy_(torch.eye(3))
    model.map.register_forward_pre_hook(hook, with_kwargs=True)
    call = torch.compile(model, backend="eager") if compiled else model
    assert torch.equal(call(torch.ones(1, 3)), 6 * torch.ones(1, 3))


def test_where_a_hook_of_somebody_else_raises_nothing_is_kept():
    model = nn.Sequential(nn.Linear(3, 3, bias=False))

    def refuse(module, args, output):
        raise ValueError("not today")

    handle = model[0].register_forward_hook(refuse)
    relaxation = er.relax(model, er.Layers(residual=er.Dense(), declare=er.Linear("0", "1x1o", "1x1o")))
    method = er.Scheduled(relaxation, total_steps=10, schedule="constant")
    for _ in range(3):
        with pytest.raises(ValueError, match="not today"):
            model(torch.ones(1, 3))
    assert relaxation["0"].inputs_kept == 0
    assert nothing_begun(relaxation)
    handle.remove()
    try:
        raise KeyError
    except KeyError:  # a model may be called while an exception is handled
        model(torch.ones(1, 3))
    assert relaxation["0"].inputs_kept == 1
    assert torch.isfinite(method.penalty())


def test_what_is_written_into_another_part_of_the_same_memory_matters_not():
    class Scratch(nn.Linear):
        def forward(self, x, scratch):
            scratch.zero_()
            return super().forward(x)

    model = nn.Sequential(Scratch(3, 3, bias=False))
    relaxation = er.relax(model, er.Layers(declare=er.Linear("0", "1x1o", "1x1o")))
    relaxation.set_gamma(1.0)
    state = torch.ones(1, 6)
    with torch.no_grad():
        model[0](state[:, :3], state[:, 3:])
    assert nothing_begun(relaxation)
