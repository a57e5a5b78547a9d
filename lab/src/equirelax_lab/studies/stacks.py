"""Which runs of a study are trained in one process, as a stack."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from equirelax_lab.studies.trials import Trial

NOT_STACKABLE = 3
"""Exit code of a process whose runs cannot be stacked; the last line of its log says why."""
Kind = tuple[str, str]
"""Grid and name of runs that differ only in the seed."""


def kind_of(trial: Trial) -> Kind:
    """What the runs of a stack have in common."""
    return trial.grid, trial.kind


def stacks(trials: Sequence[Trial], size: int, alone: Collection[Kind] = ()) -> list[list[Trial]]:
    """The runs in groups, each trained by one process, in the order of the groups' first runs.

    Args:
        trials: Waiting runs.
        size: The largest number of runs in a group; 1 makes a group of every run.
        alone: Kinds of runs that cannot be stacked.
    """
    groups: list[list[Trial]] = []
    filling: dict[Kind, list[Trial]] = {}
    for trial in trials:
        kind = kind_of(trial)
        group = filling.get(kind)
        if group is None or len(group) == size or kind in alone:
            group = filling[kind] = []
            groups.append(group)
        group.append(trial)
    return groups
