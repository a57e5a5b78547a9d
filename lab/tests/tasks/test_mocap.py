"""The motion capture task: what it predicts and minimises, how samples are moved, and which symmetry is left end to end."""

from __future__ import annotations

import re
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from equirelax_lab.tasks.methods import choice
from equirelax_lab.tasks.mocap import MocapTask
from equirelax_lab.tasks.registry import build_task, defaults
from equirelax_lab.training.assembly import assemble, build_optimizer
from real_data import SAMPLES
from torch import Tensor, nn

from equirelax.auditing import AuditReport, audit
from equirelax.errors import ConfigError, DataError
from equirelax.symmetry import MatrixGroup

MODELS = ("egno", "egnn", "transformer")
SMALL: dict[str, dict[str, Any]] = {
    "egno": {"hidden": 8, "layers": 2},
    "egnn": {"hidden": 8, "layers": 2},
    "transformer": {"hidden": 8, "layers": 1, "heads": 2},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up runs: 31 joints on a random tree, moving smoothly; 4 trials of 75 frames."""
    rng = np.random.default_rng(0)
    bones = np.array([[joint, (joint - 1) // 2] for joint in range(1, 31)])
    pose = rng.uniform(1, 8, (4, 1, 31, 3))
    drift = rng.normal(size=(4, 1, 31, 3)) * np.linspace(0, 2, 75)[None, :, None, None]
    folder = tmp_path_factory.mktemp("mocap") / "cmu_mocap"
    folder.mkdir()
    np.savez(
        folder / "cmu09_run.npz",
        pos=(pose + drift).astype(np.float32).reshape(-1, 31, 3),
        lengths=np.array([75] * 4),
        joints=np.array([f"joint{n}" for n in range(31)]),
        edges=bones,
    )
    starts = {f"{s}_start": np.stack([rng.permutation(45)[:42] for _ in t]) for s, t in TRIALS.items()}
    np.savez(
        folder / "egno_split_run.npz", **{f"{s}_trial": np.array(t) for s, t in TRIALS.items()}, **starts
    )
    return folder.parent


TRIALS = {"train": [2, 0], "val": [1], "test": [3]}


def settings(model: str, method: str = "strict", features: str = "published") -> Any:
    return defaults("mocap", model, method).updated(
        {"network": SMALL[model], "dataset": {"features": features}, "epochs": 2}
    )


def task_of(model: str, root: Path, features: str = "published") -> MocapTask:
    task = build_task(settings(model, features=features), root)
    assert isinstance(task, MocapTask)
    return task


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("features", ["published", "fixed-height", "invariant"])
def test_loss_is_the_mean_over_the_times_and_the_metric_the_last(
    model: str, features: str, root: Path
) -> None:
    task = task_of(model, root, features)
    data = task.load("val")
    batch = data.batch([4, 0, 9])
    prediction = task.predict(task.build_model(), batch).detach()
    assert prediction.shape == ((93, 3) if model == "egnn" else (93, 5, 3))
    squares = []
    for n, sample in enumerate((4, 0, 9)):
        for joint in range(31):
            guess = prediction[31 * n + joint].reshape(-1, 3).double()
            right = data.trajectory[sample, 5 - len(guess) :, joint].double()
            squares.append((guess - right).square().sum(1))
    by_time = torch.stack(squares).mean(0) / 3
    assert float(task.loss(prediction, batch)) == pytest.approx(float(by_time.mean()), rel=1e-5)
    assert float(task.error(prediction, batch)) == pytest.approx(float(by_time[-1]), rel=1e-5)
    assert task.metric.factor == 1e-2


@pytest.mark.parametrize("features", ["published", "fixed-height"])
def test_a_rank_sees_its_part_as_in_the_whole(features: str, root: Path) -> None:
    """In training and in validation: the published height is over the largest of all ranks' samples."""
    task = task_of("egno", root, features)
    data, chosen = task.load("train"), torch.tensor([3, 70, 41, 8, 5])
    whole = task.train_batch(data, chosen, torch.Generator())
    assert all(torch.equal(whole[name], value) for name, value in data.batch(chosen).items())
    val = task.load("val")
    count = len(val)
    assert count % task.chunk
    rows = range(0, count, task.chunk)
    seen = [task.eval_batch(val, range(k, min(k + task.chunk, count)))["features"] for k in rows]
    evaluated = torch.cat(seen).unflatten(0, (count, 31))
    for rank in range(2):
        share = slice(rank, None, 2)
        part = task.train_batch(data, chosen, torch.Generator(), share)
        for name in ("features", "positions"):
            assert torch.equal(part[name].unflatten(0, (-1, 31)), whole[name].unflatten(0, (5, 31))[share])
        own = task.part(val, share)
        batch = task.eval_batch(own, range(len(own)))
        assert torch.equal(batch["features"].unflatten(0, (-1, 31)), evaluated[share])
        assert torch.equal(batch["targets"], val.targets[share].flatten(0, 1))


@pytest.mark.parametrize("model", MODELS)
def test_samples_are_turned_about_themselves(model: str, root: Path) -> None:
    """For REMUL: vectors by one rotation per sample, positions about their mean, features not at all."""
    task = task_of(model, root)
    batch = task.load("val").batch([4, 0, 9])
    before = {name: tensor.clone() for name, tensor in batch.items()}
    moved = task.moved(batch, torch.Generator().manual_seed(0))
    turns = []
    for n in range(3):
        nodes = slice(31 * n, 31 * n + 31)
        old, new = batch["velocities"][nodes].double(), moved["velocities"][nodes].double()
        g = torch.linalg.lstsq(old, new).solution.T
        torch.testing.assert_close(g @ g.T, torch.eye(3).double(), rtol=0, atol=1e-4)
        assert torch.linalg.det(g) > 0
        centre = batch["positions"][nodes].double().mean(0)
        for name in ("positions", "targets", "trajectory"):
            expected = (batch[name][nodes].double() - centre) @ g.T + centre
            torch.testing.assert_close(moved[name][nodes].double(), expected, rtol=0, atol=1e-3)
        turns.append(g)
    assert (turns[0] - turns[1]).abs().max() > 0.1
    for name in ("features", "edge_index", "edge_features", "graph"):
        assert torch.equal(moved[name], batch[name])
    assert all(torch.equal(batch[name], tensor) for name, tensor in before.items())
    again = task.moved(batch, torch.Generator().manual_seed(0))
    other = task.moved(batch, torch.Generator().manual_seed(1))
    assert torch.equal(again["positions"], moved["positions"])
    assert not torch.equal(other["positions"], moved["positions"])


def test_a_strict_egno_loses_nothing_on_moved_samples_and_a_transformer_does(root: Path) -> None:
    for model, equal in (("egno", True), ("transformer", False)):
        torch.manual_seed(0)
        task = task_of(model, root)
        network = task.build_model()
        batch = task.load("val").batch(range(4))
        moved = task.moved(batch, torch.Generator().manual_seed(0))
        one, two = (float(task.loss(task.predict(network, b), b)) for b in (batch, moved))
        assert (abs(one - two) < 1e-4 * one) == equal


@pytest.mark.parametrize("method", ["scheduled", "ace", "resilient", "remul", "rpp", "equivariant-control"])
@pytest.mark.parametrize("model", ["egno", "egnn"])
def test_every_method_attaches_and_steps(model: str, method: str, root: Path) -> None:
    assembly = assemble(settings(model, method), root, steps_per_epoch=2)
    assert assembly.method is not None
    assert assembly.relaxation is not None
    optimizer = build_optimizer(assembly)
    task, data = assembly.task, assembly.task.load("train")
    before = [p.detach().clone() for p in assembly.relaxation.residual_parameters().values()]
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        batch = task.train_batch(data, torch.arange(6), generator)

        def moved_loss(batch: Any = batch, generator: torch.Generator = generator) -> Tensor:
            moved = task.moved(batch, generator)
            return task.loss(task.predict(assembly.model, moved), moved)

        loss = task.loss(task.predict(assembly.model, batch), batch)
        objective = assembly.method.objective(loss, moved_loss)
        assert bool(torch.isfinite(objective))
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
    after = list(assembly.relaxation.residual_parameters().values())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_one_strength_for_h_and_one_for_x_of_every_layer(root: Path) -> None:
    paper = assemble(defaults("mocap", "egno", "ace"), root)
    assert paper.relaxation is not None
    assert len(paper.relaxation.residuals) == 12


def test_the_control_that_the_recipe_of_motion_capture_recommends_runs_and_is_tested_relaxed(
    root: Path,
) -> None:
    text = (resources.files("equirelax_lab.recipes") / "mocap.yaml").read_text(encoding="utf-8")
    (recommended,) = re.findall(r"`(--method [^`]*)`", text.replace("\n#", ""))
    _, method, *words = shlex.split(recommended)
    config = settings("egno", method)
    for flag, value in zip(words[::2], words[1::2], strict=True):
        section, _, key = flag.removeprefix("--").partition(".")
        config = config.updated({section: {key: yaml.safe_load(value)}})
    assembly = assemble(config, root)
    assert assembly.method is not None
    assert assembly.relaxation is not None
    assert config.residual.placement == "egno-ace"
    assert (method, assembly.deploys_relaxed) == ("rpp", True)
    assert float(assembly.method.penalty().detach()) == 0
    assert all(float(gamma) == 1 for gamma in assembly.relaxation.gammas())


def test_a_transformer_has_nothing_to_relax(root: Path) -> None:
    remul = assemble(settings("transformer", "remul"), root)
    assert remul.relaxation is None
    assert remul.method is not None
    with pytest.raises(ConfigError, match=r"transformer has no residuals|needs residuals"):
        assemble(settings("transformer", "ace"), root)


@pytest.mark.parametrize("model", ["egno", "egnn"])
def test_the_audit_case_is_the_networks_symmetry(model: str, root: Path) -> None:
    """E(3) for given features, whatever these are: after projection, not before."""
    for features in ("published", "invariant"):
        relaxed = assemble(settings(model, "ace", features), root)
        relaxed.model.double()
        case = relaxed.task.audit_case()
        report = audit(
            relaxed.model, case.sample, case.in_rep, case.out_rep, case.group, samples=3, per_layer=False
        )
        assert report.after is not None
        assert report.before.relative > 1e-6
        assert report.after.relative < 1e-9


def vertical(reflections: bool = False) -> MatrixGroup:
    """Rotations about y and translations along x and z, in homogeneous matrices."""
    basis = torch.zeros(3, 4, 4, dtype=torch.float64)
    basis[0, 0, 2], basis[0, 2, 0] = 1, -1
    basis[1, 0, 3] = basis[2, 2, 3] = 1
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))[None]
    return MatrixGroup(basis, mirror if reflections else None, name="vertical")


