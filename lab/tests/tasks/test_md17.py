"""rMD17 as a benchmark: losses and metrics by hand, batches, moves, audits, warm-up, methods, the command."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.cli import main
from equirelax_lab.tasks.md17 import MD17Task
from equirelax_lab.tasks.registry import build_task, defaults
from equirelax_lab.training.assembly import Assembly, assemble, build_optimizer, build_scheduler
from equirelax_lab.training.evaluation import evaluate_all, totals
from md17_files import write_xyz
from real_data import SAMPLES
from torch import Tensor, nn

from equirelax.auditing import audit
from equirelax.errors import ConfigError
from equirelax.relaxation import MLP, project

pytest.importorskip("ase")
pytest.importorskip("e3nn")
QUICK = ("ace", "equivariant-control")
"""Methods that `make test` tries here; all of them are tried on other benchmarks."""
METHODS = ("scheduled", "ace", "resilient", "remul", "rpp", "equivariant-control")
DATA = {
    "molecule": "ethanol", "source": "rmd17", "frames": "first", "scale": "forces", "train": 6, "val": 3, "test": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_xyz(tmp_path_factory.mktemp("md17"), 960, 8)


def config(method: str = "strict", model: str = "equiformer", **changes: Any) -> Any:
    small = {"network": {"size": "small"}, "dataset": DATA, "batch_size": 3, "epochs": 2}
    return defaults("md17", model, method).updated({**small, **changes})


class Fixed(nn.Module):
    """Energies and forces (molecules,), (n, 3) that do not look at the molecules; scaled units."""

    def forward(self, numbers: Tensor, positions: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full((int(batch.max()) + 1,), 0.25), torch.full_like(positions, 0.5)


def test_the_papers_settings() -> None:
    strict, scheduled = (defaults("md17", "equiformer", m) for m in ("strict", "scheduled"))
    t = scheduled.training
    assert (t.epochs, t.batch_size, t.optimizer, t.learning_rate, t.weight_decay) == (
        1500,
        8,
        "adamw",
        5e-4,
        1e-6,
    )
    assert (t.schedule, t.warmup_epochs, t.augment, strict.training.augment) == ("cosine", 10, True, False)
    assert scheduled.residual.placement == "equiformer"
    assert scheduled.residual.kind == MLP(layers=2, hidden=4 * 484, init="default", scale=0.01)  # 4 d_in
    data = scheduled.dataset
    assert (data.train, data.val, data.test) == (950, 50, None)  # type: ignore[attr-defined]
    assert (data.source, data.frames, data.scale) == ("md17", "random", "energies")  # type: ignore[attr-defined]
    assert (t.final_learning_rate, t.decay_biases, scheduled.strength.norm_weight) == (1e-6, False, 0.0)  # type: ignore[attr-defined]
    assert MD17Task.metric.heading == "force MAE (meV/A)"
    assert build_task(scheduled).published() == {}


def test_loss_and_metrics_by_hand(root: Path) -> None:
    task = build_task(config(), root)
    data = task.load("test")
    unit = data.scaling.deviation  # type: ignore[attr-defined]
    batch = task.eval_batch(data, range(4))
    prediction = task.predict(Fixed(), batch)
    assert prediction.shape == (4, 1 + 27)
    energy = (0.25 - batch["energies"]).abs().mean()
    force = (0.5 - batch["forces"]).double()
    loss = energy + 80 * force.square().sum(-1).sqrt().mean()
    assert float(task.loss(prediction, batch)) == pytest.approx(float(loss), rel=1e-6)
    found = task.metrics(totals(task, Fixed(), data))
    assert list(found) == ["force MAE", "energy MAE (meV)"]
    physical = data.forces - 0.5 * unit  # type: ignore[attr-defined]
    assert found["force MAE"] == pytest.approx(1e3 * float(physical.abs().mean()), rel=1e-5)
    references = data.composition() @ data.scaling.references  # type: ignore[attr-defined]
    errors = 0.25 * unit + references + data.scaling.mean - data.energies  # type: ignore[attr-defined]
    assert found["energy MAE (meV)"] == pytest.approx(1e3 * float(errors.abs().mean()), rel=1e-5)


def test_metrics_do_not_depend_on_the_batches(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = build_task(config(), root)
    data, model = task.load("test"), task.build_model()
    whole = task.metrics(totals(task, model, data))
    monkeypatch.setattr(MD17Task, "chunk", 3)
    assert task.metrics(totals(task, model, data)) == pytest.approx(whole, rel=1e-5)


def test_training_frames_are_turned_each_by_its_own_rotation_where_residuals_read_vectors(root: Path) -> None:
    index = torch.tensor([0, 2])
    for method, turned in (("strict", False), ("scheduled", True)):
        task = build_task(config(method), root)
        data = task.load("train")
        plain = task.eval_batch(data, index)
        batch = task.train_batch(data, index, torch.Generator().manual_seed(1))
        solved = []
        for k in range(2):
            mine = slice(9 * k, 9 * k + 9)
            # the turn that takes the frame to the batch's
            turn = torch.linalg.lstsq(plain["positions"][mine], batch["positions"][mine]).solution
            assert torch.allclose(turn @ turn.T, torch.eye(3), atol=1e-4)
            torch.testing.assert_close(
                plain["forces"][mine] @ turn, batch["forces"][mine], rtol=1e-3, atol=1e-3
            )
            solved.append(turn)
        assert torch.allclose(solved[0], torch.eye(3), atol=1e-4) is not turned
        assert torch.allclose(solved[0], solved[1], atol=1e-2) is not turned
        assert torch.equal(plain["energies"], batch["energies"])
    share = task.train_batch(data, index, torch.Generator().manual_seed(1), slice(1, None, 2))
    torch.testing.assert_close(share["positions"], batch["positions"][9:])


def test_moved_frames_have_the_loss_of_the_frames_where_the_network_is_strict(root: Path) -> None:
    task = build_task(config(), root)
    model, batch = task.build_model(), task.eval_batch(task.load("train"), range(4))
    moved = task.moved(batch, torch.Generator().manual_seed(0))
    assert not torch.allclose(moved["positions"], batch["positions"], atol=0.1)
    before, after = (float(task.loss(task.predict(model, b), b).detach()) for b in (batch, moved))
    assert after == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        "equiformer",
        "plain",
        *(pytest.param(model, marks=pytest.mark.slow) for model in ("se3-transformer", "nequip")),
    ],
)
def test_an_audit_of_energies_and_forces(model: str, root: Path) -> None:
    if model == "nequip":
        pytest.importorskip("nequip")
    task = build_task(config(model=model), root)
    case = task.audit_case()
    report = audit(task.build_model(), case.sample, case.in_rep, case.out_rep, group=case.group)
    assert (report.before.relative < 1e-9) is (model != "plain")


def step(assembly: Assembly, root: Path) -> None:
    task, data = assembly.task, assembly.task.load("train")
    optimizer = build_optimizer(assembly)
    batch = task.train_batch(data, torch.arange(3), torch.Generator().manual_seed(0))
    loss = task.loss(task.predict(assembly.model, batch), batch)
    if assembly.method is not None:
        loss = assembly.method.objective(loss, lambda: loss)
    loss.backward()
    optimizer.step()


def moves_right(assembly: Assembly) -> bool:
    """Whether energies and the lengths of forces stay when molecules are moved, in float64; quicker than an audit."""
    task, model = assembly.task, assembly.model.double().eval()
    batch = task.eval_batch(task.load("val"), range(3))
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    moved = task.moved(batch, torch.Generator().manual_seed(2))
    (energies, forces), (same, turned) = (model(*task.inputs(b)) for b in (batch, moved))
    return torch.allclose(energies, same, rtol=1e-9) and torch.allclose(
        forces.norm(dim=1), turned.norm(dim=1), rtol=1e-8
    )


@pytest.mark.parametrize(
    "method",
    [*QUICK, *(pytest.param(method, marks=pytest.mark.slow) for method in METHODS if method not in QUICK)],
)
def test_methods_take_a_step_and_project_to_an_equivariant_network(method: str, root: Path) -> None:
    assembly = assemble(config(method), root, steps_per_epoch=2)
    if assembly.relaxation is not None:
        assembly.relaxation.set_gamma(0.5)
    before = [p.detach().clone() for p in assembly.model.parameters()]
    step(assembly, root)
    after = list(assembly.model.parameters())
    assert all(bool(p.isfinite().all()) for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    if assembly.relaxation is not None:
        assembly.relaxation.set_gamma(0.5)  # CR's schedule starts at 0
        assert moves_right(copy.deepcopy(assembly)) is (method == "equivariant-control")
        project(assembly.model, mode="drop")
    assert moves_right(assembly)


@pytest.mark.parametrize(("placement", "kind"), [("equiformer", "mlp"), ("layers", "dense")])
def test_both_placements_are_evaluated_relaxed_and_projected(placement: str, kind: str, root: Path) -> None:
    changed = config("scheduled", residual={"placement": placement, "kind": kind, "init": "default"})
    assembly = assemble(changed, root, steps_per_epoch=2)
    assert assembly.relaxation is not None
    assembly.relaxation.set_gamma(0.5)
    values = evaluate_all(assembly, assembly.task.load("test"))
    assert values["relaxed"] is not None
    assert values["projected"] is not None
    assert values["relaxed"] != values["projected"]
    assert set(values["relaxed"]) == {"force MAE", "energy MAE (meV)"}
    assert (values["folded"] is None) is (placement == "equiformer")  # a perceptron cannot be folded


def test_the_plain_network_has_nothing_to_relax(root: Path) -> None:
    with pytest.raises(ConfigError, match="needs residuals"):
        assemble(config("scheduled", "plain"), root)
    step(assemble(config("remul", "plain"), root), root)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "step"])
def test_the_learning_rate_warms_up(schedule: str, root: Path) -> None:
    epochs, warm = 12, 4
    values = {"schedule": schedule, "epochs": epochs, "warmup_epochs": warm, "step_epochs": 3}
    assembly = assemble(config(**values, final_learning_rate=0.0), root)
    optimizer = build_optimizer(assembly)
    scheduler = build_scheduler(assembly.config, optimizer)
    assert scheduler is not None
    rates, expected = [], []
    for k in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"] / 5e-4)
        own = {"cosine": (1 + math.cos(math.pi * k / epochs)) / 2, "step": 0.7 ** (k // 3), "constant": 1.0}
        expected.append(own[schedule] * min(1, (k + 1) / warm))
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected)
    again = build_scheduler(assembly.config, build_optimizer(assembly))
    assert again is not None
    again.load_state_dict(scheduler.state_dict())
    assert again.last_epoch == scheduler.last_epoch


def test_the_report_says_what_is_smaller_than_the_papers_setting(root: Path) -> None:
    words = build_task(config(), root).scaled_down()
    assert words is not None
    for part in ("the small network", "2 of 1500 epochs", "6 of 950 train frames"):
        assert part in words
    assert build_task(defaults("md17", "equiformer", "ace"), root).scaled_down() is None


@pytest.mark.slow
def test_the_command_compares_methods(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["compare", "md17", "--molecule", "ethanol", "--model", "equiformer", "--methods", "strict,ace"]
    words += ["--source", "rmd17", "--frames", "first", "--dataset.scale", "forces"]
    words += [
        "--seeds",
        "1",
        "--epochs",
        "1",
        "--network.size",
        "small",
        "--dataset.train",
        "6",
        "--dataset.val",
        "3",
    ]
    words += [
        "--dataset.test",
        "4",
        "--tensorboard",
        "false",
        "--jobs",
        "1",
        "--out",
        str(out),
        "--data",
        str(root),
    ]
    assert main(words) == 0
    text = (out / "summary.md").read_text()
    for part in ("test force MAE (meV/A)", "energy MAE (meV)", "| ace |", "relaxed", "projected"):
        assert part in text


@pytest.mark.slow
def test_a_network_learns_real_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIRELAX_DATA", str(SAMPLES))
    assembly = assemble(config(dataset={**DATA, "train": 4}))
    task, batch = assembly.task, assembly.task.eval_batch(assembly.task.load("train"), range(4))
    optimizer = torch.optim.Adam(assembly.model.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = task.loss(task.predict(assembly.model, batch), batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
