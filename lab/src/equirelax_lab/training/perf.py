"""Time a training step, strict and relaxed, and count the multiply-adds that it needs at least.

All cases are timed in one process and in turn, one step of every case per round, after a warm-up. Minima are reported,
because every disturbance makes a measurement longer. With one thread the thread's CPU time is measured, which other programs
do not lengthen.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from equirelax.errors import ConfigError
from equirelax.relaxation import project
from equirelax.relaxation.summary import memory_of, readable
from equirelax_lab.data import nbody
from equirelax_lab.tasks.registry import defaults
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.tasks.task import Batch
from equirelax_lab.training import provenance
from equirelax_lab.training.assembly import Assembly, assemble, build_optimizer
from equirelax_lab.training.perf_subjects import subject

_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
"""Position of the first factor among an operator's arguments."""


@dataclass
class Factors:
    """Shapes and strides of the two factors of a matrix product."""

    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    strides: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def multiply_adds(self) -> int:
        """rows x inner x columns, times the batch."""
        a, b = self.shapes
        batch = a[0] if len(a) == 3 else 1
        return batch * a[-2] * a[-1] * b[-1]


class MatrixProducts(TorchDispatchMode):
    """Records the factors of every matrix product that runs within it, so that `replay` can repeat them."""

    def __init__(self) -> None:
        super().__init__()
        self.factors: list[Factors] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record the factors, and call the operator."""
        first = _PRODUCTS.get(func.overloadpacket.__name__.rstrip("_"))
        if first is not None:
            a, b = args[first], args[first + 1]
            self.factors.append(Factors((tuple(a.shape), tuple(b.shape)), (a.stride(), b.stride())))
        return func(*args, **(kwargs or {}))


@dataclass
class Case:
    """A call to be timed, its name, and the number of steps that it takes."""

    name: str
    call: Callable[[], Any]
    steps: int = 1
    seconds: list[float] = field(default_factory=list)

    @property
    def milliseconds(self) -> float:
        """Milliseconds per step in the shortest repetition."""
        return 1e3 * min(self.seconds) / self.steps


def measure(
    benchmark: str = "nbody",
    model: str | None = None,
    *,
    batch_size: int | None = None,
    rows: int | None = None,
    repetitions: int | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Time training steps and inference at the papers' sizes on random samples; this needs no data.

    Args:
        benchmark: One of `perf_subjects.SUBJECTS`.
        model: One of its models; None takes the first.
        batch_size: Samples in a batch; this and the following arguments take the subject's own value if they are None.
        rows: Input rows that the subsampled penalty is computed from.
        repetitions: Timed repetitions of every case, after the warm-up.
        threads: Threads of torch.

    Returns:
        Milliseconds, multiply-adds, bytes of memory and ratios by name; goals, settings, commit, hardware and versions.

    Raises:
        ConfigError: There is no such benchmark or model, or a number is below 1.
    """
    timed, model = subject(benchmark, model)
    batch_size = timed.batch_size if batch_size is None else batch_size
    rows = timed.rows if rows is None else rows
    repetitions = timed.repetitions if repetitions is None else repetitions
    threads = timed.threads if threads is None else threads
    if min(repetitions, batch_size, rows, threads) < 1:
        raise ConfigError("repetitions, batch_size, rows and threads must be at least 1.")
    torch.set_num_threads(threads)
    batch = timed.batch(batch_size)
    strict, scheduled, learnt = (defaults(benchmark, model, name) for name in ("strict", "scheduled", "ace"))
    configs = {"strict": strict, **relaxed_cases(scheduled, rows, "relaxed"), "ACE": learnt}
    if timed.rank is not None:
        thin = scheduled.updated({"residual": {"kind": "low-rank", "rank": timed.rank}})
        configs |= relaxed_cases(thin, rows, f"relaxed, rank {timed.rank}")
    if timed.groups is not None:
        split = scheduled.updated({"residual": {"kind": "grouped", "groups": timed.groups}})
        configs |= relaxed_cases(split, rows, f"relaxed, {timed.groups} groups")
    assemblies = {name: assemble(config) for name, config in configs.items()}
    memory = {name: stated_memory(assembly) for name, assembly in assemblies.items()}
    steps = {name: training_step(assembly, batch) for name, assembly in assemblies.items()}
    # A call takes as many steps as are needed to compute the penalty once.
    periods = {name: getattr(config.strength, "every", 1) for name, config in configs.items()}
    calls = {name: repeated(step, periods[name]) for name, step in steps.items()}
    multiply_adds = {
        name: sum(p.multiply_adds for p in products(call)) // periods[name] for name, call in calls.items()
    }
    cases = [Case(f"{name}: step", call, periods[name]) for name, call in calls.items()]
    cases.append(Case("strict: its matrix products alone", replay(products(steps["strict"]))))
    cases += inference_cases(strict, scheduled, batch)
    clock = time.thread_time if threads == 1 else time.perf_counter
    _run(cases, timed.warm_up, repetitions, clock)
    return {
        "benchmark": benchmark,
        "model": model,
        "milliseconds": {case.name: case.milliseconds for case in cases},
        "multiply_adds": multiply_adds,
        "memory": memory,
        "ratios": ratios({case.name: case.milliseconds for case in cases}, multiply_adds),
        "goals": timed.goals,
        "settings": {
            "batch_size": batch_size,
            "sample": timed.sample,
            "rows": rows,
            "repetitions": repetitions,
            "warm_up": timed.warm_up,
            "threads": threads,
            "device": "cpu",
            "clock": clock.__name__,
            "reported": "minimum",
        },
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
    }


