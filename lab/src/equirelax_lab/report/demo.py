"""The output of `equirelax demo`: lines on the terminal, one table, one picture, one page."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import FigureBase
from matplotlib.ticker import MaxNLocator

from equirelax.files import write_text
from equirelax_lab.report import again
from equirelax_lab.report.axes import scaled
from equirelax_lab.report.conclusion import ENOUGH_SEEDS, conclusion
from equirelax_lab.report.drawing import Figure, png, svg
from equirelax_lab.report.lines import legend, tip
from equirelax_lab.report.looks import GROUND, METHODS, RED, SOFT
from equirelax_lab.report.numbers import Numbers
from equirelax_lab.report.page import Block, Drawn, fill
from equirelax_lab.report.rows import differing_line, marked_line
from equirelax_lab.report.runs import read_folder
from equirelax_lab.report.statistics import decimals, difference_text, interval_text, spread_text
from equirelax_lab.report.summary import summarise
from equirelax_lab.tasks.task import heading

TABLE, PICTURE, PAGE = "summary.md", "demo.png", "demo.html"
TITLE = "equirelax in three parts"
ROUND_TRIP = "1. A network relaxed, trained, projected: exactly equivariant again"
PLANTED = "2. A mistake planted in a network, and the module that the audit names"
COMPARED = "3. Strict beside relaxed: the same rate, steps and seeds"
RATE = (
    "The learning rate, {rate:g} for both, is the one of 0.001, 0.003, 0.006 and 0.012 at which the strict network had the "
    "lowest validation error on seed 0 (lab/results/demo/rate), so it favours strict training if anything."
)
FEW = "{seeds} seeds decide nothing; six or more may, and the papers train far longer."
FLOOR = 1e-17
"""Where an axis of errors begins: an error of exactly 0 has no logarithm."""

State = Mapping[str, Any]


def round_trip_lines(part: State) -> list[str]:
    """The outcome of the first part."""
    width = max(len(name) for name, _, _ in part["stages"])
    lines = [f"{'':{width}}  equivariance error  test error"]
    lines += [f"{name:{width}}  {error:18.1e}  {test:10.4f}" for name, error, test in part["stages"]]
    sizes = part["parameters"]
    keys = "the author's keys" if part["same_keys"] else "other keys than the author's"
    return [
        *lines,
        f"weights: {sizes['strict']}, relaxed {sizes['relaxed']}, projected {sizes['projected']} under {keys}",
    ]


def planted_lines(part: State) -> list[str]:
    """The outcome of the second part."""
    found = "that is the place" if part["named"] == part["planted"] else "that is NOT the place"
    return [
        f"equivariance error before: {part['before']:.1e}; with the mistake in {part['planted']}: {part['after']:.1e}",
        f"first break according to the audit: {part['named']}; {found}",
    ]


def write_demo(out: Path, state: State, runs: Path, data: str | None) -> str:
    """Write table, picture and page of a finished demo; returns what is printed last.

    Args:
        out: The demo's folder.
        state: Seeds and parts.
        runs: Folder of the comparison.
        data: The data root as it was given.

    Raises:
        ConfigError: No run of the comparison is finished.
    """
    found = read_folder(runs)[0]
    summary = summarise([run.result for run in found if run.finished])
    command = again.command("demo", "--seeds", ",".join(map(str, state["seeds"])))
    table, sentences = demo_table(state, summary), demo_sentences(state, summary)
    differing, made = (
        marked_line(summary["runs"]),
        f"Made by `{command}`. {_origin(summary)} {_times(state)}",
    )
    write_text(
        out / TABLE,
        "\n\n".join([f"# {TITLE}", table.markdown().rstrip(), differing, made, " ".join(sentences)]) + "\n",
    )
    drawn = demo_figures(state, summary)
    png(out / PICTURE, drawn, TITLE, 2, command)
    shown = next_commands(out, state, data)
    write_text(out / PAGE, fill(TITLE, [_chapter(state, summary, table, drawn, shown)], command))
    return "\n".join(
        [
            "",
            table.markdown(),
            *sentences,
            "",
            f"table:   {out / TABLE}",
            f"picture: {out / PICTURE}",
            f"page:    {out / PAGE}",
            "",
            "Next:",
            *(line for words, one in shown for line in (f"  # {words}", f"  {one}")),
        ]
    )


def demo_table(state: State, summary: State) -> Numbers:
    """Everything that the demo measured, one line each."""
    trip, planted = state["parts"]["round_trip"], state["parts"]["planted"]
    rows = [
        (name, f"{error:.1e}", f"{test:.4f}", _size(trip, index))
        for index, (name, error, test) in enumerate(trip["stages"])
    ]
    rows += [
        (
            f"SEGNN, a mistake in {planted['planted']}",
            f"{planted['after']:.1e}",
            "",
            f"the audit names {planted['named']}",
        )
    ]
    words = heading(summary["metric"])
    for name, row in summary["methods"].items():
        error, spread = row["equivariance_error"], row["test"][row["headline"]]
        says = f"{words}, {len(row['seeds'])} seeds"
        if compared := row["paired_with_strict"]:
            digits = decimals(spread["mean"])
            says += f"; minus strict {difference_text(compared, digits)} [{interval_text(compared, digits)}]"
            says += f", better in {compared['wins']} of {compared['count']}"
        rows.append(
            (f"N-body, {name}", f"{error['after']:.1e}" if error else "", f"**{spread_text(spread)}**", says)
        )
    return Numbers(
        "What the demo measured", ("network", "equivariance error", "test error", "remarks"), tuple(rows)
    )


def _size(trip: State, index: int) -> str:
    sizes = trip["parameters"]
    if index == 0:
        return f"{sizes['strict']} weights"
    if index < len(trip["stages"]) - 1:
        return f"{sizes['relaxed']} weights"
    return f"{sizes['projected']} weights{', the author’s keys' if trip['same_keys'] else ''}"


def demo_sentences(state: State, summary: State) -> list[str]:
    """What the comparison shows, and what it cannot show."""
    count = len(state["seeds"])
    few = [FEW.format(seeds=count)] if count < ENOUGH_SEEDS else []
    return [conclusion(summary), RATE.format(rate=state["settings"]["learning_rate"]), *few]


def next_commands(out: Path, state: State, data: str | None) -> list[tuple[str, str]]:
    """(what it does, command) of three commands to try next, as they are typed where the demo ran."""
    ours = Path(sys.executable).parent
    there = shutil.which("equirelax")
    found = there is not None and Path(there).parent == ours
    program, python = (
        ("equirelax", "python") if found else (_near(ours / "equirelax"), _near(ours / "python"))
    )
    root = f" --data {data}" if data else ""
    run = f"{out / 'compare'}/scheduled-seed{state['seeds'][0]}"
    return [
        ("which residual of a run breaks how much of the symmetry", f"{program} symmetry {run}{root}"),
        ("every curve of these runs, layer by layer", f"{program} report {out / 'compare'} --open"),
        (
            "is your own network equivariant, and where is it not",
            f'{python} -m equirelax audit your_package.your_module:build --in "2x0e + 1x1o" --out "1x1o"',
        ),
    ]


def _near(path: Path) -> str:
    """A path as it is typed in the current folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def demo_figures(state: State, summary: State) -> list[Figure]:
    """One figure for every part."""
    return [_course(state["parts"]["round_trip"]), _modules(state["parts"]["planted"]), _by_seed(summary)]


