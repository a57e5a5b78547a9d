"""Pictures of a forecast of a velocity field: truth, prediction and error side by side, and the roll-out as an animation."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from equirelax.errors import DataError
from equirelax.files import atomic_write

# Perceptually uniform maps: their order survives colour blindness and printing in grey.
SPEED, ERROR = "viridis", "magma"
BAD = "0.6"
"""Grey, for non-finite values."""
ARROWS = 11
"""Most arrows along each side of a field."""
STILL = 0.03
"""Share of the largest true speed below which no arrow is drawn, because the direction of rounding errors means nothing."""
COLUMNS = 8
CHARACTER = 0.07
"""Width of a character of the smallest text, in inches."""
MILLISECONDS = 250
"""How long a frame of the animation is shown."""
HOLD = 6
"""How many times as long the last frame is shown."""
SHADES, GREYS = 112, 32
"""Number of colours of an animation from each map, and from black to white."""


@dataclass(frozen=True)
class Forecast:
    """A roll-out and the true fields.

    Attributes:
        true, predicted: Velocities (T, 2, H, W) at the steps 1 to T of the roll-out; row 0 is the top, components are (x, y).
        width: Width of the box, in units of length.
        frame: Frame number of step 0 in its run, the last frame that the network was given.

    Raises:
        DataError: The shapes differ or are not those of fields, or a true velocity is not finite.
    """

    true: np.ndarray
    predicted: np.ndarray
    width: float
    frame: int

    def __post_init__(self) -> None:
        shape = self.true.shape
        if len(shape) != 4 or shape[1] != 2 or not all(shape) or self.predicted.shape != shape:
            raise DataError(
                f"A forecast is drawn from true and predicted fields (T, 2, H, W); got {shape} and "
                f"{self.predicted.shape}."
            )
        if not np.isfinite(self.true).all():
            raise DataError(
                "The true fields of a forecast hold NaN or infinity: there is nothing to compare with."
            )

    def __len__(self) -> int:
        return len(self.true)

    @property
    def rmse(self) -> float:
        """Root mean squared error over steps, components and pixels, as in the benchmark's metric."""
        return math.sqrt(float(np.square(self.predicted.astype(float) - self.true).mean()))

    @property
    def error(self) -> np.ndarray:
        """Lengths of the differences, (T, H, W)."""
        return np.linalg.norm(self.predicted.astype(float) - self.true, axis=1)


def shown_steps(count: int) -> list[int]:
    """The steps, out of `count`, that get a column in the picture: 1, 5, 10, ... and the last, or all if they are few."""
    if count <= 5:
        return list(range(1, count + 1))
    every = 5 * math.ceil(count / (5 * (COLUMNS - 2)))
    return sorted({1, *range(every, count + 1, every), count})


def draw_fields(path: Path, forecast: Forecast, title: str, again: str = "") -> None:
    """Write a PNG with a column for every step of `shown_steps`: truth, prediction, and the length of the error.

    Args:
        path: The file.
        forecast: What to draw.
        title: The title above everything.
        again: The command that writes the picture again, below everything.
    """
    steps = shown_steps(len(forecast))
    indices = [step - 1 for step in steps]
    colours = _Colours.of(forecast, indices)
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(1.9 * len(steps) + 1.6, 6.6), layout="constrained")
        panels = figure.subplots(3, len(steps), squeeze=False)
        for column, index in enumerate(indices):
            _draw_step(list(panels[:, column]), forecast, index, colours)
            panels[0, column].set_title(f"step {steps[column]}", fontsize=9)
        for row, name in enumerate(("true", "predicted", "error")):
            panels[row, 0].set_ylabel(name, fontsize=10)
        _colour_bars(figure, list(panels[:2].flat), list(panels[2]), colours)
        words = textwrap.fill(_scale_words(forecast), int(figure.get_figwidth() / CHARACTER))
        figure.supxlabel("\n".join(filter(None, (words, again))), fontsize=8)
        figure.suptitle(title)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=130)


def draw_rollout(path: Path, forecast: Forecast, title: str) -> None:
    """Write an animated GIF of truth, prediction and the length of the error, one frame for every step.

    Args:
        path: The file.
        forecast: What to draw.
        title: The title above everything.
    """
    colours, count = _Colours.of(forecast, range(len(forecast))), len(forecast)
    frames = []
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(8.8, 3.5), layout="constrained", dpi=90)
        canvas = FigureCanvasAgg(figure)
        panels = list(figure.subplots(1, 3))
        _colour_bars(figure, panels[:2], panels[2:], colours)
        figure.supxlabel(
            textwrap.fill(_scale_words(forecast), int(figure.get_figwidth() / CHARACTER)), fontsize=8
        )
        heading = figure.suptitle("")
        for index in range(count):
            for panel, name in zip(panels, ("true", "predicted", "error"), strict=True):
                panel.clear()
                panel.set_title(name, fontsize=10)
            _draw_step(panels, forecast, index, colours)
            heading.set_text(f"{title}\nstep {index + 1} of {count}")
            if index == 0:
                canvas.draw()  # this computes the layout: from here on only the fields change
                figure.set_layout_engine("none")
            canvas.draw()
            frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba()).copy()).convert("RGB"))
    _write_gif(path, frames)


