"""ModelNet40's networks under every method: attached, stepped and audited on clouds of random points."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equirelax_lab.tasks.methods import (
    CHOICES,
    is_learnt,
    is_strict,
    is_wrapper,
)
from equirelax_lab.tasks.registry import defaults
from equirelax_lab.tasks.symmetry_score import HeldOut
from equirelax_lab.training.assembly import Assembly, assemble, build_optimizer

from equirelax.auditing import audit
from equirelax.errors import ConfigError
from equirelax.methods import REMUL, RPP, EquiAdapted, EquiTuned

MODELS = ("vn-pointnet", "vn-dgcnn", "pointnet", "dgcnn")
ANY_NETWORK = {"strict", "strict-muon", "remul", "equi-tuning", "equi-adapt"}


def small(model: str, method: str, **strength: Any) -> Assembly:
    changes: dict[str, Any] = {"network": {"width": 0.1, "neighbours": 4}, "dataset": {"classes": "ten"}}
    config = defaults("modelnet40", model, method).updated({**changes, "strength": strength})
    return assemble(config, steps_per_epoch=2)


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"points": torch.randn(6, 24, 3, generator=generator), "labels": torch.arange(6)}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", CHOICES)
def test_every_method_steps_or_says_why_not(model: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = [{name: value[i : i + 1] for name, value in batch(9).items()} for i in range(6)]
    monkeypatch.setattr(HeldOut, "batches", lambda self, model, draw: iter(held_out))
    if not model.startswith("vn-") and method not in ANY_NETWORK:
        with pytest.raises(
            ConfigError, match=r"needs residuals, and (PointNet|DGCNN) has none: choose another"
        ):
            small(model, method)
        return
    assembly = small(model, method)
    task, network, method_ = assembly.task, assembly.model.train(), assembly.method
    assert (method_ is None) == (is_strict(method) or is_wrapper(method))
    optimizer = build_optimizer(assembly)
    for step in range(2):
        data = batch(step)
        moved = task.moved(data, torch.Generator().manual_seed(step))
        loss = task.loss(task.predict(network, data), data)
        if method_ is not None:
            loss = method_.objective(loss, lambda moved=moved: task.loss(task.predict(network, moved), moved))
        assert bool(torch.isfinite(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("model", ["pointnet", "dgcnn"])
def test_an_adapted_network_is_exactly_invariant_and_a_tuned_one_nearly(model: str) -> None:
    points = batch()["points"].double()
    errors = {}
    for method, settings in (("strict", {}), ("equi-adapt", {}), ("equi-tuning", {"samples": 64})):
        assembly = small(model, method, **settings)
        kinds = assembly.task.representations()
        network = assembly.model.double().eval()

        def contrast(x: torch.Tensor, network: torch.nn.Module = network) -> torch.Tensor:
            y: torch.Tensor = network(x)
            return y - y.mean(0)

        report = audit(
            contrast,
            (points,),
            kinds.inputs,
            kinds.output,
            kinds.group,
            samples=4,
            lie=False,
            per_layer=False,
        )
        errors[method] = report.before.relative
    assert errors["strict"] > 0.1
    assert errors["equi-adapt"] < 1e-9
    assert 1e-6 < errors["equi-tuning"] < 0.5 * errors["strict"]


def test_wrappers_hold_the_strict_network_and_start_from_its_weights() -> None:
    strict = small("pointnet", "strict")
    for method, kind, extra in (("equi-tuning", EquiTuned, False), ("equi-adapt", EquiAdapted, True)):
        assembly = small("pointnet", method)
        assert isinstance(assembly.model, kind)
        assert (assembly.relaxed_parameters > assembly.strict_parameters) is extra
        inner = assembly.model.model.state_dict()
        assert all(torch.equal(inner[name], value) for name, value in strict.model.state_dict().items())


def test_tuning_leaves_reflections_out_unless_told() -> None:
    for reflections in (False, True):
        tuned = small("vn-dgcnn", "equi-tuning", reflections=reflections).model
        assert isinstance(tuned, EquiTuned)
        assert bool((torch.linalg.det(tuned.elements) < 0).any()) is reflections


def test_settings_of_the_methods_that_are_compared() -> None:
    rpp = defaults("modelnet40", "vn-pointnet", "rpp")
    assert isinstance(rpp.strength, RPP.Settings)
    # the gradient of eq_weight ||W||^2 is 2 eq_weight W, that of a weight decay wd is wd W
    strict = defaults("modelnet40", "vn-pointnet", "strict")
    assert rpp.training.weight_decay == 0.0
    assert 2 * rpp.strength.eq_weight == pytest.approx(strict.training.weight_decay)
    remul = defaults("modelnet40", "vn-pointnet", "remul")
    assert isinstance(remul.strength, REMUL.Settings)
    assert remul.training == strict.training
    assert [name for name in CHOICES if is_learnt(name)] == ["ace", "resilient", "ace-augmented", "ace-pi"]
    deployed = [name for name, choice in CHOICES.items() if choice.deploys_relaxed]
    assert deployed == ["resilient", "symmetry-following", "remul", "rpp"]
