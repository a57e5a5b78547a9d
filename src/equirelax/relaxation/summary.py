"""The summary of a relaxation: every module, whether and why it is relaxed, and the memory that training takes."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from equirelax.relaxation.entries import Entry, own_modules, roots
from equirelax.relaxation.residual import Residual
from equirelax.relaxation.sites import join
from equirelax.relaxation.terms.precision import penalty_dtype

RELAXED, SKIPPED, UNKNOWN = "relaxed", "skipped", "unknown"
MOMENTS = 2
"""Number of tensors of a parameter's size that Adam keeps for it."""


@dataclass(frozen=True)
class Row:
    """One module of the model.

    Args:
        path: Path of the module ("" is the model itself), with ":slot" where a module has several residuals.
        type: Name of the module's class.
        status: "relaxed", "skipped" or "unknown" (it has parameters of its own, and no layer family knows it).
        reason: The reason for the status.
        shape: (out_dim, in_dim) of the residual, where there is one.
        parameters: Number of the residual's parameters, without gamma.
        relaxes: The group that the residual breaks.
    """

    path: str
    type: str
    status: str
    reason: str = ""
    shape: tuple[int, int] | None = None
    parameters: int = 0
    relaxes: str = ""


@dataclass(frozen=True)
class Memory:
    """The memory that training takes, in bytes, without activations: these depend on the model and on the batch.

    Args:
        strict: the author's own parameters.
        residual: parameters of the residuals, strengths included.
        trained: parameters of either kind that require a gradient.
        input_row: Bytes that a penalty keeps for one row of inputs (sample, node, edge, point) at all residuals, from the
            forward pass to the penalty. Most of them are views of activations that backward needs as well.
        gram: an upper bound on the Gram matrices of exact penalties. Residuals with the same input share one, and with
            fewer rows than features the rows themselves are kept instead.
    """

    strict: int
    residual: int
    trained: int
    input_row: int
    gram: int

    @property
    def gradients(self) -> int:
        """The bytes of the gradients of all trained parameters."""
        return self.trained

    @property
    def optimizer(self) -> int:
        """Adam's (and AdamW's) two moments; SGD keeps one or none."""
        return MOMENTS * self.trained

    @property
    def training(self) -> int:
        """Parameters, gradients and Adam's moments."""
        return self.strict + self.residual + self.gradients + self.optimizer

    def __str__(self) -> str:
        return (
            f"memory: {readable(self.strict)} of weights and {readable(self.residual)} of residuals; with gradients and "
            f"Adam's moments {readable(self.training)}, and activations. A penalty keeps {readable(self.input_row)} for "
            f"every row of input, and makes at most {readable(self.gram)} of Gram matrices"
        )


def readable(count: int) -> str:
    """A number of bytes: "512 B", "1.4 MB"."""
    size, units = float(count), ["B", "kB", "MB", "GB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def memory_of(strict: Iterable[nn.Parameter], residuals: Iterable[Residual]) -> Memory:
    """The memory of a model with these parameters and these residuals."""
    own, residuals = list(strict), list(residuals)
    added = [p for residual in residuals for p in (*residual.map.parameters(), residual.gamma)]
    return Memory(
        strict=sum(p.nbytes for p in own),
        residual=sum(p.nbytes for p in added),
        trained=sum(p.nbytes for p in (*own, *added) if p.requires_grad),
        input_row=_input_row(residuals),
        gram=sum(r.map.penalty_entries(r.in_rep) * penalty_dtype(r.gamma.dtype).itemsize for r in residuals),
    )


def _input_row(residuals: list[Residual]) -> int:
    """The bytes that a penalty keeps for one row of input."""
    kept = {id(r.keeper): r.in_rep.dim * r.gamma.element_size() for r in residuals if r.map.reads_inputs}
    return sum(kept.values())


@dataclass(frozen=True)
class Summary:
    """The rows of a relaxation, and the memory that training it takes.

    `str()` is a table of at most 40 lines. If there are more rows, modules whose paths differ only in a number share a
    line, and the rows that still do not fit are named below the table. `full()` has a line for every row.
    """

    rows: tuple[Row, ...]
    memory: Memory

    def with_status(self, status: str) -> tuple[Row, ...]:
        """The rows that are "relaxed", "skipped" or "unknown"."""
        return tuple(row for row in self.rows if row.status == status)

    @property
    def parameters(self) -> int:
        """Parameters that the residuals add, without the strengths."""
        return sum(row.parameters for row in self.rows)

    def full(self) -> str:
        """The table with every row."""
        return "\n".join([*_table([_cells([row]) for row in self.rows]), *self._totals()])

    def __str__(self) -> str:
        groups = [[row] for row in self.rows]
        if len(groups) > LINES - FRAME:
            groups = _grouped(self.rows)
        shown = groups
        if len(groups) > LINES - FRAME:
            # keep what matters most: relaxed modules, then unknown ones, then skipped ones
            rank = {RELAXED: 0, UNKNOWN: 1, SKIPPED: 2}
            first = sorted(range(len(groups)), key=lambda i: (rank[groups[i][0].status], i))[
                : LINES - FRAME - 3
            ]
            shown = [groups[i] for i in sorted(first)]
        hidden = [group for group in groups if group not in shown]
        lines = _table([_cells(group) for group in shown])
        for status in (RELAXED, UNKNOWN, SKIPPED):
            if names := [_name(group) for group in hidden if group[0].status == status]:
                lines.append(_shortened(f"not shown, {status}: ", names))
        return "\n".join([*lines, *self._totals()])

    def _totals(self) -> list[str]:
        counts = [f"{len(self.with_status(s))} {s}" for s in (RELAXED, SKIPPED, UNKNOWN)]
        return [f"{', '.join(counts)}; the residuals add {self.parameters:,} parameters", str(self.memory)]

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in HEADER)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _cells(group))}</tr>"
            for group in _grouped(self.rows)
        )
        totals = "".join(f"<p>{html.escape(line)}</p>" for line in self._totals())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{totals}"


