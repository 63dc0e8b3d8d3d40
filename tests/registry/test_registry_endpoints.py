"""Generations and leases: what endpoints serve, who serves it, and waiting until everybody does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from noa.errors import ConflictError, InvalidInputError, NotFoundError, ServiceError
from noa_registry import Endpoints, ModelVersion, Registry

pytestmark = pytest.mark.local_files  # rows only; where files are kept does not matter


@pytest.fixture
def endpoints(registry: Registry) -> Endpoints:
    return registry.endpoints


def announce(endpoints: Endpoints, number: int, *, alias: str | None = "champion", endpoint: str = "digits") -> int:
    return endpoints.announce(endpoint, "digits", number, alias=alias, format="onnx")


def test_the_number_grows_only_when_the_content_changes(endpoints: Endpoints, promoted: list[ModelVersion]) -> None:
    assert announce(endpoints, 1) == 1
    assert announce(endpoints, 1) == 1
    assert announce(endpoints, 2) == 2
    assert announce(endpoints, 1) == 3, "going back is a change too"
    assert announce(endpoints, 1, alias=None) == 4
    assert endpoints.announce("digits", "digits", 1, alias=None, format="torch") == 5
    assert announce(endpoints, 1, endpoint="other") == 1
    newest = endpoints.generations("digits")[0]
    assert (newest.reference, newest.format, newest.alias, newest.digest) == (
        "digits/1",
        "torch",
        None,
        promoted[0].digest,
    )


def test_processes_that_announce_the_same_content_at_once_agree_on_its_number(
    endpoints: Endpoints, promoted: list[ModelVersion]
) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: announce(endpoints, 3), range(16)))
    assert numbers == [1] * 16
    assert len(endpoints.generations("digits")) == 1


def test_an_announcement_is_told_as_an_event(
    endpoints: Endpoints, version: object, execute: Callable[..., list[Any]]
) -> None:
    announce(endpoints, 1)
    announce(endpoints, 1)
    assert len(execute("SELECT id FROM noa_outbox WHERE kind = 'generation.announced'")) == 1


def test_a_replica_is_live_while_its_lease_lasts_and_renewing_makes_it_last(
    endpoints: Endpoints, version: object
) -> None:
    generation = announce(endpoints, 1)
    endpoints.acknowledge("digits", "host:1", generation, lease_s=60)
    endpoints.acknowledge("digits", "host:2", generation, lease_s=10)
    soon = Endpoints(database=endpoints.database, clock=lambda: datetime.now(UTC) + timedelta(seconds=30))
    assert [one.replica for one in endpoints.live_replicas()] == ["host:1", "host:2"]
    assert [one.replica for one in soon.live_replicas(endpoint="digits", name="digits")] == ["host:1"]
    endpoints.acknowledge("digits", "host:2", generation, lease_s=60)
    assert len(soon.live_replicas()) == 2
    endpoints.release("digits", "host:1")
    endpoints.release("digits", "nobody")
    assert [one.replica for one in endpoints.live_replicas()] == ["host:2"]
    assert endpoints.live_replicas(name="other") == []


@pytest.mark.parametrize(("replica", "lease_s"), [("", 10.0), ("x" * 200, 10.0), ("host:1", 0.0), ("host:1", -1.0)])
def test_a_lease_that_is_none_is_refused(endpoints: Endpoints, version: object, replica: str, lease_s: float) -> None:
    generation = announce(endpoints, 1)
    with pytest.raises(InvalidInputError, match="no lease"):
        endpoints.acknowledge("digits", replica, generation, lease_s=lease_s)


def test_only_what_was_announced_can_be_acknowledged(endpoints: Endpoints, version: object) -> None:
    with pytest.raises(NotFoundError, match="no generation 7"):
        endpoints.acknowledge("digits", "host:1", 7, lease_s=10)
    with pytest.raises(NotFoundError, match="no version 9"):
        announce(endpoints, 9)


def test_waiting_ends_when_the_last_live_replica_follows(
    registry: Registry, endpoints: Endpoints, promoted: list[ModelVersion]
) -> None:
    for replica in ("a", "b"):
        endpoints.acknowledge("digits", replica, announce(endpoints, 3), lease_s=60)
    endpoints.acknowledge("pinned", "c", announce(endpoints, 1, alias=None, endpoint="pinned"), lease_s=60)
    registry.rollback("digits", reason="r", actor="ada")
    late: list[list[str]] = []

    def follow() -> None:
        for replica in ("a", "b"):
            deadline = time.monotonic() + 20
            while not late and time.monotonic() < deadline:
                time.sleep(0.01)
            endpoints.acknowledge("digits", replica, announce(endpoints, 2), lease_s=60)

    follower = threading.Thread(target=follow)
    follower.start()
    served = endpoints.wait_until_served(
        "digits", 2, alias="champion", timeout_s=30, tell=lambda rows: late.append([one.replica for one in rows])
    )
    follower.join()
    assert [one.replica for one in served] == ["a", "b"]
    assert late[0] == ["a", "b"]


def test_waiting_for_nobody_ends_at_once(registry: Registry, promoted: list[ModelVersion]) -> None:
    assert registry.endpoints.wait_until_served("digits", 3, alias="champion", timeout_s=0) == []


def test_waiting_too_long_names_the_replicas_that_are_behind(
    endpoints: Endpoints, promoted: list[ModelVersion]
) -> None:
    endpoints.acknowledge("digits", "slow", announce(endpoints, 2), lease_s=60)
    with pytest.raises(ServiceError, match=r"not every server follows.*`slow` of endpoint `digits` serves digits/2"):
        endpoints.wait_until_served("digits", 3, alias="champion", timeout_s=0)


def test_a_replica_that_was_killed_is_not_waited_for_longer_than_its_lease(
    endpoints: Endpoints, promoted: list[ModelVersion]
) -> None:
    endpoints.acknowledge("digits", "killed", announce(endpoints, 2), lease_s=0.3)
    assert endpoints.wait_until_served("digits", 3, alias="champion", timeout_s=30) == []


def test_waiting_for_an_alias_that_moves_on_ends_with_a_conflict(
    registry: Registry, promoted: list[ModelVersion]
) -> None:
    with pytest.raises(ConflictError, match="moved on while we waited"):
        registry.endpoints.wait_until_served("digits", 2, alias="champion", timeout_s=30)


def test_a_replica_counts_once_it_has_followed_the_very_move(registry: Registry, promoted: list[ModelVersion]) -> None:
    endpoints = registry.endpoints
    endpoints.acknowledge("digits", "a", announce(endpoints, 2), lease_s=60, move=2)
    move = registry.rollback("digits", reason="r", actor="ada").sequence
    with pytest.raises(
        ServiceError, match=rf"serves digits/2, and has not confirmed the move yet \(ledger row {move}\)"
    ):
        endpoints.wait_until_served("digits", 2, alias="champion", timeout_s=0)
    endpoints.acknowledge("digits", "a", announce(endpoints, 2), lease_s=60, move=move)
    (replica,) = endpoints.wait_until_served("digits", 2, alias="champion", timeout_s=0)
    assert replica.move == move


def refuse(endpoints: Endpoints, replica: str, *, move: int, lease_s: float = 60) -> None:
    endpoints.refuse(
        "digits",
        replica,
        name="digits",
        number=3,
        digest="sha256:" + "0" * 64,
        alias="champion",
        move=move,
        reason="it computes something else " * 99,
        lease_s=lease_s,
    )


def test_a_refusal_ends_the_wait_for_its_move_and_no_other(
    registry: Registry, promoted: list[ModelVersion], execute: Callable[..., list[Any]]
) -> None:
    endpoints = registry.endpoints
    endpoints.acknowledge("digits", "a", announce(endpoints, 2), lease_s=60, move=2)
    refuse(endpoints, "a", move=2)
    with pytest.raises(ServiceError, match="not every server follows"):
        endpoints.wait_until_served("digits", 3, alias="champion", timeout_s=0)
    refuse(endpoints, "a", move=3)
    refuse(endpoints, "b", move=3)
    with pytest.raises(ServiceError, match=r"a server refuses it.*it computes something else"):
        endpoints.wait_until_served("digits", 3, alias="champion", timeout_s=30)
    assert [(one.replica, len(one.reason)) for one in endpoints.live_refusals(name="digits")] == [
        ("a", 1000),
        ("b", 1000),
    ]
    assert len(execute("SELECT id FROM noa_outbox WHERE kind = 'generation.refused'")) == 2, "one for each move"
    endpoints.accept("digits", "a")
    endpoints.release("digits", "b")
    assert endpoints.live_refusals() == []


def test_a_refusal_of_a_server_that_is_gone_ends_by_itself(endpoints: Endpoints, promoted: list[ModelVersion]) -> None:
    refuse(endpoints, "gone", move=3, lease_s=1)
    later = Endpoints(database=endpoints.database, clock=lambda: datetime.now(UTC) + timedelta(seconds=5))
    assert len(endpoints.live_refusals()) == 1
    assert later.live_refusals() == []
    refuse(later, "other", move=3)
    assert [one.replica for one in endpoints.live_refusals()] == ["other"]
