"""Checks of a model's own fields, so that each refusal names the field, what is allowed and what was there."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from noa.errors import RecipeError

LARGEST_SIZE = 1 << 20
MOST_LAYERS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChecks:
    """Refuses values of fields. `prefix` is how the recipe calls the model: `model`, or `model_params`."""

    where: str
    prefix: str = "model"

    def size(self, name: str, value: object, *, least: int = 1, most: int = LARGEST_SIZE) -> None:
        """Refuse what is no whole number from `least` to `most`."""
        if type(value) is not int or not least <= value <= most:
            raise self.refusal(name, f"a whole number from {least} to {most}", value)

    def sizes(self, name: str, values: object, *, least_count: int = 0) -> None:
        """Refuse what is no tuple of whole numbers from 1."""
        if not isinstance(values, tuple) or not least_count <= len(values) <= MOST_LAYERS:
            raise self.refusal(name, f"a tuple of {least_count} to {MOST_LAYERS} sizes", values)
        for value in values:
            if type(value) is not int or not 1 <= value <= LARGEST_SIZE:
                raise self.refusal(name, f"sizes from 1 to {LARGEST_SIZE}", value)

    def chance(self, name: str, value: object) -> None:
        """Refuse what is no probability below 1."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
            raise self.refusal(name, "0 <= p < 1", value)

    def positive(self, name: str, value: object) -> None:
        """Refuse what is no finite number above 0."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise self.refusal(name, "a finite number above 0", value)

    def choice(self, name: str, value: object, allowed: Sequence[str]) -> None:
        """Refuse what is not one of some words."""
        if value not in allowed:
            close = difflib.get_close_matches(str(value), allowed, n=1)
            remedy = f"Did you mean `{close[0]}`?" if close else None
            raise self.refusal(name, ", ".join(allowed), value, what="is not known", remedy=remedy)

    def multiple(self, name: str, value: int, *, of: str, divisor: int) -> None:
        """Refuse what is no multiple of another field."""
        if value % divisor:
            raise self.refusal(name, f"a multiple of `{self.prefix}.{of}`, {divisor}", value)

    def refusal(
        self, name: str, expected: str, received: object, *, what: str = "is not valid", remedy: str | None = None
    ) -> RecipeError:
        """Return the error that names a field."""
        return RecipeError(
            f"`{self.prefix}.{name}` {what}",
            where=self.where,
            expected=expected,
            received=repr(received)[:80],
            remedy=remedy,
            field=f"{self.prefix}.{name}",
        )
