"""Audit a model: is it equivariant, how large is the error, for which element, and which layer breaks it?"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.auditing.breaking import Breaking, breaking
from equirelax.auditing.elements import component as element_component
from equirelax.auditing.error import (
    Measurement,
    Precision,
    coordinates,
    exact,
    far_away,
    measure,
    outputs_of,
    tolerance_of,
    with_translations,
)
from equirelax.auditing.lie import LieReport, lie_derivative
from equirelax.auditing.localise import localise
from equirelax.auditing.report import AS_IT_IS, PROJECTED, RELAXED, AuditReport
from equirelax.auditing.samples import (
    FROM_MODEL,
    Case,
    Function,
    Leaf,
    call,
    common_group,
    leaves,
    only_present,
    read_representations,
)
from equirelax.auditing.state import measuring
from equirelax.errors import AuditError, RelaxationStateError
from equirelax.files import did_you_mean
from equirelax.methods import Method
from equirelax.relaxation import Relaxation, relaxation_of
from equirelax.relaxation.residual import drivers_of
from equirelax.symmetry import Group

NEGLIGIBLE = 1e-5
"""A module breaks equivariance if it adds more than this fraction of the model's error. Rounded constants add less."""


def audit(
    model: nn.Module | Callable[..., Any],
    sample: Any,
    in_rep: Any = FROM_MODEL,
    out_rep: Any = FROM_MODEL,
    group: Group | None = None,
    *,
    outputs: Sequence[str] | None = None,
    samples: int = 16,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
    lie: bool = True,
    per_layer: bool = True,
    layer_reps: Mapping[str, Any] | None = None,
    deployed: str | None = None,
) -> AuditReport:
    """Measure how far a model is from equivariance, ``f(rho_in(g) x) = rho_out(g) f(x)``.

    The model runs in evaluation mode in ``dtype``, without autocast, TF32 and compiled code. It is restored exactly, even
    after an error: training flags, parameters, buffers, gradients, tensors and containers that its modules hold as
    attributes, and random states. The sample is never written to. Transforms are computed in float64. While
    ``DistributedDataParallel`` trains a model, audit a ``copy.deepcopy`` of it: casting a parameter to ``dtype`` and back
    makes PyTorch drop DDP's hooks on its gradient.

    Floating and complex outputs are compared by norms, integers and booleans exactly (one differing entry is a
    relative error of 1), and Python's numbers as tensors. The report names the outputs that cannot be compared (strings,
    foreign objects).

    Translations of SE(n) and E(n) are sampled up to the largest coordinate of the sample's positions, which the report states.

    Args:
        model: A module, or a function. Modules that the function is bound to, closes over, names as globals or holds as arguments
            of a `functools.partial` also run in evaluation mode and in ``dtype``, and are restored.
        sample: One input on the model's device, nested as the model needs it. A tensor or PyG ``Data`` is passed as
            ``model(sample)`` and a tuple or list as ``model(*sample)``. A mapping is passed as ``model(**sample)`` if its keys
            are the names of ``forward``'s parameters, else as ``model(sample)``, as the networks of NequIP, MACE and SevenNet
            expect. A few molecules or graphs are enough, and faster than a training batch.
        in_rep: How the sample transforms, as a tree with the sample's structure. Every tensor gets anything that
            `equirelax.symmetry.as_representation` takes (``"2x0e+1x1o"`` or a ``Representation`` for the last axis,
            ``On(representation, axis)``, ``GridField(representation)`` for images, e3nn's ``Irreps``, an escnn
            ``FieldType``) or ``None`` (invariant). Mappings and ``Data`` get a mapping that lists the entries that transform.
            By default the model's ``irreps_in``, ``in_type`` or ``in_rep``.
        out_rep: The same for the output. By default the model's ``irreps_out``, ``out_type`` or ``out_rep``.
        group: The group from which elements are drawn; by default that of the representations. It may be a subgroup
            of theirs, such as SO(3) for representations of O(3).
        outputs: Names of the entries to compare, if the model returns a mapping. By default all entries are compared, those that
            ``out_rep`` does not list as invariants. NequIP's networks, for example, also return their edge vectors.
        samples: Number of elements drawn (Haar measure for compact groups). One element of every other
            component of a Lie group, or the generators of a finite group, are tried in addition.
        seed: Seed of the elements, and of any random numbers that the model draws.
        dtype: Precision in which the model runs. By default float64, or float32 for a model that fails in float64 because it
            casts internally; the report then says so.
        tolerance: Relative error that counts as equivariant. By default that of the coarsest of ``dtype``, the model's
            parameters and its outputs: 1e-9 for float64, 1e-5 for float32 (rounded constants), 1e-2 for float16 and 5e-2 for
            bfloat16. Buffers, and single parameters that are coarser than the others, count as float32 at most.
        lie: Whether to measure the Lie derivative along every generator.
        per_layer: Whether to look for the layer that breaks equivariance. This keeps the activations of a few runs in memory.
        layer_reps: Known representations inside the model: a path pattern (``fnmatch``) -> the representation of the output, in
            any of the forms above, or a pair (inputs, output).
        deployed: The form in which a relaxed model will be used, ``"projected"`` or ``"relaxed"``, which the report lists first.
            By default it is the form that the attached method deploys, or ``"projected"`` without a method. For a network that
            is deployed relaxed, the report also says how far each relaxed module is from equivariance.

    Returns:
        The report, which ``print(report)`` shows.

    Raises:
        AuditError: Sample, representations and group do not fit together, the model does not return one of ``outputs``, or it
            fails in the given ``dtype`` but runs in float32.
        NonFiniteError: The model returns NaN or infinity.
    """
    if samples < 1:
        raise AuditError(f"samples={samples}: at least one group element is needed")
    if deployed not in (None, PROJECTED, RELAXED):
        raise AuditError(f"deployed={deployed!r}: expected {PROJECTED!r} or {RELAXED!r}")
    if isinstance(outputs, str):
        raise AuditError(f"outputs={outputs!r}: expected a list of names, such as [{outputs!r}]")
    module = model if isinstance(model, nn.Module) else Function(model)
    with _only(module, outputs):
        own_input, own_output = in_rep is FROM_MODEL, out_rep is FROM_MODEL
        in_rep, out_rep = read_representations(in_rep, out_rep, group, model)
        if own_input:
            in_rep = only_present(sample, in_rep)
        group = common_group(group, in_rep, out_rep)
        case = Case(module, sample, in_rep, out_rep, group, torch.float64 if dtype is None else dtype)
        notes = []
        try:
            output = _first_call(case, seed)
        except _FirstCallError as failed:
            error, case = failed.error, dataclasses.replace(case, dtype=torch.float32)
            words = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"
            if dtype == torch.float32 or not _runs(case, seed):
                raise error from None
            if dtype is not None:
                raise AuditError(
                    f"{_title(model)} fails in {_short(dtype)} ({words}) and runs in float32, to which it seems to cast "
                    "inside: leave dtype out, or give dtype=torch.float32"
                ) from error
            why = (
                "something that the function calls is not cast"
                if isinstance(module, Function)
                else "it seems to cast inside"
            )
            notes.append(f"measured in float32: the model fails in float64, {why} ({words})")
            output = _first_call(case, seed)
        if own_output:
            case = dataclasses.replace(case, out_rep=only_present(output, out_rep))
        return _report(case, model, samples, seed, tolerance, lie, per_layer, layer_reps, deployed, notes)


