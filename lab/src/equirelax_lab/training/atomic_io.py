"""How Lightning writes and reads checkpoints here."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO

from equirelax.relaxation.checkpoint import read, write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written to a temporary name and renamed, read with `weights_only=True`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint`, so that a crash leaves the old file."""
        write(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, tensors and plain data only. Raises `CheckpointError` if it is missing or
        damaged.
        """
        loaded: dict[str, Any] = read(path)
        return loaded
