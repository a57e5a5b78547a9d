"""Time training steps of a stack of runs and those of one run, method by method."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from equirelax.errors import ConfigError
from equirelax.relaxation.summary import readable
from equirelax_lab.data import Samples
from equirelax_lab.tasks.registry import defaults
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training import provenance
from equirelax_lab.training.assembly import assemble
from equirelax_lab.training.launch import launched
from equirelax_lab.training.loop import Loop
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.member import Member
from equirelax_lab.training.perf_subjects import SUBJECTS, subject
from equirelax_lab.training.stack_memory import StackMemory
from equirelax_lab.training.stacked_loop import StackedLoop

if TYPE_CHECKING:
    from lightning.fabric import Fabric

METHODS = ("strict", "scheduled", "ace")
MEMBERS = (1, 8, 64)
"""Numbers of members that are timed by default."""
STEPS = 4
"""Optimizer steps of a timed epoch; the fourth step of a run captures a CUDA graph."""
WARM_UP = 1


def measure_stack(
    benchmark: str = "nbody",
    model: str | None = None,
    members: Sequence[int] = MEMBERS,
    *,
    batch_size: int | None = None,
    repetitions: int | None = None,
    threads: int | None = None,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """Time epochs of a few steps, of one run and of stacks of the same run with several seeds, in turn.

    A step is that of training: the batch, loss and penalty, backward pass, checks, and the optimizer's and the method's
    step. On a GPU the gradients are one CUDA graph, also for single runs. Samples are random.

    Args:
        benchmark, model: See `perf.measure`; the benchmark must have samples that can be made without data.
        members: Numbers of members.
        batch_size: Samples in a batch; this and the following arguments take the subject's own value if they are None.
        repetitions: Timed epochs of every case, after the warm-up.
        threads: Threads of torch.
        machine: The accelerator; None takes a GPU if there is one.

    Raises:
        ConfigError: There is no such benchmark or model, or its samples are not random.
    """
    timed, model = subject(benchmark, model)
    if timed.samples is None:
        able = ", ".join(name for name, each in SUBJECTS.items() if each.samples is not None)
        raise ConfigError(f"perf --stack makes samples for {able}, not for {benchmark}.")
    batch_size = timed.batch_size if batch_size is None else batch_size
    repetitions = 5 if repetitions is None else repetitions
    threads = timed.threads if threads is None else threads
    machine = (machine or Machine(accelerator="auto")).resolved(torch.cuda.device_count())
    on_gpu = machine.accelerator == "gpu"
    machine = Machine(accelerator=machine.accelerator, graph=on_gpu, threads=threads, progress=False)
    torch.set_num_threads(threads)
    samples = timed.samples(STEPS * batch_size)
    # Other programs do not lengthen the CPU time of a thread.
    clock = time.thread_time if threads == 1 and not on_gpu else time.perf_counter
    rows = []
    with launched(machine) as fabric:
        device = torch.cuda.get_device_name(fabric.device) if on_gpu else "cpu"
        for method in METHODS:
            config = defaults(benchmark, model, method).updated({"batch_size": batch_size})
            rows += _rows(config, members, samples, fabric, machine, repetitions, clock)
    return {
        "benchmark": benchmark,
        "model": model,
        "rows": rows,
        "settings": {
            "batch_size": batch_size,
            "sample": timed.sample,
            "steps": STEPS,
            "repetitions": repetitions,
            "warm_up": WARM_UP,
            "threads": threads,
            "device": device,
            "clock": clock.__name__,
            "reported": "minimum",
        },
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
    }


def _rows(
    config: RunConfig,
    members: Sequence[int],
    samples: Samples,
    fabric: Fabric,
    machine: Machine,
    repetitions: int,
    clock: Callable[[], float],
) -> list[dict[str, Any]]:
    """The rows of one method, one for every number of members."""

    def made(count: int) -> StackedLoop:
        runs = [config.updated({"seed": seed}) for seed in range(count)]
        stacked = [Member(assemble(run, None, STEPS), samples, fabric, machine) for run in runs]
        return StackedLoop(stacked, assemble(config, None, STEPS), fabric, machine)

    memory = StackMemory.measured(made)
    single = Loop(assemble(config, None, STEPS), samples, fabric, machine)
    rows: list[dict[str, Any]] = []
    for count in members:
        row = {
            "method": config.method,
            "members": count,
            "bytes": memory.of(count),
            "fits": count <= memory.most,
        }
        rows.append(row)
        if not row["fits"]:
            continue
        loop = made(count)
        one, all_of_them = _seconds((single.epoch, loop.epoch), repetitions, clock, fabric.device)
        share = _kernel_share(loop.epoch, all_of_them) if fabric.device.type == "cuda" else None
        row |= {
            "single_milliseconds": 1e3 * one / STEPS,
            "stack_milliseconds": 1e3 * all_of_them / STEPS,
            "member_steps_per_second": count * STEPS / all_of_them,
            "ratio": count * one / all_of_them,
            "kernel_share": share,
        }
    return rows


def _seconds(
    calls: Sequence[Callable[[], object]], repetitions: int, clock: Callable[[], float], device: torch.device
) -> list[float]:
    """The shortest time of every call, taken in turn after a warm-up."""
    found: list[list[float]] = [[] for _ in calls]
    for repetition in range(WARM_UP + repetitions):
        for call, seconds in zip(calls, found, strict=True):
            _wait_for(device)
            start = clock()
            call()
            _wait_for(device)
            if repetition >= WARM_UP:
                seconds.append(clock() - start)
    return [min(seconds) for seconds in found]


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _kernel_share(call: Callable[[], object], seconds: float) -> float:
    """The share of `seconds`, the time of a call, in which the GPU's kernels run."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    return 1e-6 * sum(event.self_device_time_total for event in profile.key_averages()) / seconds


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [
        f"{'method':10} {'members':>7} {'one run, ms':>12} {'stack, ms':>10} {'member-steps/s':>15} {'times one run':>14} "
        f"{'kernels':>8} {'memory':>9}"
    ]
    for row in result["rows"]:
        start = f"{row['method']:10} {row['members']:7}"
        size = readable(row["bytes"])
        if not row["fits"]:
            lines.append(f"{start} does not fit: it takes {size}")
            continue
        share = "" if row["kernel_share"] is None else f"{row['kernel_share']:.0%}"
        lines.append(
            f"{start} {row['single_milliseconds']:12.2f} {row['stack_milliseconds']:10.2f} "
            f"{row['member_steps_per_second']:15.1f} {row['ratio']:14.2f} {share:>8} {size:>9}"
        )
    settings, hardware = result["settings"], result["hardware"]
    device = hardware["cpu"] if settings["device"] == "cpu" else settings["device"]
    lines += [
        "",
        f"times of a step, minima of {settings['repetitions']} epochs of {settings['steps']} steps, batch "
        f"{settings['batch_size']} x {settings['sample']}, {settings['threads']} thread(s), {device}, commit {result['commit']}",
    ]
    return "\n".join(lines)
