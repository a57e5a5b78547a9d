"""Trains the toys in as many processes as torchrun starts: arguments are the method, the folder, and the number of processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning_toys import VECTORS, Module, data, relaxing, trainer
from torch.utils.data import DataLoader, Subset


def run(method: str, folder: Path, processes: int) -> dict[str, object]:
    """Two epochs of batches of 8, resumed in between; residuals begin at random, differently in every process."""
    options: dict[str, Any] = {"audit": {"in_rep": VECTORS, "out_rep": VECTORS}}
    if method == "scheduled":
        options = {**options, "rows": None, "total_steps": 8}
    if method != "resilient":  # every process measures at the same steps
        options["watch"] = 3
    torch.set_num_threads(1)
    for epochs in (1, 2):
        torch.manual_seed(0)
        module = Module()
        callback = relaxing(method, **options)
        keep = lightning.callbacks.ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True)
        fit = trainer(
            folder,
            callback,
            keep,
            max_epochs=epochs,
            precision="64-true",
            devices=processes,
            strategy="ddp" if processes > 1 else "auto",
            enable_checkpointing=True,
            use_distributed_sampler=False,
        )
        torch.manual_seed(fit.global_rank)
        path = folder / "last.ckpt" if epochs == 2 else None
        share = Subset(data().dataset, range(fit.global_rank, 32, processes))
        loader = DataLoader(share, batch_size=8 // processes)
        fit.fit(module, loader, loader, ckpt_path=path, weights_only=True)
    state = callback.state_dict()
    found = {"module": module.state_dict(), "residuals": state["residuals"], "method": state["method"]}
    if processes > 1:
        everybody: list[object] = [None] * processes
        torch.distributed.all_gather_object(everybody, found)
        assert repr(everybody[0]) == repr(everybody[1])
    assert fit.global_step == 8
    assert callback.report is not None
    return found


if __name__ == "__main__":
    found = run(sys.argv[1], Path(sys.argv[2]), 2)
    if torch.distributed.get_rank() == 0:
        torch.save(found, Path(sys.argv[2]) / "found.pt")
