"""Reading the values of a fact: each part is asked for by name and type, and an error names the part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from noa.errors import InvalidInputError
from noa_registry.evidence.facts import Evidence


@dataclass(frozen=True, slots=True)
class Reader:
    """The parts of a table of JSON values. `where` says which evidence it belongs to."""

    values: Mapping[str, object]
    where: str

    @staticmethod
    def of(evidence: Evidence, kind: str) -> Reader:
        """Return a reader of `evidence`.

        Raises:
            InvalidInputError: it is of another kind.
        """
        if evidence.kind != kind:
            raise InvalidInputError("this is evidence of another kind", expected=f"`{kind}`", received=evidence.kind)
        return Reader(evidence.values, f"{kind} evidence of `{evidence.subject}`")

    def text(self, key: str) -> str:
        """Return a text that is not empty."""
        value = self.values.get(key)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, "a text")
        return value

    def optional_text(self, key: str) -> str | None:
        """Return a text, None if there is none."""
        return None if self.values.get(key) is None else self.text(key)

    def integer(self, key: str, *, minimum: int = 0) -> int:
        """Return an integer of at least `minimum`."""
        value = self.values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise self.wrong(key, f"an integer of at least {minimum}")
        return value

    def optional_integer(self, key: str) -> int | None:
        """Return an integer, None if there is none."""
        return None if self.values.get(key) is None else self.integer(key)

    def number(self, key: str) -> float:
        """Return a number; the texts `nan`, `inf` and `-inf` are numbers too."""
        value = self.values.get(key)
        if isinstance(value, str) and value in ("nan", "inf", "-inf"):
            return float(value)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.wrong(key, "a number")
        try:
            return float(value)
        except OverflowError:
            raise self.wrong(key, "a number that a float can hold") from None

    def finite(self, key: str, *, minimum: float = -math.inf, maximum: float = math.inf) -> float:
        """Return a finite number within the given bounds."""
        value = self.number(key)
        if not math.isfinite(value) or not minimum <= value <= maximum:
            raise self.wrong(key, f"a finite number from {minimum:g} to {maximum:g}")
        return value

    def optional_finite(self, key: str, *, minimum: float = -math.inf) -> float | None:
        """Return a finite number of at least `minimum`, None if there is none."""
        return None if self.values.get(key) is None else self.finite(key, minimum=minimum)

    def table(self, key: str) -> Reader:
        """Return the reader of an inner table, which is empty if the key is missing."""
        value = self.values.get(key, {})
        if not isinstance(value, Mapping):
            raise self.wrong(key, "a table")
        return Reader(cast("Mapping[str, object]", value), f"{self.where}, `{key}`")

    def rows(self, key: str) -> list[Reader]:
        """Return the readers of a list of tables."""
        found = self.values.get(key, [])
        entries = cast("list[object]", found) if isinstance(found, list | tuple) else None
        if entries is None or not all(isinstance(entry, Mapping) for entry in entries):
            raise self.wrong(key, "a list of tables")
        return [
            Reader(cast("Mapping[str, object]", entry), f"{self.where}, `{key}[{index}]`")
            for index, entry in enumerate(entries)
        ]

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts, which is empty if the key is missing."""
        found = self.values.get(key, [])
        entries = cast("list[object]", found) if isinstance(found, list | tuple) else None
        if entries is None or not all(isinstance(entry, str) for entry in entries):
            raise self.wrong(key, "a list of texts")
        return tuple(cast("list[str]", entries))

    def numbers(self) -> dict[str, float]:
        """Return the whole table as numbers by name."""
        return {key: self.number(key) for key in self.values}

    def wrong(self, key: str, expected: str) -> InvalidInputError:
        """Return the error about one part."""
        received = shown(self.values[key]) if key in self.values else "nothing"
        return InvalidInputError(
            f"`{key}` of {self.where} cannot be read", expected=expected, received=received, field=key
        )


def shown(value: object) -> str:
    """Return the beginning of a value, for a message."""
    try:
        return " ".join(repr(value)[:80].splitlines())
    except RecursionError:
        return "nested too deep to be shown"
    except ValueError:  # Python prints no whole number of thousands of digits
        return "a number of very many digits"
    except (TypeError, AttributeError, RuntimeError):  # of its own `__repr__`
        return "cannot be shown"
