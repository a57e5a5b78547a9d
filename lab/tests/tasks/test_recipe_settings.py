"""Settings that the recipes brought: what each does, on data of a few samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equirelax_lab.data import CloudSet, clouds, md17
from equirelax_lab.data.md17 import Frames
from equirelax_lab.models import SEGNN
from equirelax_lab.tasks.modelnet import ModelNetTask
from equirelax_lab.tasks.registry import build_task, defaults
from equirelax_lab.tasks.smoke import SmokeTask
from equirelax_lab.training.assembly import assemble, build_optimizer, build_scheduler
from equirelax_lab.training.loader import EpochLoader
from torch import Tensor, nn


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def task_of(benchmark: str, model: str, method: str = "strict", **changes: Any) -> Any:
    return build_task(defaults(benchmark, model, method).updated(changes))


def is_rotation_of(one: Tensor, other: Tensor) -> bool:
    """Whether all rows (n, 3) of one are those of the other, turned by one rotation."""
    turn = torch.linalg.lstsq(other.double(), one.double()).solution
    fits = torch.allclose(other.double() @ turn, one.double(), atol=1e-4)
    return fits and torch.allclose(turn @ turn.T, torch.eye(3, dtype=torch.float64), atol=1e-3)


@pytest.mark.parametrize("rotations", ["batch", "each"])
def test_nbody_rotates_the_batch_or_each_system(
    rotations: str, tiny_root: Path, tiny_config: Callable[..., Any]
) -> None:
    config = tiny_config(
        "ace", augment=True, dataset={"train": 48, "val": 24, "test": 24, "rotations": rotations}
    )
    task = build_task(config, tiny_root)
    data, indices = task.load("train"), torch.arange(6)
    plain, turned = data.batch(indices), task.train_batch(data, indices, generator())
    assert is_rotation_of(turned["positions"], plain["positions"]) == (rotations == "batch")
    for system in range(6):
        mine = plain["graph"] == system
        assert is_rotation_of(turned["positions"][mine], plain["positions"][mine])
        assert is_rotation_of(
            torch.cat([turned[key][mine] for key in ("positions", "velocities", "targets")]),
            torch.cat([plain[key][mine] for key in ("positions", "velocities", "targets")]),
        )
    parts = [task.train_batch(data, indices, generator(), slice(rank, None, 2)) for rank in range(2)]
    torch.testing.assert_close(parts[1]["positions"][:5], turned["positions"][5:10])


def test_evaluation_systems_are_turned_alike_in_every_run(
    tiny_root: Path, tiny_config: Callable[..., Any]
) -> None:
    sizes = {"train": 48, "val": 24, "test": 24}
    plain, turned, again = (
        build_task(tiny_config("strict", dataset={**sizes, "rotate_evaluation": flag}), tiny_root).load(
            "test"
        )
        for flag in (False, True, True)
    )
    assert torch.equal(turned.positions, again.positions)
    assert not torch.allclose(turned.positions, plain.positions)
    for system in range(3):
        before, after = (torch.cat([d.positions[system], d.targets[system]]) for d in (plain, turned))
        assert is_rotation_of(after, before)


def test_the_released_input_of_segnn_takes_each_positions_own_mean_away() -> None:
    torch.manual_seed(0)
    released, clean = SEGNN(16, 1, 1, axis_centre=True).double(), SEGNN(16, 1, 1).double()
    clean.load_state_dict(released.state_dict())
    x, v = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    edges = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]])
    seen: list[Tensor] = []
    released.embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    out = released(x, v, torch.ones(5, 1).double(), edges)
    assert torch.allclose(seen[0][:, :3], x - (x[:, :1] + x[:, 1:2] + x[:, 2:]) / 3)
    turn = torch.linalg.qr(torch.randn(3, 3).double()).Q
    ones = torch.ones(5, 1).double()
    assert not torch.allclose(released(x @ turn.T, v @ turn.T, ones, edges), out @ turn.T, atol=1e-4)
    expected = clean(x, v, ones, edges)
    torch.testing.assert_close(clean(x @ turn.T, v @ turn.T, ones, edges), expected @ turn.T)


def cloud_set(count: int = 4, points: int = 12) -> CloudSet:
    torch.manual_seed(1)
    return CloudSet(torch.randn(count, points, 3), torch.arange(count) % 2, ("a", "b"))


def cloud_task(**dataset: Any) -> ModelNetTask:
    task: ModelNetTask = task_of(
        "modelnet40",
        "vn-dgcnn",
        dataset={"points": 6, "train_rotation": "none", "scale_and_shift": False, **dataset},
    )
    return task


def test_clouds_take_the_first_points_and_are_normalised_over_these() -> None:
    data = cloud_set()
    first = cloud_task(sampling="first").train_batch(data, torch.arange(4), generator())
    assert torch.equal(first["points"], data.points[:, :6])
    drawn = cloud_task(sampling="random").train_batch(data, torch.arange(4), generator())
    assert not torch.equal(drawn["points"], data.points[:, :6])
    normal = cloud_task(sampling="first", normalise=True).train_batch(data, torch.arange(4), generator())[
        "points"
    ]
    for cloud, expected in zip(normal, data.points[:, :6], strict=True):
        centred = expected - expected.mean(0)
        torch.testing.assert_close(cloud, centred / centred.norm(dim=1).max())
    assert torch.equal(clouds.normalise(torch.ones(1, 3, 3)), torch.zeros(1, 3, 3))


@pytest.mark.parametrize("scaling", ["alike", "per-axis", "twice"])
def test_scalings_of_clouds(scaling: str) -> None:
    data = cloud_set(60, 6)
    task = cloud_task(sampling="first", scale_and_shift=True, scaling=scaling)
    changed = task.train_batch(data, torch.arange(60), generator())["points"]
    # without rotation every axis of every object is scaled and shifted: two numbers, found by least squares
    factors = []
    for before, after in zip(data.points, changed, strict=True):
        for axis in range(3):
            columns = torch.stack([before[:, axis], torch.ones(6)], 1).double()
            slope, offset = torch.linalg.lstsq(columns, after[:, axis, None].double()).solution[:, 0]
            factors.append((float(slope), float(offset)))
    slopes = torch.tensor(factors)[:, 0].view(60, 3)
    offsets = torch.tensor(factors)[:, 1].abs()
    alike = (slopes.amax(1) - slopes.amin(1)) < 1e-4
    assert bool(alike.all()) == (scaling == "alike")
    least, most = {"twice": (0.8 * 2 / 3, 1.25 * 1.5)}.get(scaling, (2 / 3, 1.5))
    assert least - 1e-4 <= float(slopes.min()) < least + 0.15
    assert most - 0.3 < float(slopes.max()) <= most + 1e-4
    assert float(offsets.max()) <= (0.2 * 1.25 + 0.1 if scaling == "twice" else 0.2) + 1e-4


def frames(count: int, start: int) -> Frames:
    rng = np.random.default_rng(start)
    return Frames(
        np.array([6, 1]), rng.normal(size=(count, 2, 3)), np.arange(start, start + count, dtype=float),
        rng.normal(size=(count, 2, 3)), "made up",
    )  # fmt: skip


def test_random_frames_are_drawn_from_all_and_scaled_by_the_energies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        md17, "read", lambda source, molecule, part, root: frames(*{"train": (12, 0), "test": (8, 12)}[part])
    )

    def load(split: str, seed: int = 0, test: int | None = None) -> Any:
        return md17.load(split, "ethanol", counts=(5, 3, test), frames="random", seed=seed, scale="energies")

    parts = [load(split).energies.tolist() for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [5, 3, 12]
    assert sorted(itertools.chain(*parts)) == list(range(20))
    assert load("train", seed=1).energies.tolist() != parts[0]
    assert len(load("test", test=4)) == 4
    deviation = load("test").scaling.deviation
    assert deviation == pytest.approx(np.std(parts[0]))
    first = md17.load("test", "ethanol", counts=(5, 3, None))
    assert first.energies.tolist() == list(range(12, 20))
    with pytest.raises(Exception, match="20 frames; 29"):
        md17.load("train", "ethanol", counts=(20, 8, None), frames="random")


def test_smoke_sums_the_loss_over_frames() -> None:
    mean, total = (task_of("smoke", "conv", dataset={"loss": loss, "outputs": 4}) for loss in ("mean", "sum"))
    prediction, batch = torch.randn(2, 4, 2, 3, 3), {"target": torch.randn(2, 4, 2, 3, 3)}
    by_hand = sum(nn.functional.mse_loss(prediction[:, i], batch["target"][:, i]) for i in range(4))
    torch.testing.assert_close(total.loss(prediction, batch), by_hand)
    torch.testing.assert_close(mean.loss(prediction, batch), by_hand / 4)
    assert torch.equal(mean.error(prediction, batch), total.error(prediction, batch))


def test_smoke_validates_on_windows_of_their_own_length(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: dict[str, int] = {}
    monkeypatch.setattr(
        "equirelax_lab.tasks.smoke.smoke.load",
        lambda split, settings, **how: lengths.update({split: how["outputs"]}),
    )
    task: SmokeTask = task_of("smoke", "conv")
    for split in ("train", "val", "future"):
        task.windows(split)  # type: ignore[arg-type]
    assert lengths == {"train": 6, "val": 6, "future": 20}


class Numbers:
    """Samples for the loader: nothing but their number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def to(self, *_: Any) -> Numbers:
        return self


