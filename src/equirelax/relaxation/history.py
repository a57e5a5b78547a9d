"""The strengths over training and the recorded equivariance errors, which `Relaxation.plot` draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equirelax.errors import RelaxationStateError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIMIT = 1000
"""Largest number of steps that are kept."""
NAMED = 10
"""Largest number of residuals that are all named in the legend; of more, only the first and the last are."""


class History:
    """Strengths after optimizer steps, thinned so that at most `LIMIT` of them are kept; all errors.

    Attributes:
        steps: number of optimizer steps so far.
        gammas: (step, strengths (residuals,)), in order.
        errors: (step, relative equivariance error, error without residuals or None), in order.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.gammas: list[tuple[int, Tensor]] = []
        self.errors: list[tuple[int, float, float | None]] = []
        self._stride = 1

    def step(self, gammas: Tensor) -> None:
        """Record the strengths after one more step, without waiting for the device."""
        self.steps += 1
        if self.steps % self._stride:
            return
        self.gammas.append((self.steps, gammas))
        if len(self.gammas) > LIMIT:
            self._stride *= 2
            self.gammas = [one for one in self.gammas if one[0] % self._stride == 0]

    def error(self, relative: float, strict: float | None) -> None:
        """Record an equivariance error at the current step."""
        self.errors.append((self.steps, relative, strict))

    def curves(self) -> tuple[list[int], Tensor]:
        """The steps, and the strengths (steps, residuals) on the CPU."""
        return [step for step, _ in self.gammas], torch.stack([values for _, values in self.gammas]).cpu()

    def keep(self, columns: list[int]) -> None:
        """Keep the strengths of these residuals only, as after the others were removed."""
        self.gammas = [(step, values[columns]) for step, values in self.gammas]


def figure(history: History, names: Sequence[str]) -> Figure:
    """Plot strengths over optimizer steps, from dark (first residual) to light (last), and below them the recorded errors.

    Args:
        history: A history with at least one strength.
        names: Names of the residuals, in the order of the strengths.

    Raises:
        RelaxationStateError: there is nothing to draw, or matplotlib is missing.
    """
    if not history.gammas and not history.errors:
        raise RelaxationStateError(
            "nothing to plot: strengths are recorded when a method made on this handle steps, and errors by "
            "relaxation.record(er.audit(...)); plot with the method's handle, method.relaxation.plot()"
        )
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise RelaxationStateError("plot() needs matplotlib: pip install matplotlib") from error
    panels = [draw for draw, some in ((_gammas, history.gammas), (_errors, history.errors)) if some]
    result, axes = pyplot.subplots(
        len(panels),
        1,
        sharex=True,
        squeeze=False,
        figsize=(7.0, 2.6 * len(panels) + 0.6),
        layout="constrained",
    )
    for ax, draw in zip(axes[:, 0], panels, strict=True):
        draw(ax, history, names)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="0.9", linewidth=0.8)
        ax.set_axisbelow(True)
    axes[-1, 0].set_xlabel("optimizer steps")
    pyplot.close(result)  # otherwise a notebook shows the returned figure twice
    return result


def _gammas(ax: Any, history: History, names: Sequence[str]) -> None:
    from matplotlib import colormaps

    steps, values = history.curves()
    count = len(names)
    for i, name in enumerate(names):
        shown = count <= NAMED or i in (0, count - 1)
        ax.plot(
            steps,
            values[:, i].tolist(),
            color=colormaps["viridis"](0.9 * i / max(count - 1, 1)),
            linewidth=1.4,
            label=(name or "(model)") if shown else None,
        )
    ax.axhline(0, color="0.4", linewidth=0.8)
    ax.set_ylabel("strength gamma")
    title = None if count <= NAMED else f"{count} residuals, first to last"
    ax.legend(
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        fontsize="small",
        title=title,
        title_fontsize="small",
    )


def _errors(ax: Any, history: History, names: Sequence[str]) -> None:
    steps = [step for step, _, _ in history.errors]
    ax.plot(steps, [error for _, error, _ in history.errors], "o-", color="C3", markersize=4, label="relaxed")
    strict = [(step, error) for step, _, error in history.errors if error is not None]
    if strict:
        ax.plot(*zip(*strict, strict=True), "o-", color="0.35", markersize=4, label="without residuals")
    ax.set_ylabel("equivariance error")
    if all(error > 0 for _, error, _ in history.errors):
        ax.set_yscale("log")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize="small")
