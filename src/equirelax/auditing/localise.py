"""Find the module that breaks equivariance, without knowing how hidden features transform.

The model is run on a sample x, on h x, and on g x and g h x for a few elements g. The inputs and outputs of every module are
recorded. A tensor is *explained* if one action of the group (``actions.py``), or the one that was declared for it
(``declared.py``), maps its value on x to its value on g x.

* If the inputs are explained and the output is not, the module breaks equivariance, by the error of its output.
* If an input is unexplained, the module is called again on inputs that are transformed exactly, by the declared action or
  the closest one. The error of its output is then the error that the module itself adds.
* The first unexplained tensor in the order of execution determines the first break. If it is a module's output, that module
  breaks. If it is a module's input, although everything before it was explained, the code of the module that called it breaks.

An output that is explained only in another basis (a swapped axis) also counts as a break, unless its inputs were in another
basis too. A model that is equivariant as a whole has no break, whatever its hidden features do. In a relaxed model, the
layers whose residuals break the symmetry come first, and then the modules that also break the strict network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from equirelax.auditing.actions import INVARIANT, Action, action_of, atoms_of
from equirelax.auditing.declared import Declarations
from equirelax.auditing.elements import acts_through
from equirelax.auditing.features import FeatureClassifier, Verdict
from equirelax.auditing.record import Call, Recorder, tensors_of
from equirelax.auditing.report import BREAKS, FINE, INSIDE, PASSES, UNKNOWN, Break, LayerRow, Localisation
from equirelax.auditing.samples import (
    Case,
    Leaf,
    as_arguments,
    call,
    field_representations,
    leaves,
    map_tree,
    representations,
    transformed,
)
from equirelax.relaxation import Residual, relaxation_of
from equirelax.symmetry import Group, TensorAction


def localise(
    case: Case,
    elements: Tensor,
    other: Tensor,
    tolerance: float,
    equivariant: bool,
    measured: Callable[[], float],
    layer_reps: Mapping[str, Any] | None,
    strict_equivariant: bool | None = None,
    vanishing: frozenset[str] = frozenset(),
) -> Localisation:
    """Measure every call of every module. The model must be in its measuring state.

    Args:
        case: The model and its sample.
        elements: Group elements g, (G, n, n), including a reflection if the group has any.
        other: An element h, (n, n), for a second point h x.
        equivariant: Whether the model as a whole is equivariant. If so, there is no search for a first break.
        measured: A function that measures the relative error of the model's output over a few elements.
        layer_reps: See :class:`~equirelax.auditing.declared.Declarations`.
        strict_equivariant: Whether a relaxed model is equivariant without its residuals; None for other models. A tensor
            that nothing explains in an equivariant strict network (a choice of frames, for instance) is then not a break.
            Layers whose residuals alone break the symmetry come first. Another module breaks it only if it also breaks the
            strict network.
        vanishing: Paths of the model's outputs that are 0, exactly or up to rounding.
    """
    model, group, dtype = case.model, case.group, case.dtype
    declarations = Declarations(model, group, layer_reps)
    residuals = [module for module in model.modules() if isinstance(module, Residual)]
    recorder = Recorder(model, frozenset(inner for residual in residuals for inner in residual.modules()))

    def run(*path: Tensor) -> list[Call]:
        value = case.moved()
        for g in path:
            value = transformed(value, case.in_rep, g, dtype)
        with recorder.recording() as calls:
            call(model, value)
        return calls

    classifier = _classifier(declarations, case, elements, tolerance)
    ends = dataclasses.replace(_ends(case), vanishing=vanishing)
    # A second point distinguishes actions that agree at one. It is needed only to search for a break.
    points: list[tuple[Tensor, ...]] = [()] if equivariant else [(), (other,)]

    def observe() -> list[Trace] | None:
        """Classify the tensors of every call; None if the calls depend on the element."""
        base = [run(*point) for point in points]
        moved = [[run(*point, g) for point in points] for g in elements]
        names = [(c.path, c.index) for c in base[0]]
        every = [*base, *(calls for row in moved for calls in row)]
        if any([(c.path, c.index) for c in calls] != names for calls in every):
            return None
        declared = [ends if c.parent < 0 else _declared(declarations, c, group) for c in base[0]]
        return [
            _trace(i, classifier, declared[i], [c[i] for c in base], [[c[i] for c in row] for row in moved])
            for i in range(len(names))
        ]

    trace = observe()
    if trace is None:
        return Localisation((), None, "not localised: which modules are called depends on the group element")
    if equivariant or strict_equivariant is None:
        first = None if equivariant else _first(trace, declarations)
        run()  # modules that keep state of a run are called again below, and must have the state of the sample
        return _sorted(_rows(trace, classifier, declarations, dtype), first)

    order = [t.call.path for t in sorted(trace, key=lambda t: t.call.order[1])]
    residual_at = breaking_residual(declarations, order, measured, tolerance)
    with relaxation_of(model).strict():
        strict = observe() or []
    if strict_equivariant:
        _mark_unexplained_as_unknown(trace, strict)
    other_break = None if strict_equivariant else _first(strict, declarations)
    first = relaxed_break(residual_at, declarations) or _first(trace, declarations)
    run()
    rows = without_false_breaks(
        _rows(trace, classifier, declarations, dtype),
        declarations,
        residual_at,
        _breaking_paths(strict, other_break),
    )
    return dataclasses.replace(_sorted(rows, first), strict=other_break)


def _sorted(rows: list[LayerRow], first: Break | None) -> Localisation:
    return Localisation(tuple(sorted(rows, key=_worst_first)), first)


def _breaking_paths(strict: list[Trace], first: Break | None) -> set[str]:
    """The paths of modules that break the strict network."""
    bad = [t for t in strict if t.arrives and (t.turned or any(o.is_break for o in t.outputs.values()))]
    return {t.call.path for t in bad} | ({first.path} if first else set())


def _classifier(
    declarations: Declarations, case: Case, elements: Tensor, tolerance: float
) -> FeatureClassifier:
    """Make a classifier that tries the blocks of all known representations."""
    group = declarations.group
    given = list(dict.fromkeys([*representations(case.in_rep), *representations(case.out_rep)]))
    fields = [*field_representations((case.in_rep, case.out_rep)), *declarations.field_representations()]
    # A field of a larger group (C8 for C4) is not a sum of the smaller group's blocks in the same order.
    larger = [rep for rep in dict.fromkeys(fields) if rep.group != group and acts_through(group, rep.group)]
    own = [rep for rep in [*given, *fields] if rep.group == group]
    return FeatureClassifier(elements, atoms_of(group, [*own, *larger]), tolerance, fields=bool(fields))


def _mark_unexplained_as_unknown(trace: list[Trace], strict: list[Trace]) -> None:
    """Mark tensors as unknown if nothing explains them in the strict network either, although that is equivariant."""
    for mine, theirs in zip(trace, strict, strict=False):
        for verdict, before in ((mine.inputs, theirs.inputs), (mine.outputs, theirs.outputs)):
            for key in verdict.keys() & {key for key, one in before.items() if one.is_break}:
                verdict[key] = Verdict("unknown", "nothing explains it in the strict network either")


def _worst_first(row: LayerRow) -> tuple[int, float]:
    return ((BREAKS, INSIDE, PASSES, UNKNOWN, FINE).index(row.status), -(row.relative or 0.0))


@dataclasses.dataclass(frozen=True)
class DeclaredActions:
    """The actions declared for a call, by the path of the tensor, and the paths of outputs that are 0."""

    inputs: dict[str, Action]
    outputs: dict[str, Action]
    vanishing: frozenset[str] = frozenset()


@dataclasses.dataclass
class Trace:
    """One call, with the classification of its tensors.

    Attributes:
        number: Number of the call.
        call: The call recorded on the sample.
        inputs, outputs: How its tensors transform.
        declared: The actions declared for its outputs.
        moved: The same call with the model's input transformed by each group element.
    """

    number: int
    call: Call
    inputs: dict[str, Verdict]
    outputs: dict[str, Verdict]
    declared: dict[str, Action]
    moved: list[Call]

    @property
    def turned(self) -> bool:
        """Whether an output, but no input, is in another basis."""
        return _any(self.outputs, "basis") and not _any(self.inputs, "basis")

    @property
    def arrives(self) -> bool:
        """Whether every input is explained."""
        return all(verdict.explained for verdict in self.inputs.values())


def _any(verdict: Mapping[str, Verdict], *kinds: str) -> bool:
    return any(t.kind in kinds for t in verdict.values())


def _ends(case: Case) -> DeclaredActions:
    """The actions on the model's own inputs and outputs, by the paths that its recorded call uses."""
    output = call(case.model, case.moved())
    given = leaves(
        as_arguments(case.model, case.sample, case.sample), as_arguments(case.model, case.sample, case.in_rep)
    )
    return DeclaredActions(_actions(given, case.group), _actions(leaves(output, case.out_rep), case.group))


