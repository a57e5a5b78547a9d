"""The published settings, typed a second time from the papers and their code, against the recipes."""

from __future__ import annotations

from typing import Any

import pytest
from equirelax_lab.recipes import variants
from equirelax_lab.tasks.methods import CHOICES
from equirelax_lab.tasks.registry import TASKS, defaults
from equirelax_lab.tasks.settings import RunConfig
from refused_recipes import REFUSED

from equirelax.errors import ConfigError


def value(config: RunConfig, key: str) -> Any:
    section, dot, inner = key.partition(".")
    values = config.to_dict()
    return values[section][inner] if dot else values[section]


VALUES: list[tuple[str, str, str, str, dict[str, Any]]] = [
    # N-body: CR, section 6.2
    ("nbody", "segnn", "scheduled", "published", {
        "epochs": 1000, "batch_size": 100, "optimizer": "adam", "learning_rate": 5e-4, "weight_decay": 1e-12, "augment": True,
        "dataset.rotations": "batch", "dataset.train": 3000, "dataset.val": 2000, "dataset.test": 2000,
        "dataset.clamp": "component", "network.hidden": 64, "network.layers": 4, "network.l_max": 1,
        "network.lmax_attributes": 1, "network.axis_centre": False, "residual.placement": "segnn-cr", "residual.kind": "dense",
        "residual.init": "normal", "residual.std": 1e-4, "residual.bias": False, "strength.schedule": "triangle",
        "strength.peak": 1.0, "strength.lie_weight": 0.01, "strength.norm_weight": 0.01, "strength.scaling": "root-sum",
    }),
    ("nbody", "segnn", "scheduled", "released", {
        "strength.schedule": "constant", "strength.peak": 0.1, "network.axis_centre": True, "dataset.rotate_evaluation": True,
    }),
    ("nbody", "segnn", "strict", "published", {"learning_rate": 5e-4, "epochs": 1000, "augment": True}),
    ("nbody", "segnn", "strict", "released", {"network.axis_centre": True}),
    ("nbody", "segnn", "strict", "fair", {
        "learning_rate": 9e-4, "epochs": 2000, "augment": False, "weight_decay": 0.0, "drop_last": True,
    }),
    # N-body: ACE, section 5 and code
    ("nbody", "segnn", "ace", "published", {
        "epochs": 2000, "batch_size": 100, "optimizer": "adam", "learning_rate": 9e-4, "weight_decay": 0.0, "augment": False,
        "drop_last": True, "dataset.train": 3000, "residual.placement": "segnn-ace", "residual.kind": "mlp",
        "residual.layers": 3, "residual.init": "default", "residual.hidden": None, "strength.dual_lr": 8e-4,
        "strength.dual_optimizer": "adam", "strength.initial": 1.0, "strength.reduction": "sum", "strength.augmented": 0.0,
        "strength.pi": 0.0,
    }),
    ("nbody", "segnn", "ace", "printed", {"strength.dual_optimizer": "sgd", "strength.dual_lr": 8e-4}),
    ("nbody", "segnn", "resilient", "published", {"strength.form": "algorithm", "strength.rho": 1.0}),
    ("nbody", "segnn", "resilient", "released", {"strength.form": "released"}),
    ("nbody", "segnn", "strict-muon", "published", {"optimizer": "muon", "learning_rate": 5e-4}),
    # CMU motion capture: ACE, section 5 and code
    ("mocap", "egno", "ace", "published", {
        "epochs": 3000, "batch_size": 12, "optimizer": "adam", "learning_rate": 5e-4, "weight_decay": 1e-10,
        "gradient_clip": 1.0, "validate_every": 5, "drop_last": True, "augment": False, "network.hidden": 128,
        "network.layers": 6, "network.vector_init": 0.1, "residual.placement": "egno-ace", "strength.dual_lr": 2e-4,
        "strength.dual_optimizer": "adam", "strength.dual_eps": 1e-4, "dataset.subject": "run",
        "dataset.features": "published", "dataset.starts": None,
    }),
    ("mocap", "egno", "resilient", "published", {"strength.form": "algorithm", "strength.dual_lr": 2e-4}),
    ("mocap", "egno", "resilient", "released", {"strength.form": "clamped", "strength.dual_eps": 1e-4}),
    # QM9: ACE, section 5 and code
    ("qm9", "schnet", "ace", "published", {
        "epochs": 1000, "batch_size": 256, "learning_rate": 1e-3, "augment": False, "validate_every": 1,
        "dataset.targets": "raw", "dataset.source": "full", "dataset.partition": "seeded", "network.hidden": 64,
        "network.layers": 6, "network.cutoff": 10.0, "residual.placement": "schnet", "strength.dual_lr": 1e-3,
        "strength.dual_optimizer": "adam",
    }),
    ("qm9", "segnn", "ace", "published", {
        "epochs": 600, "batch_size": 1024, "learning_rate": 6e-4, "schedule": "milestones", "milestones": [0.8, 0.9],
        "step_factor": 0.1, "dataset.targets": "mad", "network.hidden": 64, "network.layers": 5, "network.l_max": 2,
        "network.lmax_attributes": 3, "network.cutoff": 2.0, "network.norm": "instance", "network.pooling": "mean",
        "network.distances": "squared", "network.harmonics": "component", "residual.placement": "segnn-ace",
        "residual.layers": 3, "strength.dual_lr": 1e-2, "strength.dual_optimizer": "adam",
    }),
    # ModelNet40: CR, section 5.1
    ("modelnet40", "vn-pointnet", "scheduled", "published", {
        "epochs": 200, "batch_size": 24, "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 1e-4, "schedule": "step",
        "step_epochs": 20, "step_factor": 0.7, "dataset.points": 300, "dataset.sampling": "first",
        "dataset.train_rotation": "so3", "dataset.test_rotation": "so3", "dataset.point_dropout": 0.875,
        "dataset.scaling": "twice", "dataset.scale_and_shift": True, "residual.init": "zeros", "residual.bias": True,
        "residual.unbiased": ["*.map_to_dir"], "residual.exclude": ["std_feature.vn_lin"], "strength.lie_weight": 0.01,
        "strength.norm_weight": 0.01, "strength.penalty_times_gamma": False,
    }),
    ("modelnet40", "vn-dgcnn", "scheduled", "published", {
        "epochs": 250, "batch_size": 32, "optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4,
        "schedule": "cosine", "final_learning_rate": 1e-3, "dataset.point_dropout": 0.0, "dataset.scaling": "per-axis",
        "dataset.label_smoothing": 0.2, "network.neighbours": 20, "network.dropout": 0.5, "residual.init": "default",
        "residual.unbiased": ["*.map_to_dir"], "strength.lie_weight": 5e-4, "strength.norm_weight": 5e-4,
        "strength.penalty_times_gamma": True,
    }),
    # ModelNet40: ACE, section 5 and code
    ("modelnet40", "vn-dgcnn", "ace", "published", {
        "epochs": 250, "batch_size": 32, "optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0,
        "schedule": "constant", "dataset.points": 300, "dataset.sampling": "first", "dataset.normalise": True,
        "dataset.scale_and_shift": False, "dataset.point_dropout": 0.0, "dataset.label_smoothing": 0.2,
        "residual.bias": True, "residual.unbiased": [], "residual.exclude": ["std_feature.vn_lin"],
        "strength.dual_lr": 1e-4, "strength.dual_optimizer": "sgd", "strength.reduction": "mean",
    }),
    ("modelnet40", "vn-dgcnn", "strict", "fair", {
        "optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant",
        "dataset.scale_and_shift": False,
    }),
    # MD17: CR, section 5.3 and code
    ("md17", "equiformer", "scheduled", "published", {
        "epochs": 1500, "batch_size": 8, "optimizer": "adamw", "learning_rate": 5e-4, "weight_decay": 1e-6,
        "decay_biases": False, "schedule": "cosine", "final_learning_rate": 1e-6, "warmup_epochs": 10, "dataset.train": 950,
        "dataset.val": 50, "dataset.test": None, "dataset.source": "md17", "dataset.frames": "random",
        "dataset.scale": "energies", "residual.layers": 2, "residual.scale": 0.01, "residual.hidden": 4 * 484,
        "strength.lie_weight": 0.01, "strength.norm_weight": 0.0, "strength.schedule": "triangle",
    }),
    ("md17", "equiformer", "scheduled", "released", {"strength.schedule": "constant", "strength.degrees": 5.0}),
    ("md17", "equiformer", "scheduled", "printed", {"strength.norm_weight": 0.01}),
    # Smoke: CR, section 5.4 and code
    ("smoke", "rsteer", "scheduled", "published", {
        "epochs": 1000, "batch_size": 16, "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 4e-4, "schedule": "step",
        "step_epochs": 1, "step_factor": 0.95, "dataset.inputs": 10, "dataset.outputs": 6, "dataset.val_horizon": 6,
        "dataset.horizon": 20, "dataset.loss": "sum", "network.layers": 5, "network.norm": False,
        "strength.lie_weight": 0.01, "strength.norm_weight": 0.01,
    }),
    ("smoke", "rsteer", "scheduled", "released", {
        "epochs": 100, "select": "last", "strength.course_epochs": 1000, "network.varied": True,
    }),
]  # fmt: skip


