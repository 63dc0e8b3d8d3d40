"""Rows of the ledger and the events that tell of them are witnesses of each other, on every kind of database."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from noa.errors import IntegrityError
from noa.settings import RegistrySettings, WebhookSettings
from noa_registry import ModelVersion, Registry
from noa_registry.database import to_text
from webhook_receiver import SECRET, Receiver

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


def settings_in(folder: Path) -> RegistrySettings:
    return RegistrySettings(database_url=f"sqlite:///{folder / 'noa.db'}", artifact_dir=folder / "artifacts")


def give_up_a_move(registry: Registry, folder: Path) -> int:
    """Move an alias while a webhook takes nothing; return the event that went to its dead letters."""
    stop = threading.Event()
    with Receiver(lambda *_: (410, {})) as receiver, ThreadPoolExecutor(1) as pool:
        values = {"url": f"http://127.0.0.1:{receiver.port}/noa", "secret": SECRET, "allow_private": True}
        hooks = {"ci": WebhookSettings.model_validate({**values, "max_attempts": 1})}
        delivering = pool.submit(registry.events.deliver, hooks, state_dir=folder, stop=stop, tell=print)
        try:
            wait_until(lambda: any(one.consumer == "webhook:ci" for one in registry.events.consumers()))
            registry.promote("digits", 3, alias="shadow", reason="r", actor="ada")
            wait_until(lambda: registry.events.dead_letters.list() != [])
        finally:
            stop.set()
        delivering.result()
    ((letter, _),) = registry.events.dead_letters.list()
    return letter.event_id


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def exchanged(one: int, other: int) -> tuple[str, ...]:
    return tuple(
        f"UPDATE noa_outbox SET id = {new} WHERE id = {old}" for old, new in ((one, 0), (other, one), (0, other))
    )


@pytest.mark.parametrize(("one", "other"), [(1, 3), (1, 2), (2, 3)])
def test_events_out_of_the_order_of_their_rows_are_named(
    registry: Registry, tamper: Any, promoted: list[ModelVersion], one: int, other: int
) -> None:
    of = moves(registry)
    tamper(*exchanged(of[one], of[other]))
    what = "is out of order: events come in the order of their rows"
    assert found(registry) == [
        (other, f"event {of[one]} {what}", f"the event of row {one} in its place", f"that of row {other}"),
        (one, f"event {of[other]} {what}", f"the event of row {other} in its place", f"that of row {one}"),
    ]


@pytest.mark.parametrize(
    ("time", "problem"),
    [
        ("'2020-01-01T00:00:00.000000+00:00'", "has another time than its row, with which it was written"),
        ("'2030-01-01T00:00:00.000000+00:00'", "has another time than its row, with which it was written"),
        ("replace(created_at, '+00:00', 'Z')", "has another time than its row, with which it was written"),
        ("'zzz'", "cannot be read"),
        ("'0001-01-01T00:00:00+05:00'", "cannot be read"),
        ("'7'", "cannot be read"),
        ("7", "cannot be read"),
    ],
)
def test_an_event_with_another_time_than_its_row_is_named(
    registry: Registry, tamper: Any, promoted: list[ModelVersion], time: str, problem: str
) -> None:
    event = moves(registry)[2]
    tamper(f"UPDATE noa_outbox SET created_at = {time} WHERE id = {event}")
    named = [(one.sequence, one.what) for one in registry.ledger.verify().problems if str(event) in one.what]
    start = "the time of event" if problem == "cannot be read" else "event"
    assert named == [(2, f"{start} {event} {problem}")]
    assert len(registry.ledger.verify().problems) == 1


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)  # columns of PostgreSQL hold their type only
def test_an_event_whose_time_is_no_text_is_named_with_its_cell(
    registry: Registry, tamper: Any, promoted: list[ModelVersion]
) -> None:
    event = moves(registry)[2]
    tamper(f"UPDATE noa_outbox SET created_at = x'00ff' WHERE id = {event}")
    cell, time = (one.what for one in registry.ledger.verify().problems)
    assert "`created_at` of noa_outbox is of another type" in cell
    assert f"id {event}" in cell
    assert time == f"the time of event {event} cannot be read"


def test_a_move_and_its_event_have_one_time(registry: Registry, execute: Any, promoted: list[ModelVersion]) -> None:
    rows = execute("SELECT created_at FROM noa_ledger ORDER BY sequence")
    assert execute("SELECT created_at FROM noa_outbox WHERE kind = 'alias.promoted' ORDER BY id") == rows


def test_an_event_of_an_earlier_version_may_be_a_moment_beside_its_row(
    registry: Registry, tamper: Any, promoted: list[ModelVersion]
) -> None:
    for sequence, event in moves(registry).items():
        at = registry.ledger.entries(before=sequence + 1, limit=1)[0].created_at
        moment = to_text(at + timedelta(seconds=(-1.9, 0.004, 30)[sequence - 1]))
        tamper(f"UPDATE noa_outbox SET created_at = '{moment}' WHERE id = {event}")
    assert found(registry) == []


def test_an_event_with_a_number_that_none_was_given_is_named(
    registry: Registry, tamper: Any, promoted: list[ModelVersion], dialect: str
) -> None:
    event, far = moves(registry)[3], 2**63 - 1 if dialect == "sqlite" else 2**31 - 1
    tamper(f"UPDATE noa_outbox SET id = {far} WHERE id = {event}")
    what = f"event {far} has a number that no event was given"
    assert found(registry) == [(3, what, f"1 to {event}", str(far))]


def test_a_move_says_that_no_event_can_be_written_and_not_that_the_disk_is_full(
    registry: Registry, tamper: Any, promoted: list[ModelVersion], dialect: str
) -> None:
    event = moves(registry)[3]
    if dialect == "sqlite":
        tamper(f"UPDATE noa_outbox SET id = {2**63 - 1} WHERE id = {event}")
        received = f"none: event {2**63 - 1} has the largest number that there can be"
    else:
        tamper(f"UPDATE noa_outbox SET id = {event + 1} WHERE id = {event}")
        received = "one that an event has already"
    with pytest.raises(IntegrityError) as caught:
        registry.promote("digits", 1, reason="r", actor="ada")
    assert caught.value.received == received
    assert "No disk is full" in str(caught.value.remedy)
    assert len(registry.ledger.entries()) == 3


def test_a_count_of_events_without_end_is_named_and_said(
    registry: Registry, tamper: Any, promoted: list[ModelVersion], dialect: str
) -> None:
    if dialect == "sqlite":
        tamper(f"UPDATE sqlite_sequence SET seq = {2**63 - 1} WHERE name = 'noa_outbox'")
        what = "the database's count of events was changed: soon no event can be written"
        assert found(registry) == [(0, what, f"at most {2**31 - 1}", str(2**63 - 1))]
    else:
        tamper(f"SELECT setval(pg_get_serial_sequence('noa_outbox', 'id'), {2**31 - 1})")
    with pytest.raises(IntegrityError, match="no number that it could have") as caught:
        registry.promote("digits", 1, reason="r", actor="ada")
    assert str(caught.value.received).startswith("none: the ")


def test_nothing_is_named_in_a_registry_to_which_only_noa_wrote(
    registry: Registry,
    promoted: list[ModelVersion],
    formats: Any,
    tmp_path: Path,
    add_empty_database: Callable[[Path], None],
) -> None:
    registry.rollback("digits", reason="r", actor="ada")
    registry.promote("digits", 1, alias="challenger", reason="r", actor="bob")
    registry.retention.delete("digits", 3, reason="r", actor="ada")
    registry.retention.restore("digits", 3, actor="ada")
    unused = registry.register(formats.draft(), actor="ada").number
    registry.retention.delete("digits", unused, reason="r", actor="ada")
    registry.retention.apply(registry.retention.plan_gc(), actor="ada")
    registry.archives.write("digits", 2, tmp_path / "two.noa")
    assert found(registry) == []
    add_empty_database(tmp_path / "else")
    with Registry.open(settings_in(tmp_path / "else")) as other:
        number = other.archives.read(tmp_path / "two.noa", actor="carol").number
        other.promote("digits", number, reason="r", actor="carol")
        assert found(other) == []
    given_up = give_up_a_move(registry, tmp_path)
    assert registry.events.trim(keep=timedelta()) > 0
    assert given_up in moves(registry).values()
    assert found(registry) == []
    registry.promote("digits", 3, reason="r", actor="ada")
    registry.promote("digits", 2, alias="challenger", reason="r", actor="ada")
    assert found(registry) == []


def test_nothing_is_named_in_a_copied_project(sqlite_settings: RegistrySettings, formats: Any, tmp_path: Path) -> None:
    with Registry.open(sqlite_settings) as registry:
        for number in (1, 2):
            registry.register(formats.draft(), actor="ada")
            registry.promote("digits", number, reason="r", actor="ada")
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    with Registry.open(settings_in(tmp_path / "copy")) as copied:
        assert found(copied) == []
        copied.rollback("digits", reason="r", actor="ada")
        assert [report.sequence for report in copied.ledger.entries()] == [3, 2, 1]
        assert found(copied) == []
