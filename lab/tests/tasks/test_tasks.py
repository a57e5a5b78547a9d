"""Tasks: the loss and metric are what they say, audits fit their models, every method can be attached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.data import NBody, NBodySet
from equirelax_lab.studies.trials import check_data
from equirelax_lab.tasks.methods import (
    CHOICES,
    build_method,
    build_wrapper,
    is_learnt,
    is_scheduled,
    is_strict,
    is_wrapper,
)
from equirelax_lab.tasks.registry import build_task, defaults
from equirelax_lab.tasks.task import Split
from equirelax_lab.training.assembly import assemble, build_optimizer
from real_data import SAMPLES

from equirelax.auditing import audit
from equirelax.errors import ConfigError, DataError
from equirelax.methods import REMUL, Scheduled
from equirelax.relaxation import relax
from equirelax.relaxation.regularizers import LieDerivative, ProjectionNorms
from equirelax.symmetry import SO

MODELS = ("segnn", "egnn")


@pytest.mark.parametrize("model", MODELS)
def test_loss_and_metric_are_the_mean_squared_error(
    model: str, tiny_root: Path, tiny_config: Callable[..., Any]
) -> None:
    task = build_task(tiny_config("strict", model), tiny_root)
    data = task.load("val")
    batch = data.batch(range(6))
    prediction = torch.randn_like(batch["targets"])
    by_hand = sum(float(((p - t) ** 2).sum()) for p, t in zip(prediction, batch["targets"], strict=True)) / (
        6 * 5 * 3
    )
    assert float(task.loss(prediction, batch)) == pytest.approx(by_hand, rel=1e-5)
    assert float(task.error(prediction, batch)) == pytest.approx(by_hand, rel=1e-5)
    assert task.metric.factor == 1e-3


def test_segnn_adds_its_displacement_to_the_input(tiny_root: Path, tiny_config: Callable[..., Any]) -> None:
    task = build_task(tiny_config("strict"), tiny_root)
    batch = task.load("val").batch(range(3))
    model = task.build_model()
    assert torch.equal(task.predict(model, batch), batch["positions"] + model(*task.inputs(batch)))


def test_splits_are_the_first_samples(
    tiny_root: Path, tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # the user's cache may hold larger sets
    small = build_task(tiny_config("strict", dataset={"train": 8, "val": 24, "test": 24}), tiny_root)
    whole = build_task(tiny_config("strict"), tiny_root)
    assert torch.equal(small.load("train").positions, whole.load("train").positions[:8])
    assert len(whole.load("test")) == 24
    with pytest.raises(DataError, match="equirelax data make nbody"):
        build_task(tiny_config("strict", dataset={"train": 4000}), tiny_root).load("train")


def test_every_seed_may_have_systems_of_its_own(
    tiny_root: Path, tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of training and validation; test systems are shared. A set that is missing is missed before any run starts."""
    read: list[tuple[Split, int]] = []

    def noted(split: Split, *others: Any) -> NBodySet:
        read.append((split, others[-1]))
        return NBody(split, *others[:-1], 0)

    def config(seed: int, draw: str) -> Any:
        sizes = {"train": 48, "val": 24, "test": 24}
        return tiny_config("strict", seed=seed, dataset={"draw": draw, **sizes})

    with monkeypatch.context() as patch:
        patch.setattr("equirelax_lab.tasks.nbody.NBody", noted)
        check_data(
            [config(3, "seeded"), config(4, "seeded"), config(5, "shared"), config(6, "shared")], tiny_root
        )
    expected = [("train", 3), ("val", 3), ("test", 0), ("train", 4), ("val", 4), ("test", 0)]
    assert read == [*expected, ("train", 0), ("val", 0), ("test", 0)]
    with pytest.raises(DataError, match="data make nbody --seed 2"):
        check_data([config(0, "seeded"), config(2, "seeded")], tiny_root)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", [name for name in CHOICES if not is_strict(name) and not is_wrapper(name)])
