"""TorchScript of networks that are made of e3nn's modules, of which e3nn knows which are to be scripted, and which traced."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from e3nn.util import jit
from torch import nn


def scripted(network: nn.Module) -> nn.Module:
    """The network as `e3nn.util.jit.script` gives it, which changes its modules."""
    hashed = sys.modules.get("torch_geometric.hash_tensor")
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore", DeprecationWarning)  # torch advises against it; users still do it
        if hasattr(hashed, "_old_index_select"):
            # PyTorch Geometric puts a function of its own in torch's place, which TorchScript cannot compile
            patch.setattr(torch, "index_select", hashed._old_index_select)
        return jit.script(network)
