"""A run that is interrupted after its first epoch and resumed, beside one that is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training.callbacks import EpochEnd
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.run import train

QUIET = Machine(progress=False, tensorboard=False)


def assert_goes_on_bit_for_bit(
    settings: RunConfig, folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resumed run ends in the same numbers as the uninterrupted one."""
    whole = train(settings, folder / "whole", root, machine=QUIET)
    original = EpochEnd.on_train_epoch_end

    def interrupted(self: EpochEnd, trainer: Any, module: Any) -> None:
        self.stop_requested = trainer.current_epoch == 0
        original(self, trainer, module)

    with monkeypatch.context() as patch:
        patch.setattr(EpochEnd, "on_train_epoch_end", interrupted)
        assert train(settings, folder / "cut", root, machine=QUIET) is None
    resumed = train(settings, folder / "cut", root, resume=True, machine=QUIET)
    assert whole is not None
    assert resumed is not None
    for key in ("metrics", "gammas", "equivariance_error", "dynamics"):
        assert resumed[key] == whole[key]
