"""What an audit found: numbers, a table to read, and a plain dictionary."""

from __future__ import annotations

import dataclasses
from typing import Any

from equirelax.auditing.breaking import Breaking
from equirelax.auditing.error import Measurement, Worst
from equirelax.auditing.layers import LayerRow, Localisation
from equirelax.auditing.lie import LieReport
from equirelax.auditing.page import report_html
from equirelax.auditing.table import Section, entry_text, folded, number, table

LINES = 40
"""What a printed report has at most; what is folded away is named."""
AS_IT_IS, PROJECTED, RELAXED = "as it is", "projected", "relaxed"


@dataclasses.dataclass(frozen=True)
class AuditReport:
    """Result of :func:`equirelax.auditing.audit`. ``str(report)`` is a table; ``to_dict()`` goes into JSON.

    Attributes:
        model: class name of the audited model.
        group: name of the group, e.g. ``SO(3)``.
        dtype: precision that the model ran in, e.g. ``float64``.
        samples: number of sampled elements (elements of other components are measured in addition).
        seed: seed of the sampling.
        tolerance: relative error up to which the model counts as equivariant.
        before: errors of the model as it is: for a relaxed model, with its residuals.
        after: errors of a relaxed model with its residuals switched off (what projection by dropping leaves);
            else ``None``.
        lie: Lie derivatives of the model as it is; ``None`` for a group without a Lie algebra, or where not
            asked for.
        localisation: the layers of the model as it is; ``None`` where not asked for.
        inputs: how every tensor of the sample was taken to transform.
        outputs: how every tensor of the output was.
        notes: what a reader should know: randomness in the model, tensors left out, and the like.
        deployed: the form that will be used and that the printed report leads with: ``projected``, ``relaxed``, or
            ``as it is`` for a model that is not relaxed.
        modules: what each residual does to the symmetry, for a model that is deployed relaxed; else empty.
        translations: how far translations were drawn; ``None`` where there are none.
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
        """The layers, worst first; empty where they were not measured."""
        return self.localisation.rows if self.localisation else ()

    @property
    def first_break(self) -> str | None:
        """Path of the first module whose own code breaks equivariance; ``None`` where none was found."""
        return self.localisation.first.path if self.localisation and self.localisation.first else None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dictionaries, lists, numbers and strings (JSON-able)."""
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
        """The report for notebooks: one self-contained piece of HTML."""
        return report_html(self)

    @property
    def headline(self) -> tuple[str, ...]:
        """The verdict, on the form that is deployed first."""
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
        """How it was measured, in words."""
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
        """The table of errors: titles and rows, a column for each form."""
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
        """The table of relaxed modules, the one that breaks most first: titles and rows."""
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
