"""Runs side by side: what differs in what they were asked for and where they ran, and all their metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from noa.errors import InvalidInputError
from noa_registry.runs import tags
from noa_registry.runs.cells import plain_number
from noa_registry.runs.details import RunDetails
from noa_registry.runs.listing import RunSummary

MOST_RUNS: Final = 20
SECTIONS: Final = ("params", "config", "environment", "git", "data", "labels")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDifference:
    """One metric of each run, None where it has none. `differences` are those from the first run."""

    key: str
    values: tuple[float | None, ...]

    @property
    def differences(self) -> tuple[float | None, ...]:
        """Each run's value minus the first one's; None where one is missing or not finite."""
        first = self.values[0]
        return tuple(
            None
            if first is None or value is None or not math.isfinite(value) or not math.isfinite(first)
            else value - first
            for value in self.values
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueDifference:
    """Something that is not the same for all runs, None where a run has none."""

    key: str
    values: tuple[str | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComparison:
    """Runs side by side, in the order in which they were named.

    `sections` hold only what differs: `params`, `config`, `environment`, `git`, `data` and `labels` (people's tags).
    `metrics` are all of them, without those of the machine.
    """

    runs: tuple[RunSummary, ...]
    metrics: tuple[MetricDifference, ...]
    sections: Mapping[str, tuple[ValueDifference, ...]]

    def to_dict(self) -> dict[str, object]:
        """Return the comparison as plain JSON values."""
        return {
            "runs": [run.to_dict() for run in self.runs],
            "metrics": [
                {
                    "key": row.key,
                    "values": [plain_number(value) for value in row.values],
                    "differences": [plain_number(value) for value in row.differences],
                }
                for row in self.metrics
            ],
            **{
                name: [{"key": row.key, "values": list(row.values)} for row in rows]
                for name, rows in self.sections.items()
            },
        }


def compare_runs(runs: Sequence[RunDetails]) -> RunComparison:
    """Put runs side by side.

    Raises:
        InvalidInputError: it is one run, more than `MOST_RUNS`, or one of them twice.
    """
    check_runs([run.summary.run_id for run in runs], least=2, most=MOST_RUNS)
    values = [{one.key: one.value for one in run.metrics if not one.key.startswith(tags.SYSTEM)} for run in runs]
    tables: dict[str, list[Mapping[str, str]]] = {
        "params": [run.params for run in runs],
        "config": [run.config for run in runs],
        "environment": [run.environment for run in runs],
        "git": [run.git for run in runs],
        "data": [run.data for run in runs],
        "labels": [run.labels for run in runs],
    }
    return RunComparison(
        runs=tuple(run.summary for run in runs),
        metrics=tuple(
            MetricDifference(key=key, values=tuple(table.get(key) for table in values)) for key in _keys(values)
        ),
        sections={name: _differing(tables[name]) for name in SECTIONS},
    )


def check_runs(ids: Sequence[str], *, least: int, most: int) -> None:
    """Check which runs were named.

    Raises:
        InvalidInputError: they are too few or too many, or one is there twice.
    """
    if not least <= len(ids) <= most:
        received = f"{len(ids)} run{'' if len(ids) == 1 else 's'}"
        raise InvalidInputError("another number of runs is wanted", expected=f"{least} to {most}", received=received)
    twice = next((run for run in ids if ids.count(run) > 1), None)
    if twice is not None:
        raise InvalidInputError("a run is named twice", expected="different runs", received=f"`{twice}`")


def _differing(tables: Sequence[Mapping[str, str]]) -> tuple[ValueDifference, ...]:
    rows = (ValueDifference(key=key, values=tuple(table.get(key) for table in tables)) for key in _keys(tables))
    return tuple(row for row in rows if len(set(row.values)) > 1)


def _keys(tables: Sequence[Mapping[str, object]]) -> list[str]:
    return sorted({key for table in tables for key in table})
