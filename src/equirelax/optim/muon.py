"""Muon for equivariant networks: orthogonalised steps for matrices, and Adam for everything else.

Reference:
    K. Jordan, Y. Jin, V. Boza, J. You, F. Cesista, L. Newhouse, J. Bernstein, "Muon: an optimizer for hidden layers in
    neural networks", 2024, https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from equirelax.errors import ConfigError, EquirelaxWarning
from equirelax.files import did_you_mean
from equirelax.optim.matrices import matrices_of
from equirelax.relaxation.matrices import Matrices, by_shape
from equirelax.settings import shown

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of X, (X X^H) X and (X X^H)^2 X in a Newton-Schulz step: Jordan's, which are steepest at 0."""
STEPS = 5
LEAST_NORM = 1e-7


class _Move(NamedTuple):
    """A parameter, its gradient, and the positions of the matrices in both."""

    parameter: Tensor
    gradient: Tensor
    matrices: tuple[Matrices, ...]


class Muon(torch.optim.Optimizer):
    r"""Muon for the matrices of a network and Adam for all its other parameters, in one optimizer.

    For the gradient G and the momentum M of a matrix with r rows and c columns,

        M <- m M + (1 - m) G
        W <- (1 - lr wd) W - lr rms sqrt(max(r, c)) NS((1 - m) G + m M)

    where NS, five Newton-Schulz steps, keeps the singular vectors and brings all singular values to between 0.7 and 1.2.
    `matrices_of` finds the matrices in the parameters. The weights of plain layers and vector neurons are matrices
    themselves; e3nn's and escnn's flat weights hold one for every path or pair of representations. Such a step commutes with
    orthogonal changes of basis of the channels. An equivariant network stays exactly equivariant, since only its weights
    change. Adam, with decoupled weight decay and the same learning rate, moves everything else, such as biases, norms,
    embeddings and gamma.

    `rms` is approximately the root mean square of the entries of a matrix step divided by the learning rate. Adam's is 1 at
    its first step and falls as gradients disagree; Liu et al. (2025, arXiv 2502.16982, section 2.2) use 0.2 for language
    models. With the default of 1, begin at or below a learning rate that suits Adam.

    On plain matrices a step with rms 0.2 is that of `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, which computes NS in
    bfloat16 and one matrix at a time. Here NS is computed in the parameter's precision, at least float32, and for all
    matrices of the same size at once.

    It works like any torch optimizer, with learning-rate schedulers, closures, `state_dict`, parameter groups and
    `method.attach(optimizer)`. The residuals of a relaxed network also hold matrices.

    Args:
        model: The network. Its layers determine which matrices the parameters hold.
        lr: Learning rate of both parts, 0 or more.
        params: Parameters, named parameters or groups of them, as for any optimizer; by default all of `model`. A group
            may have its own `lr`, `momentum`, `rms`, `weight_decay`, `adam_betas` and `adam_eps`.
        matrices: The matrices of some parameters, by their names in `model.named_parameters()`, instead of those that the
            layers determine. `()` leaves a parameter to Adam, as in `{"head.weight": ()}`.
        momentum: m above, in [0, 1).
        rms: rms above, more than 0.
        weight_decay: wd above, 0 or more, for every parameter. `attach` exempts gamma.
        adam_betas: Decay rates of Adam's two moments, each in [0, 1).
        adam_eps: Adam's epsilon, more than 0.

    Raises:
        ConfigError: `model` is not a module, a number is out of range, or `matrices` has an unknown name or entries
            outside its parameter.

    Examples:
        >>> import torch
        >>> from equirelax.optim import Muon
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = Muon(model, lr=0.01)
        >>> model(torch.ones(5, 3)).square().mean().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        *,
        params: Iterable[Any] | None = None,
        matrices: Mapping[str, Sequence[Matrices]] | None = None,
        momentum: float = 0.95,
        rms: float = 1.0,
        weight_decay: float = 0.0,
        adam_betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-8,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"Muon: expected the network itself, got a {type(model).__name__}. Write Muon(model, lr=...), and name the "
                "parameters with params= if they are not all of the network's."
            )
        self._model: Callable[[], nn.Module | None] = weakref.ref(model)
        self._matrices = matrices_of(model) | _named(model, matrices or {})
        super().__init__(
            model.parameters() if params is None else params,
            {
                "lr": lr,
                "momentum": momentum,
                "rms": rms,
                "weight_decay": weight_decay,
                "adam_betas": adam_betas,
                "adam_eps": adam_eps,
            },
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as `method.attach` does for residuals that were made after the optimizer.

        Args:
            param_group: `params`, and settings that replace the optimizer's.

        Raises:
            ConfigError: a setting is out of range. No group is added then.
        """
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        new = [p for p in self.param_groups[-1]["params"] if p not in self._matrices]
        if new:
            model = self._model()
            if model is None:
                warnings.warn(
                    f"Muon: this copy knows the matrices of the parameters that it had, but not the network: those of {len(new)} "
                    "new ones are read from their shapes. Call read_network(model) first.",
                    EquirelaxWarning,
                    stacklevel=2,
                )
            found = {} if model is None else matrices_of(model)
            for p in new:
                self._matrices[p] = found[p] if p in found else by_shape(p)

    def read_network(self, model: nn.Module) -> None:
        """Set the network of a copied or unpickled optimizer, whose layers determine the matrices of parameters added later.

        `method.attach` calls it. An optimizer that knows its network keeps it.

        Args:
            model: The network.
        """
        if self._model() is None:
            self._model = weakref.ref(model)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_matrices": self._matrices}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_model" not in self.__dict__:  # a copy knows the matrices of its parameters, not the model
            self._model = lambda: None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Move every parameter that has a gradient.

        Args:
            closure: A function that computes the gradients and returns the loss, if the loop has not done so.

        Returns:
            The result of `closure`, or None.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moves = [_Move(p, p.grad, self._matrices[p]) for p in group["params"] if p.grad is not None]
            if any(move.gradient.is_sparse for move in moves):
                raise RuntimeError(
                    "Muon: sparse gradients are not supported; build embeddings with sparse=False."
                )
            if group["weight_decay"]:
                for p, _, _ in moves:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
            self._adam(group, moves)
            self._muon(group, [move for move in moves if move.matrices])
        return loss

    def _muon(self, group: dict[str, Any], moves: Sequence[_Move]) -> None:
        """Step the matrices, all of the same size at once."""
        steps: list[Tensor] = []
        sized: dict[tuple[Any, ...], list[Tensor]] = {}
        for p, gradient, matrices in moves:
            state, grad = self.state[p], gradient.reshape(-1)
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(grad)
            momentum: Tensor = state["momentum_buffer"]
            momentum.lerp_(grad, 1 - group["momentum"])
            averaged = grad.lerp(momentum, group["momentum"])
            step = torch.zeros_like(averaged)
            for each in matrices:
                source, target = each.view(averaged), each.view(step)
                if each.size[0] > each.size[1]:
                    source, target = source.mT, target.mT
                target.copy_(source)
                sized.setdefault((*target.shape[-2:], target.dtype, target.device), []).append(target)
            steps.append(step)
        for (_, larger, *_), targets in sized.items():
            stacked = torch.cat([target.reshape(-1, *target.shape[-2:]) for target in targets])
            stacked = orthogonalised(stacked) * (group["rms"] * math.sqrt(larger))
            counts = [math.prod(target.shape[:-2]) for target in targets]
            for target, part in zip(targets, stacked.split(counts), strict=True):
                target.copy_(part.view(target.shape))
        for (p, _, _), step in zip(moves, steps, strict=True):
            p.add_(step.view(p.shape), alpha=-float(group["lr"]))

    def _adam(self, group: dict[str, Any], moves: Sequence[_Move]) -> None:
        """Step the entries that belong to no matrix."""
        owners: list[tuple[Tensor, list[slice]]] = []
        values, grads, first, second, steps = [], [], [], [], []
        for p, gradient, matrices in moves:
            slices = _others(p, matrices)
            if not slices:
                continue
            state, value = self.state[p], _take(p, slices)
            if "step" not in state:
                state["step"] = torch.zeros(())
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(value), torch.zeros_like(value)
            owners.append((p, slices))
            values.append(value)
            grads.append(_take(gradient, slices))
            first.append(state["exp_avg"])
            second.append(state["exp_avg_sq"])
            steps.append(state["step"])
        beta1, beta2 = group["adam_betas"]
        adam(
            values, grads, first, second, [], steps, amsgrad=False, beta1=beta1, beta2=beta2, lr=float(group["lr"]),
            weight_decay=0.0, eps=group["adam_eps"], maximize=False, has_complex=any(map(torch.is_complex, values)),
        )  # fmt: skip
        for (p, slices), value in zip(owners, values, strict=True):
            if value is not p:
                flat = p.reshape(-1)
                for where, part in zip(slices, value.split([w.stop - w.start for w in slices]), strict=True):
                    flat[where] = part
                p.copy_(flat.view(p.shape))


