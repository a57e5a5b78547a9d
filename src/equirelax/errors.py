"""The errors of equirelax. Every message says where the error is, what was expected, and what to do next."""

from __future__ import annotations


class EquirelaxError(Exception):
    """Base class of every error that equirelax raises on purpose."""


class RepresentationError(EquirelaxError, ValueError):
    """A group, representation or feature size does not fit."""


class PlacementError(EquirelaxError, ValueError):
    """A residual cannot be placed: nothing matched, a misspelt pattern, or an unsupported module."""


class RelaxationStateError(EquirelaxError, RuntimeError):
    """The model is in the wrong state: relaxed twice, or projected without being relaxed."""


class UnfoldableError(EquirelaxError, RuntimeError):
    """The equivariant part of a residual cannot be written into its layer's own weights."""


class NonFiniteError(EquirelaxError, FloatingPointError):
    """NaN or infinity where a finite number is needed."""


class PenaltyError(EquirelaxError, RuntimeError):
    """A penalty cannot be computed here."""


class MethodError(EquirelaxError, ValueError):
    """A method cannot use its settings or a state."""


class StaleOptimizerError(EquirelaxError, RuntimeError):
    """The optimizer does not train the residuals: it was created before the model was relaxed."""


class AuditError(EquirelaxError, ValueError):
    """An audit cannot use a sample, representation or group."""


class DataError(EquirelaxError, RuntimeError):
    """Data is missing, damaged, or does not match its description."""


class ConfigError(EquirelaxError, ValueError):
    """An unknown key, name or value in a configuration or on the command line."""


class FolderInUseError(EquirelaxError, RuntimeError):
    """Another process is writing to a folder."""


class StorageError(EquirelaxError, OSError):
    """A file cannot be written: the disk is full, or permission is missing. `errno` and `strerror` are the system's."""

    def __init__(self, message: str, cause: OSError | None = None) -> None:
        super().__init__(message)
        if cause is not None:
            self.errno, self.strerror = cause.errno, cause.strerror

    def __str__(self) -> str:
        return str(self.args[0])  # OSError would print only number and reason


class CheckpointError(EquirelaxError, RuntimeError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class EquirelaxWarning(UserWarning):
    """Something was probably forgotten, or will not have the expected effect. The message says what to do."""
