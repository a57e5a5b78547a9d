"""The section of a model card on equivariance: the results of `audit` in Markdown, to be kept with the weights."""

from __future__ import annotations

import os
from pathlib import Path

from equirelax import __version__
from equirelax.auditing.report import RELAXED, AuditReport
from equirelax.auditing.text import number
from equirelax.files import write_text


def card(report: AuditReport) -> str:
    """Write the results of an audit as a section of a model card.

    The text is Markdown and ends with a line break. It says whether the network is equivariant, first in the form in which it
    is deployed, and how this was measured. For a network that is deployed relaxed, it says what each residual adds to the
    error. Any format with text fields can hold it, such as `extra_files` of `torch.export.save` and `_extra_files` of
    `torch.jit.save`.

    Args:
        report: The report of `equirelax.audit` for the network that the card describes. Audit a relaxed network whose method
            is no longer attached with `deployed="relaxed"`.
    """
    main = report.forms[report.deployed]
    verdict = "yes" if report.passes else "no"
    rows = [
        ("network", f"{report.model}, deployed {report.deployed}"),
        ("group", report.group),
        ("relative equivariance error", number(main.relative)),
        ("absolute equivariance error", number(main.absolute)),
        ("equivariant (within the tolerance)", f"{verdict} ({number(report.tolerance)})"),
    ]
    if report.deployed == RELAXED and report.after is not None:
        rows.append(("relative error without the residuals", number(report.after.relative)))
    rows += [
        ("how", report.measured.removeprefix("measured ")),
        ("measured by", f"equirelax {__version__}"),
    ]
    lines = [
        "## Equivariance",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows),
    ]
    if report.deployed == RELAXED and report.modules:
        titles, cells = report.residuals()
        lines += ["", f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
        lines += [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join(lines) + "\n"


def write_card(report: AuditReport, weights: str | os.PathLike[str]) -> Path:
    """Write the card next to a file of weights, under its name with the suffix `.md`, and return the card's path.

    Args:
        report: As for `card`.
        weights: Path of the file that the card describes, such as one of `equirelax.save`.

    Raises:
        StorageError: The disk is full, or the path is not writable. An older card stays intact.
    """
    path = Path(weights).with_suffix(".md")
    write_text(path, card(report))
    return path
