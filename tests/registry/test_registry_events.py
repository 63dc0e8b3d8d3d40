"""Events: everything that happens is told, in order, at least once, to everybody who asks."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
import sqlalchemy.exc

from noa.errors import GateRefusedError, InvalidInputError, NotFoundError
from noa_registry import Event, ModelVersion, Registry
from noa_registry.events.outbox import EventKind

# Nothing here is about files: a local folder on both databases.
pytestmark = pytest.mark.usefixtures("artifact_dir")


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def test_everything_that_happens_to_a_model_is_told_in_order(registry: Registry, formats: Any) -> None:
    registry.register(formats.draft(formats={"torch": formats.torch}, evidence=()), actor="ada")
    registry.add_format("digits", 1, "onnx", formats.onnx, evidence=[formats.equivalence()], actor="ada")
    registry.attach("digits", 1, formats.metrics(accuracy=0.9))
    registry.promote("digits", 1, reason="first", actor="bob")
    registry.register(formats.draft(), actor="ada")
    registry.promote("digits", 2, reason="second", actor="bob")
    registry.rollback("digits", reason="worse", actor="bob")
    events = registry.events.read("test")
    assert kinds(events) == [
        "version.registered",
        "format.added",
        "evidence.attached",
        "alias.promoted",
        "version.registered",
        "alias.promoted",
        "alias.rolled_back",
    ]
    assert [event.id for event in events] == sorted({event.id for event in events})
    assert {event.name for event in events} == {"digits"}
    newest = registry.history("digits")[0]
    assert events[-1].payload == {
        "alias": "champion",
        "from": 2,
        "to": 1,
        "from_digest": newest.from_digest,
        "to_digest": newest.to_digest,
        "actor": "bob",
        "reason": "worse",
        "sequence": 3,
        "hash": newest.hash,
    }
    assert events[0].payload["number"] == 1
    assert events[2].payload["evidence"] == [
        {"kind": "metrics", "subject": "onnx", "digest": formats.digest("onnx"), "passed": None}
    ]


def test_what_was_refused_is_not_told(registry: Registry, formats: Any, promoted: list[ModelVersion]) -> None:
    registry.register(formats.draft(evidence=()), actor="ada")
    before = registry.events.read("test")
    with pytest.raises(GateRefusedError):
        registry.promote("digits", 4, reason="r", actor="a")
    registry.promote("digits", 3, reason="it is there already", actor="a")
    assert registry.events.read("test") == before


def test_events_come_again_until_they_are_committed(registry: Registry, promoted: list[ModelVersion]) -> None:
    first = registry.events.read("ci", limit=2)
    assert registry.events.read("ci", limit=2) == first
    registry.events.commit("ci", first[0].id)
    assert registry.events.read("ci", limit=1) == first[1:]
    registry.events.commit("ci", first[1].id)
    registry.events.commit("ci", first[0].id)  # late, e.g. of a slower thread
    assert registry.events.read("ci")[0].id == first[1].id + 1


def test_consumers_are_independent_and_their_place_survives(registry: Registry, settings: Any, formats: Any) -> None:
    registry.register(formats.draft(), actor="ada")
    newest = registry.events.read("slow")[-1].id
    registry.events.commit("fast", newest)
    registry.register(formats.draft(), actor="ada")
    with Registry.open(settings) as other:
        assert len(other.events.read("slow")) == 2
        assert [event.payload["number"] for event in other.events.read("fast")] == [2]
        other.events.commit("slow", 0)
        assert [(c.consumer, c.last_id, c.lag) for c in other.events.consumers()] == [
            ("fast", newest, 1),
            ("slow", 0, 2),
        ]


def test_a_reader_can_ask_for_one_model(registry: Registry, formats: Any, make_formats: Callable[[int], Any]) -> None:
    for name, prepared in (("a", formats), ("b", make_formats(1)), ("a", formats)):
        registry.register(prepared.draft(name=name), actor="ada")
    assert [event.payload["number"] for event in registry.events.read("test", name="a")] == [1, 2]
    assert [event.name for event in registry.events.newest(limit=2)] == ["b", "a"]
    assert [event.name for event in registry.events.newest(name="b")] == ["b"]
    assert [event.name for event in registry.events.since(1)] == ["b", "a"]


def test_a_consumer_can_go_back_and_skip(registry: Registry, promoted: list[ModelVersion]) -> None:
    all_events = registry.events.read("ci")
    registry.events.commit("ci", all_events[-1].id)
    registry.events.seek("ci", all_events[1].id)
    assert registry.events.read("ci") == all_events[2:]
    registry.events.seek("ci", 0)
    assert registry.events.read("ci") == all_events
    with pytest.raises(InvalidInputError, match="no such event"):
        registry.events.seek("ci", all_events[-1].id + 1)
    with pytest.raises(InvalidInputError, match="not yet"):
        registry.events.commit("ci", all_events[-1].id + 1)


def test_old_events_go_when_everybody_has_read_them(
    registry: Registry, execute: Callable[..., list[Any]], promoted: list[ModelVersion]
) -> None:
    events = registry.events.read("fast")
    registry.events.commit("fast", events[-1].id)
    registry.events.commit("slow", events[1].id)
    assert registry.events.trim() == 0  # they are young
    assert registry.events.trim(keep=timedelta(), dry_run=True) == 2
    assert registry.events.trim(keep=timedelta()) == 2
    assert registry.events.read("new") == events[2:]
    with pytest.raises(NotFoundError, match="no longer kept"):
        registry.events.seek("slow", 1 if events[1].id > 2 else events[0].id)
    registry.events.forget("slow")
    assert registry.events.trim(keep=timedelta()) == len(events) - 3
    assert registry.events.read("new") == events[-1:]  # the newest stays, so that numbers go on
    with pytest.raises(sqlalchemy.exc.IntegrityError, match="never changed or deleted"):
        execute("DELETE FROM noa_outbox")
    with pytest.raises(NotFoundError, match="no consumer `slow`"):
        registry.events.forget("slow")


@pytest.mark.parametrize("name", ["", "a b", "1st", "x" * 129, "ci;drop"])
def test_a_consumers_name_is_checked(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidInputError, match="consumer's name"):
        registry.events.read(name)


@pytest.mark.parametrize("limit", [0, -1, 10_001])
def test_pages_of_events_are_bounded(registry: Registry, limit: int) -> None:
    with pytest.raises(InvalidInputError, match="a page"):
        registry.events.read("ci", limit=limit)


def test_the_page_about_events_names_every_kind_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    told = [kind for row in rows for kind in re.findall(r"`([a-z]+\.[a-z_]+)`", row)]
    assert sorted(told) == sorted(get_args(EventKind))
