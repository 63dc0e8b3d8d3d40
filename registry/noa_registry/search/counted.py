"""Which of several values of a metric counts for a version: what a hit shows and what a page is sorted by.

The one that a gate would judge by: measured on the test split, of the format that is served (`onnx`, else the native
one), and of what is left the worst, or the first where nobody says which that is. Where the query bounds the metric,
only values within the bounds take part. Said once for rows in memory and once as SQL; a test holds them together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, FromClause, and_, case, not_, or_, select

from noa_registry.gates.candidate import PREFERRED_FORMAT, TEST_SPLIT
from noa_registry.gates.counted_values import is_lower_better
from noa_registry.tables import versions

if TYPE_CHECKING:
    from noa.settings import GateSettings

_OF_TEST, _OF_SERVED, _OF_NATIVE = 4, 2, 1


@dataclass(frozen=True, slots=True)
class CountedValues:
    """Chooses by the directions that the gates of the models say; else by what the metric or its name says."""

    gates: Mapping[str, GateSettings] = field(default_factory=dict[str, "GateSettings"])

    def key(self, name: str, native: str, row: Any) -> tuple[float, ...]:
        """Return by what a row of the index is ordered among those of its version and metric: the smallest counts."""
        rank = _OF_TEST * (row.split == TEST_SPLIT)
        rank += _OF_SERVED * (row.format == PREFERRED_FORMAT) + _OF_NATIVE * (row.format == native)
        lower = is_lower_better(row.metric, self.gates.get(name))
        return (-rank, 0.0 if lower is None else -row.value if lower else row.value, row.id)

    def counts_more(self, other: FromClause, row: FromClause, metric: str) -> ColumnElement[bool]:
        """Return whether `other` counts instead of `row`, which is of the same version and metric."""
        mine, theirs = _rank(row, row), _rank(other, row)
        return or_(theirs > mine, and_(theirs == mine, self._is_worse(other, row, metric)))

    def _is_worse(self, other: FromClause, row: FromClause, metric: str) -> ColumnElement[bool]:
        by_name = is_lower_better(metric)
        said = {name: is_lower_better(metric, policy) for name, policy in self.gates.items()}
        special = {name: lower for name, lower in said.items() if lower is not by_name}
        default = _comes_first(other, row, by_name)
        if not special:
            return default
        named = [
            and_(
                row.c.name.in_([name for name, one in special.items() if one is lower]), _comes_first(other, row, lower)
            )
            for lower in dict.fromkeys(special.values())
        ]
        return or_(and_(not_(row.c.name.in_(list(special))), default), *named)


def _comes_first(other: FromClause, row: FromClause, lower: bool | None) -> ColumnElement[bool]:
    is_older = other.c.id < row.c.id
    if lower is None:
        return is_older
    is_worse = other.c.value > row.c.value if lower else other.c.value < row.c.value
    return or_(is_worse, and_(other.c.value == row.c.value, is_older))


def _rank(table: FromClause, row: FromClause) -> ColumnElement[int]:
    version = versions.alias()
    native = (
        select(version.c.native)
        .where(version.c.name == row.c.name, version.c.number == row.c.number)
        .correlate(row)
        .scalar_subquery()
    )
    c = table.c
    return (
        case((c.split == TEST_SPLIT, _OF_TEST), else_=0)
        + case((c.format == PREFERRED_FORMAT, _OF_SERVED), else_=0)
        + case((c.format == native, _OF_NATIVE), else_=0)
    )