@pytest.mark.parametrize(
    ("benchmark", "model", "method", "variant", "expected"),
    VALUES,
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_the_recipe_has_the_published_value(
    benchmark: str, model: str, method: str, variant: str, expected: dict[str, Any]
) -> None:
    config = defaults(benchmark, model, method, variant)
    found = {key: value(config, key) for key in expected}
    assert found == expected


def test_every_recipe_is_a_runs_settings() -> None:
    """Of every benchmark, model, method and variant, but for what a file refuses."""
    for benchmark, task in TASKS.items():
        for model in task.models:
            for method in CHOICES:
                if (benchmark, model, method) in REFUSED:
                    with pytest.raises(ConfigError, match="another method"):
                        variants(benchmark, model, method)
                    continue
                for variant in variants(benchmark, model, method):
                    config = defaults(benchmark, model, method, variant)
                    assert (config.recipe, config.seed) == (variant, 0)


def test_ablations_and_controls_are_what_they_are_in_every_variant() -> None:
    for benchmark, task in TASKS.items():
        model = next(iter(task.models))
        for variant in variants(benchmark, model, "no-lie"):
            assert value(defaults(benchmark, model, "no-lie", variant), "strength.lie_weight") == 0
            assert (
                value(defaults(benchmark, model, "no-schedule", variant), "strength.schedule") == "constant"
            )
            assert value(defaults(benchmark, model, "no-penalty", variant), "strength.norm_weight") == 0
        for variant in variants(benchmark, model, "strict-muon"):
            assert value(defaults(benchmark, model, "strict-muon", variant), "optimizer") == "muon"
        assert value(defaults(benchmark, model, "ace-pi"), "strength.pi") == 1
        assert value(defaults(benchmark, model, "ace-augmented"), "strength.augmented") == 1