HEADER = ("module", "type", "status", "residual", "parameters", "relaxes", "why")
LINES = 40
"""Roughly the height of a terminal."""
FRAME = 4
"""Lines of a table that are not rows: header, rule and totals."""
WIDTH = 160
"""Width of a line that names the rows not shown."""


def _table(cells: list[tuple[str, ...]]) -> list[str]:
    lines = [HEADER, *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    text = [
        "  ".join(
            cell.rjust(w) if i == 4 else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return [text[0], "  ".join("-" * w for w in widths), *text[1:]]


def _cells(group: list[Row]) -> tuple[str, ...]:
    row = group[0]
    shape = f"{row.shape[1]} -> {row.shape[0]}" if row.shape else ""
    count = f"{sum(one.parameters for one in group):,}" if row.shape else ""
    return (_name(group), row.type, row.status, shape, count, row.relaxes, row.reason)


def _grouped(rows: tuple[Row, ...]) -> list[list[Row]]:
    """Group rows that differ only in the numbers of their paths."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        like = (
            _NUMBER.sub("#", row.path),
            row.type,
            row.status,
            row.shape,
            row.relaxes,
            _NUMBER.sub("#", row.reason),
        )
        groups.setdefault(like, []).append(row)
    return list(groups.values())


_NUMBER = re.compile(r"\d+")


def _name(group: list[Row]) -> str:
    """The name of a group, such as "layers.{0..5}.map (6)"; every number that differs gets its range."""
    if len(group) == 1:
        return group[0].path or "(model)"
    numbers = [[int(n) for n in _NUMBER.findall(row.path)] for row in group]
    ranges = iter([sorted(set(column)) for column in zip(*numbers, strict=True)])

    def spell(_: re.Match[str]) -> str:
        values = next(ranges)
        if len(values) == 1:
            return str(values[0])
        whole = values == list(range(values[0], values[-1] + 1))
        return f"{{{values[0]}..{values[-1]}}}" if whole else f"{{{','.join(map(str, values))}}}"

    return f"{_NUMBER.sub(spell, group[0].path)} ({len(group)})"


def _shortened(start: str, names: list[str]) -> str:
    """As many names as fit on a line, and the number of the others."""
    shown: list[str] = []
    for name in names:
        if len(start) + len(", ".join([*shown, name])) > WIDTH:
            break
        shown.append(name)
    more = len(names) - len(shown)
    return start + ", ".join(shown) + (f" and {more} more; see full()" if more else "")


def rows(model: nn.Module, found: Sequence[Entry]) -> tuple[Row, ...]:
    """One row for every module of the model, and one more for every further residual of a module."""
    relaxed: dict[int, list[Entry]] = {}
    for one in found:
        relaxed.setdefault(id(one.module), []).append(one)
    left = _left(model, found)
    names = _names(model)
    result: list[Row] = []
    relaxed_above: list[str] = []
    for path, module in own_modules(model):
        kind, also = type(module).__name__, _also(names[id(module)])
        for one in relaxed.get(id(module), ()):
            result.append(_row(one, kind, also))
        if id(module) in relaxed:
            relaxed_above.append(f"{path}." if path else "")
            continue
        inside = [above for above in relaxed_above if path.startswith(above)]
        if id(module) in left:
            status, reason = left[id(module)]
        elif inside:
            status, reason = SKIPPED, f"inside {inside[-1].rstrip('.') or 'the model'}, which is relaxed"
        elif any(True for _ in module.parameters(recurse=False)):
            status, reason = UNKNOWN, "has parameters, but no layer family knows it and nothing declares it"
        elif any(True for _ in module.children()):
            status, reason = SKIPPED, "container: its children have rows of their own"
        else:
            status, reason = SKIPPED, "has no parameters"
        result.append(Row(path, kind, status, reason + also))
    return tuple(result)


def _row(one: Entry, kind: str, also: str) -> Row:
    site = one.residual.site
    why = site.why(one.root or "")
    shape = (site.out_rep.dim, site.in_rep.dim)
    count = sum(parameter.numel() for parameter in one.residual.map.parameters())
    return Row(one.key, kind, RELAXED, why + also, shape, count, site.relaxes)


def _left(model: nn.Module, found: Sequence[Entry]) -> dict[int, tuple[str, str]]:
    """Modules that placements left alone, or whose residual was removed since: id of the module -> (status, reason)."""
    present = {one.key for one in found}
    placements = roots(model)
    result: dict[int, tuple[str, str]] = {}
    inside: set[int] = set()
    for root, placement in placements.items():
        module = model.get_submodule(root)
        inside.update(map(id, module.modules()))
        survey = placement.survey(module)
        for path, reason in survey.left.items():
            result[id(module.get_submodule(path))] = reason
        for placed in survey.placed:
            if join(root, placed.site.key) not in present:
                owner = module.get_submodule(placed.site.path)
                result[id(owner)] = (SKIPPED, "its residual was removed")
    if placements:
        for module in model.modules():
            if id(module) not in inside and any(True for _ in module.parameters(recurse=False)):
                result[id(module)] = (SKIPPED, f"outside {' and '.join(placements)}: what was relaxed")
    return result


def _names(model: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(path)
    return names


def _also(names: list[str]) -> str:
    """A phrase that lists the further names of a module that the model holds under several."""
    return f"; the same module as {', '.join(names[1:])}" if len(names) > 1 else ""
