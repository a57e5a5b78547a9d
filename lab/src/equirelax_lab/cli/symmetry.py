"""`equirelax symmetry`: how strongly do the data of a run break the symmetry, residual by residual?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equirelax.errors import ConfigError
from equirelax.files import write_text
from equirelax.settings import COUNT, SEED, Range, check
from equirelax_lab.cli import options
from equirelax_lab.cli.terminal import show
from equirelax_lab.data.root import named_root
from equirelax_lab.training.dynamics import read_metrics
from equirelax_lab.training.folder import BEST, CONFIG, METRICS, RESULT, read_run_result

if TYPE_CHECKING:
    from equirelax.auditing.bounds import NetworkBounds
    from equirelax.auditing.breaking import Breaking

STEM = "symmetry"
TABLE, NUMBERS, PICTURE = f"{STEM}.md", f"{STEM}.json", f"{STEM}.png"
SCORE = "symmetry_score"
EXAMPLES, DRAWS = Range(2, 1_000_000), Range(0, 10_000)

DESCRIPTION = """\
Show how strongly a run's data break the symmetry.

The report first states how exactly the deployed form keeps the symmetry. For every residual of the run it then lists gamma, slack
and multiplier; its size, which gamma alone does not show (abs(gamma) x norm of W, share of the output); the equivariance error
that it adds, measured, and a bound on it where the bound's assumptions hold (n/a elsewhere); and the course of gamma and the
multipliers over training. It is written to symmetry.md, symmetry.json and symmetry.png in the run's folder, its table to
symmetry.csv and symmetry.tex.

With --score the command instead scores how symmetric the data are at every layer of the run's network, from the gradients of the
strict network on single validation samples. It takes runs of any method, including strict ones (equirelax.symmetry_score, and the
page "How symmetric are my data?"). It writes symmetry_score.md, .json and .png into the run's folder, or a table and a chart of
several runs into --out, with means over the runs that differ only in their seed. --draws repeats every score on random draws
of the validation samples, which shows how far it scatters.

