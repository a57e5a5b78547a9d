"""The benchmark modelnet40: batches, metrics, conditions and runs, on 40 classes of made-up objects."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from equirelax_lab.cli import main
from equirelax_lab.data import clouds, corruptions, modelnet
from equirelax_lab.tasks.modelnet import EVALUATION_SEED, ModelNetTask
from equirelax_lab.tasks.registry import build_task, defaults
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training import epoch_end
from equirelax_lab.training.assembly import assemble
from equirelax_lab.training.loader import EpochLoader
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.run import train
from interruption import assert_goes_on_bit_for_bit

from equirelax.auditing import audit
from equirelax.errors import ConfigError

QUIET = Machine(progress=False, tensorboard=False)
TRAIN, TEST, POINTS = 10, 3, 40
DATASET: dict[str, Any] = {"points": 24}
FEW = {**DATASET, "per_class": 2, "test_per_class": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 classes of ellipsoids with 10 training and 3 test objects each, in the layout of the .npz."""
    folder = tmp_path_factory.mktemp("modelnet")
    path = folder / modelnet.NPZ
    path.parent.mkdir(parents=True)
    random = np.random.default_rng(0)
    axes = random.uniform(0.2, 1.0, (40, 3))
    arrays: dict[str, Any] = {
        "scale": np.float32(1 / 32767),
        "classes": np.array([f"c{i}" for i in range(40)]),
    }
    for part, count in (("train", TRAIN), ("test", TEST)):
        labels = np.tile(np.arange(40), count)
        directions = random.normal(size=(len(labels), POINTS, 3))
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        points = directions * axes[labels][:, None]
        arrays[f"{part}_xyz"] = np.round(points * 32767).astype(np.int16)
        arrays[f"{part}_y"] = labels.astype(np.uint8)
    np.savez(path, **arrays)
    return folder


def config(method: str = "strict", model: str = "vn-pointnet", **changes: Any) -> RunConfig:
    """Settings of a run of seconds."""
    network = {"width": 0.1, "neighbours": 4}
    values = {"dataset": DATASET, "network": network, "batch_size": 32, "epochs": 2, **changes}
    return defaults("modelnet40", model, method).updated(values)


def task(root: Path, **changes: Any) -> ModelNetTask:
    found = build_task(config(**changes), root)
    assert isinstance(found, ModelNetTask)
    return found


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_validation_and_test_objects_are_rotated_once_and_for_all(root: Path) -> None:
    one, other = task(root).load("val"), task(root).load("val")
    assert torch.equal(one.points, other.points)
    still = task(root, dataset={**DATASET, "test_rotation": "none"}).load("val")
    assert not torch.allclose(one.points, still.points)
    torch.testing.assert_close(torch.cdist(one.points, one.points), torch.cdist(still.points, still.points))
    upright = task(root, dataset={**DATASET, "test_rotation": "z"}).load("val")
    torch.testing.assert_close(upright.points[..., 2], still.points[..., 2])
    # every object is turned by a rotation of its own
    turns = torch.linalg.lstsq(still.points.double(), one.points.double()).solution
    assert (turns[0] - turns[1]).abs().max() > 0.1


def test_test_objects_lose_points_where_asked(root: Path) -> None:
    thinned = task(root, dataset={**DATASET, "test_point_dropout": 0.875}).load("test")
    copies = (thinned.points == thinned.points[:, :1]).all(-1).sum(1)
    assert copies.max() > 12
    assert copies.float().std() > 1  # the share is drawn per object


def test_training_batches_depend_on_the_generator_alone_and_are_shared_by_ranks(root: Path) -> None:
    found = task(root)
    data = found.load("train")
    indices = torch.arange(12)
    whole = found.train_batch(data, indices, generator(3))
    again = found.train_batch(data, indices, generator(3))
    assert torch.equal(whole["points"], again["points"])
    assert not torch.equal(whole["points"], found.train_batch(data, indices, generator(4))["points"])
    for rank in range(2):
        part = found.train_batch(data, indices, generator(3), slice(rank, None, 2))
        assert torch.equal(part["points"], whole["points"][rank::2])
        assert torch.equal(part["labels"], whole["labels"][rank::2])
    loader = EpochLoader(data, found.train_batch, 32, seed=0)
    assert sum(len(batch["labels"]) for batch in loader) == len(data)


