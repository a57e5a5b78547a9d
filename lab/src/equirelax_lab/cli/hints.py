"""Suggestions for options that a command does not have."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from equirelax.files import initials

if TYPE_CHECKING:
    from equirelax.settings import Settings
    from equirelax_lab.tasks.settings import RunConfig

SIMILAR = 0.6
"""The least similarity of two names, as `difflib` measures it, at which one is suggested for the other."""
ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("gpu", "gpus", "cuda", "device"), "--accelerator gpu, with --devices N for several"),
    **dict.fromkeys(("o", "output", "output_dir", "save_dir", "logdir", "dir", "folder"), "--out"),
    **dict.fromkeys(("hidden_dim", "hidden_size", "channels", "width"), "--network.hidden"),
    **dict.fromkeys(("num_layers", "n_layers", "depth"), "--network.layers"),
    **dict.fromkeys(("workers", "num_workers", "n_jobs"), "--jobs or --threads"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule"), "--schedule"),
    **dict.fromkeys(("grad_clip", "clip", "max_grad_norm"), "--gradient_clip"),
}
"""Names of flags in other programs -> the flags that do the same here."""
VALUES: Mapping[str, str] = {"cuda": "gpu", "bf16": "bf16-mixed", "32": "32-true"}
"""Values of flags in other programs -> the values that mean the same here."""


@dataclass(frozen=True)
class Hints:
    """The context from which a command makes a suggestion for an unknown option.

    Attributes:
        config: A run that the command is about: settings of other methods, models and benchmarks are then named.
        more: The command's flags that its parser of settings does not have.
        advice: Name of an option of a related command -> a sentence that says what to do here.
        methods: The methods of a comparison, each of which may have its own settings, as in --ace.dual_lr.
        prefix: The text before a flag on the command line: --, or --ace. for settings of one method.
    """

    config: RunConfig | None = None
    more: tuple[str, ...] = ()
    advice: Mapping[str, str] = field(default_factory=dict)
    methods: tuple[str, ...] = ()
    prefix: str = "--"

    def suggestion(self, flag: str, known: Sequence[str]) -> str:
        """Suggest what may have been meant by an unknown flag.

        Args:
            flag: The flag as it was written, such as --lr.
            known: The flags of the parser.

        Returns:
            A sentence that begins with a space; empty if nothing is similar.
        """
        name = flag.lstrip("-").replace("-", "_")
        if name in self.advice:
            return f" {self.advice[name]}"
        known = [*known, *self.more]
        ends = [each for each in known if _short(each) == name]
        if len(ends) > 1:
            return f" It may be {' or '.join(map(self._written, ends))}: write one of them in full."
        if name in ELSEWHERE and any(each in ELSEWHERE[name] for each in known):
            return f" Use {ELSEWHERE[name]}."
        near = [each for each in known if initials(each) == name]
        if not near and self.config is not None and (where := _where(name, self.config, self.methods)):
            return f" {where}"
        near = near or _near(name, known)
        return f" Did you mean {' or '.join(repr(self._written(each)) for each in near)}?" if near else ""

    def _written(self, flag: str) -> str:
        return flag if flag in self.more else f"{self.prefix}{flag.removeprefix('--')}"


def _short(flag: str) -> str:
    """--strength.dual_lr -> dual_lr."""
    return flag.lstrip("-").rpartition(".")[2]


def _near(name: str, known: Sequence[str]) -> list[str]:
    """The flags with a similar spelling, with or without their sections."""
    score: dict[str, float] = {}
    for each in known:
        forms = {each.lstrip("-"), _short(each)}
        score[each] = max(difflib.SequenceMatcher(None, name, form).ratio() for form in forms)
    likely = sorted((each for each in known if score[each] >= SIMILAR), key=lambda each: -score[each])
    return likely[:3]


def _where(name: str, config: RunConfig, methods: Sequence[str]) -> str:
    """A sentence that names the other methods, kinds of residuals, models or benchmarks with the setting `name`; or nothing."""
    section, _, key = name.rpartition(".")
    if section in ("", "strength") and (found := _methods(key)):
        if mine := [each for each in methods if each in found]:
            return f"Not all methods here have it: write --{mine[0]}.{name}."
        if methods:
            return f"It is a setting of {_listed(found)}, none of which is compared here."
        return f"It is a setting of {_listed(found)}; this run's method is {config.method} (--method)."
    if section in ("", "residual") and (found := _kinds(key)):
        return f"It is a setting of residuals of the kind {_listed(found)}: add --residual.kind {found[0]}."
    if section in ("", "network") and (found := _models(key, config)):
        return f"It is a setting of the model {_listed(found)}; this run's model is {config.model} (--model)."
    if section in ("", "dataset") and (found := _benchmarks(key, config)):
        return f"It is a setting of the benchmark {_listed(found)}, not of {config.benchmark}."
    return ""


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _has(settings: type[Settings], key: str) -> bool:
    return key in {each.name for each in dataclasses.fields(settings)}


def _methods(key: str) -> list[str]:
    from equirelax_lab.tasks.methods import CHOICES

    return [name for name, choice in CHOICES.items() if _has(choice.settings, key)]


def _kinds(key: str) -> list[str]:
    from equirelax.relaxation import kinds
    from equirelax_lab.tasks.settings import KIND_NAMES, STREAM

    return [name for name in KIND_NAMES if name != STREAM and _has(kinds.get(name), key)]


def _models(key: str, config: RunConfig) -> list[str]:
    from equirelax_lab.tasks.registry import task_class

    return [name for name, kind in task_class(config.benchmark).network_types.items() if _has(kind, key)]


def _benchmarks(key: str, config: RunConfig) -> list[str]:
    from equirelax_lab.tasks.registry import TASKS

    return [name for name, task in TASKS.items() if name != config.benchmark and _has(task.dataset_type, key)]