def relaxed_cases(config: RunConfig, rows: int, name: str) -> dict[str, RunConfig]:
    """Settings without a penalty, with the exact one at every step or every fourth, and with one from sampled rows."""
    return {
        f"{name}, no penalty": config.updated({"strength": {"lie_weight": 0.0, "norm_weight": 0.0}}),
        f"{name} + exact penalty": config,
        f"{name} + exact penalty every 4th step": config.updated({"strength": {"every": 4}}),
        f"{name} + penalty from sampled rows": config.updated({"strength": {"rows": rows}}),
    }


def stated_memory(assembly: Assembly) -> dict[str, int]:
    """Bytes of the residuals, of training without activations, and of the exact penalty's Gram matrices."""
    if assembly.relaxation is None:
        own = memory_of(assembly.model.parameters(), ())
    else:
        own = assembly.relaxation.summary().memory
    return {"residual": own.residual, "training": own.training, "gram": own.gram}


def training_step(assembly: Assembly, batch: Batch) -> Callable[[], None]:
    """A step of a user's loop: loss, penalty, backward pass, and the optimizer's step, which includes the method's."""
    optimizer = build_optimizer(assembly)
    task, model, method = assembly.task, assembly.model, assembly.method

    def step() -> None:
        optimizer.zero_grad()
        loss = task.loss(task.predict(model, batch), batch)
        if method is not None:
            loss = loss + method.penalty()
        loss.backward()
        optimizer.step()

    return step


def repeated(step: Callable[[], None], count: int) -> Callable[[], None]:
    """A call that takes the step `count` times."""

    def call() -> None:
        for _ in range(count):
            step()

    return call


def inference_cases(strict: RunConfig, relaxed: RunConfig, batch: Batch) -> list[Case]:
    """The forward passes of the author's model, of a projected model, and of the relaxed model before the projection."""
    before = assemble(relaxed)
    after = copy.deepcopy(before.model)
    project(after)
    own: Assembly = assemble(strict)
    models = {"strict": own.model, "projected": after, "relaxed": before.model}

    def forward(model: torch.nn.Module) -> Callable[[], None]:
        model.eval()

        def call() -> None:
            with torch.no_grad():
                own.task.predict(model, batch)

        return call

    return [Case(f"{name}: inference", forward(model)) for name, model in models.items()]


def products(call: Callable[[], Any]) -> list[Factors]:
    """The matrix products of a call, in the forward and the backward pass."""
    with MatrixProducts() as mode:
        call()
    return mode.factors


