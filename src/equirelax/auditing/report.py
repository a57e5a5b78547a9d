"""The result of an audit: its numbers, the printed report, and a plain dictionary."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from typing import Any

from equirelax.auditing.breaking import Breaking
from equirelax.auditing.error import Measurement, Worst
from equirelax.auditing.html import report_html, report_page
from equirelax.auditing.lie import LieReport
from equirelax.auditing.norms import largest
from equirelax.auditing.text import Section, entry_text, folded, number, number_or_unknown, table

BREAKS = "BREAKS"
INSIDE = "breaks inside"
PASSES = "passes on"
FINE = "ok"
UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One call of one module.

    Attributes:
        path: The module's path, ``""`` for the model itself.
        type: The module's class.
        call: Number of the call, 0 for the first.
        status: ``ok``; ``BREAKS`` (its inputs transform and its output does not, because of its own code); ``breaks inside`` (a
            module inside it breaks); ``passes on`` (its input is broken, and it adds nothing); ``unknown``.
        arriving: Relative error of its worst input; ``None`` if unknown.
        relative: Relative error that the module adds: the error of its output when its inputs are transformed exactly; ``None``
            if unknown.
        absolute: The same as an absolute error.
        output: Relative error of its output in the run.
        inputs: The action that explains each input, or the closest one.
        outputs: The same for each output.
        note: The evidence, an assumption that was made, or the reason why something is unknown.
    """

    path: str
    type: str
    call: int
    status: str
    arriving: float | None
    relative: float | None
    absolute: float | None
    output: float | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    note: str = ""

    @property
    def breaks(self) -> bool:
        """Whether the module's own code breaks equivariance."""
        return self.status == BREAKS

    @property
    def name(self) -> str:
        """The path as it is printed, with the number of the call from the second call on."""
        name = self.path or "(model)"
        return f"{name} (call {self.call + 1})" if self.call else name


@dataclasses.dataclass(frozen=True)
class Break:
    """The first place where equivariance is lost: the module whose own code breaks it, and a description of the evidence."""

    path: str
    type: str
    words: str


@dataclasses.dataclass(frozen=True)
class Localisation:
    """Every call of every module, worst first, and the first break.

    Attributes:
        rows: The calls: first those that break, then those with a break inside, those that pass a break on, unknown ones, and
            the rest. Within each status they are sorted by the relative error that they add.
        first: The first break in the order of execution; ``None`` if the model is equivariant or no break was found.
        note: Why nothing could be localised, else empty.
        strict: The first break of the strict network, for a relaxed model that is not equivariant even without its
            residuals; else ``None``.
    """

    rows: tuple[LayerRow, ...]
    first: Break | None
    note: str = ""
    strict: Break | None = None

    def sections(self, broken: bool) -> list[Section]:
        """The sections of the printed report; one line for an equivariant model."""
        if self.note:
            return [Section([f"layers: {self.note}"])]
        if not broken:
            known = [row for row in self.rows if row.status != UNKNOWN]
            added = largest(row.relative for row in known if row.relative is not None)
            odd = [row.name for row in self.rows if row.status in (BREAKS, UNKNOWN)]
            tail = f"; not explained: {', '.join(odd[:6])}{' ...' if len(odd) > 6 else ''}" if odd else ""
            return [Section([f"layers: {len(self.rows)} calls, largest error added {number(added)}{tail}"])]
        found = [Section(self._first())]
        shown = [row for row in self.rows if row.status != FINE]
        fine = len(self.rows) - len(shown)
        if shown:
            title, rule, *rows = self._table(shown)
            calls = [f"  {fine} other {'call is' if fine == 1 else 'calls are'} fine"] if fine else []
            found.append(Section([title, rule], rows, "calls of modules (.layers)", calls, weight=4))
        accused = {one.path for one in (self.first, self.strict) if one is not None}
        notes = [f"  {row.name}: {row.note}" for row in shown if row.note and row.path not in accused]
        if notes:
            found.append(Section([], notes, "notes on modules (.layers)"))
        return found

    def _first(self) -> list[str]:
        if self.first is None:
            lines = ["first break: not found in any module (see the rows below)"]
        else:
            where = self.first.path or "the model itself"
            lines = [f"first break: {where} ({self.first.type})", f"  {self.first.words}"]
        if self.strict is not None:
            where = self.strict.path or "the model itself"
            lines += [
                f"the strict network is not equivariant either: first break: {where} ({self.strict.type})",
                f"  {self.strict.words}",
            ]
        return lines

    @staticmethod
    def _table(shown: list[LayerRow]) -> list[str]:
        titles = ["module, worst first", "type", "status", "arrives", "adds", "adds (abs)", "output as"]
        rows = [
            [
                row.name,
                row.type,
                row.status,
                number_or_unknown(row.arriving),
                number_or_unknown(row.relative),
                number_or_unknown(row.absolute),
                "; ".join(row.outputs),
            ]
            for row in shown
        ]
        return table(titles, rows, right=frozenset((3, 4, 5))).splitlines()


LINES = 40
"""Maximum number of lines of a printed report; a separate line counts the folded rows."""
AS_IT_IS, PROJECTED, RELAXED = "as it is", "projected", "relaxed"