def _actions(found: list[Leaf], group: Group) -> dict[str, Action]:
    return {leaf.path: _action(leaf.action, group) for leaf in found if leaf.measurable}


def _action(axis: TensorAction | None, group: Group) -> Action:
    return INVARIANT if axis is None else action_of(axis, group)


def _declared(declarations: Declarations, c: Call, group: Group) -> DeclaredActions:
    inputs, outputs = (
        declarations.inputs(c.path, c.module, c.inputs),
        declarations.outputs(c.path, c.module, c.outputs),
    )
    return DeclaredActions(
        {key: _action(axis, group) for key, axis in inputs.items()},
        {key: _action(axis, group) for key, axis in outputs.items()},
    )


def _trace(
    number: int,
    classifier: FeatureClassifier,
    declared: DeclaredActions,
    base: list[Call],
    moved: list[list[Call]],
) -> Trace:
    def verdicts(which: str) -> dict[str, Verdict]:
        actions: dict[str, Action] = getattr(declared, which)
        found = {}
        for key in getattr(base[0], which):
            if which == "outputs" and key in declared.vanishing:
                found[key] = Verdict("fits", "0", actions.get(key))
                continue
            every = [*base, *(c for row in moved for c in row)]
            if any(key not in getattr(c, which) for c in every):
                found[key] = Verdict("unknown", "it is not there in every run")
                continue
            x = [getattr(c, which)[key] for c in base]
            y = [[getattr(c, which)[key] for c in row] for row in moved]
            found[key] = classifier.classify(x, y, actions.get(key))
        return found

    return Trace(
        number, base[0], verdicts("inputs"), verdicts("outputs"), declared.outputs, [row[0] for row in moved]
    )