def replay(factors: list[Factors]) -> Callable[[], None]:
    """A call that computes products of the same shapes and layouts, and nothing else."""
    pairs = []
    for product in factors:
        a, b = (
            torch.empty_strided(shape, stride).zero_() if 0 not in stride else torch.zeros(shape)
            for shape, stride in zip(product.shapes, product.strides, strict=True)
        )
        pairs.append((a, b, torch.matmul(a, b)))

    def call() -> None:
        with torch.no_grad():
            for a, b, out in pairs:
                torch.matmul(a, b, out=out)

    return call


def simulation(threads: int) -> dict[str, Any]:
    """The seconds to simulate and write all 14,000 trajectories of the charged N-body set, which are then removed."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        nbody.make(root=folder, threads=threads)
        seconds = time.perf_counter() - start
    return {
        "sizes": dict(nbody.DEFAULT_SIZES["charged"]),
        "threads": threads,
        "seconds": seconds,
        "goal": 60.0,
    }


def _run(cases: list[Case], warm_up: int, repetitions: int, clock: Callable[[], float]) -> None:
    """Warm up, then time every case in turn with a clock that counts seconds."""
    for repetition in range(warm_up + repetitions):
        for case in cases:
            start = clock()
            case.call()
            elapsed = clock() - start
            if repetition >= warm_up:
                case.seconds.append(elapsed)


def ratios(milliseconds: dict[str, float], multiply_adds: dict[str, int]) -> dict[str, dict[str, float]]:
    """Name -> {"time": ratio of times, "floor": ratio of multiply-adds}."""
    step = milliseconds["strict: step"]
    ratio: dict[str, dict[str, float]] = {}
    for name, count in multiply_adds.items():
        if name != "strict":
            floor = count / multiply_adds["strict"]
            ratio[f"{name} / strict"] = {"time": milliseconds[f"{name}: step"] / step, "floor": floor}
    bare = milliseconds["strict: its matrix products alone"]
    ratio["strict / its matrix products alone"] = {"time": step / bare, "floor": 1.0}
    inference = milliseconds["projected: inference"] / milliseconds["strict: inference"]
    ratio["projected inference / strict inference"] = {"time": inference, "floor": 1.0}
    return ratio


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [f"{'case':58} {'ms':>9} {'GFLOP':>9} {'GFLOP/s':>9} {'goal':>12}"]
    for name, value in result["milliseconds"].items():
        work = rate = ""
        case = name.removesuffix(": step").removesuffix(": its matrix products alone")
        if case != name:
            gigaflop = 2e-9 * result["multiply_adds"][case]
            work, rate = f"{gigaflop:.4g}", f"{1e3 * gigaflop / value:.1f}"
        lines.append(f"{name:58} {value:9.2f} {work:>9} {rate:>9} {result['goals'].get(name, ''):>12}")
    lines += ["", f"{'ratio':58} {'time':>9} {'floor':>9} {'goal':>12}"]
    for name, ratio in result["ratios"].items():
        lines.append(
            f"{name:58} {ratio['time']:9.3f} {ratio['floor']:9.3f} {result['goals'].get(name, ''):>12}"
        )
    lines += ["", f"{'memory':58} {'residuals':>12} {'training':>12} {'Gram':>9}"]
    for name, sizes in result["memory"].items():
        residual, training, gram = (readable(sizes[key]) for key in ("residual", "training", "gram"))
        lines.append(f"{name:58} {residual:>12} {training:>12} {gram:>9}")
    if "simulation" in result:
        made = result["simulation"]
        count = sum(made["sizes"].values())
        lines += [
            "",
            f"{count:,} charged trajectories simulated in {made['seconds']:.1f} s (goal {made['goal']:.0f} s)",
        ]
    hardware, settings = result["hardware"], result["settings"]
    lines += [
        "",
        f"minima of {settings['repetitions']} repetitions, {settings['threads']} thread(s), batch "
        f"{settings['batch_size']} x {settings['sample']}, {hardware['cpu']}, "
        f"commit {result['commit']}",
    ]
    return "\n".join(lines)