def measure(task: MocapTask, model: nn.Module, group: Any = None) -> AuditReport:
    """The audit of the prediction from positions and velocities alone."""
    prediction, case = task.end_to_end(model.double())
    return audit(
        prediction, case.sample, case.in_rep, case.out_rep, group or case.group, samples=4, per_layer=False
    )


@pytest.mark.parametrize("model", ["egno", "egnn"])
def test_end_to_end_invariant_features_keep_all_of_e3(model: str, root: Path) -> None:
    torch.manual_seed(0)
    task = task_of(model, root, "invariant")
    report = measure(task, visible(task.build_model()))
    assert report.before.relative < 1e-9


@pytest.mark.parametrize("model", ["egno", "egnn"])
@pytest.mark.parametrize("features", ["published", "fixed-height"])
def test_end_to_end_height_leaves_the_vertical(model: str, features: str, root: Path) -> None:
    """The audit finds that height breaks E(3), and that rotations about the vertical, reflections at vertical planes
    and horizontal translations are kept."""
    torch.manual_seed(0)
    task = task_of(model, root, features)
    network = visible(task.build_model())
    broken = measure(task, network)
    assert broken.before.relative > 1e-3
    assert broken.lie is not None
    along = {row.name: row.relative for row in broken.lie.generators}
    for name, value in along.items():
        if name in ("rotation about y", "translation x", "translation z"):
            assert value < 1e-9, name
        else:
            assert value > 1e-5, name
    assert len(along) == 6
    assert measure(task, network, vertical()).before.relative < 1e-9
    assert measure(task, network, vertical(reflections=True)).before.relative < 1e-9


