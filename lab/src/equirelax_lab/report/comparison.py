"""Everything that a comparison leaves behind: summary.json, summary.md, curves.png; where one number was swept also
sweep.png, where the test set was measured under further conditions also conditions.md and conditions.png.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equirelax.files import write_text
from equirelax_lab.report.conclusion import conclusion
from equirelax_lab.report.conditions import conditions_table, curves, draw_conditions
from equirelax_lab.report.differing import marked_line
from equirelax_lab.report.failures import asked, share_table, shares
from equirelax_lab.report.picture import Table, draw
from equirelax_lab.report.summary import summarise, table
from equirelax_lab.report.swept import draw_swept
from equirelax_lab.report.variants import labels
from equirelax_lab.tasks.registry import task_class
from equirelax_lab.tasks.task import heading
from equirelax_lab.training.folder import METRICS, RESULT, read_run_result, read_table

SUMMARY, TABLE, PICTURE = "summary.json", "summary.md", "curves.png"
CONDITIONS, CONDITIONS_PICTURE = "conditions.md", "conditions.png"
SWEPT_PICTURE = "sweep.png"


def write_comparison(out: Path, folders: Sequence[Path], lost: Sequence[Mapping[str, Any]] = ()) -> str:
    """Summarise the finished runs in `folders` into `out`; returns the table, the picture's path and a
    sentence.

    Args:
        out: Where to. folders: Of runs.
        lost: Of runs that ended for good without a result: benchmark, model, method, seed and config.

    Raises:
        ConfigError: none of them is finished.
    """
    done = [folder for folder in folders if (folder / RESULT).exists()]
    summary = summarise([read_run_result(folder / RESULT) for folder in done])
    runs: dict[str, list[Table]] = {}
    for folder, label in zip(done, labels(summary["runs"]), strict=True):
        runs.setdefault(label, []).append(read_table(folder / METRICS))
    title = task_class(summary["benchmark"]).title
    metric = heading(summary["metric"])
    scale = "linear" if summary["metric"].get("higher_is_better") else "log"
    text = table(summary)
    if asked(summary["runs"], lost):
        text += share_table(shares(summary["runs"], lost))
    sentence = conclusion(summary)
    write_text(out / SUMMARY, json.dumps({**summary, "conclusion": sentence}, indent=2) + "\n")
    write_text(out / TABLE, f"# {title}\n\n{text}\n{sentence}\n")
    draw(out / PICTURE, runs, f"{title} ({summary['model']})", metric, scale)
    draw_swept(out / SWEPT_PICTURE, summary["runs"], done, summary["metric"], title)
    further = curves(summary["runs"])
    if further:
        write_text(
            out / CONDITIONS,
            f"# {title}\n\n{conditions_table(further, summary['metric'])}\n{marked_line(summary['runs'])}\n",
        )
        draw_conditions(out / CONDITIONS_PICTURE, further, summary["metric"], f"{title} ({summary['model']})")
    return f"\n{text}\npicture: {out / PICTURE}\n\n{sentence}"
