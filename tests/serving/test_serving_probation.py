"""A version that breaks the endpoint's rule after a swap: the server goes back by itself, and the registry with it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from serving_kit import Project, affine_model, ask, make_project, save_onnx, slow_model, wait_until

from noa.errors import NoaError
from noa.settings import EndpointSettings, PipelineSettings
from noa.signatures import Signature, TensorSpec
from noa_registry import Registry
from noa_serving import Client, start_server
from noa_serving._application import Application, describe
from noa_serving._asgi import AsgiApplication
from noa_serving._board import create_board
from noa_serving._crew import join_crew
from noa_serving._endpoint import Endpoint
from noa_serving._follower import Follower
from noa_serving._generation import Generation
from noa_serving._leases import LeaseKeeper
from noa_serving._pipeline import make_pipelines
from noa_serving._stages import StageTimes

ENOUGH = 20


def rule(model: str = "digits@champion", **limits: object) -> EndpointSettings:
    """Return an endpoint with that rule."""
    return EndpointSettings.model_validate({"model": model, "rollback": {"min_requests": ENOUGH, **limits}})


def table_model(size: int) -> Callable[[Path], Mapping[str, np.ndarray]]:
    """`picked = table[index]` of a table with `size` rows: a greater index is one that the model cannot compute."""

    def build(folder: Path) -> Mapping[str, np.ndarray]:
        signature = Signature(
            inputs=(TensorSpec(name="index", dtype="int64", shape=("batch",)),),
            outputs=(TensorSpec(name="picked", dtype="float32", shape=("batch",)),),
        )
        node = helper.make_node("Gather", ["table", "index"], ["picked"])
        save_onnx(folder, signature, [node], {"table": np.arange(size, dtype=np.float32)})
        return {"index": np.array([0, 2], dtype=np.int64)}

    return build


def answer(generation: Generation, *, requests: int = ENOUGH, failed: int = 0, total_ms: float = 1.0) -> None:
    """Count requests as the event loop does."""
    row = (0, 0, 0, round(total_ms * 1e6), 0, 1)
    for _ in range(requests - failed):
        generation.statistics.stages.add(row, 1)
    for _ in range(failed):
        generation.statistics.count_failed()


def follow(project: Project, one: Endpoint, now: float = 0.0) -> bool:
    with project.registry() as registry:
        return one.follow(registry, clock=lambda: now)


def keeper_of(project: Project, *endpoints: Endpoint) -> LeaseKeeper:
    return LeaseKeeper(endpoints, project.registry, lease_s=30.0)


def swapped(project: Project, endpoint: EndpointSettings | None = None, **before: Any) -> Endpoint:
    """Version 1 has answered `before`, version 2 was swapped in."""
    one = Endpoint(
        "digits", rule(max_error_rate=0.1, max_latency_ratio=2.0) if endpoint is None else endpoint, threads=1
    )
    if not_yet(project):
        project.publish("digits", affine_model(2.0))
    follow(project, one)
    answer(one.require(), **before)
    project.publish("digits", affine_model(3.0))
    assert follow(project, one)
    return one


def not_yet(project: Project) -> bool:
    with project.registry() as registry:
        return not registry.models()


def test_too_many_failures_beyond_those_of_the_version_before_lead_back_to_it(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    one = swapped(project, requests=100, failed=10)
    first = one.probation.before if one.probation is not None else None
    assert describe(one)["on_probation"] == {"instead_of": 1}
    answer(one.require(), requests=ENOUGH, failed=4)
    assert not follow(project, one), "20% against 10% before is within the rule"
    answer(one.require(), requests=1, failed=1)
    with caplog.at_level(logging.ERROR, logger="noa.serving"):
        assert follow(project, one)
    assert one.require() is first, "nothing was loaded for it"
    assert "digits/2 goes back to digits/1 by itself: 23.81% of 21 requests failed, 10.00% before" in caplog.text
    assert one.is_rejection_pending
    keeper_of(project, one).write(0.0)
    with project.registry() as registry:
        entry = registry.history("digits", alias="champion")[0]
        assert (entry.action, entry.from_number, entry.to_number) == ("rollback", 2, 1)
        assert "went back by itself from version 2: 23.81% of 21 requests failed" in entry.reason
        assert entry.actor.startswith("endpoint digits by ")
        event = registry.events.newest(name="digits", limit=5)
        assert any("23.81%" in str(row.payload) for row in event if row.kind == "alias.rolled_back")
    assert not follow(project, one)
    assert (one.require().number, one.is_rejection_pending, one.probation) == (1, False, None)
    assert one.rollbacks == 1
    assert describe(one)["rolled_back"] == {
        "version": 2,
        "digest": entry.from_digest,
        "reason": "23.81% of 21 requests failed, 10.00% before; the rule allows 10.00% more",
        "registry_knows": True,
    }


def test_a_p99_beyond_the_rule_leads_back_and_too_few_requests_do_not(project: Project) -> None:
    one = swapped(project, requests=100, total_ms=1.0)
    answer(one.require(), requests=ENOUGH - 1, total_ms=50.0)
    assert not follow(project, one)
    answer(one.require(), requests=1, total_ms=50.0)
    assert follow(project, one)
    assert one.require().number == 1
    assert one.rejected is not None
    assert "the rule allows 2 times that" in one.rejected.reason


def test_a_version_within_the_rule_passes_and_the_one_before_is_freed(project: Project) -> None:
    one = swapped(project, requests=100)
    answer(one.require(), requests=100, failed=5, total_ms=1.5)
    assert not follow(project, one, now=299.0)
    assert one.probation is not None
    assert not follow(project, one, now=300.0)
    assert (one.require().number, one.probation, one.rejected) == (2, None, None)


def test_without_a_rule_nothing_is_kept_and_nothing_goes_back(project: Project) -> None:
    one = swapped(project, EndpointSettings(model="digits@champion"), requests=100)
    answer(one.require(), requests=100, failed=100)
    assert one.probation is None
    assert not follow(project, one)
    assert one.require().number == 2
    assert one.require().statistics.stages.total_percentile_ns(0.99) is None, "totals are not even counted"


def test_what_was_left_is_not_followed_again_until_a_person_promotes_it_again(project: Project) -> None:
    one = swapped(project, requests=100)
    answer(one.require(), failed=ENOUGH)
    assert follow(project, one)
    for _ in range(3):
        assert not follow(project, one, now=1000.0), "the alias still points to version 2"
    assert one.require().number == 1
    keeper = keeper_of(project, one)
    keeper.write(0.0)
    follow(project, one)
    assert one.probation is None, "the way back is no version on probation"
    project.promote("digits", 2)
    assert follow(project, one)
    assert one.require().number == 2
    assert one.probation is not None
    assert one.rejected is None
    keeper.write(1.0)
    with project.registry() as registry:
        assert registry.holder("digits", "champion") is not None
        assert [entry.action for entry in registry.history("digits", alias="champion")][:2] == ["promote", "rollback"]


def test_a_rollback_by_a_person_begins_no_probation(project: Project) -> None:
    project.publish("digits", affine_model(1.0))
    one = swapped(project, requests=100)
    with project.registry() as registry:
        registry.rollback("digits", reason="r", actor="ada")
        assert one.follow(registry)
    assert one.probation is None, "from there the way back would lead to yet another version"
    answer(one.require(), failed=ENOUGH)
    assert not follow(project, one)


def test_of_two_servers_one_rolls_back_and_the_other_notes_it(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    one = swapped(project, requests=100)
    other = Endpoint("digits", one.settings, threads=1)
    project.promote("digits", 1)
    follow(project, one)
    follow(project, other)
    for server in (one, other):
        answer(server.require(), requests=100)
    project.promote("digits", 2)
    for server in (one, other):
        assert follow(project, server)
        answer(server.require(), failed=ENOUGH)
        assert follow(project, server)
    with caplog.at_level(logging.INFO, logger="noa.serving"):
        keeper_of(project, one).write(0.0)
        keeper_of(project, other).write(0.0)
    assert "somebody moved `digits@champion` from version 2" in caplog.text
    with project.registry() as registry:
        actions = [entry.action for entry in registry.history("digits", alias="champion")]
    assert actions.count("rollback") == 1


def test_a_move_by_a_person_meanwhile_is_left_alone(project: Project) -> None:
    one = swapped(project, requests=100)
    answer(one.require(), failed=ENOUGH)
    assert follow(project, one)
    third = project.publish("digits", affine_model(5.0))
    keeper_of(project, one).write(0.0)
    assert follow(project, one)
    assert one.require().number == third.number


def test_the_same_version_promoted_again_meanwhile_is_left_alone(project: Project) -> None:
    one = swapped(project, requests=100)
    answer(one.require(), failed=ENOUGH)
    assert follow(project, one)
    project.promote("digits", 1)
    project.promote("digits", 2)
    keeper_of(project, one).write(0.0)
    with project.registry() as registry:
        holder = registry.holder("digits", "champion")
    assert holder is not None
    assert holder.number == 2, "somebody wants it"
    assert follow(project, one)
    assert one.require().number == 2


def test_without_a_registry_the_server_goes_back_and_says_so_until_the_registry_knows(
    project: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = swapped(project, requests=100)
    answer(one.require(), failed=ENOUGH)
    keeper = keeper_of(project, one)
    registry = project.registry()
    follower = Follower([one], lambda: registry, poll_interval_s=1)
    hidden = tmp_path / "hidden"
    project.settings.state_dir.rename(hidden)
    project.settings.state_dir.write_text("a file where the folder was")
    registry.close()

    def gone() -> Registry:
        raise NoaError("the database is gone")

    broken = Follower([one], gone, poll_interval_s=1)
    broken.poll()
    assert one.require().number == 2, "it was never opened: nothing is known of it"
    follower.poll()
    assert follower.problem is not None
    assert one.require().number == 1
    assert one.is_rejection_pending
    for moment in (0.0, 1.0):
        with caplog.at_level(logging.ERROR, logger="noa.serving"):
            keeper.write(moment)
    assert keeper.problem is not None
    told = [row.getMessage() for row in caplog.records if "still points to version 2" in row.getMessage()]
    assert len(told) == 2, "each time it is tried"
    assert "endpoint digits went back to digits/1 by itself, but `digits@champion` still points to version 2" in told[0]
    project.settings.state_dir.unlink()
    shutil.move(hidden, project.settings.state_dir)
    caplog.clear()
    keeper.write(2.0)
    follow(project, one)
    assert (one.require().number, one.is_rejection_pending) == (1, False)


@given(st.lists(st.floats(3.1, 10.0), min_size=1, max_size=1500), st.sampled_from([0.5, 0.9, 0.99]))
@settings(max_examples=40, deadline=None)
def test_percentiles_of_whole_requests_are_right_to_a_tenth(powers: list[float], share: float) -> None:
    times = StageTimes()
    times.keep_totals()
    totals = np.array([int(10**power) for power in powers])
    for total in totals:
        times.add((0, int(total) // 2, 0, int(total) - int(total) // 2, 0, 1), 1)
    found = times.total_percentile_ns(share)
    exact = np.sort(totals)[max(0, int(np.ceil(share * len(totals))) - 1)]
    assert found is not None
    assert exact <= found * 1.0001
    assert found <= exact * 1.0906 or found <= 2**10.125


def test_the_rule_is_checked_with_the_settings() -> None:
    with pytest.raises(ValueError, match="never moves"):
        rule("digits/1", max_error_rate=0.1)
    for bad in ({"max_error_rate": 1.0}, {"max_latency_ratio": 1.0}, {"min_requests": 0}, {"within_s": 0}):
        with pytest.raises(ValueError, match="validation error"):
            EndpointSettings.model_validate({"model": "digits@champion", "rollback": bad})
    assert not EndpointSettings(model="digits@champion").rollback.is_on


def workers_of(client: Client) -> list[dict[str, Any]]:
    table: Any = client.status()["workers"]
    return table


@pytest.mark.bentoml
def test_workers_go_back_together_and_nobody_is_failed_for_longer(tmp_path: Path, empty_state: Path) -> None:
    project = make_project(tmp_path / "project", empty_state, workers=2)
    project.publish("digits", table_model(30))
    endpoints = {"digits": rule(max_error_rate=0.2)}
    with (
        start_server(project.settings, endpoints=endpoints, log_file=tmp_path / "server.log") as process,
        Client(process.wait_ready().url) as client,
    ):
        url = process.wait_ready().url
        inputs = {"index": np.array([1, 9], np.int64)}
        for _ in range(3 * ENOUGH):
            client.predict("digits", inputs)
        project.publish("digits", table_model(3))

        def number() -> int | None:
            with project.registry() as registry:
                holder = registry.holder("digits", "champion")
                return None if holder is None else holder.number

        assert number() == 2
        failures = 0

        def is_back() -> bool:
            nonlocal failures
            for _ in range(5):
                with Client(url) as fresh:
                    try:
                        fresh.predict("digits", inputs)
                    except NoaError:
                        failures += 1
            return number() == 1

        wait_until(is_back, timeout_s=60, what="the rollback")
        assert failures > 0
        wait_until(lambda: all(row.get("versions") == {"digits": 1} for row in workers_of(client)), what="all workers")
        for _ in range(20):
            with Client(url) as fresh:
                assert fresh.predict("digits", inputs).version == 1
        with project.registry() as registry:
            (served, *_) = registry.endpoints.wait_until_served("digits", 1, alias="champion", timeout_s=60)
            assert served.generation.number == 1


@pytest.mark.bentoml
def test_a_slow_version_is_left_by_a_server(project: Project, tmp_path: Path) -> None:
    project.publish("digits", lambda folder: slow_model(folder, steps=1, size=64))
    endpoints = {"digits": rule(max_latency_ratio=3.0)}
    with (
        start_server(project.settings, endpoints=endpoints, log_file=tmp_path / "server.log") as process,
        Client(process.wait_ready().url) as client,
    ):
        inputs = {"x": np.ones((1, 64), np.float32)}
        for _ in range(2 * ENOUGH):
            client.predict("digits", inputs)
        project.publish("digits", lambda folder: slow_model(folder, steps=3000, size=64))

        def is_left() -> bool:
            client.predict("digits", inputs)
            row: Any = client.status()["endpoints"]
            return "rolled_back" in row["digits"] and row["digits"]["version"] == 1

        wait_until(is_left, timeout_s=60, what="the rollback")


# --- what a rule must see, and must not -------------------------------------------------------------------------------


def test_kept_answers_are_no_measure_of_a_version(project: Project) -> None:
    """A cache that was warm made the version before look a hundred times quicker than any new one."""
    kept = EndpointSettings.model_validate(
        {
            "model": "digits@champion",
            "cache": {},
            "rollback": {"max_latency_ratio": 2.0, "min_requests": ENOUGH},
        }
    )
    one = swapped(project, kept, requests=ENOUGH, total_ms=1.0)
    assert one.probation is not None
    hit = (1000, 0, 0, 0, 1000, 1)  # no model ran
    for _ in range(1000):
        one.probation.before.statistics.stages.add(hit, 1)
        one.require().statistics.stages.add(hit, 1)
    answer(one.require(), requests=ENOUGH - 1, total_ms=1.5)
    assert one.require().statistics.stages.total_count == ENOUGH - 1
    assert not follow(project, one)
    answer(one.require(), requests=ENOUGH, total_ms=1.5)
    assert not follow(project, one), "1.5 times is within the rule"
    answer(one.require(), requests=ENOUGH, total_ms=50.0)
    assert follow(project, one), "and what really is slow is still found"


def test_what_comes_through_a_pipeline_counts_for_its_parts(project: Project) -> None:
    project.publish("picker", table_model(8))
    settings = rule("picker@champion", max_error_rate=0.1)
    part = Endpoint("picker", settings, threads=1)
    steps = [{"name": "pick", "endpoint": "picker"}]
    table = {"steps": steps, "outputs": {"picked": "pick.picked"}}
    (pipeline,) = make_pipelines({"through": PipelineSettings.model_validate(table)}, [part], crew=part.crew)
    follower = Follower([part], project.registry, poll_interval_s=0.05, pipelines=[pipeline])
    follower.poll()
    app = AsgiApplication(Application(project.settings.serving, [part, pipeline], follower))

    def call(index: int) -> int:
        return ask(app, "POST", "/predict/through", {"inputs": {"index": [index]}}).status

    assert [call(5) for _ in range(ENOUGH)] == [200] * ENOUGH
    assert part.require().statistics.requests == ENOUGH
    project.publish("picker", table_model(4))
    follower.poll()
    assert part.require().number == 2
    assert [call(5) for _ in range(ENOUGH)] == [400] * ENOUGH
    assert (part.require().statistics.failed_requests, part.require().statistics.requests) == (ENOUGH, ENOUGH)
    follower.poll()
    assert part.require().number == 1, "the part went back"
    assert call(5) == 200, "and the pipeline with it"
    assert part.require().statistics.requests == ENOUGH + 1, "counted once, though the pipeline was put together anew"


def test_a_worker_that_takes_a_dead_ones_place_goes_on_with_probation(tmp_path: Path, project: Project) -> None:
    """A version that takes its workers down must not abolish the rule that would lead back from it."""
    folder = tmp_path / "board"
    folder.mkdir()
    create_board(folder, size=1, endpoints=1)
    settings = rule(max_error_rate=0.1, within_s=600.0)
    crew = join_crew(folder, ["digits"], size=1, timeout_s=10.0)
    one = Endpoint("digits", settings, threads=1, crew=crew)
    project.publish("digits", affine_model(2.0))
    follow(project, one)
    project.publish("digits", affine_model(3.0))
    assert follow(project, one) and one.probation is not None
    crew.close()  # it is gone, and the board stays

    second = Endpoint("digits", settings, threads=1, crew=join_crew(folder, ["digits"], size=1, timeout_s=10.0))
    assert follow(project, second, now=1000.0)
    assert second.require().number == 2
    assert second.probation is not None
    assert (second.probation.before.number, second.probation.content.number) == (1, 2)
    assert 900.0 < second.probation.began_at <= 1000.0, "it is counted from the promotion"
    answer(second.require(), failed=ENOUGH)
    assert follow(project, second, now=1001.0)
    assert second.require().number == 1
    second.crew.close()

    project.promote("digits", 1)
    late = Endpoint(
        "digits",
        settings.model_copy(update={"rollback": settings.rollback.model_copy(update={"within_s": 0.001})}),
        threads=1,
        crew=join_crew(folder, ["digits"], size=1, timeout_s=10.0),
    )
    follow(project, late, now=2000.0)
    assert late.probation is None, "its time was up"
    late.crew.close()
