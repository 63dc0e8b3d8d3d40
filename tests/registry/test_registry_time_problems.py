"""Times that somebody spoilt in the trash, in approvals and in events: an error with its row, never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from noa.errors import IntegrityError, NoaError
from noa_registry import EventPage, ModelVersion, Registry

pytestmark = pytest.mark.local_files  # rows only; where files are kept does not matter

Tamper = Callable[..., Any]


def refused(look: Callable[[], object]) -> IntegrityError:
    with pytest.raises(IntegrityError) as caught:
        look()
    return caught.value


def found(registry: Registry) -> list[str]:
    return [f"{problem.what} {problem.remedy}" for problem in registry.find_time_problems()]


@pytest.fixture
def versions(registry: Registry, formats: Any) -> list[ModelVersion]:
    return [registry.register(formats.draft(), actor="ada") for _ in range(3)]


@pytest.mark.parametrize("text", ["yesterday", "", "2026-01-01T00:00:00"])
def test_a_spoilt_time_in_the_trash_names_the_version_and_removes_nothing(
    registry: Registry, versions: list[ModelVersion], tamper: Tamper, text: str
) -> None:
    registry.retention.delete("digits", 1, reason="r", actor="ada")
    tamper(f"UPDATE noa_trash SET purge_after = '{text}', deleted_at = '{text}'")
    error = refused(registry.retention.trashed)
    assert error.what.startswith("the record of `digits/1` in the trash was changed: `deleted_at` of noa_trash")
    assert error.remedy is not None
    assert "noa models restore digits/1" in error.remedy
    assert [line.count("digits/1` in the trash") for line in found(registry)] == [1, 1]
    registry.retention.delete("digits", 2, reason="r", actor="ada")  # another one goes all the same
    plan = registry.retention.plan_gc()
    assert [item for item in plan.items if item.kind == "version"] == []
    registry.retention.apply(plan, actor="ada")
    registry.retention.restore("digits", 1, actor="ada")
    registry.verify("digits", 1)
    assert found(registry) == []


def test_a_spoilt_time_of_an_approval_names_it_and_hinders_no_other_one(
    registry: Registry, versions: list[ModelVersion], tamper: Tamper
) -> None:
    spoilt = registry.approvals.grant("digits", 1, principal="bob", reason="r")
    tamper(f"UPDATE noa_approvals SET expires_at = 'zzz' WHERE id = {spoilt.id}")
    error = refused(lambda: registry.approvals.list("digits"))
    assert f"approval {spoilt.id} of `digits/1`" in error.what
    assert error.remedy is not None
    assert "noa models approve" in error.remedy
    assert len(found(registry)) == 1
    registry.promote("digits", 1, reason="r", actor="ada")
    registry.promote("digits", 2, reason="r", actor="ada")
    registry.promote("digits", 3, reason="r", actor="ada")
    registry.retention.delete("digits", 1, reason="r", actor="ada")  # what cannot be read can never be used
    assert [line.count("noa_approvals") for line in found(registry)] == [1]


def test_a_spoilt_time_of_an_event_names_it_and_can_be_skipped(
    registry: Registry, versions: list[ModelVersion], tamper: Tamper
) -> None:
    registry.events.commit("mine", 0)
    tamper("UPDATE noa_outbox SET created_at = 'soon' WHERE id = 2")
    tamper("UPDATE noa_consumers SET updated_at = 'never'")
    for look in (lambda: registry.events.read("mine"), registry.events.newest, lambda: registry.events.since(0)):
        error = refused(look)
        assert error.what.startswith("the record of event 2 of `digits` was changed")
        assert error.remedy is not None
        assert "noa events seek CONSUMER 2" in error.remedy
    page = registry.events.page(limit=100)
    assert [event.id for event in page.events] == [1, 3]
    assert [problem.what[:25] for problem in page.problems] == ["the record of event 2 of "]
    alone = registry.events.page(after=1, limit=1)
    assert (alone.events, len(alone.problems), alone.last_id) == ((), 1, 2)
    assert registry.events.page(after=page.last_id) == EventPage(events=(), problems=(), last_id=page.last_id)
    assert "consumer `mine`" in refused(registry.events.consumers).what
    assert len(found(registry)) == 2
    registry.events.seek("mine", 2)
    assert registry.events.read("mine")[0].id == 3
    assert len(found(registry)) == 1


@pytest.mark.parametrize(
    ("table", "column"),
    [("noa_signatures", "created_at"), ("noa_versions", "created_at"), ("noa_formats", "created_at")],
)
def test_no_spoilt_time_is_a_traceback(
    registry: Registry, versions: list[ModelVersion], tamper: Tamper, table: str, column: str
) -> None:
    tamper(f"UPDATE {table} SET {column} = 'x'")
    looks: tuple[Callable[[], object], ...] = (
        lambda: registry.card("digits/1"),
        lambda: registry.versions("digits"),
        lambda: registry.search("digits"),
        lambda: registry.lineage("digits"),
        registry.retention.plan_gc,
    )
    for look in looks:
        try:
            look()
        except NoaError as exc:
            assert "was changed" in str(exc)