@pytest.mark.parametrize(("count", "kept", "dropped"), [(10, 3, 2), (8, 2, 2), (3, 1, 1)])
def test_the_last_batch_is_dropped_where_it_is_smaller(count: int, kept: int, dropped: int) -> None:
    for drop_last, batches in ((False, kept), (True, dropped)):
        loader = EpochLoader(Numbers(count), lambda d, i, g, s: i, 4, 0, drop_last=drop_last)  # type: ignore[arg-type,return-value]
        sizes = [len(batch) for batch in loader]
        assert len(sizes) == loader.batches == batches
        assert min(sizes) == min(4, count) if drop_last else True


def test_biases_do_not_decay_and_the_rate_falls_at_milestones() -> None:
    changes = {"network": {"layers": 1, "hidden": 8}, "epochs": 10, "weight_decay": 0.1, "learning_rate": 1.0}
    config = defaults("nbody", "egnn", "ace").updated(
        {
            **changes,
            "decay_biases": False,
            "schedule": "milestones",
            "milestones": [0.8, 0.9],
            "step_factor": 0.1,
        }
    )
    assembly = assemble(config)
    optimizer = build_optimizer(assembly)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert set(decays) == {id(p) for p in assembly.model.parameters()}
    for name, parameter in assembly.model.named_parameters():
        assert (decays[id(parameter)] > 0) == (parameter.dim() > 1), name
    optimizer = build_optimizer(assemble(defaults("nbody", "egnn", "strict").updated(changes)))
    scheduler = build_scheduler(config, optimizer)
    assert scheduler is not None
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1.0] * 8 + [0.1, 0.01])