def visible(model: nn.Module) -> nn.Module:
    """The model with coordinate networks that are not small, so that features matter for positions."""
    for layer in model.layers:  # type: ignore[union-attr]
        nn.init.normal_(layer.coordinate[2].weight)  # type: ignore[index, union-attr]
    return model


def test_end_to_end_predicts_what_the_task_predicts(root: Path) -> None:
    for features in ("published", "fixed-height", "invariant"):
        task = task_of("egno", root, features)
        model = task.build_model()
        prediction, case = task.end_to_end(model)
        batch = task.load("val").batch(range(4))
        torch.testing.assert_close(prediction(*case.sample), task.predict(model, batch))


def test_published_numbers_say_what_they_are_of() -> None:
    def published(model: str, subject: str) -> dict[str, str]:
        return build_task(
            defaults("mocap", model, "strict").updated({"dataset": {"subject": subject}})
        ).published()

    assert published("egno", "run") == {
        "strict": "35.3 ± 3.2",
        "ace": "32.6 ± 1.6 (relaxed)",
        "resilient": "23.8 ± 1.5 (relaxed)",
    }
    assert published("egno", "walk")["resilient"] == "7.4 ± 0.2 (relaxed)"
    assert published("transformer", "walk") == {"strict": "5.21", "remul": "4.95"}
    assert published("transformer", "run") == {}
    assert published("egno", "dance") == {}


