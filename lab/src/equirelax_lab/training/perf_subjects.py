"""The subjects of `equirelax perf`: random batches of the papers' sizes, and the goals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean
from equirelax_lab.data import GraphSet, MolecularFrames, Samples
from equirelax_lab.data.graphs import complete_graph, gather, squared_distances
from equirelax_lab.tasks.task import Batch

BODIES = 5
POINTS = 300
CLASSES = 40


@dataclass(frozen=True)
class Subject:
    """A benchmark whose steps can be timed.

    Args:
        models: Models that can be timed, the default first.
        batch: Makes a batch of a number of samples. Their values do not matter: the time of a step does not depend on them.
        sample: What a sample is, in words.
        batch_size: Samples in a batch, by default.
        rows: Input rows of the subsampled penalty, by default.
        warm_up: Repetitions that are not timed.
        repetitions: Repetitions that are timed, by default.
        threads: Threads of torch, by default.
        goals: Name of a ratio, or of a case (in milliseconds) -> goal.
        rank: Rank of low-rank residuals that are also timed; None if they gain nothing.
        groups: Number of groups of grouped residuals that are also timed; None if they gain nothing.
        samples: Makes a set of a number of samples to train on; None if samples need data.
    """

    models: tuple[str, ...]
    batch: Callable[[int], Batch]
    sample: str
    batch_size: int
    rows: int
    warm_up: int
    repetitions: int
    threads: int
    goals: dict[str, str] = field(default_factory=dict)
    rank: int | None = None
    groups: int | None = None
    samples: Callable[[int], Samples] | None = None


def random_systems(count: int) -> GraphSet:
    """Random charged systems."""
    generator = torch.Generator().manual_seed(0)

    def normal(size: int) -> Tensor:
        return torch.randn(count, BODIES, size, generator=generator)

    positions, velocities, charges = normal(3), normal(3), normal(1).sign()
    edges = complete_graph(BODIES)
    source, target = gather(charges, edges)
    edge_features = torch.cat([source * target, squared_distances(positions, edges)[..., None]], -1)
    speed = velocities.norm(dim=-1, keepdim=True)
    return GraphSet(positions, velocities, speed, normal(3), edges, edge_features, charges)


def random_clouds(count: int) -> Batch:
    """Random point clouds with classes."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(count, POINTS, 3, generator=generator)
    return {"points": points, "labels": torch.randint(0, CLASSES, (count,), generator=generator)}


ASPIRIN = (6,) * 9 + (8,) * 4 + (1,) * 8


def random_molecules(count: int) -> Batch:
    """Frames with aspirin's atoms, displaced at random from a grid of 1.4 Angstrom."""
    generator = torch.Generator().manual_seed(0)
    atoms = len(ASPIRIN)
    grid = 1.4 * torch.cartesian_prod(*3 * [torch.arange(3.0)])[:atoms]

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator)

    frames = MolecularFrames(
        torch.tensor(ASPIRIN), grid + 0.1 * normal(atoms, 3), normal().double(), normal(atoms, 3)
    )
    return frames.batch(range(count))


SUBJECTS = {
    "nbody": Subject(
        models=("segnn", "egnn"),
        batch=lambda count: random_systems(count).batch(range(count)),
        sample=f"{BODIES} bodies",
        batch_size=100,
        rows=64,
        warm_up=10,
        repetitions=50,
        threads=1,
        goals={
            "relaxed + exact penalty / strict": "1.25",
            "relaxed + exact penalty every 4th step / strict": "1.40",
            "relaxed + penalty from sampled rows / strict": "1.15",
            "projected inference / strict inference": "1.00 ± 0.02",
        },
        groups=4,
        samples=random_systems,
    ),
    "modelnet40": Subject(
        models=("vn-pointnet", "vn-dgcnn"),
        batch=random_clouds,
        sample=f"{POINTS} points",
        batch_size=8,
        rows=256,
        warm_up=2,
        repetitions=8,
        threads=2,
        goals={
            "strict: step": "800",
            "relaxed, no penalty / strict": "1.5",
            "relaxed + exact penalty / strict": "2.2",
            "relaxed + penalty from sampled rows / strict": "1.6",
            "relaxed, rank 8, no penalty / strict": "1.5",
            "relaxed, rank 8 + exact penalty / strict": "2.2",
            "relaxed, rank 8 + penalty from sampled rows / strict": "1.6",
            "projected inference / strict inference": "1.00 ± 0.02",
        },
        rank=8,
        groups=4,
    ),
    "md17": Subject(
        models=("equiformer", "se3-transformer"),
        batch=random_molecules,
        sample=f"{len(ASPIRIN)} atoms, with forces",
        batch_size=8,
        rows=64,
        warm_up=1,
        repetitions=5,
        threads=1,
        goals={
            "relaxed + exact penalty / strict": "1.25",
            "projected inference / strict inference": "1.00 ± 0.02",
        },
    ),
}


def subject(benchmark: str, model: str | None) -> tuple[Subject, str]:
    """The subject and its model, which is the first one if `model` is None.

    Raises:
        ConfigError: There is no such subject or model; the message has a suggestion.
    """
    if benchmark not in SUBJECTS:
        raise ConfigError(
            f"perf knows the benchmarks {', '.join(SUBJECTS)}, not '{benchmark}'."
            f"{did_you_mean(benchmark, list(SUBJECTS))}"
        )
    timed = SUBJECTS[benchmark]
    if model is not None and model not in timed.models:
        raise ConfigError(
            f"perf {benchmark} knows the models {', '.join(timed.models)}, not '{model}'."
            f"{did_you_mean(model, list(timed.models))}"
        )
    return timed, model or timed.models[0]