def _course(trip: State) -> Figure:
    look = METHODS["scheduled"]
    steps, errors, gammas = zip(*trip["course"], strict=True)

    def draw(part: FigureBase) -> None:
        above, below = part.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        (drawn,) = above.plot(
            steps,
            [max(error, FLOOR) for error in errors],
            color=look.colour,
            marker=look.marker,
            label="relaxed network",
        )
        tip(drawn, "relaxed network")
        (drawn,) = above.plot(
            [steps[-1]], [trip["stages"][-1][1]], color=METHODS["strict"].colour, marker="o", linestyle="none",
            markersize=7, label="projected",
        )  # fmt: skip
        tip(drawn, f"projected: {trip['stages'][-1][1]:.1e}")
        scaled(above.yaxis, "equivariance error", [1e-16, 1.0], "log")
        below.plot(steps, gammas, color=look.colour)
        below.set(xlabel="optimizer step", ylabel="gamma", ylim=(-0.05, 1.05))
        below.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        legend(part, above)

    return Figure(
        "1. Equivariance error while a relaxed network trains, and projected",
        "The relative equivariance error in float64 of a network that learns the force on a charge, q (E + v x B). CR's schedule "
        "takes gamma, the strength of its residuals, from 0 to 1 and back; projection removes them.",
        draw,
        Numbers(
            "Equivariance error over training",
            ("step", "equivariance error", "gamma"),
            tuple((str(step), f"{error:.2e}", f"{gamma:.3f}") for step, error, gamma in trip["course"]),
        ),
        2.9,
    )


def _modules(planted: State) -> Figure:
    known = [(path, added) for path, added in planted["modules"] if added is not None]

    def draw(part: FigureBase) -> None:
        panel = part.subplots()
        for place, (path, added) in enumerate(known):
            colour = RED if path == planted["planted"] else SOFT
            value = max(added, FLOOR)
            (drawn,) = panel.plot([FLOOR, value], [place, place], color=colour, linewidth=2.5)
            panel.plot([value], [place], color=colour, marker="o")
            tip(drawn, f"{path}: {added:.1e}")
        panel.set_yticks(range(len(known)), [path for path, _ in known])
        for label, (path, _) in zip(panel.get_yticklabels(), known, strict=True):
            label.set_fontweight("bold" if path == planted["planted"] else "normal")
        panel.invert_yaxis()
        scaled(panel.xaxis, "relative equivariance error that the module adds", [FLOOR, 1.0], "log")
        panel.grid(visible=False, axis="y")

    return Figure(
        "2. Equivariance error that each module adds; the mistake in bold",
        f"Every tensor product of a SEGNN. In the one drawn at random, {planted['planted']}, vectors lose their mean over x, y "
        f"and z, a mistake that published code makes; the audit, which does not know the place, names {planted['named']}.",
        draw,
        Numbers(
            "Error that every module adds",
            ("module", "relative equivariance error"),
            tuple((path, f"{added:.2e}") for path, added in known),
        ),
        1.1 + 0.21 * len(known),
    )