def test_every_method_attaches_and_steps(
    model: str, method: str, tiny_root: Path, tiny_config: Callable[..., Any]
) -> None:
    assembly = assemble(tiny_config(method, model), tiny_root, steps_per_epoch=2)
    assert assembly.method is not None
    assert assembly.relaxation is not None
    optimizer = build_optimizer(assembly)
    task, generator = assembly.task, torch.Generator().manual_seed(1)
    batch = task.load("train").batch(range(8))
    before = [p.clone() for p in assembly.relaxation.residual_parameters().values()]
    for _ in range(3):
        moved = task.moved(batch, generator)
        loss = assembly.method.objective(
            task.loss(task.predict(assembly.model, batch), batch),
            lambda moved=moved: task.loss(task.predict(assembly.model, moved), moved),
        )
        assert bool(torch.isfinite(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = list(assembly.relaxation.residual_parameters().values())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("model", MODELS)
def test_moved_systems_are_the_same_to_an_equivariant_network(
    model: str, tiny_root: Path, tiny_config: Callable[..., Any]
) -> None:
    task = build_task(tiny_config("strict", model), tiny_root)
    batch = task.load("val").batch(range(6))
    moved = task.moved(batch, torch.Generator().manual_seed(2))
    again = task.moved(batch, torch.Generator().manual_seed(2))
    assert all(torch.equal(moved[name], again[name]) for name in moved)
    network = task.build_model()
    losses = [task.loss(task.predict(network, b), b).item() for b in (batch, moved)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    # every system has a rotation of its own: lengths stay, and the rotation of the first does not fit the second
    assert torch.allclose(moved["positions"].norm(dim=1), batch["positions"].norm(dim=1), rtol=1e-5)
    first, second = (slice(5 * i, 5 * i + 5) for i in (0, 1))
    g = torch.linalg.lstsq(batch["positions"][first], moved["positions"][first]).solution
    assert torch.allclose(batch["velocities"][first] @ g, moved["velocities"][first], atol=1e-4)
    assert torch.allclose(batch["targets"][first] @ g, moved["targets"][first], atol=1e-4)
    assert not torch.allclose(batch["positions"][second] @ g, moved["positions"][second], atol=1e-2)
    assert torch.equal(moved["charges"], batch["charges"])


def test_wrappers_stand_around_the_strict_network(tiny_root: Path, tiny_config: Callable[..., Any]) -> None:
    config = tiny_config("equi-tuning", "egnn", strength={"samples": 3})
    tuned, strict = assemble(config, tiny_root), assemble(tiny_config("strict", "egnn"), tiny_root)
    assert tuned.method is None
    assert tuned.relaxation is None
    assert tuned.relaxed_parameters == tuned.strict_parameters == strict.strict_parameters
    batch = tuned.task.load("val").batch(range(4))
    with torch.no_grad():
        expected = strict.task.predict(strict.model.eval(), batch)
        found = tuned.task.predict(tuned.model.eval(), batch)
    assert torch.allclose(
        found, expected, atol=1e-5
    )  # the mean over rotations of an equivariant network is itself
    with pytest.raises(ConfigError, match="equi-adapt turns point clouds"):
        assemble(tiny_config("equi-adapt", "egnn"), tiny_root)
    with pytest.raises(ConfigError, match="describes no module"):
        build_wrapper(strict.model, REMUL.Settings(), (None,), None, SO(3))


def test_methods_that_need_residuals_say_so(tiny_config: Callable[..., Any]) -> None:
    network = torch.nn.Linear(3, 3)
    assert isinstance(build_method(network, defaults("nbody", "segnn", "remul"), 1), REMUL)
    for name in ("scheduled", "ace", "resilient", "rpp", "no-lie"):
        with pytest.raises(ConfigError, match="needs residuals, and Linear has none"):
            build_method(network, defaults("nbody", "segnn", name), 1)


@pytest.mark.parametrize(
    ("name", "lie", "norm", "schedule"),
    [
        ("no-schedule", 0.01, 0.01, "constant"),
        ("no-lie", 0.0, 0.01, "triangle"),
        ("no-penalty", 0.0, 0.0, "triangle"),
    ],
)
def test_ablations_of_cr_leave_out_what_they_say(name: str, lie: float, norm: float, schedule: str) -> None:
    strength = defaults("nbody", "segnn", name).strength
    assert isinstance(strength, Scheduled.Settings)
    assert (strength.lie_weight, strength.norm_weight, strength.schedule) == (lie, norm, schedule)
    assert is_scheduled(name)
    assert not is_learnt(name)


@pytest.mark.parametrize("model", MODELS)
def test_the_audit_case_fits_the_model(model: str, tiny_root: Path, tiny_config: Callable[..., Any]) -> None:
    relaxed = assemble(tiny_config("ace", model), tiny_root)
    case = relaxed.task.audit_case()
    settings: dict[str, Any] = {"samples": 3, "per_layer": False, "lie": False}
    report = audit(relaxed.model, case.sample, case.in_rep, case.out_rep, case.group, **settings)
    assert report.after is not None
    assert report.before.relative > 1e-6 > report.after.relative


def test_the_control_relaxes_nothing(tiny_root: Path, tiny_config: Callable[..., Any]) -> None:
    for model in MODELS:
        control = assemble(tiny_config("equivariant-control", model), tiny_root)
        assert control.relaxation is not None
        for parameter in control.relaxation.residual_parameters().values():
            torch.nn.init.normal_(parameter)
        control.relaxation.set_gamma(1.0)
        case = control.task.audit_case()
        report = audit(
            control.model,
            case.sample,
            case.in_rep,
            case.out_rep,
            case.group,
            samples=3,
            per_layer=False,
            lie=False,
        )
        assert report.before.relative < 1e-6
        with control.relaxation.strict():
            strict = control.model(*case.sample)
        assert not torch.allclose(control.model(*case.sample), strict)


def test_a_control_of_nbody_has_as_many_parameters_as_the_scheduled_run(
    tiny_config: Callable[..., Any],
) -> None:
    assert (
        assemble(tiny_config("equivariant-control")).relaxed_parameters
        == assemble(tiny_config("scheduled")).relaxed_parameters
    )


def test_scaled_down_says_what_is_smaller(tiny_config: Callable[..., Any]) -> None:
    assert build_task(defaults("nbody", "segnn", "ace")).scaled_down() is None
    words = build_task(tiny_config("ace")).scaled_down()
    assert words is not None
    for part in ("4 of 2000 epochs", "48 of 3000 train samples", "16 of 64 hidden", "1 of 4 layers"):
        assert part in words
    larger = defaults("nbody", "segnn", "ace").updated({"epochs": 2000, "dataset": {"train": 10000}})
    assert build_task(larger).scaled_down() is None


def test_published_numbers_are_those_of_the_papers() -> None:
    assert build_task(defaults("nbody", "segnn", "strict")).published()["ace"] == "3.8 ± 0.17"
    assert "scheduled" not in build_task(defaults("nbody", "egnn", "strict")).published()
    walk = defaults("mocap", "egnn", "strict").updated({"dataset": {"subject": "walk"}})
    assert build_task(walk).published() == {"strict": "28.7 ± 1.6"}


def test_placements_and_strengths_that_do_not_fit_are_refused(tiny_config: Callable[..., Any]) -> None:
    from equirelax.errors import PlacementError

    wrong = tiny_config("scheduled", residual={"placement": "segnn-rc"})
    with pytest.raises(PlacementError, match="segnn-cr"):
        assemble(wrong)
    relaxation = relax(torch.nn.Sequential(build_task(tiny_config("strict")).build_model()))
    with pytest.raises(ConfigError, match="controls no residuals"):
        build_method(relaxation, tiny_config("strict"), 1)


def test_the_penalty_of_projections_takes_the_place_and_the_weights_of_the_lie_derivative(
    tiny_config: Callable[..., Any],
) -> None:
    weights = {"lie_weight": 0.5, "norm_weight": 0.25, "every": 2}
    method = assemble(tiny_config("scheduled", strength={"penalty": "projection", **weights})).method
    assert method is not None
    regularizer = method.regularizer
    assert isinstance(regularizer, ProjectionNorms)
    assert (regularizer.rest_weight, regularizer.equivariant_weight, regularizer.every) == (0.5, 0.25, 2)
    assert isinstance(assemble(tiny_config("scheduled", strength=weights)).method.regularizer, LieDerivative)  # type: ignore[union-attr]
    none = assemble(tiny_config("no-penalty", strength={"penalty": "projection"})).method
    assert none is not None
    assert none.regularizer is None
    with pytest.raises(ConfigError, match="'strength': penalty is 'projection', and degrees is set"):
        tiny_config("scheduled", strength={"penalty": "projection", "degrees": 5.0})
    with pytest.raises(ConfigError, match="'strength': degrees is set"):
        tiny_config("scheduled", strength={"degrees": 5.0, "rows": 8})


def test_settings_reach_the_method(tiny_config: Callable[..., Any]) -> None:
    config = tiny_config(
        "scheduled", strength={"rows": 7, "lie_weight": 0.5, "scaling": "mean", "per": "step"}
    )
    assert isinstance(config.strength, Scheduled.Settings)
    method = assemble(config, steps_per_epoch=3).method
    assert method is not None
    penalty = method.regularizer
    assert isinstance(penalty, LieDerivative)
    assert (penalty.rows, penalty.lie_weight, penalty.scaling) == (7, 0.5, "mean")
    assert method.total_steps == 12  # type: ignore[attr-defined]
    assert method.steps_per_epoch is None  # type: ignore[attr-defined]


def test_mocap_attaches_steps_and_audits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIRELAX_DATA", str(SAMPLES))
    config = defaults("mocap", "egnn", "ace").updated(
        {"dataset": {"subject": "run"}, "network": {"hidden": 8, "layers": 2}}
    )
    task = build_task(config)
    data = task.load("train")
    assert len(data) == 200
    assembly = assemble(config)
    batch = data.batch(range(12))
    prediction = assembly.task.predict(assembly.model, batch)
    assert prediction.shape == (12 * 31, 3)
    assert bool(torch.isfinite(assembly.task.loss(prediction, batch)))
    case = assembly.task.audit_case()
    report = audit(
        assembly.model,
        case.sample,
        case.in_rep,
        case.out_rep,
        case.group,
        samples=2,
        per_layer=False,
        lie=False,
    )
    assert report.after is not None
    assert report.after.relative < 1e-6
