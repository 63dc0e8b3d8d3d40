"""Cells of MLflow's rows as values: what other programs wrote is shown as far as it can be read."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any, Final, cast

_MAX_FLOAT: Final = 1.7976931348623157e308  # MLflow's stand-in for an infinity, which SQL has not


def to_moment(milliseconds: object) -> datetime | None:
    """Return the time of a cell that counts milliseconds since 1970; None where it holds none."""
    if not isinstance(milliseconds, int | float):
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def to_number(value: object, is_nan: object) -> float:
    """Return the value of a metric's cells, as it was logged; NaN also where they hold no number."""
    if is_nan or not isinstance(value, int | float):
        return math.nan
    if abs(value) >= _MAX_FLOAT:
        return math.copysign(math.inf, value)
    return float(value)


def to_text(value: object) -> str:
    """Return the text of a cell, empty for none."""
    if value is None:
        return ""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def to_table(text: object) -> dict[str, Any]:
    """Return the table that a JSON text holds, an empty one for anything else."""
    try:
        value: object = json.loads(text) if isinstance(text, str | bytes) else None
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def plain_number(value: float | None) -> float | str | None:
    """Return a number for JSON, which has no NaN and no infinities: these are the texts `nan`, `inf` and `-inf`."""
    return value if value is None or math.isfinite(value) else str(value)
