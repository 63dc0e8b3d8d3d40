"""What is recorded of a version's metrics by all facts about the same bytes and the same test rows.

A later measurement replaces no earlier one: of several values the gate takes the worst of the version that it judges,
and the best of the version that it is compared with. So nobody gets past a gate by attaching a better number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from noa.errors import InvalidInputError
from noa_registry.evidence.metrics import MetricsEvidence, SliceMetrics
from noa_registry.gates.candidate import Candidate

_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedValue:
    """One value of a metric, by when it was recorded, and on how many rows of a slice it was measured."""

    value: float
    at: datetime
    rows: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenValue:
    """The value that counts, and all from which it was chosen, oldest first; `is_largest` tells how."""

    value: float
    rows: int | None
    among: tuple[RecordedValue, ...]
    is_largest: bool

    @property
    def is_disputed(self) -> bool:
        """Whether the measurements say different things."""
        return len({repr(entry.value) for entry in self.among}) > 1

    def describe_others(self) -> str:
        """Return a remark about the other values, empty if there is nothing to say."""
        if not self.is_disputed:
            return ""
        shown = [f"{entry.value:g} of {_time(entry.at)}" for entry in self.among[:_SHOWN]]
        if len(self.among) > _SHOWN:
            shown.append(f"{len(self.among) - _SHOWN} more")
        which = "largest" if self.is_largest else "smallest"
        return f", the {which} of {len(self.among)} measurements: {', '.join(shown)}"

    def to_list(self) -> list[dict[str, object]]:
        """Return all values with their times as plain JSON values."""
        return [{"value": entry.value, "at": _time(entry.at)} for entry in self.among]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedMetrics:
    """The test metrics of a version, oldest first; `problem` says why there is nothing to judge by."""

    reference: str
    facts: tuple[tuple[datetime, MetricsEvidence], ...] = ()
    problem: str | None = None

    @staticmethod
    def of(candidate: Candidate, dataset: str | None = None) -> RecordedMetrics:
        """Read all facts that tell of the same bytes and rows as the newest one; `dataset`: only of these rows."""
        found = candidate.all_test_metrics(dataset)
        if not found:
            return RecordedMetrics(reference=candidate.reference, problem="no test metrics of these bytes")
        try:
            facts = tuple((fact.created_at, MetricsEvidence.from_evidence(fact)) for fact in found)
        except InvalidInputError as exc:
            return RecordedMetrics(reference=candidate.reference, problem=str(exc))
        return RecordedMetrics(reference=candidate.reference, facts=facts)

    @property
    def slices(self) -> tuple[str, ...]:
        """The names of all slices that any fact knows."""
        return tuple(sorted({name for _, measured in self.facts for name in measured.slices}))

    def names(self, slice_name: str | None = None) -> tuple[str, ...]:
        """The metrics that any fact knows, of all rows or of a slice."""
        return tuple(sorted({name for _, part in self._parts(slice_name) for name in part.metrics}))

    def choose(self, metric: str, slice_name: str | None = None, *, largest: bool) -> ChosenValue | None:
        """Return the largest or the smallest value, None if there is none; one that is not finite goes first."""
        among = tuple(
            RecordedValue(value=part.metrics[metric], at=at, rows=part.rows if isinstance(part, SliceMetrics) else None)
            for at, part in self._parts(slice_name)
            if metric in part.metrics
        )
        if not among:
            return None
        strange = next((entry for entry in among if not math.isfinite(entry.value)), None)
        chosen = strange or (max if largest else min)(among, key=lambda entry: entry.value)
        return ChosenValue(value=chosen.value, rows=chosen.rows, among=among, is_largest=largest)

    def describe_missing(self, metric: str, slice_name: str | None = None) -> str:
        """Say why there is no value."""
        if self.problem is not None:
            return self.problem
        if slice_name is not None and slice_name not in self.slices:
            return f"no slice `{slice_name}`; there are {_listed(self.slices) or 'none'}"
        return f"no `{metric}`; there are {_listed(self.names(slice_name))}"

    def _parts(self, slice_name: str | None) -> list[tuple[datetime, MetricsEvidence | SliceMetrics]]:
        if slice_name is None:
            return [(at, measured) for at, measured in self.facts]
        return [(at, measured.slices[slice_name]) for at, measured in self.facts if slice_name in measured.slices]


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds")
