"""A fact as it is read back later: its digest is over exactly this, so nothing may come back as another value."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, cast

from noa.errors import InvalidInputError
from noa_registry.evidence.facts import Evidence, described, plain_json

_SHOWN: Final = 80


def plain_fact(fact: Evidence) -> Evidence:
    """Return `fact` as the database gives it back: plain texts, truth values and JSON, and its time in UTC.

    Raises:
        InvalidInputError: a part has no such form; the error names the part as its field.
    """
    kind = plain_text(fact.kind, "kind")
    return replace(
        fact,
        kind=kind,
        subject=plain_text(fact.subject, "subject"),
        digest=plain_text(fact.digest, "digest"),
        passed=plain_judgement(fact.passed),
        values=_plain_values(fact.values, kind),
        created_at=_plain_time(fact.created_at),
    )


def plain_text(value: object, part: str) -> str:
    """Return the text itself, also of a class derived from `str`, e.g. a member of an enumeration.

    Raises:
        InvalidInputError: it is none.
    """
    if not isinstance(value, str):
        raise _no(part, "a text", value)
    return str.__str__(value)


def plain_judgement(value: object) -> bool | None:
    """Return whether a fact passed; a truth value of NumPy is one, a number or a text is none.

    Raises:
        InvalidInputError: it is something else.
    """
    if value is None or isinstance(value, bool):
        return value
    numpy = sys.modules.get("numpy")  # who has a value of it has imported it
    if numpy is not None and isinstance(value, numpy.bool_):
        return bool(value)
    raise _no("passed", "True, False or None", value)


def _plain_values(values: object, kind: str) -> Mapping[str, object]:
    if not isinstance(values, Mapping):
        raise _no("values", "a table", values)
    try:
        return cast("Mapping[str, object]", plain_json(cast("Mapping[object, object]", values)))
    except RecursionError as exc:
        deep = [key for key, value in cast("Mapping[object, object]", values).items() if _is_too_deep(value)]
        raise InvalidInputError(
            f"the values of {kind[:_SHOWN]} evidence cannot be stored",
            expected="JSON of moderate depth",
            received=f"{', '.join(f'{ascii(key)[:_SHOWN]}' for key in deep[:3]) or 'a table'}: nested too deep",
            field="values",
        ) from exc


def _plain_time(moment: object) -> datetime:
    expected = "a time with a zone, which is within the years 1 to 9999 in UTC"
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise _no("created_at", expected, moment)
    try:
        return datetime.fromisoformat(moment.astimezone(UTC).isoformat(timespec="microseconds"))
    except (OverflowError, ValueError) as exc:
        raise _no("created_at", expected, moment) from exc


def _no(part: str, expected: str, value: object) -> InvalidInputError:
    what = f"`{part}` of evidence cannot be stored so"
    return InvalidInputError(what, expected=expected, received=described(value), field=part)


def _is_too_deep(value: object) -> bool:
    try:
        plain_json(value)
    except RecursionError:
        return True
    except InvalidInputError:
        pass
    return False
