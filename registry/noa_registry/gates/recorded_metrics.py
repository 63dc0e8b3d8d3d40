"""What is recorded of a version's metrics by all facts about the same bytes, on all sets of test rows or on one.

A later measurement replaces no earlier one, and newer test rows replace no older ones: of several values the gate takes
the worst of the version that it judges, and the best of the version that it is compared with on the same rows. So
nobody gets past a gate by attaching a better number, or one on other rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias

from noa.errors import InvalidInputError
from noa_registry.evidence.facts import Evidence
from noa_registry.evidence.metrics import MetricsEvidence, SliceMetrics
from noa_registry.gates.candidate import Candidate

_SHOWN: Final = 5
_ON_OTHER_ROWS: Final = "no test metrics of these bytes on the rows that the gate's `datasets` names"
_OTHER_ROWS_REMEDY: Final = "Measure it on these rows, or correct `datasets` in the gate"
Which: TypeAlias = Literal["largest", "smallest", "first"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedValue:
    """One value, the fact that holds it, on which test rows, and on how many rows of a slice it was measured."""

    value: float
    fact: Evidence
    rows: int | None = None
    dataset: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenValue:
    """The value that counts, and all from which it was chosen, oldest first; `which` tells how."""

    chosen: RecordedValue
    among: tuple[RecordedValue, ...]
    which: Which

    @property
    def value(self) -> float:
        """The value that counts."""
        return self.chosen.value

    @property
    def rows(self) -> int | None:
        """The rows of a slice that it was measured on."""
        return self.chosen.rows

    @property
    def datasets(self) -> tuple[str, ...]:
        """The sets of test rows on which it was measured, in the order of their first measurement."""
        return tuple(dict.fromkeys(entry.dataset for entry in self.among))

    @property
    def is_disputed(self) -> bool:
        """Whether the measurements say different things."""
        return len({repr(entry.value) for entry in self.among}) > 1

    def describe_others(self) -> str:
        """Return a remark about the other values, empty if there is nothing to say."""
        if not self.is_disputed:
            return ""
        several = len(self.datasets) > 1
        shown = [
            f"{entry.value:g} of {_time(entry.fact.created_at)}" + (f" on {entry.dataset[:19]}" if several else "")
            for entry in self.among[:_SHOWN]
        ]
        if len(self.among) > _SHOWN:
            shown.append(f"{len(self.among) - _SHOWN} more")
        return f", the {self.which} of {len(self.among)} measurements: {', '.join(shown)}"

    def to_list(self) -> list[dict[str, object]]:
        """Return all values with their times as plain JSON values."""
        rows: list[dict[str, object]] = []
        for entry in self.among:
            rows.append({"value": entry.value, "at": _time(entry.fact.created_at)})
            if len(self.datasets) > 1:
                rows[-1]["dataset_digest"] = entry.dataset
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedMetrics:
    """The test metrics of a version, oldest first; `problem` says why nothing can be judged, `remedy` what helps."""

    reference: str
    facts: tuple[tuple[Evidence, MetricsEvidence], ...] = ()
    problem: str | None = None
    remedy: str | None = None

    @staticmethod
    def of(candidate: Candidate, dataset: str | None = None) -> RecordedMetrics:
        """Read all facts about the sealed bytes, on whatever test rows; `dataset`: only on these."""
        found = candidate.all_test_metrics(dataset)
        if not found:
            problem, remedy = "no test metrics of these bytes", None
            if candidate.test_rows and replace(candidate, test_rows=()).all_test_metrics(dataset):
                problem, remedy = _ON_OTHER_ROWS, _OTHER_ROWS_REMEDY
            return RecordedMetrics(reference=candidate.reference, problem=problem, remedy=remedy)
        return RecordedMetrics.read(candidate.reference, found)

    @staticmethod
    def read(reference: str, facts: Sequence[Evidence]) -> RecordedMetrics:
        """Read facts about the same bytes, oldest first."""
        try:
            measured = tuple((fact, MetricsEvidence.from_evidence(fact)) for fact in facts)
        except InvalidInputError as exc:
            return RecordedMetrics(reference=reference, problem=str(exc))
        return RecordedMetrics(reference=reference, facts=measured)

    def on(self, dataset: str) -> RecordedMetrics:
        """Return what is recorded on these test rows alone."""
        return replace(self, facts=tuple(pair for pair in self.facts if pair[1].dataset_digest == dataset))

    def on_shared(self, other: RecordedMetrics) -> RecordedMetrics:
        """Return what is recorded on test rows of the other one too, on all rows where they share none."""
        shared = tuple(pair for pair in self.facts if pair[1].dataset_digest in other.datasets)
        return replace(self, facts=shared or self.facts)

    @property
    def datasets(self) -> tuple[str, ...]:
        """The sets of test rows, in the order of their first measurement."""
        return tuple(dict.fromkeys(measured.dataset_digest for _, measured in self.facts))

    @property
    def slices(self) -> tuple[str, ...]:
        """The names of all slices that any fact knows."""
        return tuple(sorted({name for _, measured in self.facts for name in measured.slices}))

    def names(self, slice_name: str | None = None) -> tuple[str, ...]:
        """The metrics that any fact knows, of all rows or of a slice."""
        return tuple(sorted({name for part in self._parts(slice_name) for name in part.metrics}))

    def choose(self, metric: str, slice_name: str | None = None, *, largest: bool) -> ChosenValue | None:
        """Return the largest or the smallest value, None if there is none; one that is not finite goes first."""
        among = self._values(metric, slice_name)
        if not among:
            return None
        strange = next((entry for entry in among if not math.isfinite(entry.value)), None)
        chosen = strange or (max if largest else min)(among, key=lambda entry: entry.value)
        return ChosenValue(chosen=chosen, among=among, which="largest" if largest else "smallest")

    def first(self, metric: str, slice_name: str | None = None) -> ChosenValue | None:
        """Return the value that was recorded first, None if there is none."""
        among = self._values(metric, slice_name)
        return ChosenValue(chosen=among[0], among=among, which="first") if among else None

    def describe_missing(self, metric: str, slice_name: str | None = None) -> str:
        """Say why there is no value."""
        if self.problem is not None:
            return self.problem
        if slice_name is not None and slice_name not in self.slices:
            return f"no slice `{slice_name}`; there are {_listed(self.slices) or 'none'}"
        return f"no `{metric}`; there are {_listed(self.names(slice_name))}"

    def missing_remedy(self, metric: str, slice_name: str | None = None) -> str:
        """Say how there comes to be a value."""
        if self.remedy is not None:
            return self.remedy
        if self.problem is None and slice_name is not None and slice_name not in self.slices:
            known = " as one of these" if self.slices else ""
            return (
                f"Correct the name in the gate{known}, or name the slice in `Split(slices=...)` of the test split that "
                "the recipe's `data` gives and train again"
            )
        return f"Measure it: add `{metric}` to the recipe's `metrics` and train again"

    def _values(self, metric: str, slice_name: str | None) -> tuple[RecordedValue, ...]:
        return tuple(
            RecordedValue(
                value=part.metrics[metric],
                fact=fact,
                rows=part.rows if isinstance(part, SliceMetrics) else None,
                dataset=measured.dataset_digest,
            )
            for fact, measured in self.facts
            if (part := measured if slice_name is None else measured.slices.get(slice_name)) is not None
            and metric in part.metrics
        )

    def _parts(self, slice_name: str | None) -> list[MetricsEvidence | SliceMetrics]:
        if slice_name is None:
            return [measured for _, measured in self.facts]
        return [measured.slices[slice_name] for _, measured in self.facts if slice_name in measured.slices]


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds")
