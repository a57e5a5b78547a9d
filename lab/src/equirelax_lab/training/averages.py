"""Averaged weights: an exponential moving average of what the optimiser trains, without the bias of its start."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from equirelax.errors import CheckpointError
from equirelax.relaxation import Residual
from equirelax_lab.training.assembly import Assembly
from equirelax_lab.training.module import RelaxedModule

KEY = "equirelax-averages"
"""Key of the averages in a resumable checkpoint."""


def corrected_average(decay: float) -> Any:
    """How `AveragedModel` takes one more set of weights into a bias-corrected exponential moving average.

    With w_s the weights after step s, the average after step t is

        m_t = sum_s decay^(t-s) w_s / sum_s decay^(t-s),   s = 1 .. t

    which is m_t = m_(t-1) + (1 - decay) / (1 - decay^t) (w_t - m_(t-1)): the weights of the start have no more part
    in it than any others, and m_1 = w_1.
    """

    def update(averages: list[Tensor], weights: list[Tensor], count: Tensor | int) -> None:
        share = (1 - decay) / (1 - decay ** (int(count) + 1))
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, share)

    return update


class Averages(Callback):
    """Keeps an average of the strict weights and of the residuals' weights, taken after every step.

    Strengths (gamma) and buffers are not averaged but copied: the averaged network is relaxed as far as the trained one.

    Args:
        assembly: The run's objects.
        decay: Factor of the past at every step, in (0, 1).

    Attributes:
        model: The averaged network, relaxed like the trained one.
    """

    def __init__(self, assembly: Assembly, decay: float) -> None:
        self.assembly = assembly
        self._average = AveragedModel(assembly.model, multi_avg_fn=corrected_average(decay))
        self._average.requires_grad_(False)

    @property
    def model(self) -> nn.Module:
        """The averaged network."""
        model: nn.Module = self._average.module
        return model

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Put the average where the model is."""
        self._average.to(module.device)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the weights after an optimiser's step into the average."""
        if isinstance(module, RelaxedModule) and module.loader.completes(batch_idx):
            self._average.update_parameters(self.assembly.model)
            self.copy_strengths()

    @torch.no_grad()
    def copy_strengths(self) -> None:
        """Give the averaged network the trained one's gammas."""
        for own, averaged in zip(_residuals(self.assembly.model), _residuals(self.model), strict=True):
            averaged.gamma.copy_(own.gamma)

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the average and the number of steps in it."""
        checkpoint[KEY] = self._average.state_dict()

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Continue the average.

        Raises:
            CheckpointError: the checkpoint holds no average.
        """
        if KEY not in checkpoint:
            raise CheckpointError(
                "The checkpoint holds no averaged weights: start the run anew, with its ema."
            )
        self._average.load_state_dict(checkpoint[KEY])


def _residuals(model: nn.Module) -> list[Residual]:
    return [module for module in model.modules() if isinstance(module, Residual)]
