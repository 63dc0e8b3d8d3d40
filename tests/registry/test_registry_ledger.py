from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noa.errors import IntegrityError
from noa_registry import LedgerEntry
from noa_registry.ledger import GENESIS, Action, entry_hash, replay, verify_chain

texts = st.text(max_size=20)
moves = st.lists(st.tuples(st.sampled_from(["promote", "rollback"]), st.integers(1, 9), texts, texts), max_size=12)


def chain(rows: list[tuple[str, int, str, str]]) -> list[LedgerEntry]:
    entries: list[LedgerEntry] = []
    for sequence, (action, number, actor, reason) in enumerate(rows, start=1):
        entry = LedgerEntry(
            sequence=sequence,
            name="digits",
            alias="champion",
            action="promote" if action == "promote" else "rollback",
            from_number=None,
            to_number=number,
            from_digest=None,
            to_digest=f"sha256:{number}",
            actor=actor,
            reason=reason,
            verdict={"passed": True},
            created_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=sequence),
            previous_hash=entries[-1].hash if entries else GENESIS,
            hash="",
        )
        entries.append(replace(entry, hash=entry_hash(entry)))
    return entries


@given(moves)
def test_an_untouched_chain_verifies_to_its_last_row(rows: list[tuple[str, int, str, str]]) -> None:
    entries = chain(rows)
    assert verify_chain(entries) == ((len(rows), entries[-1].hash) if entries else (0, GENESIS))


@given(moves.filter(bool), st.data())
def test_a_changed_row_is_found_at_its_place(rows: list[tuple[str, int, str, str]], data: st.DataObject) -> None:
    entries = chain(rows)
    place = data.draw(st.integers(0, len(entries) - 1))
    entry = entries[place]
    entries[place] = data.draw(
        st.sampled_from(
            [
                replace(entry, reason=entry.reason + "x"),
                replace(entry, actor=entry.actor + "x"),
                replace(entry, to_number=entry.to_number + 1),
                replace(entry, alias="other"),
                replace(entry, verdict={"passed": False}),
                replace(entry, created_at=entry.created_at + timedelta(microseconds=1)),
                replace(entry, hash=GENESIS),
            ]
        )
    )
    with pytest.raises(IntegrityError) as caught:
        verify_chain(entries)
    assert caught.value.facts["sequence"] == place + 1


@given(moves.filter(lambda rows: len(rows) > 1), st.data())
def test_a_row_that_is_missing_or_moved_is_found(rows: list[tuple[str, int, str, str]], data: st.DataObject) -> None:
    entries = chain(rows)
    place = data.draw(st.integers(0, len(entries) - 2))
    with pytest.raises(IntegrityError):
        verify_chain(entries[:place] + entries[place + 1 :])
    swapped = [*entries]
    swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
    with pytest.raises(IntegrityError):
        verify_chain(swapped)


@given(st.lists(st.one_of(st.integers(1, 9), st.none()), max_size=30))
def test_an_alias_is_a_stack(steps: list[int | None]) -> None:
    """A number promotes it; None rolls back if there is something to roll back to."""
    model: list[int] = []
    recorded: list[tuple[Action, int]] = []
    for step in steps:
        if step is not None:
            model.append(step)
            recorded.append(("promote", step))
        elif len(model) > 1:
            model.pop()
            recorded.append(("rollback", model[-1]))
        assert replay(recorded) == model


def test_a_rollback_that_leads_nowhere_is_an_integrity_error() -> None:
    for rows in (
        [("rollback", 1)],
        [("promote", 1), ("rollback", 1)],
        [("promote", 1), ("promote", 2), ("rollback", 3)],
    ):
        with pytest.raises(IntegrityError, match="nowhere"):
            replay(rows)  # type: ignore[arg-type]