examples:
  equirelax symmetry runs/mocap/egnn-resilient-seed0
  equirelax symmetry --score runs/nbody/segnn-strict-seed0
  equirelax symmetry --score runs/plumes-0 runs/plumes-75 -o runs/plumes-score
  equirelax symmetry --score runs/plumes-75 --examples 256 --draws 20"""


def main(words: Sequence[str]) -> int:
    """`words` begins with "symmetry"."""
    parser = options.parser(["symmetry"], DESCRIPTION)
    parser.add_argument("run", nargs="+", help="folder of a finished run; with --score, of several")
    parser.add_argument("--score", action="store_true", help="score how symmetric the data are")
    parser.add_argument("--examples", type=int, help="validation samples that --score uses (default: 128)")
    parser.add_argument(
        "--draws",
        type=int,
        help="further scores with --score, each of as many samples drawn at random (default: 0)",
    )
    parser.add_argument("-o", "--out", help="folder for the output (default: the run's)")
    parser.add_argument("--samples", type=int, default=8, help="random group elements")
    parser.add_argument("--seed", type=int, default=0, help="seed of the group elements")
    parser.add_argument("--data", help=options.DATA)
    parsed = options.parse(parser, words[1:], samples=COUNT, seed=SEED)
    of_score = {"examples": (parsed.examples, EXAMPLES), "draws": (parsed.draws, DRAWS)}
    for name, (given, wanted) in of_score.items():
        if given is not None and not parsed.score:
            raise ConfigError(f"--{name} {given} is for scores: add --score.")
        if given is not None:
            check(given, wanted, f"--{name}")
    if parsed.score:
        out, root = options.optional_path(parsed.out), options.optional_path(parsed.data)
        return score([Path(run) for run in parsed.run], out, parsed.examples or 128, parsed.draws or 0, root)
    if len(parsed.run) > 1:
        raise ConfigError(f"{len(parsed.run)} runs were named; one at a time, or several with --score.")
    folder = run_folder(Path(parsed.run[0]))
    result = read_run_result(folder / RESULT)
    if not result["gammas"]:
        error = result["equivariance_error"]
        print(
            f"{folder}: method {result['method']} has no residuals, so that there is nothing to tell layer by layer. "
            f"Equivariance error of the output: {'n/a' if error is None else format(error['before'], '.1e')}."
        )
        return 0
    rows = read_metrics(folder / METRICS, result["epochs"])
    if lacking := [key for key in result["gammas"] if f"gamma/{key}" not in rows[0]]:
        raise ConfigError(
            f"{folder / METRICS} is damaged: it has no column of gamma for {lacking[0]!r}. Train the run again."
        )
    measured, bounds = measure(folder, parsed.samples, parsed.seed, named_root(parsed.data))

    from equirelax_lab.report import again
    from equirelax_lab.report.record import record_text
    from equirelax_lab.report.symmetry import (
        deployed,
        findings,
        page,
        symmetry_study,
        symmetry_table,
    )
    from equirelax_lab.report.symmetry_picture import draw_symmetry

    study = symmetry_study(result, rows, measured, bounds, parsed.samples)
    out = Path(parsed.out) if parsed.out else folder
    words_of = f"{result['model']}, {result['method']}, seed {result['seed']}"
    from equirelax_lab.tasks.registry import task_class

    title = f"{task_class(result['benchmark']).title} ({words_of})"
    write_text(out / NUMBERS, record_text(study))
    command = again.command("symmetry", again.place(folder))
    write_text(out / TABLE, page(study, title, command))
    draw_symmetry(out / PICTURE, study, rows, title, command)
    table = symmetry_table(study)
    write_text(out / f"{STEM}.csv", table.csv())
    write_text(out / f"{STEM}.tex", table.latex())
    show(f"{deployed(study)}\n\n{table.markdown().rstrip()}")
    show("\n" + "\n".join(findings(study)))
    print(f"\npicture: {out / PICTURE}")
    return 0


def score(runs: Sequence[Path], out: Path | None, examples: int, draws: int, root: Path | None) -> int:
    """Score how symmetric the data of runs are, and write tables, numbers and chart.

    Raises:
        ConfigError: A run is not finished, its weights are not kept, or several runs have no `out`.
    """
    if len(runs) > 1 and out is None:
        raise ConfigError(f"{len(runs)} runs were named; give a folder for their table with --out.")
    folders = [run_folder(path) for path in runs]
    if lacking := [folder for folder in folders if not (folder / BEST).exists()]:
        raise ConfigError(f"{lacking[0]} does not hold its weights ({BEST}): train it again.")
    from equirelax_lab.report import again
    from equirelax_lab.report.record import record_text
    from equirelax_lab.report.symmetry_score import (
        draw_scores,
        layer_table,
        over_seeds,
        panels_over_seeds,
        score_table,
        seeds_table,
    )
    from equirelax_lab.training.provenance import commit, hardware, versions

    scores = [_scored(folder, examples, draws, root, len(folders) == 1) for folder in folders]
    runs_named = [again.place(folder) for folder in folders]
    words = ["--examples", str(examples), *(["--draws", str(draws)] if draws else [])]
    words += ["-o", again.place(out)] if out else []
    command = again.command("symmetry", "--score", *runs_named, *words)
    below = command if len(folders) <= 3 else " ".join(["equirelax symmetry --score RUN...", *words])
    where = out or folders[0]
    numbers = {
        "command": command,
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "runs": scores,
    }
    table, together = score_table(scores), len(over_seeds(scores)) < len(scores)
    parts = [f"Made by `{command}`. r and z: see docs/explanation/symmetry_score.md.", table]
    if together or draws:
        means = (
            "Mean ± standard deviation over seeds"
            + (" and draws" if draws else "")
            + ", and how many of the scores are above.\n\n"
        )
        parts.append(f"## Together\n\n{means}{seeds_table(scores)}")
    parts += [f"## {one['run']}\n\n`{one['command']}`\n\n{layer_table(one)}" for one in scores]
    write_text(where / f"{SCORE}.json", record_text(numbers))
    write_text(where / f"{SCORE}.md", "# How symmetric are the data?\n\n" + "\n\n".join(parts) + "\n")
    draw_scores(where / f"{SCORE}.png", panels_over_seeds(scores) if together else scores, below)
    print("\n" + "\n\n".join([table, *([seeds_table(scores)] if together or draws else [])]))
    print(f"\nchart: {where / f'{SCORE}.png'}")
    return 0


def _scored(folder: Path, examples: int, draws: int, root: Path | None, shown: bool) -> dict[str, Any]:
    """A run's scores as plain data, on evenly spaced samples and on random draws."""
    from equirelax_lab.report import again
    from equirelax_lab.tasks.symmetry_score import HeldOut
    from equirelax_lab.tasks.task import heading
    from equirelax_lab.training.checkpoint import load_run

    result = read_run_result(folder / RESULT)
    assembly = load_run(folder / BEST, root)
    held_out, network = HeldOut(assembly.task, examples), assembly.relaxation or assembly.model
    found = held_out(network)
    if shown:
        print(found)
    first = result["seed"] * draws  # runs of several seeds have separate draws
    drawn = [held_out(network, draw) for draw in range(first, first + draws)]
    scores = [{"ratio": one.whole.ratio, "z": one.whole.z, "ratios": one.ratios} for one in drawn]
    return {
        "run": folder.resolve().name,
        "command": again.train(result),
        "config": result["config"],
        "metric": heading(result["metric"]),
        "value": result["test"]["relaxed" if assembly.deploys_relaxed else "projected"],
        **found.to_dict(),
        **({"drawn": examples, "draws": scores} if draws else {}),
    }