def _write_gif(path: Path, frames: list[Image.Image]) -> None:
    """Write all frames with one palette; with a palette per frame, colours would change where the field does not."""
    shades = [matplotlib.colormaps[name](np.linspace(0, 1, SHADES))[:, :3] for name in (SPEED, ERROR)]
    greys = np.linspace(0, 1, GREYS)[:, None].repeat(3, axis=1)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.rint(255 * np.concatenate([*shades, greys])).astype(np.uint8).tobytes())
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    durations = [MILLISECONDS] * len(others) + [HOLD * MILLISECONDS]
    with atomic_write(path) as temporary:
        first.save(temporary, save_all=True, append_images=others, duration=durations, loop=0)


@dataclass(frozen=True)
class _Colours:
    """One colour scale for all true and predicted fields of a picture, and one for all errors."""

    speed: Normalize
    error: Normalize
    beyond: bool

    @classmethod
    def of(cls, forecast: Forecast, indices: Sequence[int]) -> _Colours:
        """The scales for the steps `indices`. The true fields set them, so that a diverging prediction does not."""
        rows = list(indices)
        top = _positive(np.linalg.norm(forecast.true[rows], axis=1))
        beyond = bool((np.linalg.norm(forecast.predicted[rows], axis=1) > top).any())
        return cls(Normalize(0, top), Normalize(0, _positive(forecast.error[rows])), beyond)


def _positive(values: np.ndarray) -> float:
    """The largest finite value; 1 if there is none above 0."""
    finite = values[np.isfinite(values)]
    largest = float(finite.max()) if finite.size else 0.0
    return largest if largest > 0 else 1.0


def _draw_step(panels: Sequence[Axes], forecast: Forecast, index: int, colours: _Colours) -> None:
    """Draw truth, prediction and error of one step."""
    for panel, field in zip(panels, (forecast.true[index], forecast.predicted[index]), strict=False):
        _image(panel, np.linalg.norm(field, axis=0), SPEED, colours.speed, forecast.width)
        _arrows(panel, field, float(colours.speed.vmax or 1.0), forecast.width)
    _image(panels[2], forecast.error[index], ERROR, colours.error, forecast.width)


def _image(panel: Axes, values: np.ndarray, colour_map: str, norm: Normalize, width: float) -> None:
    half = width / 2
    panel.imshow(
        np.ma.masked_invalid(values),
        cmap=_map(colour_map),
        norm=norm,
        extent=(-half, half, -half, half),
        interpolation="nearest",
    )
    panel.set(xticks=(), yticks=())


def _map(name: str) -> Colormap:
    return matplotlib.colormaps[name].with_extremes(bad=BAD)


def _arrows(panel: Axes, field: np.ndarray, top: float, width: float) -> None:
    """Draw directions as arrows of equal length wherever the speed is not negligible; colours show the speed."""
    height, across = field.shape[1:]
    rows, columns = (_spread(count) for count in (height, across))
    x, y = field[:, rows[:, None], columns]
    speed = np.hypot(x, y)
    moving = np.isfinite(speed) & (speed > STILL * top)
    # Centres of the pixels: x to the right, y up, the origin in the middle.
    right = width * ((columns + 0.5) / across - 0.5)
    up = width * (0.5 - (rows + 0.5) / height)
    at_x, at_y = (grid[moving] for grid in np.meshgrid(right, up))
    spacing = width / max(len(rows), len(columns))
    panel.quiver(
        at_x,
        at_y,
        x[moving] / speed[moving],
        y[moving] / speed[moving],
        pivot="mid",
        angles="xy",
        scale_units="xy",
        scale=1 / (0.75 * spacing),
        width=0.011,
        headwidth=4,
        headlength=4.5,
        headaxislength=4,
        color="white",
        edgecolor="black",
        linewidth=0.4,
    )


def _spread(count: int) -> np.ndarray:
    """Indices of at most `ARROWS` of `count` pixels, evenly spaced about the middle."""
    every = math.ceil(count / ARROWS)
    return np.arange((count - 1) % every // 2, count, every)


def _colour_bars(figure: Figure, fields: list[Axes], errors: list[Axes], colours: _Colours) -> None:
    speed = ScalarMappable(colours.speed, _map(SPEED))
    extend = "max" if colours.beyond else "neither"
    figure.colorbar(speed, ax=fields, label="speed (length / time)", extend=extend, shrink=0.85)
    figure.colorbar(
        ScalarMappable(colours.error, _map(ERROR)), ax=errors, label="|error| (length / time)", shrink=0.85
    )


def _scale_words(forecast: Forecast) -> str:
    return (
        f"The box is {forecast.width:g} wide, step 0 is frame {forecast.frame} of its run. Arrows: direction, where the speed "
        f"is above {STILL:.0%} of the largest."
    )