def _first(trace: list[Trace], declarations: Declarations) -> Break | None:
    """Find the first tensor in the order of execution that nothing explains, and the module whose code made it."""
    events = [(t.call.order[0], True, t) for t in trace] + [(t.call.order[1], False, t) for t in trace]
    for _, entering, t in sorted(events, key=lambda event: event[0]):
        path = t.call.path or "the model"
        if entering and t.call.parent >= 0:
            for key, verdict in t.inputs.items():
                if verdict.is_break:
                    caller = trace[t.call.parent].call
                    what = f"{_short(key)} transforms {verdict.words}"
                    return Break(caller.path, caller.type, f"in its own code, before it calls {path}: {what}")
        if not entering:
            bad = [(k, o) for k, o in t.outputs.items() if o.is_break or (t.turned and o.kind == "basis")]
            if bad:
                key, verdict = bad[0]
                own = any(other.call.parent == t.number for other in trace)
                why = declarations.relaxed(t.call.path)
                where = f"{why}: " if why else "in its own code, after the modules in it: " if own else ""
                came = "; ".join(dict.fromkeys(i.words for i in t.inputs.values())) or "none"
                name = f"output {key.strip('[]')}" if len(t.outputs) > 1 else "its output"
                return Break(
                    t.call.path, t.call.type, f"{where}{name} transforms {verdict.words}; its inputs: {came}"
                )
    return None


def _short(key: str) -> str:
    """A readable form of a path in (args, kwargs): ``argument 1`` or a name."""
    name = key.removeprefix("[0]").removeprefix("[1].")
    position = name.strip("[]")
    return f"argument {position}" if position.isdigit() and key.startswith("[0]") else name


def _rows(
    trace: list[Trace], classifier: FeatureClassifier, declarations: Declarations, dtype: torch.dtype
) -> list[LayerRow]:
    rows = []
    inside: set[int] = set()  # calls with a module inside that breaks
    for t in sorted(trace, key=lambda item: item.call.order[1]):
        if not t.outputs:
            continue
        row = _row(t, t.number in inside, classifier, declarations, dtype)
        rows.append(row)
        if row.status in (BREAKS, INSIDE) and t.call.parent >= 0:
            inside.add(t.call.parent)
    return rows


def _row(
    t: Trace, inside: bool, classifier: FeatureClassifier, declarations: Declarations, dtype: torch.dtype
) -> LayerRow:
    outputs, note = t.outputs, ""
    output = None if _any(outputs, "unknown") else max(verdict.relative for verdict in outputs.values())
    arriving = (
        None if _any(t.inputs, "unknown") else max((i.relative for i in t.inputs.values()), default=0.0)
    )
    if not t.arrives and not _any(t.inputs, "unknown"):
        outputs, note = _replay(t, classifier, dtype)
    breaking = [
        o for o in outputs.values() if o.is_break or (o.kind == "basis" and not _any(t.inputs, "basis"))
    ]
    if _any(outputs, "unknown") or _any(t.inputs, "unknown"):
        status, relative, absolute = UNKNOWN, None, None
        note = note or "; ".join(
            o.words for o in [*t.inputs.values(), *outputs.values()] if o.kind == "unknown"
        )
    elif breaking:
        status = INSIDE if inside else BREAKS
        relative, absolute = max(o.relative for o in breaking), max(o.absolute for o in breaking)
        why = declarations.relaxed(t.call.path)
        note = (
            ""
            if inside
            else "; ".join(filter(None, [note, *([why] if why else [o.words for o in breaking])]))
        )
    else:
        status = FINE if t.arrives else PASSES
        verdict = [o for o in outputs.values() if o.kind != "basis"]
        relative = max((o.relative for o in verdict), default=0.0)
        absolute = max((o.absolute for o in verdict if o.kind != "linear"), default=0.0)
    return LayerRow(
        path=t.call.path,
        type=t.call.type,
        call=t.call.index,
        status=status,
        arriving=arriving,
        relative=relative,
        absolute=absolute,
        output=output,
        inputs=tuple(_named(verdict) for verdict in t.inputs.values()),
        outputs=tuple(_named(verdict) for verdict in outputs.values()),
        note=note,
    )