@dataclasses.dataclass(frozen=True)
class AuditReport:
    """Result of :func:`equirelax.auditing.audit`. ``str(report)`` is a table, and ``to_dict()`` can be written as JSON.

    Attributes:
        model: Class name of the audited model.
        group: Name of the group, e.g. ``SO(3)``.
        dtype: Precision in which the model ran, e.g. ``float64``.
        samples: Number of sampled elements (elements of other components are measured in addition).
        seed: Seed of the sampling.
        tolerance: Relative error up to which the model counts as equivariant.
        before: Errors of the model as it is, which for a relaxed model includes its residuals.
        after: Errors of a relaxed model without its residuals, as projection by dropping leaves it; else ``None``.
        lie: Lie derivatives of the model as it is; ``None`` for a group without a Lie algebra, or if ``lie=False``.
        localisation: The layers of the model as it is; ``None`` if ``per_layer=False``.
        inputs: How every tensor of the sample was assumed to transform.
        outputs: How every tensor of the output was assumed to transform.
        notes: Remarks, such as randomness in the model or tensors that were not compared.
        deployed: The form that will be used, which the printed report lists first: ``projected``, ``relaxed``, or
            ``as it is`` for a model that is not relaxed.
        modules: How each residual breaks the symmetry, for a model that is deployed relaxed; else empty.
        translations: Largest sampled translation; ``None`` if there are no translations.
    """

    model: str
    group: str
    dtype: str
    samples: int
    seed: int
    tolerance: float
    before: Measurement
    after: Measurement | None
    lie: LieReport | None
    localisation: Localisation | None
    inputs: dict[str, str]
    outputs: dict[str, str]
    notes: tuple[str, ...]
    deployed: str = AS_IT_IS
    modules: tuple[Breaking, ...] = ()
    translations: float | None = None

    @property
    def forms(self) -> dict[str, Measurement]:
        """The errors of every form that was measured, by its name. The deployed form is first."""
        if self.after is None:
            return {AS_IT_IS: self.before}
        if self.deployed == RELAXED:
            return {RELAXED: self.before, PROJECTED: self.after}
        return {PROJECTED: self.after, RELAXED: self.before}

    @property
    def passes(self) -> bool:
        """Whether the relative error of the deployed form stays within the tolerance."""
        return self.forms[self.deployed].relative <= self.tolerance

    @property
    def absolute(self) -> float:
        """Largest absolute error of the model as it is."""
        return self.before.absolute

    @property
    def relative(self) -> float:
        """Largest relative error of the model as it is."""
        return self.before.relative

    @property
    def e(self) -> float:
        """REMUL's E of the model as it is."""
        return self.before.e

    @property
    def e_prime(self) -> float:
        """REMUL's E' of the model as it is."""
        return self.before.e_prime

    @property
    def worst(self) -> Worst:
        """The group element with the largest relative error."""
        return self.before.worst

    @property
    def equivariant(self) -> bool:
        """Whether the relative error of the model as it is stays within the tolerance."""
        return self.relative <= self.tolerance

    @property
    def layers(self) -> tuple[LayerRow, ...]:
        """The layers, worst first; empty if they were not measured."""
        return self.localisation.rows if self.localisation else ()

    @property
    def first_break(self) -> str | None:
        """Path of the first module whose own code breaks equivariance; ``None`` if none was found."""
        return self.localisation.first.path if self.localisation and self.localisation.first else None

    def to_dict(self) -> dict[str, Any]:
        """Convert everything to plain dictionaries, lists, numbers and strings, which JSON can hold.

        The results for the deployed form come first: `deployed`, `passes`, and `errors`, a mapping from every form that was
        measured to its errors. NaN and infinity, which JSON cannot represent as numbers, are the strings "nan" and "inf".
        """
        rest = dataclasses.asdict(self)
        head = {key: rest.pop(key) for key in ("model", "group", "deployed")}
        for key in ("before", "after"):
            del rest[key]
        return _plain(
            {
                **head,
                "passes": self.passes,
                "tolerance": rest.pop("tolerance"),
                "errors": {name: dataclasses.asdict(measured) for name, measured in self.forms.items()},
                "first_break": self.first_break,
                **rest,
                "modules": [one.to_dict() for one in self.modules],
            }
        )  # type: ignore[no-any-return]

    def to_html(self, command: str = "") -> str:
        """Format the report as a self-contained HTML page.

        Args:
            command: The command that reproduces the report, which the page shows; empty for none.
        """
        return report_page(self, command)

    def __str__(self) -> str:
        return folded(self._sections(), LINES)

    def _repr_html_(self) -> str:
        """The report as self-contained HTML, for notebooks."""
        return report_html(self)

    @property
    def headline(self) -> tuple[str, ...]:
        """The verdict, with the deployed form first."""
        name = f"{self.model} under {self.group}"
        if self.after is None:
            return (f"{name}: {self._verdict(self.before)}, tolerance {number(self.tolerance)})",)
        (first, deployed), (other, rest) = self.forms.items()
        now = "as it is now, " if other == RELAXED else ""
        return (
            f"{name}, deployed {first}: {self._verdict(deployed)}, tolerance {number(self.tolerance)})",
            f"{now}{other}: {self._verdict(rest)})",
        )

    def _verdict(self, measured: Measurement) -> str:
        verdict = "equivariant" if measured.relative <= self.tolerance else "NOT equivariant"
        return f"{verdict} (relative error {number(measured.relative)}"

    @property
    def measured(self) -> str:
        """A description of how the errors were measured."""
        far = (
            f", translations up to {self.translations:.3g} (the largest coordinate)"
            if self.translations
            else ""
        )
        return f"measured in {self.dtype} over {self.samples} group elements, seed {self.seed}{far}"

    def _sections(self) -> list[Section]:
        width = max(map(len, [*self.inputs, *self.outputs]))
        tensors = [
            f"  {path:<{width}}  {action}" for path, action in (*self.inputs.items(), *self.outputs.items())
        ]
        layers = [] if self.localisation is None else self.localisation.sections(broken=not self.equivariant)
        modules = [self._modules()] if self.modules else []
        head = [
            Section([*self.headline, self.measured], tensors, "tensors (.inputs, .outputs)", weight=2),
            *self._errors(),
        ]
        if self.equivariant:
            found = [*head, self._lie(), *modules, *layers]
        else:
            where = [*layers[:1], Section(self._worst()), *layers[1:]]
            if self.after is not None:
                where[0].head.insert(0, f"{self.where_title}:")
            found = [*head, *where, *modules, self._lie()]
        if self.notes:
            found.append(Section([], [f"note: {note}" for note in self.notes], "notes (.notes)"))
        return found

    def errors(self) -> tuple[list[str], list[list[str]]]:
        """The table of errors: titles and rows, with a column for each form."""
        columns = list(self.forms.values())
        titles = ["error", *(("value",) if self.after is None else self.forms)]
        rows = [
            ["relative", *(number(m.relative) for m in columns)],
            ["absolute", *(number(m.absolute) for m in columns)],
            ["E  (REMUL)", *(number(m.e) for m in columns)],
            ["E' (REMUL)", *(number(m.e_prime) for m in columns)],
        ]
        if len(self.before.components) > 1:
            rows += [
                [f"relative, {name}", *(number(m.components.get(name, 0.0)) for m in columns)]
                for name in self.before.components
            ]
        if len(self.before.outputs) > 1:
            worst = sorted(self.before.outputs, key=lambda path: -self.before.outputs[path])
            rows += [
                [f"relative, {path}", *(number(m.outputs.get(path, 0.0)) for m in columns)] for path in worst
            ]
        return titles, rows

    def _errors(self) -> list[Section]:
        lines = table(*self.errors()).splitlines()
        always = 6 + (len(self.before.components) if len(self.before.components) > 1 else 0)
        return [Section(lines[:always], lines[always:], "outputs (.before.outputs)")]

    @property
    def where_title(self) -> str:
        """The title of the part with the worst element, the layers and the Lie derivative."""
        if self.after is None:
            return "Where equivariance breaks"
        return "Where equivariance breaks in the network as it is now, relaxed"

    def _worst(self) -> list[str]:
        worst = self.worst
        return [
            f"worst element: {worst.description}",
            f"  at {worst.where}: rho(g) f(x) = {entry_text(worst.expected)}, f(g x) = {entry_text(worst.found)}",
        ]

    def _lie(self) -> Section:
        if self.lie is None:
            return Section([])
        how = f"by {self.lie.method}" + (f"; {self.lie.reason}" if self.lie.reason else "")
        if self.lie.relative <= self.tolerance:
            return Section(
                [f"Lie derivative: relative {number(self.lie.relative)} at most, over all generators ({how})"]
            )
        rows = [[row.name, number(row.relative), number(row.absolute)] for row in self.lie.generators]
        title, rule, *lines = table(["Lie derivative along", "relative", "absolute"], rows).splitlines()
        return Section([title, rule], lines, "generators (.lie)", [f"  {how}"])

    def residuals(self) -> tuple[list[str], list[list[str]]]:
        """The table of relaxed modules, worst first: titles and rows."""
        titles = ["relaxed module", "type", "gamma", "adds", "breaks by", "output alone"]
        rows = [
            [
                one.key or "(model)",
                one.type,
                f"{one.gamma:.3g}",
                number_or_unknown(one.share),
                number_or_unknown(one.added),
                number(one.alone),
            ]
            for one in sorted(self.modules, key=lambda one: -one.alone)
        ]
        return titles, rows

    @property
    def residuals_note(self) -> str:
        """An explanation of the columns of `residuals`."""
        return (
            "adds: share of the module's output; breaks by: error of what is added, of the same size; output alone: relative "
            "error of the model's output with this residual alone"
        )

    def _modules(self) -> Section:
        title, rule, *rows = table(*self.residuals(), right=frozenset((2, 3, 4, 5))).splitlines()
        words = [f"  {line}" for line in textwrap.wrap(self.residuals_note, 110)]
        return Section([title, rule], rows, "relaxed modules (.modules)", words, weight=4)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
