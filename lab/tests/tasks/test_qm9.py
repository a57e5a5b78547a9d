"""QM9 as a benchmark: losses and metrics by hand, batches, rotations that the projected network cannot see, methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.data import qm9
from equirelax_lab.tasks.methods import CHOICES
from equirelax_lab.tasks.qm9 import QM9Task
from equirelax_lab.tasks.registry import build_task, defaults
from equirelax_lab.training.assembly import Assembly, assemble, build_optimizer
from equirelax_lab.training.evaluation import mean_error
from interruption import assert_goes_on_bit_for_bit
from qm9_files import write_subset
from real_data import QM9_SIZES, SAMPLES
from torch import nn

from equirelax.auditing import audit
from equirelax.errors import ConfigError
from equirelax.methods import ACE, ResilientACE
from equirelax.relaxation import project

pytest.importorskip("torch_geometric")
MODELS = ("schnet", "segnn")
# larger harmonics and instance norm magnify the rounding of made-up molecules; tests/models has the published network
SMALL = {
    "schnet": {"hidden": 8, "layers": 2, "filters": 8},
    "segnn": {"hidden": 8, "layers": 1, "l_max": 1, "norm": "none", "harmonics": "integral"},
}
# a mean over atoms hides how large a molecule is, which a network learns first
SUMMED: dict[str, dict[str, Any]] = {"schnet": {}, "segnn": {"pooling": "sum", "distances": "plain"}}
RELAXING = ("scheduled", "ace", "resilient", "remul", "rpp")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """24 made-up molecules: 14 for training, 4 for validation, 6 for testing."""
    monkeypatch.setattr(qm9, "SUBSET_TRAIN", 14)
    monkeypatch.setattr(qm9, "SUBSET_VAL", 4)
    return write_subset(tmp_path)


def config(method: str = "strict", model: str = "schnet", **changes: Any) -> Any:
    dataset = {
        "source": "subset",
        "partition": "shuffled",
        "targets": "standardised",
        **changes.pop("dataset", {}),
    }
    values = {"network": SMALL[model], "batch_size": 5, "dataset": dataset, **changes}
    return defaults("qm9", model, method).updated(values)


def relaxed(method: str, model: str, root: Path, gamma: float = 0.7, **changes: Any) -> Assembly:
    """A run's objects with residuals that do something."""
    assembly = assemble(config(method, model, augment=True, **changes), root, steps_per_epoch=2)
    assert assembly.relaxation is not None
    assembly.relaxation.set_gamma(gamma)
    for parameter in assembly.relaxation.residual_parameters().values():
        nn.init.normal_(parameter, std=0.3)
    return assembly


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("target", "unit", "factor", "symbol"),
    [("U0", "1e-3", 1e3, "meV"), ("mu", "1", 1, "D"), ("Cv", "1", 1, "cal/(mol K)")],
)
@pytest.mark.parametrize("targets", ["standardised", "mad", "raw"])
def test_metric_is_the_mean_absolute_error_in_the_targets_unit(
    model: str, target: str, unit: str, factor: float, symbol: str, targets: str, root: Path
) -> None:
    task = build_task(config(model=model, dataset={"target": target, "targets": targets}), root)
    assert (task.metric.unit, task.metric.symbol) == (unit, symbol)
    data, network = task.load("test"), task.build_model().eval()
    raw = qm9.load("test", target=target, targets="raw", root=root)
    errors, losses = [], []
    for k in range(len(data)):  # type: ignore[arg-type]
        batch = task.eval_batch(data, [k])
        with torch.no_grad():
            output = float(network(*task.inputs(batch)))
        physical = data.scaling.invert(torch.tensor([output]), data.subset([k]).composition())  # type: ignore[attr-defined]
        errors.append(abs(float(physical - raw.targets[k])))
        losses.append(abs(output - float(data.targets[k])))  # type: ignore[attr-defined]
    assert mean_error(task, network, data) == pytest.approx(factor * sum(errors) / 6, rel=1e-5)
    batch = task.eval_batch(data, range(6))
    assert float(task.loss(task.predict(network, batch).detach(), batch)) == pytest.approx(
        sum(losses) / 6, rel=1e-5
    )


def test_segnn_gets_the_edges_within_its_cutoff(root: Path) -> None:
    task = build_task(config(model="segnn", network={"cutoff": 1.3}), root)
    batch = task.eval_batch(task.load("val"), [2, 0, 3])
    where, graph = batch["positions"], batch["graph"]
    expected = {
        (j, i)
        for i in range(len(where))
        for j in range(len(where))
        if i != j and graph[i] == graph[j] and (where[i] - where[j]).norm() <= 1.3
    }
    found = list(map(tuple, batch["edge_index"].T.tolist()))
    assert len(found) == len(set(found)) > 0
    assert set(found) == expected
    assert "edge_index" not in build_task(config(), root).load("val").batch([0])  # type: ignore[attr-defined]


