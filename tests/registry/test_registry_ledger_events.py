"""Rows of the ledger and the events that tell of them are witnesses of each other, on every kind of database."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from noa_registry import ModelVersion, Registry

pytestmark = pytest.mark.usefixtures("artifact_dir")


def found(registry: Registry) -> list[tuple[int, str, str, str]]:
    return [(one.sequence, one.what, one.expected, one.received) for one in registry.ledger.verify().problems]


def moves(registry: Registry) -> dict[int, int]:
    """Return the event of each row."""
    events = [event for event in registry.events.since(0) if event.kind.startswith("alias.")]
    return {int(str(event.payload["sequence"])): event.id for event in events}


@pytest.mark.parametrize(
    ("change", "expected", "received"),
    [
        ("payload = replace(payload, '\"ada\"', '\"eve\"')", "actor ada", "actor eve"),
        ("name = 'other'", "model digits", "model other"),
        ("kind = 'alias.rolled_back'", "kind alias.promoted", "kind alias.rolled_back"),
        ("payload = replace(payload, '\"to\":2', '\"to\":3')", "to 2", "to 3"),
        ('payload = replace(payload, \'"alias":\', \'"later":1,"alias":\')', "no later", "later 1"),
    ],
)
def test_an_event_that_says_something_else_than_its_row_is_named(
    registry: Registry, tamper: Any, promoted: list[ModelVersion], change: str, expected: str, received: str
) -> None:
    event = moves(registry)[2]
    tamper(f"UPDATE noa_outbox SET {change} WHERE id = {event}")
    what = f"event {event} does not say of this row what the row says"
    assert found(registry) == [(2, what, expected, received)]


def test_another_spelling_of_an_event_is_named(registry: Registry, tamper: Any, promoted: list[ModelVersion]) -> None:
    event = moves(registry)[2]
    tamper(f"UPDATE noa_outbox SET payload = payload || ' ' WHERE id = {event}")
    assert [(row, what) for row, what, *_ in found(registry)] == [
        (2, f"event {event} does not say of this row what the row says")
    ]


@pytest.mark.parametrize("payload", ["nonsense", "[]", '{"sequence":"2"}', "{}"])
def test_an_event_of_a_move_that_tells_of_no_row_is_named(
    registry: Registry, tamper: Any, promoted: list[ModelVersion], payload: str
) -> None:
    event = moves(registry)[2]
    tamper(f"UPDATE noa_outbox SET payload = '{payload}' WHERE id = {event}")
    assert [(row, what) for row, what, *_ in found(registry)] == [
        (0, f"event {event} tells of no row"),
        (2, "no event tells of this row, and older events are kept"),
    ]


def test_events_that_were_removed_made_up_or_doubled_are_named(
    registry: Registry, tamper: Any, promoted: list[ModelVersion]
) -> None:
    of = moves(registry)
    tamper(f"DELETE FROM noa_outbox WHERE id = {of[1]}")
    assert [(row, what) for row, what, *_ in found(registry)] == [
        (1, "no event tells of this row, and older events are kept")
    ]
    columns = "name, kind, created_at, payload"
    tamper(
        f"INSERT INTO noa_outbox ({columns}) SELECT {columns} FROM noa_outbox WHERE id = {of[3]}",
        f"INSERT INTO noa_outbox ({columns}) SELECT name, kind, created_at, "
        f"replace(payload, '\"sequence\":3', '\"sequence\":9') FROM noa_outbox WHERE id = {of[3]}",
    )
    assert [(row, what.partition(" tell")[2]) for row, what, *_ in found(registry)] == [
        (3, " of this row"),
        (9, "s of this row, which does not exist: the ledger was cut, or the event was made up"),
        (1, "s of this row, and older events are kept"),
    ]


def test_events_that_were_trimmed_or_never_were_are_missed_by_nobody(
    registry: Registry, tamper: Any, promoted: list[ModelVersion]
) -> None:
    assert registry.events.trim(keep=timedelta()) > 0
    assert found(registry) == []
    registry.promote("digits", 1, reason="r", actor="ada")
    assert found(registry) == []
    tamper("DELETE FROM noa_outbox")  # as in a database from before there were events
    assert found(registry) == []
    registry.promote("digits", 2, reason="r", actor="ada")
    registry.promote("digits", 3, reason="r", actor="ada")
    assert found(registry) == []


def test_a_given_up_event_that_outlived_younger_ones_proves_nothing(
    registry: Registry, tamper: Any, promoted: list[ModelVersion]
) -> None:
    of = moves(registry)
    tamper(
        "INSERT INTO noa_dead_letters (consumer, event_id, attempts, error, created_at) "
        f"VALUES ('webhook:ci', {of[1]}, 12, 'gone', '2026-01-01T00:00:00.000000+00:00')"
    )
    registry.events.trim(keep=timedelta())
    assert sorted(moves(registry)) == [1, 3]
    assert found(registry) == []


def test_more_moves_take_no_more_queries(registry: Registry, promoted: list[ModelVersion]) -> None:
    from sqlalchemy import event

    statements: list[str] = []

    def remember(*arguments: Any) -> None:
        statements.append(str(arguments[2]))

    def count() -> int:
        statements.clear()
        assert registry.ledger.verify().problems == ()
        return len(statements)

    engine = registry._database.engine  # what is counted is below the registry's own methods
    event.listen(engine, "before_cursor_execute", remember)
    before = count()
    for turn in range(12):
        registry.promote("digits", turn % 2 + 1, reason=json.dumps(turn), actor="ada")
    assert count() == before