def _named(verdict: Verdict) -> str:
    return verdict.action.name if verdict.action is not None and verdict.kind != "basis" else verdict.words


def _replay(t: Trace, classifier: FeatureClassifier, dtype: torch.dtype) -> tuple[dict[str, Verdict], str]:
    """Call the module on exactly transformed inputs; return how its outputs transform, and the assumptions on its inputs."""

    def inputs(g: Tensor | None, recorded: Call) -> Any:
        def put(leaf: Leaf) -> Tensor:
            verdict = t.inputs.get(leaf.path)
            if verdict is not None and verdict.kind in ("basis", "linear"):
                # some action maps it, but only the closest one is known: use the recorded input
                return recorded.inputs[leaf.path].to(leaf.value)
            if g is None or verdict is None or verdict.action is None:
                return leaf.value.clone()
            return verdict.action.apply(g.to(leaf.value.device), leaf.value).to(dtype)

        return map_tree(t.call.arguments, None, put)

    def run(g: Tensor | None, recorded: Call) -> dict[str, Tensor]:
        args, kwargs = inputs(g, recorded)
        return tensors_of(t.call.module(*args, **kwargs))

    try:
        x = run(None, t.call)
        y = [run(g, recorded) for g, recorded in zip(classifier.elements, t.moved, strict=True)]
    except Exception as error:  # a user's module may raise anything when it is called outside its model
        return {
            "": Verdict("unknown", "")
        }, f"cannot be called by itself: {type(error).__name__}: {str(error)[:80]}"
    verdict = {
        key: classifier.classify([x[key]], [[row[key]] for row in y], t.declared.get(key)) for key in x
    }
    guessed = [
        i.action.name
        for i in t.inputs.values()
        if i.kind == "broken" and i.action and "declared" not in i.words
    ]
    return verdict, f"assuming its inputs are {' and '.join(dict.fromkeys(guessed))}" if guessed else ""


def breaking_residual(
    declarations: Declarations, order: Iterable[str], error: Callable[[], float], tolerance: float
) -> str | None:
    """Find the first relaxed layer whose residuals alone break the symmetry of the output.

    They break it if the error exceeds both the tolerance and twice the error without any residual.

    Args:
        declarations: The declarations of the model.
        order: Paths of modules in the order in which their calls end.
        error: A function that measures the model's relative error.
        tolerance: The relative error that counts as equivariant.

    Returns:
        The layer's path, or ``None``.
    """
    every = [residual for several in declarations.relaxed_at.values() for residual in several]
    on = {residual: residual.enabled for residual in every}  # a suspended residual stays off in any case
    try:
        for residual in every:
            residual.enabled = False
        limit = max(tolerance, 2 * error())
        for path in dict.fromkeys([*order, *declarations.relaxed_at]):
            own = [
                residual
                for residual in declarations.relaxed_at.get(path, ())
                if on[residual] and float(residual.gamma.detach())
            ]
            if not own:
                continue
            for residual in own:
                residual.enabled = True
            if not error() <= limit:
                return path
            for residual in own:
                residual.enabled = False
    finally:
        for residual, before in on.items():
            residual.enabled = before
    return None


def relaxed_break(path: str | None, declarations: Declarations) -> Break | None:
    """The break at a relaxed layer."""
    if path is None:
        return None
    words = f"{declarations.relaxed(path)}: what its residual adds, alone, breaks the symmetry of the model's output"
    return Break(path, type(declarations.modules[path]).__name__, words)


def without_false_breaks(
    rows: list[LayerRow], declarations: Declarations, residual_at: str | None, breaking: set[str]
) -> list[LayerRow]:
    """Keep as breaks only relaxed modules, and modules that also break the strict network."""
    done = []
    for row in rows:
        inside = any(path.startswith(f"{row.path}." if row.path else "") for path in declarations.relaxed_at)
        if row.path == residual_at and row.status != BREAKS:
            row = dataclasses.replace(row, status=BREAKS, note=declarations.relaxed(row.path))
        elif row.status == BREAKS and row.path not in declarations.relaxed_at and row.path not in breaking:
            note = "" if inside else "the strict network shows no break of its own here"
            row = dataclasses.replace(row, status=INSIDE if inside else PASSES, note=note)
        done.append(row)
    return done
