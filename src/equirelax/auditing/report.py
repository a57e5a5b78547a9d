"""The result of an audit: its numbers, a text table, HTML for notebooks, and a plain dictionary."""

from __future__ import annotations

import dataclasses
from html import escape
from typing import Any

from equirelax.auditing.breaking import Breaking
from equirelax.auditing.error import Measurement, Worst, largest
from equirelax.auditing.lie import LieReport


def table(titles: list[str], rows: list[list[str]], right: frozenset[int] | None = None) -> str:
    """Format a plain text table: titles, a rule, rows; columns in ``right`` (by default all but the first) right-aligned."""
    right = frozenset(range(1, len(titles))) if right is None else right
    widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles))]
    lines = []
    for row in [titles, ["-" * w for w in widths], *rows]:
        cells = [
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: float) -> str:
    """Format a number with three significant digits, an exact zero as 0."""
    return "0" if value == 0 else f"{value:.2e}"


def entry_text(value: float | str) -> str:
    """Format an entry of an output. Complex entries are text already."""
    return value if isinstance(value, str) else f"{value:.6g}"


@dataclasses.dataclass
class Section:
    """A section of a report: lines that are always shown, rows that may be folded from the end, and lines after them.

    Attributes:
        head: The lines before the rows.
        rows: The rows.
        what: The name of the rows in the line that says how many were folded.
        tail: The lines after the rows.
        shown: Number of rows that are shown; all by default.
        weight: How much longer than other sections it stays when something must be folded.
    """

    head: list[str]
    rows: list[str] = dataclasses.field(default_factory=list)
    what: str = ""
    tail: list[str] = dataclasses.field(default_factory=list)
    shown: int = -1
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.shown < 0:
            self.shown = len(self.rows)

    @property
    def lines(self) -> list[str]:
        """The lines that are shown."""
        folded = len(self.rows) - self.shown
        more = [f"  ... {folded} more {self.what}"] if folded else []
        return [*self.head, *self.rows[: self.shown], *more, *self.tail]


def folded(sections: list[Section], most: int) -> str:
    """Join the sections by blank lines and fold rows until at most ``most`` lines are left, if that is possible.

    The longest sections, relative to their weights, are folded first, down to one row each.
    """
    sections = [section for section in sections if section.lines]

    def length() -> int:
        return sum(len(section.lines) for section in sections) + len(sections) - 1

    while length() > most:
        # The first fold adds a line that names it, so it takes two rows.
        foldable = [
            section
            for section in sections
            if section.shown > (2 if section.shown == len(section.rows) else 1)
        ]
        if not foldable:
            break
        longest = max(foldable, key=lambda section: section.shown / section.weight)
        longest.shown -= 2 if longest.shown == len(longest.rows) else 1
    return "\n\n".join("\n".join(section.lines) for section in sections)


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
            module in it breaks); ``passes on`` (its input is broken, it adds nothing); ``unknown``.
        arriving: Relative error of its worst input; ``None`` if unknown.
        relative: Relative error that the module adds: the error of its output when its inputs are transformed exactly; ``None``
            if unknown.
        absolute: The same as an absolute error.
        output: Relative error of its output in the run.
        inputs: The action that explains each input, or the closest one.
        outputs: The same for each output.
        note: The evidence, an assumption that was made, or why something is unknown.
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
    def name(self) -> str:
        """The path for the reader, with the number of the call from the second on."""
        name = self.path or "(model)"
        return f"{name} (call {self.call + 1})" if self.call else name


@dataclasses.dataclass(frozen=True)
class Break:
    """The first place where equivariance is lost: the module whose own code breaks it, and the evidence in words."""

    path: str
    type: str
    words: str


@dataclasses.dataclass(frozen=True)
class Localisation:
    """Every call of every module, worst first, and the first break.

    Attributes:
        rows: The calls: first those that break, then those with a break inside, those that pass a break on, unknown ones, and
            the rest; within each status by the relative error that they add.
        first: The first break in the order of execution; ``None`` if the model is equivariant or no break was found.
        note: Why nothing could be localised, else empty.
        strict: The first break of the strict network, for a relaxed model that is not equivariant without its residuals
            either; else ``None``.
    """

    rows: tuple[LayerRow, ...]
    first: Break | None
    note: str = ""
    strict: Break | None = None

    def sections(self, broken: bool) -> list[Section]:
        """The sections for the printed report; one line for an equivariant model."""
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
            calls = f"  {fine} other {'call is' if fine == 1 else 'calls are'} fine"
            found.append(Section([title, rule], rows, "calls of modules (.layers)", [calls], weight=4))
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
                _maybe(row.arriving),
                _maybe(row.relative),
                _maybe(row.absolute),
                "; ".join(row.outputs),
            ]
            for row in shown
        ]
        return table(titles, rows, right=frozenset((3, 4, 5))).splitlines()