def batches(task: Any, seed: int, share: slice = slice(None)) -> dict[str, torch.Tensor]:
    indices = torch.tensor([3, 0, 9, 7, 5])
    return task.train_batch(task.load("train"), indices, torch.Generator().manual_seed(seed), share)


def test_ranks_together_see_the_batch_of_one_process(root: Path) -> None:
    task = build_task(config("ace", augment=True), root)
    whole = batches(task, 0)
    parts = [batches(task, 0, slice(rank, None, 2)) for rank in range(2)]
    for rank, part in enumerate(parts):
        for place, molecule in enumerate(range(rank, 5, 2)):
            mine = part["positions"][part["graph"] == place]
            torch.testing.assert_close(mine, whole["positions"][whole["graph"] == molecule])
        assert torch.equal(part["targets"], whole["targets"][rank::2])


def test_mad_targets_and_splits_of_every_seed(root: Path) -> None:
    raw = qm9.load("train", targets="raw", partition="seeded", seed=3, root=root)
    scaled = qm9.load("train", targets="mad", partition="seeded", seed=3, root=root)
    away = raw.targets - raw.targets.mean()
    torch.testing.assert_close(scaled.targets, away / away.abs().mean())
    names = ("train", "val", "test")
    splits = {
        seed: [set(qm9.load(s, partition="seeded", seed=seed, root=root).identifiers.tolist()) for s in names]
        for seed in (0, 1)
    }
    for parts in splits.values():
        assert [len(part) for part in parts] == [14, 4, 6]
        assert len(set.union(*parts)) == 24
    assert splits[0] != splits[1]
    seeded = config(dataset={"partition": "seeded"}).updated({"seed": 1})
    assert set(build_task(seeded, root).load("test").identifiers.tolist()) == splits[1][2]  # type: ignore[attr-defined]


def test_strict_training_sees_molecules_as_they_are(root: Path) -> None:
    task = build_task(config("strict"), root)
    assert torch.equal(batches(task, 0)["positions"], batches(task, 1)["positions"])
    assert not build_task(config("strict"), root).config.training.augment


@pytest.mark.parametrize("model", MODELS)
def test_only_the_relaxed_prediction_depends_on_how_molecules_are_turned(model: str, root: Path) -> None:
    assembly = relaxed("ace", model, root, network={**SMALL[model], **SUMMED[model]})
    task, network = assembly.task, assembly.model.eval()
    first, second = (batches(task, seed) for seed in (0, 1))
    moved = task.moved(first, torch.Generator().manual_seed(2))
    before = {name: value.clone() for name, value in first.items()}
    others = (second, moved)
    for other in others:
        assert torch.equal(other["targets"], first["targets"])
        assert float((other["positions"] - first["positions"]).abs().max()) > 0.1
        relaxed_gap = (task.predict(network, other) - task.predict(network, first)).abs().max()
        assert float(relaxed_gap.detach()) > 1e-3
    project(network)
    for other in others:
        torch.testing.assert_close(
            task.predict(network, other), task.predict(network, first), rtol=1e-5, atol=1e-5
        )
    assert all(torch.equal(first[name], before[name]) for name in before)