def _by_seed(summary: State) -> Figure:
    rows = summary["methods"]
    values = {
        name: {r["seed"]: r["test"][rows[name]["headline"]] for r in _runs(summary, name)} for name in rows
    }
    seeds = sorted({seed for own in values.values() for seed in own})
    words = heading(summary["metric"])

    def draw(part: FigureBase) -> None:
        panel = part.subplots()
        for place, seed in enumerate(seeds):
            pair = [own[seed] for own in values.values() if seed in own]
            panel.plot(pair, [place] * len(pair), color=SOFT, linewidth=1, zorder=1)
        for name, own in values.items():
            look = METHODS[name]
            places = [seeds.index(seed) for seed in own]
            (drawn,) = panel.plot(
                list(own.values()), places, color=look.colour, marker=look.marker, linestyle="none", markersize=7,
                markerfacecolor=GROUND if name == "strict" else look.colour, label=name,
            )  # fmt: skip
            tip(drawn, f"{name}: {', '.join(f'{value:.3f}' for value in own.values())}")
        panel.set_yticks(range(len(seeds)), [f"seed {seed}" for seed in seeds])
        panel.set_ylim(len(seeds) - 0.5, -0.5)
        panel.set_xlabel(f"test {words}, projected")
        legend(part, panel)

    return Figure(
        "3. Test error of strict and relaxed, seed by seed",
        "SEGNN on N-body: the test error of the network that each method hands over, seed by seed.",
        draw,
        Numbers(
            "Test error by seed",
            ("seed", *values),
            tuple(
                (str(seed), *(f"{own[seed]:.3f}" if seed in own else "" for own in values.values()))
                for seed in seeds
            ),
        ),
        1.5 + 0.3 * len(seeds),
    )


def _runs(summary: State, name: str) -> Sequence[State]:
    return [run for run in summary["runs"] if run["method"] == summary["methods"][name]["method"]]


@dataclass
class _Chapter:
    """The only chapter of the page."""

    title: str
    sections: list[tuple[str, list[Block]]]
    name: str = "demo"
    warnings: list[str] = field(default_factory=list)


def _chapter(
    state: State, summary: State, table: Numbers, figures: Sequence[Figure], shown: Sequence[tuple[str, str]]
) -> _Chapter:
    trip, planted = state["parts"]["round_trip"], state["parts"]["planted"]
    charts = [
        Block("figures", [Drawn(f"demo-f{index}", figure, svg(figure, f"demo-f{index}"))])
        for index, figure in enumerate(figures)
    ]
    whole = Block("details", [Block("code", planted["report"])], "The whole audit")
    verdict, *cautions = demo_sentences(state, summary)
    return _Chapter(
        f"Seeds {', '.join(map(str, state['seeds']))}",
        [
            ("What was measured", [Block("table", table)]),
            (
                ROUND_TRIP,
                [
                    Block("text", "This is all of the training that was run:"),
                    Block("code", trip["code"]),
                    charts[0],
                ],
            ),
            (
                PLANTED,
                [
                    *(Block("text", f"{line[0].upper()}{line[1:]}.") for line in planted_lines(planted)),
                    charts[1],
                    whole,
                ],
            ),
            (
                COMPARED,
                [
                    Block("conclusion", verdict),
                    *(Block("text", words) for words in cautions),
                    Block("differing", differing_line(summary["runs"]).replace("**", "")),
                    charts[2],
                ],
            ),
            (
                "Three commands to try next",
                [Block("code", "\n".join(f"# {words}\n{one}" for words, one in shown))],
            ),
            ("What was run", [Block("text", _origin(summary)), Block("text", _times(state))]),
        ],
    )


def _origin(summary: State) -> str:
    hardware, versions = summary["hardware"], summary["versions"]
    return (
        f"Commit {', '.join(summary['commits'])}; {hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} thread "
        f"a run; torch {versions['torch']}. {summary['scaled_down']}."
    )


def _times(state: State) -> str:
    total, cpu = sum(state["seconds"].values()), sum(state["cpu_seconds"].values())
    parts = ", ".join(
        f"{name.replace('_', ' ')} {seconds:.0f} s" for name, seconds in state["seconds"].items()
    )
    speed = f" on cores of {state['gflops']} GFLOP/s" if "gflops" in state else ""
    return f"It took {total:.0f} s ({parts}) and {cpu:.0f} s of CPU{speed}, with whatever else ran on the machine."