def orthogonalised(matrices: Tensor) -> Tensor:
    """Orthogonalise matrices approximately, by five Newton-Schulz steps.

    Args:
        matrices: (n, rows, columns) with rows <= columns, real or complex.

    Returns:
        Matrices (n, rows, columns) with the same singular vectors and singular values of about 0.7 to 1.2, in float32 if
        `matrices` have lower precision. A matrix of zeros stays as it is.
    """
    a, b, c = COEFFICIENTS
    x = matrices.float() if matrices.dtype in (torch.float16, torch.bfloat16) else matrices
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=LEAST_NORM)
    for _ in range(STEPS):
        gram = x @ x.mH
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _named(
    model: nn.Module, matrices: Mapping[str, Sequence[Matrices]]
) -> dict[nn.Parameter, tuple[Matrices, ...]]:
    """The user's own matrices, by parameter."""
    parameters = dict(model.named_parameters())
    found: dict[nn.Parameter, tuple[Matrices, ...]] = {}
    for name, given in matrices.items():
        if name not in parameters:
            raise ConfigError(
                f"Muon: matrices has the name {name!r}, but the network has no such parameter."
                f"{did_you_mean(name, list(parameters))} Names are those of model.named_parameters()."
            )
        ordered = sorted(Matrices(*each) for each in given)
        ends = [0, *(end for each in ordered for end in (each.start, each.stop)), parameters[name].numel()]
        if any(a > b for a, b in pairwise(ends)):
            raise ConfigError(
                f"Muon: the matrices of {name!r} overlap, or reach beyond its {parameters[name].numel()} entries."
            )
        found[parameters[name]] = tuple(ordered)
    return found