LINES = 40
"""Most lines of a printed report; folded rows are counted in a line of their own."""
AS_IT_IS, PROJECTED, RELAXED = "as it is", "projected", "relaxed"


@dataclasses.dataclass(frozen=True)
class AuditReport:
    """Result of :func:`equirelax.auditing.audit`. ``str(report)`` is a table; ``to_dict()`` goes into JSON.

    Attributes:
        model: Class name of the audited model.
        group: Name of the group, e.g. ``SO(3)``.
        dtype: Precision in which the model ran, e.g. ``float64``.
        samples: Number of sampled elements (elements of other components are measured in addition).
        seed: Seed of the sampling.
        tolerance: Relative error up to which the model counts as equivariant.
        before: Errors of the model as it is, which for a relaxed model includes its residuals.
        after: Errors of a relaxed model without its residuals (what projection by dropping leaves); else ``None``.
        lie: Lie derivatives of the model as it is; ``None`` for a group without a Lie algebra, or if ``lie=False``.
        localisation: The layers of the model as it is; ``None`` if ``per_layer=False``.
        inputs: How every tensor of the sample was assumed to transform.
        outputs: How every tensor of the output was assumed to transform.
        notes: Remarks, such as randomness in the model or tensors that were not compared.
        deployed: The form that will be used and that the printed report leads with: ``projected``, ``relaxed``, or
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
        """Convert everything to plain dictionaries, lists, numbers and strings, which JSON can hold."""
        result = dataclasses.asdict(self)
        result["equivariant"] = self.equivariant
        result["first_break"] = self.first_break
        result["modules"] = [one.to_dict() for one in self.modules]
        result["equivariance_error"] = {
            "before": self.before.relative,
            "after": self.after.relative if self.after else None,
            "group": self.group,
            "dtype": self.dtype,
        }
        plain: dict[str, Any] = _plain(result)
        return plain

    def __str__(self) -> str:
        return folded(self._sections(), LINES)

    def _repr_html_(self) -> str:
        """The report as self-contained HTML, for notebooks."""
        return report_html(self)

    @property
    def headline(self) -> tuple[str, ...]:
        """The verdict, first on the form that is deployed."""
        name = f"{self.model} under {self.group}"
        if self.after is None:
            return (f"{name}: {self._verdict(self.before)}, tolerance {number(self.tolerance)})",)
        if self.deployed == RELAXED:
            return (
                f"{name}, deployed relaxed: {number(self.before.relative)} from equivariant (relative error)",
                f"projected: {self._verdict(self.after)}, tolerance {number(self.tolerance)})",
            )
        return (
            f"{name}, deployed projected: {self._verdict(self.after)}, tolerance {number(self.tolerance)})",
            f"as it is now, relaxed: {self._verdict(self.before)})",
        )

    def _verdict(self, measured: Measurement) -> str:
        verdict = "equivariant" if measured.relative <= self.tolerance else "NOT equivariant"
        return f"{verdict} (relative error {number(measured.relative)}"

    @property
    def measured(self) -> str:
        """How the errors were measured, in words."""
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
        found = [
            Section([*self.headline, self.measured], tensors, "tensors (.inputs, .outputs)"),
            *self._errors(),
            Section(self._worst()),
            self._lie(),
        ]
        if self.modules:
            found.append(self._modules())
        if self.localisation is not None:
            found += self.localisation.sections(broken=not self.equivariant)
        if self.notes:
            found.append(Section([], [f"note: {note}" for note in self.notes], "notes (.notes)"))
        return found

    def errors(self) -> tuple[list[str], list[list[str]]]:
        """The table of errors: titles and rows, with a column for each form."""
        columns = [self.before]
        titles = ["error", "value"]
        if self.after is not None:
            relaxed = self.deployed == RELAXED
            columns = [self.before, self.after] if relaxed else [self.after, self.before]
            titles = ["error", *(("relaxed", "strict") if relaxed else ("strict", "relaxed"))]
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

    def _worst(self) -> list[str]:
        if self.equivariant:
            return []
        worst = self.worst
        entry = f"[{', '.join(map(str, worst.entry))}]"
        return [
            f"worst element: {worst.description}",
            f"  at {worst.output}{entry}: rho(g) f(x) = {entry_text(worst.expected)}, f(g x) = {entry_text(worst.found)}",
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
                _maybe(one.share),
                _maybe(one.added),
                number(one.alone),
            ]
            for one in sorted(self.modules, key=lambda one: -one.alone)
        ]
        return titles, rows

    def _modules(self) -> Section:
        title, rule, *rows = table(*self.residuals(), right=frozenset((2, 3, 4, 5))).splitlines()
        words = (
            "  adds: share of the module's output; breaks by: error of what is added, of the same size; output alone:\n"
            "  relative error of the model's output with this residual alone"
        )
        return Section([title, rule], rows, "relaxed modules (.modules)", words.splitlines(), weight=4)


def _maybe(value: float | None) -> str:
    return "?" if value is None else number(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


ROWS = 20
"""Most rows of a table in HTML."""

_STYLE = """<style>
.equirelax-audit{font:13px/1.45 system-ui,sans-serif;color:inherit;max-width:60rem}
.equirelax-audit table{border-collapse:collapse;margin:.4em 0 .8em;color:inherit;background:none}
.equirelax-audit th,.equirelax-audit td{padding:.15em .7em;border-bottom:1px solid #8885;text-align:left;
background:none;color:inherit}
.equirelax-audit .n{text-align:right;font-variant-numeric:tabular-nums}
.equirelax-audit b.ok{color:#2a9d5c}.equirelax-audit b.no{color:#d9534f}
.equirelax-audit p{margin:.3em 0}.equirelax-audit small{opacity:.75}
</style>"""


def report_html(report: AuditReport) -> str:
    """Format a report as self-contained HTML, readable on light and dark backgrounds."""
    first, *others = report.headline
    deployed = report.after if report.after is not None and report.deployed == "projected" else report.before
    kind = "ok" if deployed.relative <= report.tolerance else "no"
    parts = [
        _STYLE,
        f'<p><b class="{kind}">{escape(first)}</b></p>',
        *(f"<p>{escape(line)}</p>" for line in others),
        f"<p><small>{escape(report.measured)}</small></p>",
    ]
    titles, rows = report.errors()
    parts.append(_table(titles, rows, numbers=1))
    if not report.equivariant:
        worst = report.worst
        entry = ", ".join(map(str, worst.entry))
        parts.append(
            f"<p>worst element: {escape(worst.description)}, at {escape(worst.output)}[{entry}]: "
            f"{escape(entry_text(worst.expected))} became {escape(entry_text(worst.found))}</p>"
        )
    if report.lie is not None:
        parts.append(f"<p>Lie derivative: relative {number(report.lie.relative)} at most</p>")
    if report.modules:
        titles, rows = report.residuals()
        parts.append(_table(titles, rows, numbers=2))
    parts += _layers(report)
    parts += [f"<p><small>note: {escape(note)}</small></p>" for note in report.notes]
    tensors = [[path, action] for path, action in (*report.inputs.items(), *report.outputs.items())]
    folded = _table(["tensor", "transforms as"], tensors, numbers=2)
    parts.append(f"<details><summary>inputs and outputs</summary>{folded}</details>")
    return f'<div class="equirelax-audit">{"".join(parts)}</div>'


def _layers(report: AuditReport) -> list[str]:
    found = report.localisation
    if found is None or report.equivariant:
        return []
    if found.note:
        return [f"<p>layers: {escape(found.note)}</p>"]
    parts = []
    for words, first in (("first break", found.first), ("first break of the strict network", found.strict)):
        if first is not None:
            where = escape(f"{first.path or 'the model itself'} ({first.type})")
            parts.append(f"<p>{words}: <b>{where}</b><br><small>{escape(first.words)}</small></p>")
    rows = [
        [
            row.name,
            row.type,
            row.status,
            *(("?" if v is None else number(v)) for v in (row.arriving, row.relative)),
        ]
        for row in found.rows
        if row.status != "ok"
    ]
    return [*parts, _table(["module, worst first", "type", "status", "arrives", "adds"], rows, numbers=3)]


def _table(titles: list[str], rows: list[list[str]], numbers: int) -> str:
    """Format a table whose columns from ``numbers`` on are numbers."""

    def line(cells: list[str], tag: str) -> str:
        made = (
            f'<{tag} class="n">{escape(cell)}</{tag}>' if i >= numbers else f"<{tag}>{escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    more = f"<p><small>... {len(rows) - ROWS} more rows</small></p>" if len(rows) > ROWS else ""
    return f"<table>{line(titles, 'th')}{''.join(line(row, 'td') for row in rows[:ROWS])}</table>{more}"
