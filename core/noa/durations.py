"""Spans of time as people write them: `30m`, `24h`, `7d`, `2w`."""

from __future__ import annotations

import re
from datetime import timedelta

from noa.errors import InvalidInputError

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([mhdw])")
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_LONGEST = timedelta(days=366 * 100)


def find_duration(text: str) -> timedelta | None:
    """Return the span that `text` means, None if it is none or longer than a century."""
    found = _DURATION.fullmatch(text.strip())
    if found is None or float(found[1]) > _LONGEST / _UNITS[found[2]]:
        return None
    return float(found[1]) * _UNITS[found[2]]


def parse_duration(text: str, *, where: str) -> timedelta:
    """Return the span that `text` means; `where` names what was written, e.g. `--grace`.

    Raises:
        InvalidInputError: it is none, or longer than a century.
    """
    found = find_duration(text)
    if found is None:
        raise InvalidInputError(
            f"`{text}` is no span of time",
            where=where,
            expected="e.g. 30m, 12h, 7d or 2w; at most a century",
            received=f"`{text}`",
        )
    return found
