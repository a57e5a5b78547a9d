"""schnetpack and TorchMD-NET want an environment of their own, which `make test-networks` makes; elsewhere nothing runs."""

from __future__ import annotations

import typing

import torch

# schnetpack 2.1 imports this name from a private module of torch, which torch 2.13 no longer has
torch.utils.data.dataloader.T_co = typing.TypeVar("T_co", covariant=True)
