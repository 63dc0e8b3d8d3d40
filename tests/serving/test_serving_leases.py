"""Leases: the registry knows what is served, and serving does not need it to."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from serving_kit import Project, affine_model, endpoint, failing_model

from noa.errors import ServiceError
from noa_registry import Registry
from noa_serving import start_server
from noa_serving._endpoint import Endpoint
from noa_serving._follower import Follower
from noa_serving._leases import LeaseKeeper


def until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def followed(project: Project, model: str = "digits@champion") -> Endpoint:
    one = Endpoint("digits", endpoint(model), threads=1)
    with project.registry() as registry:
        one.follow(registry)
    return one


def keeper_of(project: Project, *endpoints: Endpoint, lock_timeout_s: float = 10.0) -> LeaseKeeper:
    settings = project.settings.registry.model_copy(update={"lock_timeout_s": lock_timeout_s})
    return LeaseKeeper(endpoints, lambda: Registry.open(settings), lease_s=30.0)


def test_what_is_served_is_announced_acknowledged_and_renewed_when_due(project: Project) -> None:
    project.publish("digits", affine_model(2.0))
    one, waiting = followed(project), Endpoint("waiting", endpoint("digits@nobody"), threads=1)
    keeper = keeper_of(project, one, waiting)
    assert keeper.write(0.0) == 10.0
    with project.registry() as registry:
        (replica,) = registry.endpoints.live_replicas()
        assert (replica.replica, replica.generation.reference) == (keeper.replica, "digits/1")
        assert (replica.generation.alias, replica.generation.format) == ("champion", "onnx")
        keeper.write(1.0)
        assert registry.endpoints.live_replicas()[0].expires_at == replica.expires_at, "not due yet"
        keeper.write(10.0)
        assert registry.endpoints.live_replicas()[0].expires_at > replica.expires_at
        project.publish("digits", affine_model(3.0))
        one.follow(registry)
        keeper.write(11.0)
        (replica,) = registry.endpoints.live_replicas()
        assert (replica.generation.generation, replica.generation.reference) == (2, "digits/2")


def test_a_locked_or_missing_database_delays_neither_swaps_nor_answers(project: Project, tmp_path: Path) -> None:
    project.publish("digits", affine_model(2.0))
    one = followed(project)
    project.publish("digits", affine_model(3.0))
    keeper = keeper_of(project, one, lock_timeout_s=0.05)
    other = sqlite3.connect(project.settings.state_dir / "noa.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    follower = Follower([one], project.registry, poll_interval_s=1, leases=keeper)
    follower.poll()
    assert one.require().number == 2
    assert keeper.write(0.0) == 1.0
    assert keeper.problem is not None
    assert "locked" in keeper.problem
    assert keeper.write(1.0) == 2.0, "the pause grows"
    assert one.require().number == 2
    other.execute("ROLLBACK")
    other.close()
    keeper.write(2.0)
    assert keeper.problem is None
    with project.registry() as registry:
        assert [replica.generation.number for replica in registry.endpoints.live_replicas()] == [2]
    hidden = tmp_path / "hidden"
    project.settings.state_dir.rename(hidden)
    project.settings.state_dir.write_text("a file where the folder was")
    gone = keeper_of(project, one)
    gone.write(0.0)
    assert gone.problem is not None
    assert one.require().number == 2


def test_the_thread_writes_at_once_when_woken_and_gives_leases_back_at_the_end(project: Project) -> None:
    project.publish("digits", affine_model(2.0))
    one = Endpoint("digits", endpoint("digits@champion"), threads=1)
    keeper = keeper_of(project, one)
    follower = Follower([one], project.registry, poll_interval_s=0.02, leases=keeper)
    follower.start()
    with project.registry() as registry:
        until(lambda: [r.generation.number for r in registry.endpoints.live_replicas()] == [1])
        project.publish("digits", affine_model(3.0))
        until(lambda: [r.generation.number for r in registry.endpoints.live_replicas()] == [2])
        follower.stop()
        assert registry.endpoints.live_replicas() == []


def test_a_running_server_holds_its_version_until_it_stops(project: Project, tmp_path: Path) -> None:
    project.publish("digits", affine_model(2.0))
    project.publish("digits", affine_model(3.0))
    endpoints = {"digits": endpoint("digits@champion"), "first": endpoint("digits/1")}
    with start_server(project.settings, endpoints=endpoints, log_file=tmp_path / "server.log") as process:
        process.wait_ready()
        with project.registry() as registry:
            until(lambda: len(registry.endpoints.live_replicas()) == 2)
            registry.rollback("digits", reason="r", actor="ada")
            served = registry.endpoints.wait_until_served("digits", 1, alias="champion", timeout_s=60)
            assert [one.generation.endpoint for one in served] == ["digits"]
            registry.promote("digits", 2, reason="r", actor="ada")
            registry.endpoints.wait_until_served("digits", 2, alias="champion", timeout_s=60)
            kinds = {hold.kind for hold in registry.retention.holds("digits", 1)}
            assert "replica" in kinds
    with project.registry() as registry:
        assert registry.endpoints.live_replicas() == []


def test_a_rollback_between_a_swap_and_its_lease_is_waited_for_until_it_is_undone(project: Project) -> None:
    first = project.publish("digits", affine_model(2.0))
    one = followed(project)
    keeper = keeper_of(project, one)
    keeper.write(0.0)
    project.publish("digits", affine_model(3.0))
    with project.registry() as registry:
        assert one.follow(registry), "it answers with version 2; its lease is not written yet and says version 1"
        registry.rollback("digits", reason="r", actor="ada")
        with pytest.raises(ServiceError, match=r"serves digits/1, and has not confirmed the move yet \(ledger row 3\)"):
            registry.endpoints.wait_until_served("digits", 1, alias="champion", timeout_s=0)
        keeper.write(0.1)
        with pytest.raises(ServiceError, match="serves digits/2"):
            registry.endpoints.wait_until_served("digits", 1, alias="champion", timeout_s=0)
        assert one.follow(registry)
        keeper.write(0.2)
        (served,) = registry.endpoints.wait_until_served("digits", 1, alias="champion", timeout_s=0)
        assert (served.generation.digest, served.move) == (first.digest, 3)


def test_moves_that_lead_back_before_anybody_looked_are_confirmed_too(project: Project) -> None:
    project.publish("digits", affine_model(2.0))
    one = followed(project)
    keeper = keeper_of(project, one)
    keeper.write(0.0)
    project.publish("digits", affine_model(3.0))
    with project.registry() as registry:
        registry.rollback("digits", reason="r", actor="ada")
        with pytest.raises(ServiceError, match="has not confirmed the move"):
            registry.endpoints.wait_until_served("digits", 1, alias="champion", timeout_s=0)
        assert not one.follow(registry)
        keeper.write(0.1)
        assert len(registry.endpoints.wait_until_served("digits", 1, alias="champion", timeout_s=0)) == 1


def test_a_refusal_is_known_to_the_registry_until_it_is_over(project: Project) -> None:
    project.publish("digits", affine_model(2.0))
    one = followed(project)
    keeper = keeper_of(project, one)
    keeper.write(0.0)
    bad = project.publish("digits", failing_model)
    with project.registry() as registry:
        one.follow(registry)
        keeper.write(0.1)
        keeper.write(0.2)
        (refusal,) = registry.endpoints.live_refusals(name="digits")
        assert (refusal.number, refusal.digest, refusal.alias) == (2, bad.digest, "champion")
        assert one.failure is not None
        assert refusal.reason == one.failure.reason
        events = [
            event for event in registry.events.newest(name="digits", limit=50) if event.kind == "generation.refused"
        ]
        assert [(event.payload["endpoint"], event.payload["reason"]) for event in events] == [
            ("digits", refusal.reason)
        ], "told once"
        with pytest.raises(ServiceError, match="a server refuses it") as caught:
            registry.endpoints.wait_until_served("digits", 2, alias="champion", timeout_s=60)
        assert refusal.reason in str(caught.value)
        registry.rollback("digits", reason="r", actor="ada")
        one.follow(registry)
        keeper.write(0.3)
        assert registry.endpoints.live_refusals() == []
        assert len(registry.endpoints.wait_until_served("digits", 1, alias="champion", timeout_s=0)) == 1
