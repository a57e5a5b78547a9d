"""Archives of results: every run of a comparison in two small files, whatever its outcome.

runs.json.gz contains, for every run, the name of its folder, its status, why it failed, and the content of its result.json (or,
without a result, of its config.yaml). It also contains the study that the runs belong to. curves.csv.gz contains the rows of all
metrics.csv files, each with its run's name in the first column. Numbers have six digits, more than a table or a picture shows:
further ones would take up to half of the file. Checkpoints and logs are not kept.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equirelax.errors import ConfigError
from equirelax.files import atomic_write

RUNS, CURVES = "runs.json.gz", "curves.csv.gz"
LAYOUT = 1
"""Version of the layout of the two files; other versions are refused."""

Table = Sequence[Mapping[str, str]]
"""The rows of a metrics.csv."""


@dataclass(frozen=True)
class Entry:
    """One run in an archive.

    Attributes:
        name: Name of its folder.
        status: finished, failed, running or waiting.
        reason: Why it failed; empty otherwise.
        result: Content of result.json; None without one.
        config: Content of config.yaml; None if the result contains it, and for a run that never began.
        rows: Rows of metrics.csv.
    """

    name: str
    status: str
    reason: str = ""
    result: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None
    rows: Table = ()


@dataclass(frozen=True)
class Archive:
    """The runs of a comparison, in the order of its table, and the study that they belong to: name, title, small (None: none)."""

    entries: tuple[Entry, ...]
    study: Mapping[str, Any] | None = None


def write_archive(folder: Path, archive: Archive) -> None:
    """Write the two files into `folder`."""
    content = {
        "layout": LAYOUT,
        "study": archive.study,
        "runs": [
            {key: value for key, value in vars(entry).items() if key != "rows" and value not in (None, "")}
            | {"columns": list(entry.rows[0]) if entry.rows else []}
            for entry in archive.entries
        ],
    }
    columns = dict.fromkeys(column for entry in archive.entries for row in entry.rows for column in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["run", *columns], restval="", lineterminator="\n")
    writer.writeheader()
    for entry in archive.entries:
        writer.writerows(
            {"run": entry.name, **{column: _short(value) for column, value in row.items()}}
            for row in entry.rows
        )
    _write(folder / RUNS, json.dumps(content, separators=(",", ":"), ensure_ascii=False))
    _write(folder / CURVES, text.getvalue())


def read_archive(folder: Path) -> Archive:
    """Read the two files in `folder`.

    Raises:
        ConfigError: One of them is missing, damaged, or has another layout.
    """
    path = folder / RUNS
    try:
        content = json.loads(_read(path))
        layout, listed, study = content["layout"], content["runs"], content["study"]
        rows: dict[str, list[dict[str, str]]] = {}
        for row in csv.DictReader(io.StringIO(_read(folder / CURVES))):
            rows.setdefault(row.pop("run"), []).append(row)
        entries = tuple(_entry(rows, **one) for one in listed)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is damaged: {error!r}. Write it again with `equirelax archive`."
        ) from error
    if layout != LAYOUT:
        raise ConfigError(f"{path} has layout {layout}; this version of equirelax reads layout {LAYOUT}.")
    return Archive(entries, study)


def _short(value: str) -> str:
    """A number rounded to six digits, if it has more after its point; anything else unchanged."""
    try:
        exact = float(value)
    except ValueError:
        return value
    short = f"{exact:.6g}"
    return value if float(short) == exact or "." not in value else short


def _entry(rows: Mapping[str, Table], *, name: str, columns: Sequence[str], **more: Any) -> Entry:
    """A run of an archive; its rows have only its own columns, in its own order."""
    own = tuple({column: row[column] for column in columns} for row in rows.get(name, ()))
    return Entry(name=name, rows=own, **more)


def _write(path: Path, text: str) -> None:
    """Write compressed text without a time stamp: the same content gives the same file."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def _read(path: Path) -> str:
    try:
        return gzip.decompress(path.read_bytes()).decode()
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}. Write it again with `equirelax archive`."
        ) from error
