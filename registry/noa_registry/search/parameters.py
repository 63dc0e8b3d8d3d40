"""Parameters as search holds them: one text per value, so that `0.01`, `1e-2` and the text "0.01" are the same.

A table in a table is found by its path, `param.optimizer.lr`; a list by its JSON text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Final, cast

PARAM_PREFIX: Final = "param."
_MOST_DIGITS = 1 << 53  # a float holds whole numbers up to here exactly


def parameter_labels(params: Mapping[str, object]) -> dict[str, str]:
    """Return the labels by which a version is found by its parameters: `param.KEY` and the value's text."""
    return {f"{PARAM_PREFIX}{key}": parameter_text(value) for key, value in _leaves(params, "")}


def parameter_text(value: object) -> str:
    """Return the one text of a value: of a number, and of a text that is one, the shortest that means it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | str):
        return _number_text(value) or str(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def _leaves(table: Mapping[str, object], before: str) -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        path = f"{before}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(cast("Mapping[str, object]", value), f"{path}.")
        else:
            yield path, value


def _number_text(value: float | str) -> str | None:
    if isinstance(value, str) and value.removeprefix("-").isdecimal() and value.isascii():
        return str(int(value)) if len(value) < 400 else None
    try:
        number = float(value)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return str(int(number)) if number.is_integer() and abs(number) < _MOST_DIGITS else repr(number)