def test_the_loss_is_followed_on_objects_of_the_whole_set_as_training_sees_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch_end, "FITTED", 7)
    assembly = assemble(config(), root)
    data = assembly.task.load("train")
    count = len(data)
    rows = [k * count // 7 for k in range(7)]
    ends = []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        fabric = SimpleNamespace(global_rank=rank, world_size=world, device=torch.device("cpu"))
        loop = SimpleNamespace(
            assembly=assembly, fabric=fabric, evaluation=lambda *_: None, fixed_memory=False
        )
        ends.append(epoch_end.EpochEnd(loop, data, data, Path(), None))  # type: ignore[arg-type]
    one, *parts = (end.train for end in ends)
    assert one.points.shape == (7, 24, 3)
    assert torch.equal(one.labels, data.labels[rows])
    for rank, part in enumerate(parts):
        assert torch.equal(part.points, one.points[rank::2])
    # every object is a part of the file's, and turned
    for found, row in zip(one.points, rows, strict=True):
        apart = (found.norm(dim=1)[:, None] - data.points[row].norm(dim=1)).abs()
        assert apart.amin(1).max() < 1e-5
        assert (found - data.points[row][apart.argmin(1)]).abs().max() > 0.1


def test_without_augmentation_only_the_rotation_is_random(root: Path) -> None:
    found = task(root, augment=False, dataset={**DATASET, "points": POINTS, "train_rotation": "none"})
    data = found.load("train")
    batch = found.train_batch(data, torch.arange(6), generator())
    ordered = [sorted(map(tuple, cloud.tolist())) for cloud in batch["points"]]
    assert ordered == [sorted(map(tuple, cloud.tolist())) for cloud in data.points[:6]]


def test_moved_objects_keep_their_shape_and_class(root: Path) -> None:
    found = task(root)
    batch = found.eval_batch(found.load("val"), range(5))
    moved = found.moved(batch, generator())
    assert torch.equal(moved["labels"], batch["labels"])
    assert not torch.allclose(moved["points"], batch["points"])
    torch.testing.assert_close(
        torch.cdist(moved["points"], moved["points"]), torch.cdist(batch["points"], batch["points"])
    )


def test_metrics_by_hand(root: Path) -> None:
    found = task(root)
    # classes 0, 0, 0, 1: two of three and none of one are recognised
    labels = torch.tensor([0, 0, 0, 1])
    logits = torch.full((4, 40), -9.0)
    logits[[0, 1, 2, 3], [0, 0, 5, 0]] = 9.0
    first = found.statistics(logits[:1], {"labels": labels[:1]}, 1)
    rest = found.statistics(logits[1:], {"labels": labels[1:]}, 3)
    values = found.metrics(first + rest)
    assert values["instance accuracy"] == pytest.approx(50.0)
    assert values["class accuracy"] == pytest.approx((200 / 3 + 0) / 2)
    expected = torch.nn.functional.cross_entropy(logits.double(), labels)
    assert values["cross entropy"] == pytest.approx(float(expected))
    assert next(iter(values)) == found.metric.name


def test_conditions_are_measured_on_the_chosen_objects(root: Path) -> None:
    found = task(root, dataset={**DATASET, "conditions": "all", "conditions_per_class": 2})
    conditions = found.conditions()
    assert len(conditions) == 5 + 5 * len(corruptions.CORRUPTIONS)
    test = found.load("test")
    none, most = conditions["point dropout 0"](test), conditions["point dropout 0.85"](test)
    assert len(none) == 40 * 2
    assert torch.bincount(none.labels).tolist() == [2] * 40
    assert torch.equal(none.points, test.points[: 40 * 2])
    assert (most.points == most.points[:, :1]).all(-1).float().mean() > 0.8
    weak, strong = conditions["gaussian 1"](test), conditions["gaussian 5"](test)
    assert (strong.points - none.points).norm() > 1.5 * (weak.points - none.points).norm() > 0
    expected = corruptions.corrupt(none.points, "shear", 3, generator(EVALUATION_SEED))
    assert torch.equal(conditions["shear 3"](test).points, expected)
    assert found.load("test").points.equal(test.points)  # nothing was changed in place
    assert task(root).conditions() == {}


def test_settings_are_the_papers() -> None:
    pointnet, dgcnn = (defaults("modelnet40", model, "scheduled") for model in ("vn-pointnet", "vn-dgcnn"))
    t = pointnet.training
    assert (t.epochs, t.batch_size, t.optimizer, t.learning_rate, t.weight_decay) == (
        200,
        24,
        "adam",
        1e-3,
        1e-4,
    )
    assert (t.schedule, t.step_epochs, t.step_factor) == ("step", 20, 0.7)
    assert pointnet.residual.kind.init == "zeros"
    assert pointnet.strength.lie_weight == pointnet.strength.norm_weight == 0.01  # type: ignore[attr-defined]
    t = dgcnn.training
    assert (t.epochs, t.batch_size, t.optimizer, t.learning_rate, t.momentum) == (250, 32, "sgd", 0.1, 0.9)
    assert (t.schedule, t.final_learning_rate) == ("cosine", 1e-3)
    assert dgcnn.residual.kind.init == "default"
    assert dgcnn.strength.lie_weight == 5e-4  # type: ignore[attr-defined]
    assert dgcnn.strength.penalty_times_gamma  # type: ignore[attr-defined]
    assert dgcnn.dataset.label_smoothing == 0.2  # type: ignore[attr-defined]
    ace = defaults("modelnet40", "vn-dgcnn", "ace")
    assert (ace.training.momentum, ace.training.weight_decay, ace.training.schedule) == (0.0, 0.0, "constant")
    assert (ace.strength.dual_lr, ace.strength.reduction) == (1e-4, "mean")  # type: ignore[attr-defined]
    no_lie = defaults("modelnet40", "vn-dgcnn", "no-lie").strength
    assert (no_lie.lie_weight, no_lie.norm_weight) == (0.0, 5e-4)  # type: ignore[attr-defined]


def test_scaled_down_says_everything(root: Path) -> None:
    text = task(root, dataset={**DATASET, "classes": "ten", "per_class": 4}).scaled_down()
    assert text is not None
    for part in (
        "10 of 40 classes",
        "2 of 200 epochs",
        "24 of 300 points",
        "per_class 4",
        "0.1 of 1.0 width",
    ):
        assert part in text
    assert build_task(defaults("modelnet40", "vn-dgcnn", "ace")).scaled_down() is None


class Leaning(torch.nn.Module):
    """A network that sees its input stretched by 10 % along z."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.model(points * points.new_tensor([1.0, 1.0, 1.1]))


@pytest.mark.parametrize("model", ["vn-pointnet", "vn-dgcnn"])
def test_the_audit_is_relative_to_what_tells_objects_apart(root: Path, model: str) -> None:
    found = task(root, model=model)
    network = found.build_model().eval()
    case = found.audit_case()
    assert case.head is not None

    def error(module: torch.nn.Module) -> float:
        with case.headed(module):
            report = audit(
                module, case.sample, case.in_rep, case.out_rep, case.group, per_layer=False, lie=False
            )
        return float(report.relative)

    assert error(network) < 1e-9
    assert error(Leaning(network)) > 1e-2
    assert network(*case.sample).mean(0).abs().max() > 1e-3  # nothing stays attached


def test_the_command_audits_as_the_run_did(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config("ace", model="vn-dgcnn", epochs=1, dataset=FEW)
    result = train(settings, tmp_path, root, machine=QUIET)
    assert result is not None
    words = ["audit", str(tmp_path), "--data", str(root), "--layers", "--json", str(tmp_path / "audit.json")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("VNDGCNN under O(3), deployed projected: equivariant")
    assert "first break: conv1" in printed
    report = json.loads((tmp_path / "audit.json").read_text())
    assert report["errors"]["relaxed"]["relative"] == pytest.approx(result["equivariance_error"]["before"])


def test_a_lone_last_object_is_left_out(root: Path, tmp_path: Path) -> None:
    count = len(task(root).load("train"))
    for model in ("vn-pointnet", "pointnet"):
        result = train(config(model=model, batch_size=count - 1), tmp_path / model, root, machine=QUIET)
        assert result is not None
    with pytest.raises(ConfigError, match=r"needs 2 samples or more; batch_size is 1, "):
        train(config(batch_size=1), tmp_path / "one", root, machine=QUIET)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"network": {"dropout": 1.5}}, "network.dropout"),
        ({"dataset": {"label_smoothing": 2.0}}, "dataset.label"),
    ],
)
def test_shares_that_are_none_are_named(root: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}"):
        build_task(defaults("modelnet40", "vn-dgcnn", "strict").updated(changes), root).build_model()


def test_an_interrupted_run_goes_on_bit_for_bit(root: Path, tmp_path: Path, stop_after: Any) -> None:
    assert_goes_on_bit_for_bit(
        config("ace", model="vn-dgcnn", epochs=2, dataset=FEW), tmp_path, root, stop_after
    )


def test_a_run_from_data_to_result(root: Path, tmp_path: Path) -> None:
    settings = config("scheduled", model="vn-dgcnn", dataset={**FEW, "conditions": "dropout"})
    train(settings, tmp_path, root, machine=QUIET)
    result = json.loads((tmp_path / "result.json").read_text())
    for split in ("val", "test"):
        for kind in ("relaxed", "projected", "folded"):
            values = result["metrics"][split][kind]
            assert set(values) == {"instance accuracy", "class accuracy", "cross entropy"}
            assert 0 <= values["instance accuracy"] <= 100
    assert set(result["conditions"]) == {f"point dropout {r:g}" for r in (0.0, 0.25, 0.5, 0.75, 0.85)}
    clean = result["conditions"]["point dropout 0"]["projected"]["instance accuracy"]
    assert clean == result["test"]["projected"]
    assert result["equivariance_error"]["after"] < 1e-9
    columns = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/projected/class accuracy", "val/relaxed/class accuracy", "val/projected"} <= set(columns)


def test_drops_are_of_the_share_that_they_say() -> None:
    points = torch.randn(3, 200, 3)
    for ratio in (0.0, 0.5, 0.85):
        dropped = clouds.drop_ratio(points, ratio, generator())
        share = (dropped != points).any(-1).float().mean()
        assert abs(float(share) - ratio) < 0.08
