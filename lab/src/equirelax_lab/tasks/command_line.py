"""The command line that trains a run: its recipe, and every setting that differs from the recipe."""

from __future__ import annotations

import json
import shlex

from equirelax_lab.tasks.from_recipe import changes
from equirelax_lab.tasks.registry import base_of
from equirelax_lab.tasks.settings import EARLIER, RunConfig


def train_command(config: RunConfig) -> str:
    """The line `equirelax train ...` of a run. A run of version 0.1, which had no recipes, starts from the published one."""
    words = ["equirelax", "train", config.benchmark, "--model", config.model, "--method", config.method]
    if config.recipe not in ("published", EARLIER):
        words += ["--recipe", config.recipe]
    if config.trained_as:
        words += ["--trained_as", config.trained_as]
    words += ["--seed", str(config.seed)]
    base, kind = base_of(config), config.to_dict()["residual"].get("kind")
    if kind != base.to_dict()["residual"].get("kind"):  # which brings its own settings
        base = base.updated({"residual": {"kind": kind}})
        words += ["--residual.kind", str(kind)]
    for key, (_, here) in changes(config, base).items():
        words += [f"--{key}", here if isinstance(here, str) else json.dumps(here)]
    return shlex.join(words)
