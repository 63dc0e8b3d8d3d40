"""Times by stage and version, and one page of metrics for all workers."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from observe_kit import total, values_of
from serving_kit import Project, affine_model, ask, build_app, endpoint, make_project, slow_model

from noa_serving import Client, start_server
from noa_serving._asgi import AsgiApplication
from noa_serving._metrics_pages import MetricsPages, merge
from noa_serving._stages import BUCKETS_S, STAGES, StageTimes

ROW = st.tuples(*[st.integers(0, 40_000_000_000)] * len(STAGES), st.integers(1, 100))


@given(st.lists(ROW, max_size=1200))
def test_folding_counts_every_row_in_its_bucket(rows: list[tuple[int, int, int, int, int, int]]) -> None:
    times = StageTimes()
    for row in rows:
        times.add(row, 1)
    assert times.count == len(rows)
    assert times.items == sum(row[-1] for row in rows)
    for index, stage in enumerate(STAGES):
        expected = Counter(
            next((place for place, bound in enumerate(BUCKETS_S) if row[index] <= round(bound * 1e9)), len(BUCKETS_S))
            for row in rows
        )
        assert times.buckets(stage) == [expected[place] for place in range(len(BUCKETS_S) + 1)]
        assert times.sum_ns(stage) == sum(row[index] for row in rows)


def test_the_stages_of_a_request_add_up_to_its_time_and_name_its_version(app: AsgiApplication) -> None:
    before = ask(app, "GET", "/metrics").body.decode()
    for rows in (1, 2):
        assert ask(app, "POST", "/predict/first", {"inputs": [[1, 2, 3, 4]] * rows}).status == 200
    assert ask(app, "POST", "/predict/first", {"inputs": []}).status == 400
    text = ask(app, "GET", "/metrics").body.decode()
    first = {"endpoint": "first", "model": "digits", "version": "1"}
    for stage in STAGES:
        counts = [total(page, "noa_stage_seconds_count", stage=stage, **first) for page in (before, text)]
        assert counts[1] - counts[0] == 2, "the refused request is in no stage"
        buckets = total(text, "noa_stage_seconds_bucket", stage=stage, le="+Inf", **first)
        assert buckets == counts[1]
        assert total(text, "noa_stage_seconds_sum", stage=stage, **first) > 0
    assert all(digest.startswith("sha256:") for digest in values_of(text, "noa_stage_seconds_count", "digest"))
    asked = total(text, "noa_request_seconds_sum", endpoint="first") - total(
        before, "noa_request_seconds_sum", endpoint="first"
    )
    staged = total(text, "noa_stage_seconds_sum", **first) - total(before, "noa_stage_seconds_sum", **first)
    assert 0 < staged <= asked


def test_a_slow_model_spends_its_time_in_the_run_and_those_behind_it_in_the_queue(
    project: Project,
) -> None:
    project.publish("slow", lambda folder: slow_model(folder, steps=60))
    settings = project.settings.model_copy(
        update={"serving": project.settings.serving.model_copy(update={"batching": False, "workers": 1})}
    )
    with start_server(settings, endpoints={"slow": endpoint("slow@champion")}) as process:
        url = process.wait_ready().url

        def send() -> None:
            with Client(url) as client:
                client.predict("slow", {"x": np.ones((8, 384), np.float32)})

        threads = [threading.Thread(target=send) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with Client(url) as client:
            text = client.metrics()
    spent = {stage: total(text, "noa_stage_seconds_sum", stage=stage) for stage in STAGES}
    assert total(text, "noa_stage_seconds_count", stage="run") == 6
    assert spent["run"] > spent["parse"] + spent["encode"]
    assert spent["queue"] > spent["parse"], spent  # more requests than compute threads: some waited for others to run


def test_times_of_versions_that_are_gone_do_not_grow_without_bound(project: Project) -> None:
    for number in range(6):
        project.publish("digits", affine_model(float(number + 1)))
    app = build_app(project.settings, digits="digits@champion")
    row = app._application.endpoints["digits"]
    served: list[str] = []
    with project.registry() as registry:
        for number in (1, 2, 3, 4, 5, 6, 5):
            project.promote("digits", number)
            row.follow(registry)
            assert ask(app, "POST", "/predict/digits", {"inputs": [[1, 2, 3, 4]]}).json["version"] == number
            assert row.current is not None
            served.append(row.current.digest)
    text = ask(app, "GET", "/metrics").body.decode()
    assert values_of(text, "noa_stage_seconds_count", "digest") == set(served[2:])
    counts = {version: total(text, "noa_stage_seconds_count", version=version, stage="run") for version in "3456"}
    assert counts == {"3": 1, "4": 1, "5": 1, "6": 1}, "a version that came back counts from zero, once"


def test_pages_become_one_with_every_family_once() -> None:
    one = b'# HELP a A.\n# TYPE a counter\na{worker="1"} 1\n# HELP b B.\n# TYPE b gauge\nb{worker="1"} 2\n'
    two = one.replace(b'"1"', b'"2"')
    merged = merge([one, two])
    assert merged == (
        b'# HELP a A.\n# TYPE a counter\na{worker="1"} 1\na{worker="2"} 1\n'
        b'# HELP b B.\n# TYPE b gauge\nb{worker="1"} 2\nb{worker="2"} 2\n'
    )
    assert merge([one]) == one


def test_a_page_that_cannot_be_written_or_read_harms_nobody(tmp_path: Path) -> None:
    pages = MetricsPages(tmp_path / "gone", 0)
    pages.write(b"a 1\n")
    assert pages.read([1, 2]) == []
    (tmp_path / "there").mkdir()
    MetricsPages(tmp_path / "there", 1).write(b"b 1\n")
    assert MetricsPages(tmp_path / "there", 0).read([1, 2]) == [b"b 1\n"]
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["metrics-1.txt"]


@pytest.mark.bentoml
def test_whichever_worker_is_asked_shows_all(tmp_path: Path, empty_state: Path) -> None:
    project = make_project(tmp_path, empty_state, workers=2)
    project.publish("digits", affine_model(2.0))
    with start_server(project.settings, endpoints={"digits": endpoint("digits@champion")}) as process:
        url = process.wait_ready().url

        def page() -> str:
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
            try:
                connection.request("GET", "/metrics")
                return connection.getresponse().read().decode()
            finally:
                connection.close()

        def new_page(since: float) -> str:
            """Return a page on which no worker's figures are older than `since`; others' may be a second old."""
            while True:
                text = page()
                workers = values_of(text, "noa_metrics_time_seconds", "worker")
                counted_at = [total(text, "noa_metrics_time_seconds", worker=one) for one in workers]
                if len(counted_at) == 2 and min(counted_at) > since:
                    return text
                assert time.time() < since + 20, f"figures of {counted_at}"
                time.sleep(0.05)

        for _ in range(40):  # a connection each, so that both workers get some
            with Client(url) as client:
                client.predict("digits", {"x": np.ones((1, 4), np.float32)})
        answered = time.time() + 0.001  # times are given in milliseconds
        for _ in range(8):  # a connection each: now this worker is asked, now that
            text = new_page(answered)
            assert total(text, "noa_stage_seconds_count", stage="run") == 40
            assert total(text, "noa_requests_total") == 40
            assert len(values_of(text, "noa_stage_seconds_count", "worker")) == 2
