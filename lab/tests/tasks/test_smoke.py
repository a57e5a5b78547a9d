"""The smoke task: roll-outs and metrics beside loops, windows turned with their targets, projected networks equivariant."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.cli import main
from equirelax_lab.data.smoke import SmokeSettings
from equirelax_lab.models import planes
from equirelax_lab.tasks.registry import build_task, defaults
from equirelax_lab.tasks.smoke import SmokeTask, rollout
from equirelax_lab.training.assembly import assemble, build_optimizer
from equirelax_lab.training.evaluation import totals
from smoke_files import SMALL, write_plumes
from torch import Tensor, nn

from equirelax.errors import ConfigError, DataError
from equirelax.relaxation import project
from equirelax.symmetry import GridField, Group, vector

DATASET = {"size": 8, "positions": 2, "steps": 30, "inputs": 3, "outputs": 2, "horizon": 2}
DATASET |= {"val_horizon": None, "loss": "mean"}
NETWORK = {"hidden": 4, "layers": 4, "norm": True}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up plumes under rotations and scalings."""
    folder = write_plumes(tmp_path_factory.mktemp("smoke"))
    return write_plumes(folder, SmokeSettings("scale", size=8, positions=2, steps=30))


def settings(model: str = "e2cnn", method: str = "strict", **changes: Any) -> Any:
    dataset = {**DATASET, **changes.pop("dataset", {})}
    network = {**NETWORK, **changes.pop("network", {})}
    given = {"dataset": dataset, "network": network, "epochs": 1, "batch_size": 8, **changes}
    return defaults("smoke", model, method).updated(given)


def task_of(root: Path, model: str = "e2cnn", **changes: Any) -> SmokeTask:
    task = build_task(settings(model, **changes), root)
    assert isinstance(task, SmokeTask)
    return task


def turned(x: Tensor, g: Tensor) -> Tensor:
    """Vector fields (..., 2, H, W) on a square moved by g, pixel by pixel: (g f)(p) = g f(g^-1 p)."""
    size = x.shape[-1]
    found = torch.empty_like(x)
    inverse = g.inverse()
    for row in range(size):
        for column in range(size):
            place = torch.tensor([column - (size - 1) / 2, (size - 1) / 2 - row], dtype=g.dtype)
            a, b = (inverse @ place).tolist()
            source = x[..., round((size - 1) / 2 - b), round(a + (size - 1) / 2)]
            found[..., row, column] = torch.einsum("ij,...j->...i", g.to(x), source)
    return found


def test_the_test_set_is_both_splits_future_first(root: Path) -> None:
    task = task_of(root)
    data = task.load("test")
    future, domain = task.windows("future"), task.windows("domain")
    assert len(data) == len(future) + len(domain)
    assert data.domain.tolist() == [False] * len(future) + [True] * len(domain)
    assert torch.equal(data.batch([len(future)])["input"], domain.batch([0])["input"])
    assert task.load("train").outputs == 2
    longer = task_of(root, dataset={"horizon": 3, "inputs": 2})
    assert (longer.load("val").outputs, longer.load("train").outputs) == (3, 2)
    assert task.settings == SMALL


def test_a_roll_out_reads_what_it_predicted() -> None:
    frames = torch.randn(2, 3, 2, 4, 4)
    model = nn.Module()
    model.forward = lambda x: x[:, 0] + 2 * x[:, -1]  # type: ignore[method-assign]
    seen = list(frames.unbind(1))
    for _ in range(5):
        seen.append(seen[-3] + 2 * seen[-1])
    torch.testing.assert_close(rollout(model, frames, 5), torch.stack(seen[3:], dim=1))


def test_metrics_are_those_of_a_loop(root: Path) -> None:
    """Root of the mean over all values of all windows of a split, however they are cut into batches."""
    task = task_of(root)
    model, data = task.build_model().eval(), task.load("test")
    squares: dict[bool, list[float]] = {False: [], True: []}
    for row in range(len(data)):
        batch = data.batch([row])
        with torch.no_grad():
            predicted = task.predict(model, batch)
        off = (predicted[0] - batch["target"][0]).double().flatten()
        squares[bool(data.domain[row])] += [value**2 for value in off.tolist()]
    expected = {key: math.sqrt(sum(values) / len(values)) for key, values in squares.items()}
    assert 1 < len(data) % task.chunk < len(data)  # several batches, the last one smaller
    found = task.metrics(totals(task, model, data))
    assert found == pytest.approx({"RMSE Future": expected[False], "RMSE Domain": expected[True]}, rel=1e-6)
    assert next(iter(found)) == task.metric.name
    assert list(task.metrics(totals(task, model, task.load("val")))) == ["RMSE Future"]
    batch = data.batch(range(5))
    with torch.no_grad():
        prediction = task.predict(model, batch)
    assert float(task.error(prediction, batch)) == pytest.approx(float(task.loss(prediction, batch)) ** 0.5)


