"""The record of a command as JSON: on one line, with seven digits, the precision of float32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def record_text(record: Mapping[str, Any]) -> str:
    """Format a record as a line of JSON.

    Args:
        record: Plain data. Floats are rounded to seven digits; NaN and infinity are kept as Python writes them.
    """
    return json.dumps(_rounded(record), separators=(",", ":")) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
