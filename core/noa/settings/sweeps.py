"""What a search over a recipe's settings is: which values each may have, and how many are tried.

The keys of a space are those of `noa train --set`. In TOML they may be written with quotes or without:
`"optimizer.learning_rate" = { low = 1e-4, high = 0.1 }` and `optimizer.learning_rate = { ... }` are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, Self, TypeAlias, cast

from pydantic import (
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from noa.settings.section import Section

MOST_PARAMETERS: Final = 32
MOST_CHOICES: Final = 128
_MOST_KEY: Final = 128
_ROUNDING: Final = 1e-9

Choice: TypeAlias = StrictBool | StrictInt | StrictFloat | StrictStr | tuple[StrictInt | StrictFloat | StrictStr, ...]


class ParameterSettings(Section):
    """The values that one key may have: a range from `low` to `high`, both included, or `choices`."""

    low: StrictInt | StrictFloat | None = Field(
        default=None, description="Smallest value; two whole numbers give whole ones."
    )
    high: StrictInt | StrictFloat | None = Field(default=None, description="Largest value.")
    step: StrictInt | StrictFloat | None = Field(default=None, description="Distance between two values of a range.")
    log: StrictBool = Field(default=False, description="Try as many values from 0.001 to 0.01 as from 0.01 to 0.1.")
    choices: tuple[Choice, ...] = Field(
        default=(), max_length=MOST_CHOICES, description="The values, in place of a range."
    )

    @model_validator(mode="after")
    def _is_a_range_or_choices(self) -> Self:
        if self.choices:
            if self.low is not None or self.high is not None or self.step is not None or self.log:
                raise ValueError("it has `choices` and parts of a range; give one of both")
            for index, choice in enumerate(self.choices):
                if choice in self.choices[:index]:  # 1, 1.0 and true are one value of one field
                    raise ValueError(f"`choices` holds {choice!r} twice")
            return self
        if self.low is None or self.high is None:
            missing = " and ".join(f"`{name}`" for name in ("low", "high") if getattr(self, name) is None)
            raise ValueError(f"{missing} missing; give `low` and `high`, or `choices`")
        self._check_range(self.low, self.high)
        return self

    @property
    def is_whole(self) -> bool:
        """Whether a range holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int | None)

    @property
    def size(self) -> float:
        """How many values there are; infinite for a range of numbers without a step."""
        if self.choices:
            return len(self.choices)
        low, high = self.low or 0, self.high or 0
        if low == high:
            return 1
        if self.step is None and not self.is_whole:
            return math.inf
        return 1 + round((high - low) / (self.step or 1))

    def ends(self) -> tuple[Choice, ...]:
        """Return the values that stand for all: both ends of a range, or every choice."""
        if self.choices:
            return self.choices
        assert self.low is not None
        assert self.high is not None
        low, high = (self.low, self.high) if self.is_whole else (float(self.low), float(self.high))
        return (low,) if low == high else (low, high)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values of what is set."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def _check_range(self, low: float, high: float) -> None:
        if low > high:
            raise ValueError(f"`low` is {low} and above `high`, {high}")
        if self.log and low <= 0:
            raise ValueError(f"`low` is {low}; a range with `log` begins above 0")
        if self.step is None:
            return
        if self.log:
            raise ValueError("it has `step` and `log`; give one of both")
        if self.step <= 0:
            raise ValueError(f"`step` is {self.step}; it must be above 0")
        steps = (high - low) / self.step
        if abs(steps - round(steps)) > _ROUNDING * max(1.0, steps):
            raise ValueError(f"`high` is {high}, which {low} never meets in steps of {self.step}")


class SweepSettings(Section):
    """A search for the best settings of a recipe."""

    recipe: str = Field(default="", description="Name of a recipe, or its path; empty: the recipe of the sweep's name.")
    backends: tuple[Literal["torch", "jax"], ...] = Field(
        default=(), description="Backends to try, each trial on one; empty: the recipe's first."
    )
    metric: str = Field(
        default="", description="Metric of the validation split to be best in; empty: the recipe's `best_by`."
    )
    trials: StrictInt = Field(default=20, ge=1, le=10_000, description="How many trials there are in all.")
    parallel: StrictInt = Field(default=1, ge=1, le=256, description="Trials that run at once; they share the cores.")
    timeout_s: StrictFloat = Field(
        default=0.0, ge=0, description="How long one call of `noa sweep` may search; 0: no limit; seconds."
    )
    sampler: Literal["tpe", "random"] = Field(default="tpe", description="How the next trial is chosen.")
    pruner: Literal["asha", "median", "none"] = Field(
        default="asha", description="What ends trials early: successive halving, or worse than the median."
    )
    reduction: StrictInt = Field(
        default=3, ge=2, le=64, description="`asha` lets one of so many trials go on at each of its rungs."
    )
    min_epochs: StrictInt = Field(default=1, ge=1, le=1_000_000, description="No trial is ended before so many epochs.")
    max_failures: StrictInt = Field(
        default=3, ge=1, description="The search ends when so many trials in a row have failed."
    )
    seed: StrictInt = Field(default=0, ge=0, le=(1 << 32) - 1, description="Seed of the search, not of the training.")
    space: dict[str, dict[str, Any]] = Field(
        default={}, description="Values by key of the recipe: `{ low, high, log, step }` or `{ choices }`."
    )

    @field_validator("space", mode="before")
    @classmethod
    def _flatten(cls, value: object) -> object:
        """Join the parts of keys that were written without quotes, and check each entry."""
        if not isinstance(value, Mapping):
            return value
        flat: dict[str, dict[str, Any]] = {}
        for key, entry in _entries(cast("Mapping[str, object]", value), ""):
            flat[key] = {**flat.get(key, {}), **entry}
        check_space(flat)
        return flat

    @property
    def parameters(self) -> dict[str, ParameterSettings]:
        """The entries of the space by key."""
        return check_space(self.space)


def check_space(entries: Mapping[str, object]) -> dict[str, ParameterSettings]:
    """Return the entries of a space, read and checked.

    Raises:
        ValueError: one is not valid, or there are too many; names the key and the part.
    """
    if len(entries) > MOST_PARAMETERS:
        raise ValueError(f"{len(entries)} keys are searched; at most {MOST_PARAMETERS} can be")
    found: dict[str, ParameterSettings] = {}
    for key, entry in entries.items():
        if len(key) > _MOST_KEY:
            raise ValueError(f"a key is longer than {_MOST_KEY} characters")
        try:
            found[key] = ParameterSettings.model_validate(entry)
        except ValidationError as exc:
            raise ValueError(f"`{key}`: {_told(exc)}") from exc
    return found


def _entries(table: Mapping[str, object], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in table.items():
        dotted = f"{prefix}{key}"
        if not isinstance(value, Mapping):
            raise ValueError(f"`{dotted}` is no table; give `{{ low, high }}` or `{{ choices }}`")
        inner = cast("Mapping[str, object]", value)
        parts = [name for name, part in inner.items() if not isinstance(part, Mapping)]
        if not inner or any(part in ParameterSettings.model_fields for part in parts):
            yield dotted, dict(inner)
        else:  # a part of a key that was written without quotes
            yield from _entries(inner, f"{dotted}.")


def _told(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=True)[0]
    parts = [str(part) for part in first["loc"]]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = ", ".join(f"`{name}`" for name in ParameterSettings.model_fields)
        return f"`{parts[0]}` is no part of it; there are {known}"
    return f"`{parts[0]}` is not valid: {message}, received {first['input']!r}" if parts else message
