"""What an audit found: numbers, a table to read, and a plain dictionary."""

from __future__ import annotations

import dataclasses
from typing import Any

from equirelax.auditing.bounds import NetworkBounds
from equirelax.auditing.error import Measurement, Worst
from equirelax.auditing.layers import LayerRow, Localisation
from equirelax.auditing.lie import LieReport
from equirelax.auditing.table import number, table


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
        bounds: ACE's bounds of a relaxed model, or why it has none; ``None`` for a model that is not relaxed.
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
    bounds: NetworkBounds | None = None

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
        result["bounds"] = self.bounds.to_dict() if self.bounds else None
        result["equivariance_error"] = {
            "before": self.before.relative,
            "after": self.after.relative if self.after else None,
            "group": self.group,
            "dtype": self.dtype,
        }
        plain: dict[str, Any] = _plain(result)
        return plain

    def __str__(self) -> str:
        parts = [self._head(), self._errors(), self._worst(), self._lie()]
        if self.localisation is not None:
            parts.append(self.localisation.text(broken=not self.equivariant))
        if self.bounds is not None:
            parts.append(str(self.bounds))
        if self.notes:
            parts.append("\n".join(f"note: {note}" for note in self.notes))
        return "\n\n".join(part for part in parts if part)

    def _head(self) -> str:
        verdict = "equivariant" if self.equivariant else "NOT equivariant"
        lines = [
            f"{self.model} under {self.group}: {verdict} (relative error {number(self.relative)}, "
            f"tolerance {number(self.tolerance)})",
            f"measured in {self.dtype} over {self.samples} group elements, seed {self.seed}",
        ]
        width = max(map(len, [*self.inputs, *self.outputs]))
        for path, action in (*self.inputs.items(), *self.outputs.items()):
            lines.append(f"  {path:<{width}}  {action}")
        return "\n".join(lines)

    def _errors(self) -> str:
        columns = [self.before] + ([self.after] if self.after else [])
        titles = ["error"] + (["relaxed", "strict"] if self.after else ["value"])
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
            rows += [
                [f"relative, {path}", *(number(m.outputs.get(path, 0.0)) for m in columns)]
                for path in self.before.outputs
            ]
        return table(titles, rows)

    def _worst(self) -> str:
        if self.equivariant:
            return ""
        worst = self.worst
        entry = f"[{', '.join(map(str, worst.entry))}]"
        return (
            f"worst element: {worst.description}\n"
            f"  at {worst.output}{entry}: rho(g) f(x) = {worst.expected:.6g}, f(g x) = {worst.found:.6g}"
        )

    def _lie(self) -> str:
        if self.lie is None:
            return ""
        how = f"by {self.lie.method}" + (f"; {self.lie.reason}" if self.lie.reason else "")
        if self.lie.relative <= self.tolerance:
            return (
                f"Lie derivative: relative {number(self.lie.relative)} at most, over all generators ({how})"
            )
        rows = [[row.name, number(row.relative), number(row.absolute)] for row in self.lie.generators]
        return f"{table(['Lie derivative along', 'relative', 'absolute'], rows)}\n  {how}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
