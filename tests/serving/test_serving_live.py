"""Rates, percentiles and shares from two looks at the metrics of a server."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_kit import Project, affine_model, endpoint, make_project, wait_until

from noa.settings import Settings
from noa_serving import Client, RunningServer, ServerAddress, running_servers, start_server
from noa_serving._stages import BUCKETS_S
from noa_serving.live import Look, compare, look, percentile_s, read_samples

ROWS = {"x": np.ones((1, 4), np.float32)}
STATUS = {
    "endpoints": {"digits": {"state": "ready", "model": "digits@champion", "version": 2, "digest": "sha256:b"}},
}


def page(at: dict[str, float], **counts: int) -> str:
    """Return a page of workers at these times; `a_200=3` says that worker `a` has answered 3 with 200."""
    lines = [f'noa_metrics_time_seconds{{worker="{worker}"}} {time}' for worker, time in at.items()]
    for name, count in counts.items():
        worker, code = name.split("_")
        labels = f'endpoint="digits",route="predict",worker="{worker}",code="{code}"'
        lines.append(f"noa_requests_total{{{labels}}} {count}")
    return "# TYPE noa_requests_total counter\n" + "\n".join(lines) + "\n"


def look_at(text: str, *, is_silent: bool = False) -> Look:
    server = RunningServer(
        address=ServerAddress(host="127.0.0.1", port=1, pid=7, workers=2),
        started_at=datetime.now(UTC),
        settings=Settings.model_validate({"endpoints": {"digits": {"model": "digits@champion"}}}),
        own_key="",
    )
    return Look(server=server, status={} if is_silent else STATUS, samples=tuple(read_samples(text)))


def test_each_worker_counts_over_the_time_between_its_own_pages() -> None:
    before = look_at(page({"a": 10.0, "b": 9.0}, a_200=100, b_200=50, b_400=5))
    after = look_at(page({"a": 12.0, "b": 13.0}, a_200=120, b_200=90, b_400=9))
    (row,) = compare(before, after)
    assert row.requests_per_s == pytest.approx(20 / 2 + 40 / 4 + 4 / 4)
    assert row.errors_per_s == pytest.approx(1.0)
    assert (row.version, row.digest, row.workers) == (2, "sha256:b", 2)


def test_a_worker_that_is_new_or_counts_from_zero_again_makes_no_rate_negative() -> None:
    before = look_at(page({"a": 10.0}, a_200=100))
    after = look_at(page({"a": 12.0, "c": 12.0}, a_200=4, c_200=6))
    (row,) = compare(before, after)
    assert row.requests_per_s == pytest.approx(4 / 2 + 6 / 2)


def test_a_page_that_was_not_written_meanwhile_and_a_silent_server_have_no_rate() -> None:
    one = look_at(page({"a": 10.0}, a_200=100))
    (row,) = compare(one, one)
    assert (row.requests_per_s, row.p50_ms, row.stages_ms, row.versions) == (0.0, None, None, ())
    (first,) = compare(look_at("", is_silent=True), one)
    assert first.requests_per_s == 0.0, "what it did before is not of the meantime"
    (silent,) = compare(one, look_at("", is_silent=True))
    assert (silent.state, silent.model, silent.workers_ready) == ("no answer", "digits@champion", 0)


def test_each_arm_has_its_own_rates_and_the_endpoint_those_of_all() -> None:
    def arms_page(at: float, **counts: int) -> str:
        lines = [f'noa_metrics_time_seconds{{worker="a"}} {at}']
        for name, count in counts.items():
            arm, code = name.split("_")
            labels = f'endpoint="digits",arm="{arm}",route="predict",worker="a",code="{code}"'
            lines.append(f"noa_requests_total{{{labels}}} {count}")
        labels = 'endpoint="digits",arm="main",reason="error",worker="a"'
        lines.append(f"noa_fallbacks_total{{{labels}}} {counts['fallback_200']}")
        return "\n".join(lines) + "\n"

    state = {"state": "ready", "model": "digits@new", "version": 3, "mode": "answer", "share": 0.25}
    rests = {**state, "share": 0.5, "takes": False, "problem": "input `x` is missing"}
    row = {
        **STATUS["endpoints"]["digits"],
        "arms": {"new": {**state, "takes": True}, "odd": rests},
        "fallback": {"state": "ready", "model": "small@champion", "version": 1, "took": 4},
    }
    before = look_at(arms_page(10.0, main_200=100, new_200=10, new_500=1, fallback_200=2))
    after = look_at(arms_page(12.0, main_200=160, new_200=30, new_500=3, fallback_200=6))
    (found,) = compare(before, replace(after, status={"endpoints": {"digits": row}}))
    arms = {arm.name: arm for arm in found.arms}
    assert list(arms) == ["main", "new", "odd", "fallback"]
    assert [arms[name].requests_per_s for name in arms] == [30.0, 11.0, 0.0, 2.0]
    assert (arms["new"].errors_per_s, arms["main"].fallbacks_per_s) == (1.0, 2.0)
    assert found.requests_per_s == 43.0
    assert [arms[name].share for name in arms] == [0.75, 0.25, 0.5, None], "the share of one that rests is the main's"
    assert arms["odd"].rests_because == "input `x` is missing"


@given(st.lists(st.floats(1e-6, 29.0), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_is_in_the_bucket_of_the_true_one(times: list[float], share: float) -> None:
    buckets = {bound: float(sum(time <= bound for time in times)) for bound in (*BUCKETS_S, float("inf"))}
    found = percentile_s(buckets, share)
    assert found is not None
    true = sorted(times)[max(0, int(np.ceil(share * len(times))) - 1)]
    upper = next(bound for bound in BUCKETS_S if true <= bound)
    lower = max((bound for bound in BUCKETS_S if bound < true), default=0.0)
    assert lower <= found <= upper


def test_nothing_has_no_percentile_and_what_is_beyond_all_bounds_is_the_last() -> None:
    assert percentile_s({}, 0.5) is None
    assert percentile_s({1.0: 0.0, float("inf"): 0.0}, 0.5) is None
    assert percentile_s({1.0: 0.0, float("inf"): 3.0}, 0.5) == 1.0


@pytest.mark.bentoml
def test_a_real_server_under_load_and_during_a_swap(tmp_path: Path, empty_state: Path) -> None:
    project: Project = make_project(tmp_path, empty_state, workers=2)
    project.publish("digits", affine_model(2.0))
    project.publish("digits", affine_model(3.0))
    project.promote("digits", 1)
    stop, sent = threading.Event(), [0]

    def load(url: str) -> None:
        with Client(url) as client:
            while not stop.is_set():
                client.predict("digits", ROWS)
                sent[0] += 1
                time.sleep(0.005)

    with start_server(project.settings, endpoints={"digits": endpoint("digits@champion")}) as process:
        url = process.wait_ready().url
        thread = threading.Thread(target=load, args=(url,))
        thread.start()
        try:
            (server,) = running_servers(project.settings.state_dir)
            deadline = time.monotonic() + 60
            wait_until(lambda: sent[0] > 100, what="the load")
            before, sent_before, started = look(server), sent[0], time.monotonic()
            project.promote("digits", 2)
            while True:
                assert time.monotonic() < deadline, "the swap was not seen"
                time.sleep(1.0)
                (row,) = compare(before, look(server))
                is_steady = time.monotonic() - started > 5.0
                if is_steady and len(row.versions) == 2 and row.version == 2 and row.swaps == 1:
                    break
            rate = (sent[0] - sent_before) / (time.monotonic() - started)
        finally:
            stop.set()
            thread.join(20)
    assert row.requests_per_s == pytest.approx(rate, rel=0.6)
    assert row.errors_per_s == 0.0
    assert sum(one.share for one in row.versions) == pytest.approx(1.0)
    assert {one.version for one in row.versions} == {1, 2}
    assert (row.workers_ready, row.workers) == (2, 2)
    assert row.p50_ms is not None and row.p99_ms is not None
    assert 0 < row.p50_ms <= row.p99_ms
    assert row.stages_ms is not None and set(row.stages_ms) == {"parse", "queue", "batch", "run", "encode"}
