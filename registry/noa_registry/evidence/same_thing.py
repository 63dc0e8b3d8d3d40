"""Which facts tell of the same thing: the one place that says which measurements stand beside each other.

Nobody can take a fact back, and a later one replaces no earlier one of the same thing: what is judged is the worst of
all that were recorded of it. So nobody gets past a gate by attaching a better number.

The same thing is, of the same bytes: for metrics, calibration and predictions the same rows (split and dataset digest),
for latency the same named machine (its load does not count), for equivalence the same bytes that it was compared with,
for compatibility the same holder, for everything else the kind alone. What noa itself writes about a version (verdicts,
where it came from) is no measurement: there the newest counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, cast

from noa_registry.evidence.facts import (
    CALIBRATION,
    COMPATIBILITY,
    EQUIVALENCE,
    GATE,
    HISTORY,
    LATENCY,
    METRICS,
    ORIGIN,
    PREDICTIONS,
    Evidence,
)

_WRITTEN_BY_NOA: Final = (GATE, ORIGIN, HISTORY)
_ROWS: Final = ("split", "dataset_digest")
_TELLING: Final[Mapping[str, tuple[str, ...]]] = {
    METRICS: _ROWS,
    CALIBRATION: _ROWS,
    PREDICTIONS: _ROWS,
    EQUIVALENCE: ("source", "source_digest"),
    COMPATIBILITY: ("holder_digest",),
}
_MACHINE: Final = ("cpu", "cores", "threads", "runtime")


def thing_of(fact: Evidence) -> tuple[object, ...]:
    """Return what a fact tells of: facts that give the same stand beside each other."""
    where = tuple(repr(fact.values.get(key)) for key in _TELLING.get(fact.kind, ()))
    if fact.kind == LATENCY:
        machine = fact.values.get("hardware")
        named = cast("Mapping[str, object]", machine) if isinstance(machine, Mapping) else {}
        where = tuple(repr(named.get(key)) for key in _MACHINE)
    return fact.kind, fact.subject, fact.digest, *where


def measurements_of(evidence: Iterable[Evidence], fact: Evidence) -> tuple[Evidence, ...]:
    """Return all facts that tell of the same thing as `fact`, oldest first; of what noa itself writes only `fact`."""
    if fact.kind in _WRITTEN_BY_NOA:
        return (fact,)
    thing = thing_of(fact)
    return tuple(one for one in evidence if thing_of(one) == thing)


def by_thing(evidence: Iterable[Evidence], kind: str) -> list[tuple[Evidence, ...]]:
    """Return the facts of a kind in groups that tell of the same thing, each oldest first."""
    groups: dict[tuple[object, ...], list[Evidence]] = {}
    for fact in evidence:
        if fact.kind == kind:
            groups.setdefault(thing_of(fact), []).append(fact)
    return [tuple(group) for group in groups.values()]


def worst_judgement(facts: Iterable[Evidence]) -> Evidence:
    """Return the newest of those that failed, else of those that judged nothing, else of those that passed."""
    newest = list(facts)[::-1]
    by_weight: tuple[bool | None, ...] = (False, None, True)
    return min(newest, key=lambda fact: by_weight.index(fact.passed))  # of equals, the first
