"""escnn needs numpy < 2 and so an environment of its own, which `make test-escnn` makes; elsewhere nothing here is collected."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _float32() -> None:
    """escnn can be built with the default dtype float32 only; a test that leaves another one fails here, not elsewhere."""
    assert torch.get_default_dtype() == torch.float32
