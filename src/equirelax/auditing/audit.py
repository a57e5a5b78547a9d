"""The audit of a model: is it equivariant, by how much not, under which element, and which layer is to
blame.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.auditing.bounds import NetworkBounds, network_bounds
from equirelax.auditing.element import component as element_component
from equirelax.auditing.error import Measurement, measure
from equirelax.auditing.lie import LieReport, lie_derivative
from equirelax.auditing.localise import localise
from equirelax.auditing.report import AuditReport
from equirelax.auditing.state import measuring
from equirelax.auditing.tree import Leaf, call, leaves, representations, transformed
from equirelax.errors import AuditError, RelaxationStateError
from equirelax.symmetry import Group

# A model built in float32 has its constants rounded there (e3nn's reach 1e-7), which casting to float64 does
# not undo.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}

# A module is blamed where it adds more than this share of the model's own error: rounded constants are not
# the cause.
NEGLIGIBLE = 1e-5


def audit(
    model: nn.Module | Callable[..., Any],
    sample: Any,
    in_rep: Any,
    out_rep: Any,
    group: Group | None = None,
    *,
    samples: int = 16,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    tolerance: float | None = None,
    lie: bool = True,
    per_layer: bool = True,
    layer_reps: Mapping[str, Any] | None = None,
) -> AuditReport:
    """Measure how far a model is from equivariance, ``f(rho_in(g) x) = rho_out(g) f(x)``.

    The model runs in evaluation mode in ``dtype``, without autocast and TF32, and is given back exactly as it
    was, also after an error; the sample is never written to. Transforms are computed here, in float64. While
    ``DistributedDataParallel`` trains a model, audit a ``copy.deepcopy`` of it: casting a parameter to ``dtype`` and back
    makes PyTorch drop DDP's hooks on its gradient.

    Args:
        model: a module, or a function (then nothing is cast).
        sample: one input: a tensor or PyG ``Data`` (called as ``model(sample)``), a tuple or list
            (``model(*sample)``) or a mapping (``model(**sample)``), nested as the model needs; on the model's
            device. A few molecules or graphs are enough, and quicker than a batch of training.
        in_rep: tree shaped like the sample: a ``Representation`` (last axis), ``On(representation, axis)``,
            ``GridField(representation)`` (pictures, (..., channels, H, W)) or ``None`` (invariant) for every tensor;
            for mappings and ``Data`` a mapping that lists what transforms.
        out_rep: the same for the output.
        group: elements are drawn from it; by default the group of the representations. It may be a subgroup
            of theirs, such as SO(3) for representations of O(3).
        samples: number of elements drawn (Haar measure for compact groups). One element of every other
            component of a Lie group, or the generators of a finite one, are tried in addition.
        seed: of the elements, and of the model's own random numbers if it draws any.
        dtype: precision of the model's run.
        tolerance: relative error that counts as equivariant; by default 1e-9 for a model whose parameters are
            float64, 1e-5 for float32 (rounded constants), and never below what ``dtype`` itself allows.
        lie: whether to measure the Lie derivative along every generator.
        per_layer: whether to look for the layer that breaks equivariance. Keeps the activations of a few runs
            in memory.
        layer_reps: representations inside the model where they are known: path pattern (``fnmatch``) -> the
            output's ``Representation``, ``On`` or ``GridField``, or a pair (inputs, output).

    Returns:
        The report; ``print(report)`` shows it.

    Raises:
        AuditError: sample, representations and group do not fit each other.
        NonFiniteError: the model returns NaN or infinity.
    """
    if samples < 1:
        raise AuditError(f"samples={samples}: at least one group element is needed")
    module = model if isinstance(model, nn.Module) else _Function(model)
    group = _group(in_rep, out_rep, group)
    sampled = group.sample(samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    discrete = group.discrete(dtype=torch.float64)
    tolerance = _tolerance(module, dtype) if tolerance is None else tolerance
    inputs = leaves(sample, in_rep, "input")

    with measuring(module, dtype, seed):
        outputs = leaves(call(module, transformed(sample, in_rep, None, dtype)), out_rep, "output")
        before = measure(module, sample, in_rep, out_rep, group, sampled, discrete, dtype)
        derivative = lie_derivative(module, sample, in_rep, out_rep, group, dtype) if lie else None
        after = _strict(module, sample, in_rep, out_rep, group, sampled, discrete, dtype)
        found = None
        if per_layer:
            found = localise(
                module,
                sample,
                in_rep,
                out_rep,
                group,
                _chosen(group, torch.tensor(before.worst.element, dtype=torch.float64), sampled, discrete),
                sampled[-1],
                dtype,
                max(tolerance, NEGLIGIBLE * before.relative),
                before.relative <= tolerance,
                layer_reps,
                after is not None and after.relative <= tolerance,
            )

    return AuditReport(
        model=_title(model),
        group=group.name,
        dtype=str(dtype).removeprefix("torch."),
        samples=samples,
        seed=seed,
        tolerance=tolerance,
        before=before,
        after=after,
        lie=derivative,
        localisation=found,
        inputs={leaf.path: _action(leaf) for leaf in inputs},
        outputs={leaf.path: _action(leaf) for leaf in outputs},
        notes=_notes(before, derivative, tolerance, group if lie else None),
        bounds=_bounds(module),
    )


class _Function(nn.Module):
    """A plain function as a module without state of its own (a bound method's module is cast with it)."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        owner = getattr(function, "__self__", None)
        if isinstance(owner, nn.Module):
            self.owner = owner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def _group(in_rep: Any, out_rep: Any, group: Group | None) -> Group:
    """The group to sample from, checked against the group of every representation."""
    reps = list(itertools.chain(representations(in_rep), representations(out_rep)))
    if group is None:
        if not reps:
            raise AuditError(
                "nothing transforms: in_rep and out_rep hold no representation, and no group is given"
            )
        group = reps[0].group
    for rep in reps:
        if rep.group != group and not _contains(rep.group, group):
            raise AuditError(
                f"{rep!r} is a representation of {rep.group.name}, which does not contain {group.name}: "
                "give all "
                "representations for one group, or for one that contains it"
            )
    return group


def _contains(group: Group, subgroup: Group) -> bool:
    """Whether matrices of ``subgroup`` are elements of ``group``, on a few drawn ones and the discrete
    generators.
    """
    if group.dim != subgroup.dim:
        return False
    drawn = subgroup.sample(8, generator=torch.Generator().manual_seed(1))
    return bool(group.contains(torch.cat((drawn, subgroup.discrete())), atol=1e-6).all())


def _chosen(group: Group, worst: Tensor, sampled: Tensor, discrete: Tensor) -> Tensor:
    """A few elements that tell actions apart: the worst, one drawn of each component, a discrete
    generator.
    """
    drawn = {element_component(group, g): g for g in reversed(sampled)}
    chosen: list[Tensor] = []
    for g in (worst, *drawn.values(), *discrete[:1]):
        if not any(torch.equal(g, other) for other in chosen):  # a finite group's come again
            chosen.append(g)
    return torch.stack(chosen)


def _tolerance(model: nn.Module, dtype: torch.dtype) -> float:
    kinds = {
        t.dtype for t in itertools.chain(model.parameters(), model.buffers()) if t.is_floating_point()
    } | {dtype}
    return max(TOLERANCES.get(kind, 1e-5) for kind in kinds)


def _strict(
    model: nn.Module,
    sample: Any,
    in_rep: Any,
    out_rep: Any,
    group: Group,
    sampled: Tensor,
    discrete: Tensor,
    dtype: torch.dtype,
) -> Measurement | None:
    """The errors of a relaxed model without its residuals; ``None`` for a model that is not relaxed."""
    from equirelax.relaxation import relaxation_of

    try:
        relaxation = relaxation_of(model)
    except RelaxationStateError:
        return None
    with relaxation.strict():
        return measure(model, sample, in_rep, out_rep, group, sampled, discrete, dtype)


def _bounds(model: nn.Module) -> NetworkBounds | None:
    """ACE's bounds; ``None`` for a model that is not relaxed."""
    from equirelax.relaxation import relaxation_of

    try:
        relaxation = relaxation_of(model)
    except RelaxationStateError:
        return None
    return network_bounds(relaxation)


def _title(model: Any) -> str:
    return (
        type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__qualname__", repr(model))
    )


def _action(leaf: Leaf) -> str:
    shape = "x".join(map(str, leaf.value.shape)) or "scalar"
    kind = str(leaf.value.dtype).removeprefix("torch.")
    if leaf.action is None:
        how = "invariant" if leaf.measurable else "passed on as it is"
    else:
        how = f"{leaf.action.representation!r}{leaf.action.where}"
    return f"{how}  ({shape} {kind})"


def _notes(
    before: Measurement, lie: LieReport | None, tolerance: float, differentiated: Group | None
) -> tuple[str, ...]:
    notes = []
    if lie is None and differentiated is not None:
        notes.append(f"{differentiated.name} has no Lie algebra: there is no Lie derivative to measure")
    if before.repeatability > 0:
        notes.append(
            f"two calls on the same input differ by {before.repeatability:.1e}: the model draws random "
            "numbers in evaluation "
            "mode (dropout or sampling left on), or adds in no fixed order; errors below that mean nothing"
        )
    if lie is not None and before.relative > tolerance >= lie.relative:
        notes.append(
            "the Lie derivative vanishes but finite elements fail: reflections or another component of the "
            "group break "
            "equivariance, or something that is not differentiable (sorting, neighbours, rounding)"
        )
    return tuple(notes)
