"""`equirelax fields`: draw the forecast of a finished smoke run beside the true fields."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from equirelax.errors import ConfigError
from equirelax.settings import COUNT_OR_NONE
from equirelax_lab.cli import options
from equirelax_lab.cli.symmetry import run_folder
from equirelax_lab.data.root import named_root
from equirelax_lab.training.folder import BEST

if TYPE_CHECKING:
    from torch import Tensor

    from equirelax_lab.data import FieldSet
    from equirelax_lab.tasks.smoke import SmokeTask
    from equirelax_lab.training.assembly import Assembly

PICTURE, ANIMATION = "fields.png", "rollout.gif"
SPLITS = {"future": "Future", "domain": "Domain"}

DESCRIPTION = """\
Roll out a finished smoke run on one window of the test set and draw it: true and predicted velocity and the error, as
fields.png (some steps side by side) and rollout.gif (all steps, animated). The model is the one that the method deploys:
with its residuals for resilient and rpp, projected otherwise.

examples:
  equirelax fields runs/smoke/e2cnn-ace-seed0
  equirelax fields runs/smoke/e2cnn-ace-seed0 --split domain --window 12 --out pictures"""


def main(words: Sequence[str]) -> int:
    """`words` begins with "fields"."""
    parser = options.parser(["fields"], DESCRIPTION)
    parser.add_argument("run", help="folder of a finished smoke run")
    parser.add_argument("--window", type=int, default=0, help="which window of the split, counted from 0")
    parser.add_argument("--split", choices=list(SPLITS), default="future", help="of the test set")
    parser.add_argument("-o", "--out", help="folder for the output (default: the run's)")
    parser.add_argument("--data", help=options.DATA)
    parsed = options.parse(parser, words[1:], window=COUNT_OR_NONE)
    from equirelax_lab.data.smoke_simulation import BOX
    from equirelax_lab.tasks.smoke import SmokeTask
    from equirelax_lab.training.checkpoint import load_run

    folder = run_folder(Path(parsed.run))
    assembly = load_run(folder / BEST, named_root(parsed.data))
    task = assembly.task
    if not isinstance(task, SmokeTask):
        raise ConfigError(
            f"{folder} is a run of {task.name}: only forecasts of smoke (equirelax train smoke) can be drawn as fields."
        )
    data = task.windows(parsed.split)
    if not 0 <= parsed.window < len(data):
        raise ConfigError(
            f"--window is {parsed.window}; the split {parsed.split} has the windows 0 to {len(data) - 1}."
        )
    predicted = forecast(assembly, data, parsed.window)

    from equirelax_lab.report import again
    from equirelax_lab.report.fields import Forecast, draw_fields, draw_rollout

    run, first = data.windows[parsed.window].tolist()
    truth = data.batch([parsed.window])["target"][0]
    drawn = Forecast(truth.numpy(), predicted.numpy(), BOX, first + data.inputs)
    out = Path(parsed.out) if parsed.out else folder
    title = (
        f"{described(assembly)}: RMSE {drawn.rmse:.3g} over {len(drawn)} steps\n"
        f"{SPLITS[parsed.split]}, window {parsed.window} of 0 to {len(data) - 1} (run {run}, {placed(task, int(data.side[run]))})"
    )
    chosen = ["--split", parsed.split, "--window", str(parsed.window)]
    draw_fields(out / PICTURE, drawn, title, again.command("fields", again.place(folder), *chosen))
    draw_rollout(out / ANIMATION, drawn, title)
    print(" ".join(title.split("\n")))
    print(f"picture: {out / PICTURE}\nanimation: {out / ANIMATION}")
    return 0


def forecast(assembly: Assembly, data: FieldSet, window: int) -> Tensor:
    """Roll out the model that the method deploys; returns velocities (outputs, 2, H, W)."""
    from equirelax_lab.training.evaluation import evaluating

    relaxation = None if assembly.deploys_relaxed else assembly.relaxation
    with evaluating(assembly.model), nullcontext() if relaxation is None else relaxation.strict():
        batch = assembly.task.eval_batch(data, [window])
        return assembly.task.predict(assembly.model, batch)[0]


def placed(task: SmokeTask, side: int) -> str:
    """Describe where the inflow of a simulation is, or its scale."""
    from equirelax_lab.data.smoke import SCALES

    if task.settings.symmetry == "scale":
        return f"scale {SCALES[side]:g}"
    return f"inflow from the {('bottom', 'right', 'top', 'left')[side]}"


def described(assembly: Assembly) -> str:
    """Model, method and seed in words, and the form of the network that is drawn."""
    config = assembly.config
    form = ""
    if assembly.relaxation is not None:
        form = " (relaxed)" if assembly.deploys_relaxed else " (projected)"
    return f"{config.model}, {config.method}{form}, seed {config.seed}"
