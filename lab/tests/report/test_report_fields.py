"""Pictures of forecasts: the right steps, up is up, scales that a diverging prediction does not spoil, whole files or none."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from equirelax_lab.report import fields
from equirelax_lab.report.fields import Forecast, draw_fields, draw_rollout, shown_steps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from PIL import Image

from equirelax.errors import DataError


def forecast(steps: int = 3, size: int = 9, error: float = 0.1) -> Forecast:
    """Fast upwards flow in the upper left quarter, slow flow to the right elsewhere."""
    true = np.zeros((steps, 2, size, size), dtype=np.float32)
    true[:, 0] = 0.4
    true[:, :, : size // 2, : size // 2] = np.array([0, 2.0])[:, None, None]
    return Forecast(true, true + np.float32(error), 100.0, 7)


def colours(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def share(image: Image.Image, colour: tuple[float, ...], tolerance: int = 12) -> float:
    """Of the pixels, those that have about this colour (0 to 1)."""
    wanted = np.array([round(255 * part) for part in colour[:3]])
    return float((abs(colours(image) - wanted).max(axis=-1) <= tolerance).mean())


def test_the_error_of_a_forecast_is_that_of_a_loop() -> None:
    made = forecast()
    made.predicted[1] += np.random.default_rng(0).normal(size=made.true[1].shape).astype(np.float32)
    pairs = zip(made.true.flatten().tolist(), made.predicted.flatten().tolist(), strict=True)
    squares = [(a - b) ** 2 for a, b in pairs]
    assert made.rmse == pytest.approx((sum(squares) / len(squares)) ** 0.5, rel=1e-6)
    off = made.predicted[1, :, 2, 5].astype(float) - made.true[1, :, 2, 5]
    assert made.error.shape == (3, 9, 9)
    assert made.error[1, 2, 5] == pytest.approx((off[0] ** 2 + off[1] ** 2) ** 0.5)
    assert len(made) == 3


@pytest.mark.parametrize(
    ("count", "steps"),
    [
        (1, [1]),
        (4, [1, 2, 3, 4]),
        (6, [1, 5, 6]),
        (12, [1, 5, 10, 12]),
        (20, [1, 5, 10, 15, 20]),
        (50, [1, 10, 20, 30, 40, 50]),
    ],
)
def test_steps_that_are_shown(count: int, steps: list[int]) -> None:
    assert shown_steps(count) == steps


def test_no_picture_has_many_columns() -> None:
    assert max(len(shown_steps(count)) for count in range(1, 400)) <= fields.COLUMNS


def test_up_is_up_and_fast_is_bright() -> None:
    made = forecast()
    figure = Figure(figsize=(3, 3), dpi=100)
    canvas = FigureCanvasAgg(figure)
    panels = [figure.add_axes((0, 0, 1, 1)), *(figure.add_axes((0, 0, 0.01, 0.01)) for _ in range(2))]
    fields._draw_step(panels, made, 1, fields._Colours.of(made, [1]))
    panels[1].set_visible(False)
    panels[2].set_visible(False)
    canvas.draw()
    seen = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    for rows, columns, speed in (
        (slice(10, 120), slice(10, 120), 1.0),
        (slice(150, 290), slice(10, 290), 0.2),
    ):
        wanted = np.rint(255 * np.array(matplotlib.colormaps[fields.SPEED](speed)[:3]))
        assert (abs(seen[rows, columns] - wanted).max(-1) < 6).mean() > 0.6  # the rest are arrows
    (arrows,) = (one for one in panels[0].collections if isinstance(one, Quiver))
    assert len(arrows.U) == 81
    for (right, up), u, v in zip(arrows.XY, arrows.U, arrows.V, strict=True):
        fast = right < -50 / 9 and up > 50 / 9  # the first four of nine columns and rows
        assert (u, v) == pytest.approx((0, 1) if fast else (1, 0))


def test_a_picture_is_written_whole(tmp_path: Path) -> None:
    draw_fields(tmp_path / "fields.png", forecast(), "a title")
    assert [path.name for path in tmp_path.iterdir()] == ["fields.png"]
    with Image.open(tmp_path / "fields.png") as picture:
        assert min(picture.size) > 500
        for colour in (matplotlib.colormaps[fields.SPEED](0.2), (1, 1, 1)):
            assert share(picture, colour) > 0.05


def test_the_animation_has_a_frame_for_every_step_and_one_palette(tmp_path: Path) -> None:
    made = forecast(steps=4)
    for step in range(4):  # what moves: a fast square
        made.true[step, 1, 2 * step : 2 * step + 2, 6:8] = 2
    draw_rollout(tmp_path / "rollout.gif", made, "a title")
    assert [path.name for path in tmp_path.iterdir()] == ["rollout.gif"]
    with Image.open(tmp_path / "rollout.gif") as picture:
        assert picture.format == "GIF"
        assert picture.n_frames == 4  # type: ignore[attr-defined]
        assert picture.info["loop"] == 0
        frames, durations = [], []
        for step in range(4):
            picture.seek(step)
            frames.append(colours(picture))
            durations.append(picture.info["duration"])
    assert durations == [fields.MILLISECONDS] * 3 + [fields.HOLD * fields.MILLISECONDS]
    height, width, _ = frames[0].shape
    rows, columns = np.argwhere((frames[0] != frames[3]).any(axis=-1)).T
    # above the step's number; below it nothing changes but the squares that move, in two of three panels
    number = rows < 0.15 * height
    assert number.any()
    assert (abs(columns[number] - width / 2) < 20).all()
    true, error = columns[~number] < 0.27 * width, columns[~number] > 0.64 * width
    assert true.any()
    assert error.any()
    assert (true | error).all()
    assert columns.max() < 0.91 * width  # the colour bars stand still, and keep their colours
    assert share(Image.fromarray(frames[2].astype(np.uint8)), (1, 1, 1), 1) > 0.3


def test_a_prediction_that_grows_without_bound_leaves_the_true_field_legible(tmp_path: Path) -> None:
    made = forecast()
    made.predicted[-1] *= 1e6
    assert fields._Colours.of(made, [0, 2]).speed.vmax == pytest.approx(2.0)
    assert fields._Colours.of(made, [0, 2]).beyond
    assert not fields._Colours.of(forecast(error=0.0), [0, 1, 2]).beyond
    made.predicted[-1] = np.nan
    assert np.isfinite(fields._Colours.of(made, [2]).error.vmax or np.nan)
    draw_fields(tmp_path / "fields.png", made, "NaN")
    with Image.open(tmp_path / "fields.png") as picture:
        assert share(picture, (0.6, 0.6, 0.6)) > 0.05  # grey: the last step, predicted and error


def test_still_air_and_perfect_forecasts_can_be_drawn(tmp_path: Path) -> None:
    still = np.zeros((2, 2, 5, 5))
    draw_fields(tmp_path / "fields.png", Forecast(still, still, 1.0, 0), "still")
    draw_rollout(tmp_path / "rollout.gif", Forecast(still, still, 1.0, 0), "still")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("size", [8, 16, 64, 65])
def test_arrows_are_few_and_spread_evenly(size: int) -> None:
    found = fields._spread(size)
    assert len(found) <= fields.ARROWS
    assert len(set(np.diff(found))) == 1
    assert abs(found[0] - (size - 1 - found[-1])) <= 1


def test_arrays_that_are_no_forecast() -> None:
    good = np.zeros((3, 2, 4, 4))
    for true, predicted in (
        (good, good[:2]),
        (good[:, :1], good[:, :1]),
        (good[0], good[0]),
        (good[:0], good[:0]),
    ):
        with pytest.raises(DataError, match=r"true and predicted fields \(T, 2, H, W\)"):
            Forecast(true, predicted, 1.0, 0)
    bad = good.copy()
    bad[0, 0, 0, 0] = np.inf
    with pytest.raises(DataError, match="NaN or infinity"):
        Forecast(bad, good, 1.0, 0)


def test_an_interrupted_drawing_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "rollout.gif"
    old.write_bytes(b"old")

    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        draw_rollout(old, forecast(), "a title")
    assert old.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["rollout.gif"]
