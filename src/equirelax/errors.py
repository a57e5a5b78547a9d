"""What can go wrong, as a small hierarchy: every message names the place,
what was expected, and what to do next.
"""

from __future__ import annotations


class EquirelaxError(Exception):
    """Base class of every error that equirelax raises on purpose."""


class RepresentationError(EquirelaxError, ValueError):
    """A group, representation or feature size that does not fit."""


class PlacementError(EquirelaxError, ValueError):
    """A residual cannot be placed: nothing matched, a misspelt pattern, or an unsupported module."""


class RelaxationStateError(EquirelaxError, RuntimeError):
    """The model is in the wrong state: relaxed twice, or projected without being relaxed."""


class UnfoldableError(EquirelaxError, RuntimeError):
    """A residual whose equivariant part cannot be written into its layer's own weights."""


class NonFiniteError(EquirelaxError, FloatingPointError):
    """NaN or infinity where a finite number is needed."""


class PenaltyError(EquirelaxError, RuntimeError):
    """A penalty was asked for where it cannot be computed."""


class MethodError(EquirelaxError, ValueError):
    """A method was given settings or a state that it cannot use."""


class StaleOptimizerError(EquirelaxError, RuntimeError):
    """The optimizer does not train the residuals: it was created before the model was relaxed."""


class AuditError(EquirelaxError, ValueError):
    """A sample, representation or group that an audit cannot use."""


class DataError(EquirelaxError, RuntimeError):
    """Data that is missing, damaged, or not what its description says."""


class ConfigError(EquirelaxError, ValueError):
    """An unknown key, name or value in a configuration or on the command line."""


class FolderInUseError(EquirelaxError, RuntimeError):
    """A folder that another process is writing to."""


class StorageError(EquirelaxError, OSError):
    """A file that cannot be written: no room, or no right to. `errno` and `strerror` are the operating system's."""

    def __init__(self, message: str, cause: OSError | None = None) -> None:
        super().__init__(message)
        if cause is not None:
            self.errno, self.strerror = cause.errno, cause.strerror

    def __str__(self) -> str:
        return str(self.args[0])  # OSError's own would say number and reason alone


class CheckpointError(EquirelaxError, RuntimeError):
    """A checkpoint that is missing, damaged, or belongs to another model."""


class EquirelaxWarning(UserWarning):
    """Something was probably forgotten or will not do what its name says; the message tells what to do about it."""
