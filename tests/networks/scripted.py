"""TorchScript of networks that are made of e3nn's modules, of which e3nn knows which are to be scripted, and which traced."""

from __future__ import annotations

import warnings

from e3nn.util import jit
from torch import nn


def scripted(network: nn.Module) -> nn.Module:
    """The network as `e3nn.util.jit.script` gives it, which changes its modules."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch advises against it; users still do it
        return jit.script(network)
