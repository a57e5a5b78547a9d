"""A toy study: what each form of ACE does to gamma and to the multipliers, in seconds on one core.

Two regression problems for a three-layer vector-neuron network with a dense residual on every layer:

- "symmetric": the targets come from another network of the same kind, so that gamma = 0 can reach them;
- "broken": a fixed linear map that no rotation leaves unchanged is added, so that relaxation is really needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean
from equirelax.methods import ACE, Method, ResilientACE
from equirelax.relaxation import Dense, Relaxation, relax
from equirelax_lab.models.vector_neurons import VNLinear

PROBLEMS = ("symmetric", "broken")
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"method": "ace"},
    "augmented": {"method": "ace", "augmented": 1.0},
    "pi": {"method": "ace", "pi": 1.0},
    "resilient": {"method": "resilient"},
    "resilient-augmented": {"method": "resilient", "augmented": 1.0},
}
CHANNELS, HIDDEN, SAMPLES = 4, 8, 128


class VectorNetwork(nn.Module):
    """Three VN-linear maps with norm gates between them: (batch, 4, 3) -> (batch, 1, 3), O(3)-equivariant."""

    def __init__(self) -> None:
        super().__init__()
        self.first = VNLinear(CHANNELS, HIDDEN)
        self.second = VNLinear(HIDDEN, HIDDEN)
        self.last = VNLinear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map channels of vectors to one vector.

        Args:
            x: (batch, 4, 3).

        Returns:
            (batch, 1, 3).
        """
        return self.last(gate(self.second(gate(self.first(x)))))


def gate(x: Tensor) -> Tensor:
    # |x| / (1 + |x|) in [0, 1): smooth, and a function of the norm only.
    norm = x.square().sum(-1, keepdim=True).add(1e-6).sqrt()
    return x * norm / (1.0 + norm)


