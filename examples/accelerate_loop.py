"""Train with Hugging Face's Accelerate: accumulated gradients, checkpoints to resume from, weights with a model card.

Needs torch and accelerate; `accelerate launch examples/accelerate_loop.py` runs it on several devices.
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from plain_loop import PLACEMENT, VECTORS, Network, data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import equirelax as er
from equirelax.auditing import AuditReport, card


def main(
    folder: Path, epochs: int = 10, resume: bool = False, accumulate: int = 2
) -> tuple[nn.Module, AuditReport]:
    """Relax, train, project and audit; save the weights and their card in `folder / "network"`."""
    accelerator = Accelerator(gradient_accumulation_steps=accumulate)
    torch.manual_seed(0)
    model = Network()
    method = er.ACE(er.relax(model, PLACEMENT), dual_lr=1e-2, augmented=0.5)  # before the optimizer
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loader = DataLoader(TensorDataset(*data(512, 0)), batch_size=32)
    trained, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    method.attach(optimizer)
    accelerator.register_for_checkpointing(
        method
    )  # the method's multipliers; strengths are in the model's state
    if resume:
        accelerator.load_state(folder / "state")
    for _ in range(epochs):
        for x, y in loader:
            with accelerator.accumulate(trained):
                loss = nn.functional.mse_loss(trained(x), y) + method.penalty()
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
    accelerator.save_state(folder / "state")
    model = accelerator.unwrap_model(trained)
    er.project(model)
    report = er.audit(model, next(iter(loader))[0], VECTORS, VECTORS)
    accelerator.save_model(model, folder / "network")  # the author's keys, in safetensors
    if accelerator.is_main_process:
        (folder / "network" / "README.md").write_text(card(report), "utf-8")
    return model, report


if __name__ == "__main__":
    model, report = main(Path("runs/accelerate"))
    x, y = data(512, 1)
    print(card(report))
    print(
        f"test error {nn.functional.mse_loss(model(x), y):.4f}, that of predicting 0: {y.square().mean():.4f}"
    )