def test_moved_molecules_keep_their_shape_each_by_an_element_of_its_own(root: Path) -> None:
    task = build_task(config(), root)
    batch = task.eval_batch(task.load("train"), range(14))
    moved = task.moved(batch, torch.Generator().manual_seed(0))
    determinants = []
    for k in range(14):
        old, new = (b["positions"][b["graph"] == k].double() for b in (batch, moved))
        torch.testing.assert_close(torch.cdist(old, old), torch.cdist(new, new), atol=1e-5, rtol=1e-5)
        if len(old) > 3:
            linear = torch.linalg.lstsq(old - old.mean(0), new - new.mean(0)).solution
            determinants.append(round(float(torch.det(linear)), 3))
    assert set(determinants) == {-1.0, 1.0}  # reflections too


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", RELAXING)
def test_methods_attach_and_step(model: str, method: str, root: Path) -> None:
    assembly = assemble(config(method, model), root, steps_per_epoch=2)
    task, relaxation, driver = assembly.task, assembly.relaxation, assembly.method
    assert relaxation is not None
    assert driver is not None
    optimizer, data = build_optimizer(assembly), task.load("train")
    generator = torch.Generator().manual_seed(0)
    before = {name: p.clone() for name, p in relaxation.residual_parameters().items()}
    for _ in range(3):
        batch = task.train_batch(data, torch.arange(6), generator)

        def moved(batch: Any = batch) -> torch.Tensor:
            other = task.moved(batch, generator)
            return task.loss(task.predict(assembly.model, other), other)

        loss = driver.objective(task.loss(task.predict(assembly.model, batch), batch), moved)
        assert bool(torch.isfinite(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert any(not torch.equal(p, before[n]) for n, p in relaxation.residual_parameters().items())


@pytest.mark.parametrize("model", MODELS)
def test_audits_find_the_residuals_and_nothing_after_projection(model: str, root: Path) -> None:
    assembly = relaxed("ace", model, root)
    case = assembly.task.audit_case()
    report = audit(
        assembly.model, *(case.sample, case.in_rep, case.out_rep, case.group), samples=3, per_layer=False, lie=False
    )  # fmt: skip
    assert report.after is not None
    assert report.before.relative > 1e-4
    assert report.after.relative < 1e-9


def test_papers_settings() -> None:
    schnet, segnn = (defaults("qm9", model, "ace") for model in MODELS)
    assert (schnet.training.epochs, schnet.training.batch_size, schnet.training.learning_rate) == (
        1000,
        256,
        1e-3,
    )
    assert (segnn.training.epochs, segnn.training.batch_size, segnn.training.learning_rate) == (
        600,
        1024,
        6e-4,
    )
    for found, dual in ((schnet, 1e-3), (segnn, 1e-2)):
        assert isinstance(found.strength, ACE.Settings)
        assert found.strength.dual_lr == dual
        assert found.strength.dual_optimizer == "adam"
        assert not found.training.augment
        assert (found.training.validate_every, found.dataset.partition) == (1, "seeded")  # type: ignore[attr-defined]
    assert (schnet.dataset.targets, segnn.dataset.targets) == ("raw", "mad")  # type: ignore[attr-defined]
    assert isinstance(defaults("qm9", "segnn", "resilient").strength, ResilientACE.Settings)
    assert len(assemble(config("ace")).relaxation.residuals) == 2  # type: ignore[union-attr]


def test_is_listed_whatever_the_target(capsys: pytest.CaptureFixture[str]) -> None:
    from equirelax_lab.cli.main import main

    assert main(["list"]) == 0
    assert "MAE of the target (its usual unit)" in " ".join(capsys.readouterr().out.split())


def test_published_numbers_are_of_schnet_and_one_target() -> None:
    published: Callable[..., dict[str, str]] = lambda m, t: build_task(  # noqa: E731
        defaults("qm9", m, "strict").updated({"dataset": {"target": t}})
    ).published()
    assert set(published("schnet", "U0")) == {"strict", "ace"}
    assert published("schnet", "mu") == published("segnn", "U0") == {}


def test_says_that_it_is_smaller_than_the_papers() -> None:
    subset = {"dataset": {"source": "subset"}}
    words = build_task(defaults("qm9", "schnet", "ace").updated(subset)).scaled_down()
    assert words == "13000 training molecules of the papers' 100000 and more"
    assert build_task(defaults("qm9", "schnet", "ace")).scaled_down() is None
    assert "8 of 64 hidden" in str(build_task(config()).scaled_down())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="--model segnn"):
        defaults("qm9", "schnet", "equivariant-control")
    assert defaults("qm9", "segnn", "equivariant-control").residual.placement == "segnn-equivariant"
    with pytest.raises(ConfigError, match=r"set residual\.kind to stream"):
        build_task(config("ace", residual={"kind": "dense"})).placement()
    with pytest.raises(ConfigError, match="choose another kind"):
        build_task(config("ace", "segnn", residual={"kind": "stream"})).placement()
    with pytest.raises(ConfigError, match=r"dataset.target.*U0"):
        config(dataset={"target": "u0"})
    assert "qm9" in {QM9Task.name}
    assert set(RELAXING) < set(CHOICES)


@pytest.mark.parametrize("method", ["scheduled", "ace"])
def test_an_interrupted_run_goes_on_bit_for_bit(
    method: str, root: Path, tmp_path: Path, stop_after: Any
) -> None:
    """Streams have running statistics and estimates of singular vectors, rotations are drawn anew in every epoch."""
    assert_goes_on_bit_for_bit(config(method, epochs=3, validate_every=1), tmp_path, root, stop_after)


@pytest.mark.parametrize("model", MODELS)
def test_real_molecules_train(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps on 200 real molecules bring the loss down."""
    monkeypatch.setenv("EQUIRELAX_DATA", str(SAMPLES))
    monkeypatch.setattr(qm9, "SUBSET_TRAIN", QM9_SIZES["train"])
    monkeypatch.setattr(qm9, "SUBSET_VAL", QM9_SIZES["val"])
    small = {
        "dataset": {"source": "subset", "train": 200, "targets": "standardised"},
        "network": {**SMALL[model], **SUMMED[model], "hidden": 16},
        "learning_rate": 3e-3,
    }
    assembly = assemble(defaults("qm9", model, "ace").updated(small), steps_per_epoch=1)
    assert assembly.method is not None
    task, optimizer = assembly.task, build_optimizer(assembly)
    data, generator = task.load("train"), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(10):
        batch = task.train_batch(data, torch.arange(100), generator)
        loss = task.loss(task.predict(assembly.model, batch), batch)
        optimizer.zero_grad()
        assembly.method.objective(loss).backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
