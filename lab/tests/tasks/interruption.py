"""A run that is interrupted after its first epoch and resumed, beside one that is not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.run import train

QUIET = Machine(progress=False, tensorboard=False)


def assert_goes_on_bit_for_bit(
    settings: RunConfig, folder: Path, root: Path, stop_after: Callable[[int], AbstractContextManager[None]]
) -> None:
    """The resumed run ends in the same numbers as the uninterrupted one."""
    whole = train(settings, folder / "whole", root, machine=QUIET)
    with stop_after(1):
        assert train(settings, folder / "cut", root, machine=QUIET) is None
    resumed = train(settings, folder / "cut", root, resume=True, machine=QUIET)
    assert whole is not None
    assert resumed is not None
    for key in ("metrics", "gammas", "equivariance_error", "dynamics"):
        assert resumed[key] == whole[key]