def make_problem(name: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs (samples, 4, 3) and targets (samples, 1, 3) of unit variance, float64.

    Args:
        name: "symmetric" or "broken".
        seed: Seed of the data and of the network that made them.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in PROBLEMS:
        raise ConfigError(
            f"no toy problem {name!r}; there are {', '.join(PROBLEMS)}.{did_you_mean(name, PROBLEMS)}"
        )
    with seeded(seed):
        teacher = VectorNetwork().double()
        x = torch.randn(SAMPLES, CHANNELS, 3, dtype=torch.float64)
        breaking = torch.randn(3, 3, dtype=torch.float64)
    with torch.no_grad():
        y = teacher(x)
        y = y / y.std()
        if name == "broken":
            extra = x[:, :1] @ breaking
            y = y + extra / extra.std()
    return x, y / y.std()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator within the context, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _build(relaxation: Relaxation, form: str, lr: float, dual_lr: float, rho: float) -> Method:
    if form not in FORMS:
        raise ConfigError(
            f"no form {form!r}; there are {', '.join(FORMS)}.{did_you_mean(form, tuple(FORMS))}"
        )
    settings = FORMS[form]
    augmented, pi = settings.get("augmented", 0.0), settings.get("pi", 0.0)
    if settings["method"] == "ace":
        return ACE(relaxation, dual_lr=dual_lr, augmented=augmented, pi=pi)
    return ResilientACE(relaxation, dual_lr=dual_lr, primal_lr=lr, rho=rho, augmented=augmented, pi=pi)


def run_form(
    problem: str,
    form: str,
    *,
    steps: int = 2500,
    lr: float = 1e-2,
    dual_lr: float = 1e-2,
    rho: float = 1.0,
    seed: int = 0,
    records: int = 100,
) -> dict[str, Any]:
    """Train one form on one problem, full batch, Adam on weights and gamma alike.

    Args:
        problem, form: Keys of PROBLEMS and FORMS.
        steps: Number of optimizer steps.
        lr: eta_p; also the step size of the resilient form's slacks.
        dual_lr: eta_d, for gradient ascent as printed.
        rho: Price of the resilient form's slacks.
        seed: Seed of the problem and the initial weights.
        records: Number of moments, evenly spaced, at which the state is recorded; the last step is one of them.

    Returns:
        {"problem", "form", "paths", "step", "loss_relaxed", "loss_strict", "gamma", "multiplier", "final",
        ...}, where "step" and the losses (mean squared error, targets of variance 1) are lists over moments,
        "gamma", "multiplier", "effective_multiplier", "gamma_weight" (|gamma| times the Frobenius norm of the
        residual's weight; only the product acts, so that one may be traded for the other) and, for resilient forms,
        "slack" are lists over moments of lists over residuals, and "final" has "max_abs_gamma", "swing_gamma"
        (largest range of one gamma) and "max_gamma_weight" over the last fifth of the moments, and both
        losses at the end.

    Raises:
        ConfigError: The problem or form is unknown.
    """
    x, y = make_problem(problem, seed)
    with seeded(seed + 1):
        model = VectorNetwork().double()
        relaxation = relax(model, residual=Dense(init="normal", std=0.1))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    method = _build(relaxation, form, lr, dual_lr, rho).attach(optimizer)
    every = max(1, steps // records)
    rows: list[dict[str, Any]] = []
    for step in range(steps):
        task = (model(x) - y).square().mean()
        if step % every == 0 or step == steps - 1:
            rows.append({"step": step, "loss_relaxed": task.item(), **_measure(relaxation, method, x, y)})
        (task + method.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
    run = {key: [row[key] for row in rows] for key in rows[0]}
    return {"problem": problem, "form": form, "paths": method.paths, **run, "final": _final(run)}


def _measure(relaxation: Relaxation, method: Method, x: Tensor, y: Tensor) -> dict[str, Any]:
    with torch.no_grad(), relaxation.strict():
        strict = (relaxation.model(x) - y).square().mean().item()
    logs = list(method.logs().values())
    # A dense residual without bias has one parameter, its weight.
    weights = [
        (r.gamma * next(r.map.parameters()).norm()).abs().item() for r in relaxation.residuals.values()
    ]
    return {
        "loss_strict": strict,
        "gamma_weight": weights,
        **{key: [row[key] for row in logs] for key in logs[0]},
    }


def _final(run: dict[str, Any]) -> dict[str, float]:
    moments = max(1, len(run["gamma"]) // 5)
    gamma = torch.tensor(run["gamma"][-moments:], dtype=torch.float64)  # (moments, residuals)
    return {
        "max_abs_gamma": gamma.abs().max().item(),
        "swing_gamma": (gamma.amax(0) - gamma.amin(0)).max().item(),
        "max_gamma_weight": max(max(row) for row in run["gamma_weight"][-moments:]),
        "loss_relaxed": run["loss_relaxed"][-1],
        "loss_strict": run["loss_strict"][-1],
    }


def run_toy(
    *,
    problems: Sequence[str] = PROBLEMS,
    forms: Sequence[str] = tuple(FORMS),
    steps: int = 2500,
    lr: float = 1e-2,
    dual_lr: float = 1e-2,
    rho: float = 1.0,
    seed: int = 0,
    records: int = 100,
) -> dict[str, Any]:
    """Run every form on every problem; returns plain data for JSON and plots, the same numbers on every call.

    Args:
        problems, forms: Keys of PROBLEMS and FORMS.
        steps, lr, dual_lr, rho, seed, records: see `run_form`.

    Returns:
        {"settings": {...}, "forms": {form: its settings}, "runs": [see `run_form`]}.

    Raises:
        ConfigError: A problem or form is unknown.
    """
    settings = {"steps": steps, "lr": lr, "dual_lr": dual_lr, "rho": rho, "seed": seed, "records": records}
    runs = [
        run_form(problem, form, steps=steps, lr=lr, dual_lr=dual_lr, rho=rho, seed=seed, records=records)
        for problem in problems
        for form in forms
    ]
    return {"settings": settings, "forms": {form: FORMS[form] for form in forms}, "runs": runs}
