"""A clock that was set back or forward: what ended stays ended, and time in the ledger does not run backwards."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from noa.errors import ConflictError, GateRefusedError
from noa.settings import GateSettings, RegistrySettings
from noa_registry import Registry, clock, promotion
from noa_registry.approvals import desk


def set_clock(patch: pytest.MonkeyPatch, by: timedelta) -> None:
    for module in (clock, promotion, desk):
        patch.setattr(module, "now", lambda: datetime.now(UTC) + by)


@pytest.fixture
def guarded(sqlite_settings: RegistrySettings, formats: Any) -> Iterator[Registry]:
    gates = {"digits": GateSettings(approvals=1, aliases=("champion",))}
    with Registry.open(sqlite_settings, gates=gates) as registry:
        for _ in range(2):
            registry.register(formats.draft(), actor="ada")
        yield registry


def test_no_alias_moves_while_the_clock_is_behind_the_ledger(
    guarded: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        guarded.promote("digits", number, alias="shadow", reason="r", actor="ada")
    with monkeypatch.context() as patch:
        set_clock(patch, timedelta(seconds=-60))
        with pytest.raises(ConflictError, match="the clock went back") as refused:
            guarded.promote("digits", 1, alias="shadow", reason="r", actor="ada")
        assert "clock_tolerance_s" in (refused.value.remedy or "")
        with pytest.raises(ConflictError, match="the clock went back"):
            guarded.rollback("digits", alias="shadow", reason="r", actor="ada")
    with monkeypatch.context() as patch:
        set_clock(patch, timedelta(seconds=-1))  # as far as machines may differ
        guarded.rollback("digits", alias="shadow", reason="r", actor="ada")
    times = [entry.created_at for entry in guarded.history("digits", alias="shadow")]
    assert times == sorted(times, reverse=True)
    assert guarded.ledger.verify().problems == ()


def test_an_approval_that_ended_counts_no_more_if_the_clock_is_set_back(
    guarded: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        set_clock(patch, timedelta(hours=-3))
        guarded.approvals.grant("digits", 1, principal="bob", reason="r", expires_in=timedelta(hours=1))
    guarded.promote("digits", 1, alias="shadow", reason="the ledger tells that it has ended", actor="ada")
    with monkeypatch.context() as patch:
        set_clock(patch, timedelta(hours=-3))
        assert not guarded.check("digits", 1, actor="eve").passed
        with pytest.raises(ConflictError, match="the clock went back"):
            guarded.promote("digits", 1, reason="r", actor="eve")


def test_an_approval_from_the_future_does_not_count(guarded: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        set_clock(patch, timedelta(hours=1))
        guarded.approvals.grant("digits", 1, principal="bob", reason="r", expires_in=timedelta(hours=9))
    guarded.check("digits", 1, actor="eve")
    with pytest.raises(GateRefusedError) as refused:
        guarded.promote("digits", 1, reason="r", actor="eve")
    assert "which by the clock here is still to come" in (refused.value.remedy or "")


def test_times_that_run_backwards_and_approvals_used_outside_their_life_are_named(
    guarded: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded.promote("digits", 1, alias="shadow", reason="r", actor="ada")

    def nothing(*_: object) -> None: ...

    def long_ago(*_: object) -> datetime:
        return datetime.now(UTC) - timedelta(hours=9)

    with monkeypatch.context() as patch:  # what a noa without these rules did
        set_clock(patch, timedelta(hours=-3))
        guarded.approvals.grant("digits", 2, principal="bob", reason="r", expires_in=timedelta(hours=1))
        patch.setattr(promotion, "refuse_clock_behind", nothing)
        patch.setattr(promotion, "newest_move", nothing)
        patch.setattr(desk, "passed_moment", long_ago)
        set_clock(patch, timedelta(hours=-1))
        guarded.promote("digits", 2, reason="r", actor="eve")
    said = [str(problem) for problem in guarded.ledger.verify().problems]
    assert any("row 2: the time of the row is before that of the row above it" in one for one in said), said
    assert any("row 2: the approval by bob" in one and "it held from" in one for one in said), said