@pytest.mark.parametrize("method", ["strict", "ace", "resilient"])
def test_settings_of_the_paper(method: str) -> None:
    config = defaults("mocap", "egno", method)
    training = config.training
    assert (training.optimizer, training.learning_rate, training.batch_size) == ("adam", 5e-4, 12)
    assert (training.gradient_clip, training.weight_decay, training.epochs) == (1.0, 1e-10, 3000)
    assert (config.network.hidden, config.network.layers) == (128, 6)  # type: ignore[attr-defined]
    if method != "strict":
        assert config.strength.dual_lr == 2e-4  # type: ignore[attr-defined]
    if method != "strict":
        assert config.residual.placement == "egno-ace"
        assert config.strength.dual_optimizer == "adam"  # type: ignore[attr-defined]
    assert (training.validate_every, training.drop_last, config.network.vector_init) == (5, True, 0.1)  # type: ignore[attr-defined]
    if method != "strict":
        assert config.strength.dual_eps == 1e-4  # type: ignore[attr-defined]
    assert choice(method).deploys_relaxed == (method == "resilient")


def test_a_smaller_training_set_takes_the_first_starts_of_every_trial(root: Path) -> None:
    full, few = (
        build_task(settings("egno").updated({"dataset": {"starts": starts}}), root) for starts in (None, 3)
    )
    train = full.load("train")
    per_trial = len(train) // 2
    rows = torch.tensor([0, 1, 2, per_trial, per_trial + 1, per_trial + 2])
    chosen = train.batch(rows)
    mine = few.load("train").batch(range(6))
    assert len(few.load("train")) == 6
    assert torch.equal(mine["positions"], chosen["positions"])
    assert all(len(few.load(split)) == len(full.load(split)) for split in ("val", "test"))
    assert "starts 3" in (few.scaled_down() or "")
    with pytest.raises(DataError, match="99 were requested"):
        build_task(settings("egno").updated({"dataset": {"starts": 99}}), root).load("train")


def test_an_unknown_subject_is_named(root: Path) -> None:
    config = settings("egno").updated({"dataset": {"subject": "jump"}})
    with pytest.raises(DataError, match=r"Unknown case 'jump'.*equirelax data make mocap"):
        build_task(config, root).load("train")


def test_the_real_data_end_to_end() -> None:
    """On recorded poses, too: E(3) with the invariant features, the vertical alone with the published ones."""
    for features, kept in (("invariant", True), ("published", False)):
        torch.manual_seed(0)
        task = build_task(
            settings("egno", features=features).updated({"dataset": {"subject": "run"}}), SAMPLES
        )
        assert isinstance(task, MocapTask)
        network = task.build_model()
        assert (measure(task, network).before.relative < 1e-9) == kept
        assert measure(task, network, vertical(reflections=True)).before.relative < 1e-9
