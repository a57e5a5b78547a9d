"""A small network of vectors, a LightningModule that knows nothing of relaxation, and a quiet trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

import equirelax as er
from equirelax.integrations.lightning import RelaxationCallback
from equirelax.symmetry import SO, On, vector

VECTORS = On(vector(SO(3)), -2)
PLACEMENT = er.Layers(
    residual=er.Dense(init="normal", std=0.1), declare=(er.Linear("Linear", VECTORS, channel_axis=-1),)
)
METHODS: dict[str, dict[str, Any]] = {
    "ace": {"dual_lr": 1e-2},
    "scheduled": {"rows": 3},
    "resilient": {"dual_lr": 1e-2, "primal_lr": 1e-2},
}


class Network(nn.Module):
    """Two vectors (batch, 3, 2) -> one (batch, 3, 1), equivariant to rotations."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*sizes, bias=False) for sizes in ((2, 4), (4, 1)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            y = layer(x)
            x = y / (1.0 + y.norm(dim=-2, keepdim=True))
        return x


class Module(lightning.LightningModule):
    """Learns what `data` holds."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Network()
        self.outputs: list[Tensor] = []  # of evaluations

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Any:
        return mse_loss(self.model(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.outputs.append(self.model(batch[0]))
        self.log("loss", mse_loss(self.outputs[-1], batch[1]))

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.validation_step(batch, index)

    def predict_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return self.model(batch[0])


def data(rows: int = 32, shuffle: bool = False, batch: int = 8) -> DataLoader[Any]:
    """Vectors, and a target that is not equivariant."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 3, 2, generator=generator)
    y = 0.3 * x[..., :1] + torch.tensor([[0.3], [0.1], [-0.2]])
    return DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=shuffle)


def relaxing(method: str = "ace", **options: Any) -> RelaxationCallback:
    """The callback, with the toys' placement and settings."""
    return RelaxationCallback(method, **{"placement": PLACEMENT, **METHODS.get(method, {}), **options})


def trainer(folder: Path, *callbacks: Any, **options: Any) -> lightning.Trainer:
    """On one CPU, without any output."""
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    settings = {
        "max_epochs": 2,
        "enable_checkpointing": False,
        "default_root_dir": folder,
        "devices": 1,
        **quiet,
    }
    return lightning.Trainer(callbacks=list(callbacks), **{**settings, **options})
