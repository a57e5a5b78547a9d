"""A LightningModule without code for relaxation, relaxed by a callback. Needs torch and Lightning."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from plain_loop import PLACEMENT, VECTORS, Network, data
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from equirelax.integrations.lightning import RelaxationCallback


class AngularMomentum(lightning.LightningModule):
    """Learns the task of `plain_loop.py`."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Network()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return mse_loss(self.model(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log("projected", mse_loss(self.model(batch[0]), batch[1]))  # what ACE deploys


def main(**options: Any) -> lightning.Trainer:
    """Train with ACE, project, audit; print the errors before and after."""
    audit = {"in_rep": VECTORS, "out_rep": VECTORS}
    relaxing = RelaxationCallback("ace", dual_lr=1e-2, augmented=0.5, placement=PLACEMENT, audit=audit)
    module, sets = AngularMomentum(), [TensorDataset(*data(512, seed)) for seed in (0, 1)]
    trainer = lightning.Trainer(callbacks=[relaxing], accelerator="cpu", logger=False, **options)
    x, y = sets[1].tensors
    before = mse_loss(module.model(x), y)
    trainer.fit(module, *(DataLoader(samples, batch_size=64) for samples in sets))
    print(f"largest gamma {trainer.callback_metrics['relaxation/largest_gamma']:.2g}, then projected")
    print(
        f"validation error {mse_loss(module.model(x), y):.4f}, {before:.4f} before training; "
        f"equivariance error {relaxing.report.relative:.0e}"
    )
    return trainer


if __name__ == "__main__":
    main(max_epochs=40, enable_checkpointing=False)
