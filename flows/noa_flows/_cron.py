"""Cron expressions, checked before anything else is asked for: a mistake is named also while no server runs.

Prefect has the last word when the schedule is made; to import its check costs seconds and reads the user's profiles. So
this one is not stricter: what it does not know (`L`, `#`, `?`) it lets pass. The one exception is a day or month 0,
which Prefect takes in some places, as in `0-0`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from noa.errors import InvalidInputError

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_ITEM = re.compile(r"(?P<first>[a-z]+|\d+)(-(?P<last>[a-z]+|\d+))?(/(?P<step>\d+))?|\*(/(?P<star_step>\d+))?")
_LEFT_TO_PREFECT = "l#?"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()
    has_specials: bool = False

    def fits(self, value: str) -> bool:
        """Tell whether a number or a name is one of this field's."""
        return value in self.names or (value.isdecimal() and self.least <= int(value) <= self.most)

    def describe(self) -> str:
        names = f" or `{self.names[0]}`-`{self.names[-1]}`" if self.names else ""
        return f"{self.least}-{self.most}{names}, `*`, a range, a list or a step such as `*/5`"


_FIELDS = (
    _Field(name="minute", least=0, most=59),
    _Field(name="hour", least=0, most=23),
    _Field(name="day", least=1, most=31, has_specials=True),
    _Field(name="month", least=1, most=12, names=_MONTHS),
    _Field(name="weekday", least=0, most=7, names=_WEEKDAYS, has_specials=True),
    _Field(name="second", least=0, most=59),
)


def check_cron(text: str) -> str:
    """Return a cron expression with single spaces.

    Raises:
        InvalidInputError: it has too few or too many fields, or one that Prefect would refuse; names the field.
    """
    cron = " ".join(text.split())
    fields = cron.lower().split()
    if not 5 <= len(fields) <= 6:
        raise refuse_cron(
            cron, where="its fields", expected="5: minute hour day month weekday", received=str(len(fields))
        )
    for field, value in zip(_FIELDS, fields, strict=False):  # the sixth, seconds, may be left out
        wrong = next((item for item in value.split(",") if not _is_item(field, item)), None)
        if wrong is not None:
            raise refuse_cron(cron, where=f"its {field.name}", expected=field.describe(), received=f"`{wrong}`")
    return cron


def refuse_cron(
    cron: str, *, where: str, received: str, expected: str = "minute hour day month weekday"
) -> InvalidInputError:
    """Return the error that says what is wrong with a cron expression, and where."""
    return InvalidInputError(
        f"`{cron}` is no cron expression",
        where=where,
        expected=expected,
        received=received,
        remedy="Write e.g. `0 3 * * *` for every day at three, `0 6 * * mon` for every Monday at six",
    )


def _is_item(field: _Field, item: str) -> bool:
    if field.has_specials and any(mark in item for mark in _LEFT_TO_PREFECT):
        return True
    found = _ITEM.fullmatch(item)
    if found is None:
        return False
    values = [value for value in found.group("first", "last") if value is not None]
    steps = [step for step in found.group("step", "star_step") if step is not None]
    return all(field.fits(value) for value in values) and all(int(step) > 0 for step in steps)