def _check(group: Mapping[str, Any]) -> None:
    """Raise ConfigError if a setting of a group is out of range."""
    ranges: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "lr": ("0 or more", lambda v: v >= 0),
        "momentum": ("in [0, 1)", lambda v: 0 <= v < 1),
        "rms": ("more than 0", lambda v: v > 0),
        "weight_decay": ("0 or more", lambda v: v >= 0),
        "adam_betas": ("two numbers in [0, 1)", lambda v: len(v) == 2 and all(0 <= beta < 1 for beta in v)),
        "adam_eps": ("more than 0", lambda v: v > 0),
    }
    for name, (allowed, fits) in ranges.items():
        try:
            fitting = fits(group[name])
        except TypeError:  # text or None, or one number in place of two
            fitting = False
        if not fitting:
            raise ConfigError(f"Muon: {name} must be {allowed}, and is {shown(group[name])}.")


def _others(p: Tensor, matrices: Sequence[Matrices]) -> list[slice]:
    """The entries of a flat parameter that belong to no matrix."""
    ends = [0, *(end for each in sorted(matrices) for end in (each.start, each.stop)), p.numel()]
    return [slice(a, b) for a, b in list(pairwise(ends))[::2] if a < b]


def _take(p: Tensor, slices: Sequence[slice]) -> Tensor:
    """The entries of a flat parameter in these slices; the parameter itself if they cover all of it."""
    if list(slices) == [slice(0, p.numel())]:
        return p
    flat = p.reshape(-1)
    return torch.cat([flat[where] for where in slices])
