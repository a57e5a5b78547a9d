"""A LightningModule of your own, relaxed: the method has a place in four functions. Needs torch and Lightning."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from plain_loop import PLACEMENT, VECTORS, Network, data
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

import equirelax as er


class AngularMomentum(lightning.LightningModule):
    """Learns what `plain_loop.py` learns, with ACE."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Network()
        self.relaxation = er.relax(self.model, PLACEMENT)  # before there is an optimizer, and before DDP
        self.method = er.ACE(self.relaxation, dual_lr=1e-2, augmented=0.5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.method.attach(optimizer)  # the method steps with it
        return optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return mse_loss(self.model(batch[0]), batch[1]) + self.method.penalty()

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log("relaxed", mse_loss(self.model(batch[0]), batch[1]))
        with self.relaxation.strict():
            self.log("projected", mse_loss(self.model(batch[0]), batch[1]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["method"] = self.method.state_dict()  # multipliers; gammas are in the module's state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.method.load_state_dict(checkpoint["method"])


def main(trainer: lightning.Trainer) -> None:
    """Train, project, audit; print the last validation and the equivariance error."""
    module, sets = AngularMomentum(), [TensorDataset(*data(512, seed)) for seed in (0, 1)]
    trainer.fit(module, *(DataLoader(samples, batch_size=64) for samples in sets))
    er.project(module.model)
    report = er.audit(module.model, data(8, 2)[0], VECTORS, VECTORS)
    for name, value in {**trainer.callback_metrics, "equivariance error": report.relative}.items():
        print(f"{name:18}  {float(value):9.2g}")


if __name__ == "__main__":
    main(lightning.Trainer(max_epochs=40, accelerator="cpu", logger=False, enable_checkpointing=False))
