"""The task of rotated digits: sizes, accuracy, turned images, networks that are invariant before and after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equirelax_lab.data import rotmnist
from equirelax_lab.tasks.registry import build_task, defaults
from equirelax_lab.tasks.rotmnist import RotMNISTTask
from equirelax_lab.training.assembly import assemble, build_optimizer
from equirelax_lab.training.evaluation import mean_error
from torch import Tensor, nn

from equirelax.auditing import audit
from equirelax.errors import ConfigError, DataError
from equirelax.relaxation import project
from equirelax.symmetry import Cyclic, Dihedral

MODELS = ("c4", "d4", "plain")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Made-up images in MNIST's file: 20 training, 8 validation and 12 test images."""
    monkeypatch.setattr(rotmnist, "SIZES", {"train": 20, "val": 8, "test": 12})
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (44, 28, 28), dtype=np.uint8)
    labels = np.arange(44, dtype=np.uint8) % 10
    (tmp_path / "mnist").mkdir()
    np.savez(
        tmp_path / "mnist" / "mnist.npz",
        train_x=images[:30],
        train_y=labels[:30],
        test_x=images[30:],
        test_y=labels[30:],
    )
    return tmp_path


def task_of(root: Path | None, model: str = "c4", method: str = "strict", **changes: Any) -> RotMNISTTask:
    given = {"network": {"width": 2, "stages": 2}, "epochs": 4, **changes}
    task = build_task(defaults("rotmnist", model, method).updated(given), root)
    assert isinstance(task, RotMNISTTask)
    return task


def digits_of(model: str = "c4", method: str = "strict", **changes: Any) -> RotMNISTTask:
    pytest.importorskip("sklearn")
    return task_of(None, model, method, dataset={"source": "digits", "train": 64, "val": 32}, **changes)


def test_the_first_images_of_a_split_are_taken(root: Path) -> None:
    task, few = task_of(root), task_of(root, dataset={"train": 7, "test": 3})
    assert [len(task.load(split)) for split in ("train", "val", "test")] == [20, 8, 12]
    assert [len(few.load(split)) for split in ("train", "val", "test")] == [7, 8, 3]
    assert torch.equal(few.load("train").images, task.load("train").images[:7])
    assert "train 7" in str(few.scaled_down())
    data = digits_of().load("train")
    assert data.images.shape == (64, 1, 8, 8)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("source", ["mnist", "digits"])
def test_every_network_classifies_both_sizes(root: Path, model: str, source: str) -> None:
    task = task_of(root, model) if source == "mnist" else digits_of(model)
    batch = task.load("val").batch(range(6))
    prediction = task.predict(task.build_model(), batch)
    assert prediction.shape == (6, 10)
    expected = nn.functional.cross_entropy(prediction, batch["labels"])
    assert float(task.loss(prediction, batch).detach()) == pytest.approx(float(expected.detach()))


def test_accuracy_is_that_of_a_loop() -> None:
    task = digits_of("plain")
    data = task.load("test")
    model = task.build_model().eval()
    with torch.no_grad():
        right = sum(
            int(model(data.images[i : i + 1]).argmax()) == int(data.labels[i]) for i in range(len(data))
        )
    assert len(data) % task.chunk  # the last batch is smaller
    assert mean_error(task, model, data) == pytest.approx(100 * right / len(data))
    assert task.metric.higher_is_better
    sure = nn.functional.one_hot(data.labels[:9], 10).float()
    assert float(task.error(sure, data.batch(range(9)))) == 1.0
    assert float(task.error(-sure, data.batch(range(9)))) == 0.0


def quarters(image: Tensor, flips: bool) -> list[Tensor]:
    """All that turns by 90 degrees (and flips) make of an image."""
    start = [image, image.flip(-2)] if flips else [image]
    return [torch.rot90(one, k, (-2, -1)) for one in start for k in range(4)]


@pytest.mark.parametrize("model", MODELS)
def test_images_are_turned_and_classes_stay(model: str) -> None:
    task = digits_of(model, augment=True)
    data, rows = task.load("train"), torch.arange(24)
    plain = data.batch(rows)
    before = plain["images"].clone()
    moved = task.moved(plain, torch.Generator().manual_seed(0))
    augmented = task.train_batch(data, rows, torch.Generator().manual_seed(0))
    assert torch.equal(augmented["images"], moved["images"])
    assert torch.equal(moved["labels"], plain["labels"])
    assert torch.equal(plain["images"], before)
    choices = [
        [torch.equal(found, one) for one in quarters(image, True)]
        for image, found in zip(plain["images"], moved["images"], strict=True)
    ]
    assert all(any(fits) for fits in choices)
    assert any(not fits[0] for fits in choices)
    flipped = any(any(fits[4:]) and not any(fits[:4]) for fits in choices)
    assert flipped == (model == "d4")
    still = digits_of(model)
    assert torch.equal(still.train_batch(data, rows, torch.Generator())["images"], before)


@pytest.mark.parametrize("model", ["c4", "d4"])
@pytest.mark.parametrize("method", ["scheduled", "ace", "resilient"])
def test_projected_networks_are_invariant_again(model: str, method: str) -> None:
    task = digits_of(model, method, epochs=8)
    assembly = assemble(task.config, None, steps_per_epoch=1)
    assert assembly.relaxation is not None
    assert assembly.method is not None
    optimizer, data = build_optimizer(assembly), task.load("train")
    for step in range(3):
        batch = task.train_batch(data, torch.arange(16 * step, 16 * step + 16), torch.Generator())
        loss = assembly.method.objective(task.loss(task.predict(assembly.model, batch), batch), None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    case = task.audit_case()
    assert type(case.group) is (Dihedral if model == "d4" else Cyclic)
    with case.headed(assembly.model.double()) as measured:
        arguments = (measured, case.sample, case.in_rep, case.out_rep, case.group)
        assert audit(*arguments, per_layer=False).before.relative > 1e-6
        project(assembly.model)
        assert audit(*arguments, per_layer=False).relative < 1e-10


def test_the_plain_network_is_not_invariant() -> None:
    task = digits_of("plain")
    case = task.audit_case()
    with case.headed(task.build_model().double()) as model:
        report = audit(model, case.sample, case.in_rep, case.out_rep, case.group, per_layer=False)
    assert report.relative > 1e-2
    with pytest.raises(ConfigError, match=r"plain has no residuals|needs residuals"):
        assemble(digits_of("plain", "ace").config)


def test_missing_data_say_where_to_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"mnist\.npz is missing; looked for"):
        task_of(tmp_path).load("train")
    assert task_of(None).published() == {}