@pytest.mark.parametrize("group", ["C4", "D4"])
def test_inputs_and_targets_are_turned_alike(root: Path, group: str) -> None:
    task = task_of(root, network={"group": group}, augment=True)
    data, rows = task.load("train"), torch.tensor([0, 9, 20, 33, 48, 60, 77, 80])
    plain = data.batch(rows)
    before = {key: tensor.clone() for key, tensor in plain.items()}
    moved = task.moved(plain, torch.Generator().manual_seed(1))
    augmented = task.train_batch(data, rows, torch.Generator().manual_seed(1))
    elements = Group.from_name(group).elements()
    used = set()
    for row in range(len(rows)):
        both = torch.cat([plain["input"][row], plain["target"][row]])
        found = torch.cat([moved["input"][row], moved["target"][row]])
        fits = [i for i, g in enumerate(elements) if torch.allclose(turned(both, g), found, atol=1e-7)]
        assert fits, "no single element explains input and target"
        used |= set(fits)
        assert torch.equal(augmented["input"][row], moved["input"][row])
        assert torch.equal(augmented["target"][row], moved["target"][row])
    assert len(used) > 2
    for key, tensor in plain.items():
        assert torch.equal(tensor, before[key])
        if key not in ("input", "target"):
            assert torch.equal(moved[key], tensor)
    # two ranks together see what one process sees
    halves = [
        task.train_batch(data, rows, torch.Generator().manual_seed(1), share)
        for share in (slice(0, 3), slice(3, None))
    ]
    assert torch.equal(torch.cat([half["target"] for half in halves]), augmented["target"])


def test_without_augmentation_windows_stay_as_they_are(root: Path) -> None:
    task = task_of(root)
    data = task.load("train")
    batch = task.train_batch(data, torch.tensor([3, 1]), torch.Generator())
    assert torch.equal(batch["input"], data.batch([3, 1])["input"])


def trained(root: Path, group: str, method: str) -> Any:
    """A relaxed network after four steps in float64, in evaluation mode."""
    config = settings(method=method, network={"group": group}, epochs=8)
    assembly = assemble(config, root, steps_per_epoch=1)  # half way: still relaxed
    assert assembly.method is not None
    assembly.model.double()
    optimizer = build_optimizer(assembly)
    data = assembly.task.load("train")
    for _ in range(4):
        batch = {
            k: v.double() if v.is_floating_point() else v for k, v in data.batch(range(0, 80, 9)).items()
        }
        error = assembly.task.loss(assembly.task.predict(assembly.model, batch), batch)
        loss = error + assembly.method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assembly.model.eval()
    return assembly


@pytest.mark.parametrize("method", ["scheduled", "ace"])
@pytest.mark.parametrize("group", ["C4", "D4"])
def test_turned_roll_outs_of_a_projected_network_agree(root: Path, group: str, method: str) -> None:
    assembly = trained(root, group, method)
    frames = assembly.task.load("test").batch([0, 30])["input"].double()
    elements = Group.from_name(group).elements()
    field = GridField(vector(Group.from_name(group)))

    def gap() -> float:
        with torch.no_grad():
            start = rollout(assembly.model, frames, 6)
            ends = [rollout(assembly.model, field.apply(g, frames), 6) for g in elements]
        gaps = [(end - turned(start, g)).abs().max() for end, g in zip(ends, elements, strict=True)]
        return float(torch.stack(gaps).max() / start.abs().max())

    assert gap() > 1e-6
    project(assembly.model)
    assert gap() < 1e-9


def test_the_audit_is_of_the_networks_symmetry(root: Path, tmp_path: Path) -> None:
    from equirelax.auditing import audit

    for group in ("C4", "D4"):
        assembly = trained(root, group, "ace")
        case = assembly.task.audit_case()
        assert case.group.name == group
        assert len(case.sample[0]) == 4  # type: ignore[arg-type]
        report = audit(
            assembly.model, case.sample, case.in_rep, case.out_rep, case.group, samples=8, per_layer=False
        )
        assert report.after is not None
        assert report.before.relative > 1e-6
        assert report.after.relative < 1e-10
    plain = assemble(settings("conv"), root)
    report = audit(plain.model.double(), case.sample, case.in_rep, case.out_rep, case.group, per_layer=False)
    assert report.relative > 1e-2