def run_folder(path: Path) -> Path:
    """The folder of a finished run, from its path or that of a file in it.

    Raises:
        ConfigError: There is no finished run.
    """
    folder = path.parent if path.is_file() else path
    if not folder.is_dir():
        raise ConfigError(f"{path} is not there: name the folder of a finished run.")
    if not (folder / CONFIG).exists() and not (folder / RESULT).exists():
        inside = sorted(child.name for child in folder.iterdir() if (child / RESULT).exists())
        if inside:
            raise ConfigError(f"{folder} holds several runs: name one of them, such as {folder / inside[0]}.")
        raise ConfigError(f"{folder} is no run: it has neither {CONFIG} nor {RESULT}.")
    if not (folder / RESULT).exists():
        raise ConfigError(
            f"{folder} is not finished (it has no {RESULT}): go on with equirelax train ... --resume."
        )
    return folder


def measure(
    folder: Path, samples: int, seed: int, root: Path | None
) -> tuple[tuple[Breaking, ...] | None, NetworkBounds | None]:
    """Measure the selected weights; (None, None) if they are not kept (best.ckpt).

    Raises:
        ConfigError: `samples` is below 1. CheckpointError: the file is damaged. DataError: the data is missing.
    """
    if samples < 1:
        raise ConfigError(f"--samples is {samples}; at least one group element is needed.")
    if not (folder / BEST).exists():
        return None, None
    from equirelax_lab.training.checkpoint import load_run

    assembly = load_run(folder / BEST, root)
    if assembly.relaxation is None:
        raise ConfigError(
            f"{folder / BEST} has no residuals, but {RESULT} lists some: files of two runs were mixed."
        )
    case, model = assembly.task.audit_case(), assembly.model
    head = case.head
    from equirelax.auditing.bounds import equivariance_bounds
    from equirelax.auditing.breaking import breaking

    measured = breaking(
        assembly.relaxation,
        case.sample,
        case.in_rep,
        case.out_rep,
        case.group,
        model=model if head is None else lambda *inputs: head(model(*inputs)),
        samples=samples,
        seed=seed,
    )
    return measured, equivariance_bounds(assembly.relaxation)