def test_a_course_may_have_a_peak_and_a_length_of_its_own() -> None:
    changes = {"network": {"layers": 1, "hidden": 8}, "epochs": 4}
    config = defaults("nbody", "egnn", "scheduled").updated(
        {**changes, "strength": {"peak": 0.1, "schedule": "constant"}}
    )
    method = assemble(config, steps_per_epoch=1).method
    assert [method.gamma_at(step) for step in range(4)] == pytest.approx([0.1] * 4)  # type: ignore[union-attr]
    longer = config.updated({"strength": {"peak": 1.0, "schedule": "triangle", "course_epochs": 9}})
    method = assemble(longer, steps_per_epoch=1).method
    assert [method.gamma_at(step) for step in range(4)] == pytest.approx([0, 0.25, 0.5, 0.75])  # type: ignore[union-attr]


def test_residuals_are_left_out_and_without_bias_where_a_recipe_says_so() -> None:
    small = {"network": {"width": 0.125}}
    sites = {
        ("vn-pointnet", "scheduled"): (22, 12),
        ("vn-dgcnn", "scheduled"): (14, 7),
        ("vn-dgcnn", "ace"): (14, 14),
    }
    for (model, method), (count, biased) in sites.items():
        relaxation = assemble(defaults("modelnet40", model, method).updated(small)).relaxation
        assert relaxation is not None
        assert len(relaxation.residuals) == count
        with_bias = [key for key, r in relaxation.residuals.items() if r.map.bias is not None]
        assert len(with_bias) == biased
        assert not any("vn_lin" in key for key in relaxation.residuals)
        if method == "scheduled":
            assert not any("map_to_dir" in key for key in with_bias)