def test_scalings_move_no_grid(root: Path) -> None:
    task = task_of(root, dataset={"symmetry": "scale"}, augment=True)
    assert not task.auditable
    with pytest.raises(ConfigError, match="no exact action on a grid"):
        task.audit_case()
    data = task.load("train")
    with pytest.raises(ConfigError, match="cannot move its samples"):
        task.train_batch(data, torch.arange(3), torch.Generator())
    with pytest.raises(ConfigError, match="cannot move its samples"):
        task.moved(data.batch([0]), torch.Generator())


@pytest.mark.parametrize("symmetry", ["rotation", "scale"])
@pytest.mark.parametrize("model", planes.MODELS)
def test_every_network_forecasts(root: Path, model: str, symmetry: str) -> None:
    method = "ace" if model in planes.RELAXABLE else "strict"
    assembly = assemble(settings(model, method, dataset={"symmetry": symmetry}), root, steps_per_epoch=2)
    assert (assembly.relaxation is not None) == (model in planes.RELAXABLE)
    batch = assembly.task.load("train").batch([0, 40, 60])
    prediction = assembly.task.predict(assembly.model, batch)
    assert prediction.shape == (3, 2, 2, 8, 8)
    own = assembly.task.regulariser(assembly.model)
    assert own is not None
    assert own.ndim == 0
    assert (float(own.detach()) > 1e-9) == (model == "rpp")  # rsteer's weights do not vary at first
    (assembly.task.loss(prediction, batch) + own).backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in assembly.model.parameters())


def test_coarser_windows_build_smaller_networks(root: Path) -> None:
    task = task_of(root, "mlp", dataset={"coarsen": 2})
    batch = task.load("val").batch([0])
    assert batch["input"].shape == (1, 3, 2, 4, 4)
    assert task.predict(task.build_model().eval(), batch).shape == (1, 2, 2, 4, 4)


@pytest.mark.parametrize(("symmetry", "hidden", "kernel"), [("rotation", 92, 3), ("scale", 64, 5)])
def test_the_papers_settings(
    symmetry: str, hidden: int, kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(planes, "build", lambda name, **sizes: asked.update(sizes, name=name))
    config = defaults("smoke", "conv", "scheduled").updated({"dataset": {"symmetry": symmetry}})
    build_task(config).build_model()
    expected = {"hidden": hidden, "kernel": kernel, "layers": 5, "frames": 10, "size": 64, "group": "C4"}
    expected |= {"norm": False, "varied": False}
    assert asked == {"name": "conv", "symmetry": symmetry, **expected}
    training = config.training
    assert (training.learning_rate, training.weight_decay, training.batch_size) == (1e-3, 4e-4, 16)
    assert (training.schedule, training.step_epochs, training.step_factor) == ("step", 1, 0.95)


def test_runs_that_are_too_short_name_the_flag_and_the_command(tmp_path: Path) -> None:
    task = task_of(tmp_path, dataset={"steps": 12})
    with pytest.raises(
        ConfigError, match=r"--steps 12\).*Take --steps \d+ or more.*equirelax data make smoke .*--horizon"
    ):
        task.load("train")


def test_missing_data_say_how_to_make_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="equirelax data make smoke --size 8 --positions 2 --steps 30"):
        task_of(tmp_path).load("train")


@pytest.mark.slow
def test_compare_from_end_to_end(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["compare", "smoke", "--models", "e2cnn,conv", "--methods", "strict,scheduled", "--seeds", "1"]
    words += ["--jobs", "1", "--epochs", "2", "--batch_size", "16", "--tensorboard", "false"]
    words += [f"--dataset.{key}={'null' if value is None else value}" for key, value in DATASET.items()]
    words += ["--network.hidden", "4", "--network.layers", "3", "--dataset.every", "3"]
    assert main([*words, "--data", str(root), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "Left out, because there is nothing to relax: scheduled on conv." in text
    for name in ("strict e2cnn", "scheduled e2cnn", "strict conv"):
        assert f"| {name} |" in text
    results = {p.parent.name: json.loads(p.read_text()) for p in out.glob("*/result.json")}
    assert set(results) == {"e2cnn-strict-seed0", "e2cnn-scheduled-seed0", "conv-strict-seed0"}
    for result in results.values():
        assert result["metric"]["name"] == "RMSE Future"
        assert set(result["metrics"]["test"]["projected"]) == {"RMSE Future", "RMSE Domain"}
    assert results["e2cnn-scheduled-seed0"]["equivariance_error"]["after"] < 1e-9
    assert results["conv-strict-seed0"]["equivariance_error"]["before"] > 1e-3
    assert "RMSE Domain" in (out / "summary.md").read_text()