@contextlib.contextmanager
def _only(module: nn.Module, names: Sequence[str] | None) -> Iterator[None]:
    """Make a module return only these entries of its mapping within a block; None: all of them."""
    if names is None:
        yield
        return
    wanted = tuple(names)

    def choose(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Mapping):
            raise AuditError(
                f"outputs are {', '.join(wanted)}, but the model returns a {type(output).__name__}: leave them out"
            )
        for name in wanted:
            if name not in output:
                raise AuditError(
                    f"outputs: the model returns no {name!r}.{did_you_mean(name, [str(key) for key in output])} "
                    f"It returns {', '.join(map(str, output))}"
                )
        return {name: output[name] for name in wanted}

    handle = module.register_forward_hook(choose)
    try:
        yield
    finally:
        handle.remove()


class _FirstCallError(Exception):
    """The model could not be called with the sample."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _first_call(case: Case, seed: int) -> Any:
    """Call the model with the sample and return its output.

    Raises:
        AuditError: The representations do not fit the sample.
        _FirstCallError: The model fails.
    """
    leaves(case.sample, case.in_rep, "input")
    try:
        with measuring(case.model, case.dtype, seed):
            return call(case.model, case.moved())
    except AuditError:
        raise
    except Exception as error:  # any error of the user's model may come from its dtype
        raise _FirstCallError(error) from error


def _runs(case: Case, seed: int) -> bool:
    """Whether the model can be called with the sample."""
    try:
        _first_call(case, seed)
    except _FirstCallError:
        return False
    return True


def _report(
    case: Case,
    model: Any,
    samples: int,
    seed: int,
    tolerance: float | None,
    lie: bool,
    per_layer: bool,
    layer_reps: Mapping[str, Any] | None,
    deployed: str | None,
    notes: list[str],
) -> AuditReport:
    """Measure everything."""
    group, dtype = case.group, case.dtype
    relaxation, precision = _relaxation(case.model), Precision.of(case.model)
    where = coordinates(case.sample, case.in_rep)
    reach = where.largest or 1.0
    sampled = group.sample(samples, generator=torch.Generator().manual_seed(seed))
    sampled = with_translations(group, sampled, reach)
    discrete = group.discrete(dtype=torch.float64)
    after = derivative = localisation = None
    with measuring(case.model, dtype, seed):
        returned = outputs_of(case, None, "the sample as given")
        if tolerance is None:
            tolerance, why = tolerance_of(precision, dtype, returned.dtypes.values())
            notes += why
        before = measure(case, sampled, discrete)
        if lie:
            derivative = lie_derivative(case, reach, before.vanishing)
        if relaxation is not None:
            with relaxation.strict():
                after = measure(case, sampled, discrete)
        if per_layer:
            worst = torch.tensor(before.worst.element, dtype=torch.float64, device="cpu")
            chosen = _chosen(group, worst, sampled, discrete)
            localisation = localise(
                case,
                chosen,
                sampled[-1],
                tolerance=max(tolerance, NEGLIGIBLE * before.relative),
                equivariant=before.relative <= tolerance,
                measured=lambda: measure(case, chosen, discrete[:0]).relative,
                layer_reps=layer_reps,
                strict_equivariant=None if after is None else after.relative <= tolerance,
                vanishing=frozenset(
                    path.removeprefix("output").removeprefix(".") for path in before.vanishing
                ),
            )
    form = AS_IT_IS if relaxation is None else deployed or _deployed(relaxation)
    each: tuple[Breaking, ...] = ()
    if relaxation is not None and form == RELAXED:
        ends, few = (case.sample, case.in_rep, case.out_rep, group), min(samples, 8)
        each = breaking(relaxation, *ends, model=case.model, samples=few, seed=seed, dtype=dtype)
    unlisted = {
        leaf.path for leaf in returned.leaves if leaf.action is None and not _listed(leaf.path, case.out_rep)
    }
    if before.vanishing:
        notes.append(
            f"{', '.join(before.vanishing)} is 0 on the sample, exactly or up to rounding, which is equivariant whatever "
            "computes it: audit other weights or inputs"
        )
    return AuditReport(
        model=_title(model),
        group=group.name,
        dtype=_short(dtype),
        samples=samples,
        seed=seed,
        tolerance=tolerance,
        before=before,
        after=after,
        lie=derivative,
        localisation=localisation,
        inputs={
            leaf.path: _action(leaf, leaf.value.dtype) for leaf in leaves(case.moved(), case.in_rep, "input")
        },
        outputs={
            leaf.path: _action(leaf, returned.dtypes.get(leaf.path, leaf.value.dtype), output=True)
            for leaf in returned.leaves
        },
        notes=(*notes, *_notes(before, derivative, tolerance, lie, case, unlisted)),
        deployed=form,
        modules=each,
        translations=reach if _translates(group) and where.largest > 0 else None,
    )


def _chosen(group: Group, worst: Tensor, sampled: Tensor, discrete: Tensor) -> Tensor:
    """Choose a few elements that distinguish actions: the worst, one sample of each component, and a discrete generator."""
    drawn = {element_component(group, g): g for g in reversed(sampled)}
    chosen: list[Tensor] = []
    for g in (worst, *drawn.values(), *discrete[:1]):
        if not any(torch.equal(g, other) for other in chosen):  # samples of a finite group repeat
            chosen.append(g)
    return torch.stack(chosen)


def _relaxation(model: nn.Module) -> Relaxation | None:
    """The relaxation of a model, None if it is not relaxed."""
    try:
        return relaxation_of(model)
    except RelaxationStateError:
        return None


def _deployed(relaxation: Relaxation) -> str:
    """The form that the method which drives the residuals deploys."""
    drivers = drivers_of(relaxation.residuals.values())
    relaxed = any(isinstance(driver, Method) and driver.deploys_relaxed for driver in drivers)
    return RELAXED if relaxed else PROJECTED


def _title(model: Any) -> str:
    return (
        type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__qualname__", repr(model))
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _action(leaf: Leaf, dtype: torch.dtype, output: bool = False) -> str:
    shape = "x".join(map(str, leaf.value.shape)) or "scalar"
    if leaf.action is not None:
        how = f"{leaf.action.representation!r}{leaf.action.where}"
    elif exact(leaf.value) or not leaf.value.numel():
        how = "invariant, compared exactly" if output else "passed on as it is"
    else:
        how = "invariant"
    return f"{how}  ({shape} {_short(dtype)})"


def _listed(path: str, out_rep: Any) -> bool:
    """Whether a mapping of representations lists the output entry at a path, even if only as an invariant."""
    heads = [f"output.{key}" for key in out_rep] if isinstance(out_rep, Mapping) else []
    return any(path == head or path.startswith((f"{head}.", f"{head}[")) for head in heads)


def _notes(
    before: Measurement,
    lie: LieReport | None,
    tolerance: float,
    differentiated: bool,
    case: Case,
    unlisted: set[str],
) -> list[str]:
    notes = []
    if before.not_compared:
        notes.append(f"not compared: {', '.join(before.not_compared)}")
    if lie is None and differentiated and not len(case.group.algebra()):
        notes.append(f"{case.group.name} has no Lie algebra: there is no Lie derivative to measure")
    if before.repeatability > 0:
        notes.append(
            f"two calls on the same input differ by {before.repeatability:.1e}: the model draws random "
            "numbers in evaluation "
            "mode (dropout or sampling left on), or adds in no fixed order; errors below that mean nothing"
        )
    if lie is not None and before.relative > tolerance >= lie.relative:
        other = (
            ""
            if case.group.connected
            else "reflections or another component of the group break equivariance, or "
        )
        notes.append(
            f"the Lie derivative vanishes but finite elements fail: {other}something that is not differentiable (sorting, "
            "neighbours, rounding)"
        )
    if before.relative > tolerance and isinstance(case.out_rep, Mapping) and before.worst.output in unlisted:
        notes.append(
            f"{before.worst.output} was taken as invariant, because out_rep does not list it: list every output that transforms"
        )
    unit = torch.finfo(case.dtype).eps
    for path, away, spread in far_away(case.sample, case.in_rep):
        lost = unit * away / spread
        notes.append(
            f"{path} lies {away:.1e} from the origin, with a spread of {spread:.1e}: in {_short(case.dtype)} differences of "
            f"its points are known to {lost:.0e}"
            + (", which is more than the tolerance: centre the sample" if lost > tolerance else "")
            + (
                ". Errors of outputs that lie equally far are small compared with their size: centre the sample, or declare "
                "points as positions (E(3), SE(3))"
                if not _translates(case.group)
                else ""
            )
        )
    return notes


def _translates(group: Group) -> bool:
    return group.dim != group.linear_dim
