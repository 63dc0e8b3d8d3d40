"""Arms of an endpoint: who is on which, what takes no requests, and who answers when the main version cannot."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import tritonclient.grpc as triton
from grpc_kit import serving_grpc
from http_kit import serving_http
from hypothesis import given
from hypothesis import strategies as st
from observe_kit import read
from pydantic import ValidationError
from serving_kit import Project, affine_model, ask, make_project, mixed_model, slow_model
from tritonclient.utils import InferenceServerException

from noa.settings import EndpointSettings
from noa_registry import Registry
from noa_serving import Client
from noa_serving._application import Application
from noa_serving._asgi import AsgiApplication
from noa_serving._endpoint import Endpoint
from noa_serving._follower import Follower
from noa_serving._leases import LeaseKeeper
from noa_serving._observer import make_observer
from noa_serving._traffic import attach_arms, make_endpoints, place_of, share_ranges, with_arms
from noa_serving.live import read_samples

REQUESTS = 4000
BODY = {"inputs": [[1.0, 2.0, 3.0, 4.0]]}
WHOLE = 1 << 64
SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=5).map(
    lambda found: [one / max(1.0, sum(found)) for one in found]
)
CANARY = {"candidate": {"model": "digits@candidate", "share": 0.1}}


class Split:
    """An application of one endpoint with arms, in this process; `poll` looks once at the registry."""

    def __init__(self, project: Project, **rule: object) -> None:
        rules = {"digits": EndpointSettings.model_validate({"model": "digits@champion", **rule})}
        settings = project.settings.serving
        endpoints = make_endpoints(rules, threads=1)
        self.digits = endpoints[0]
        self.followed = with_arms(endpoints)
        self.follower = Follower(self.followed, project.registry, poll_interval_s=0.05)
        observer = make_observer(project.settings)
        self.application = Application(settings, endpoints, self.follower, observer=observer)
        self.app = AsgiApplication(self.application)
        self.poll()

    def poll(self) -> None:
        self.follower.poll()
        assert self.follower.problem is None

    def arm_of(self, headers: Mapping[str, str] | None = None) -> str:
        answer = ask(self.app, "POST", "/predict/digits", BODY, headers)
        assert answer.status == 200, answer.body
        return answer.headers.get("noa-arm", "main")

    def status(self) -> dict[str, object]:
        return ask(self.app, "GET", "/status").json["endpoints"]["digits"]  # type: ignore[index]  # plain JSON

    def samples(self, name: str, **labels: str) -> float:
        text = ask(self.app, "GET", "/metrics").body.decode()
        found = [one for one in read_samples(text) if one.name == name and labels.items() <= one.labels.items()]
        return sum(one.value for one in found)


@pytest.fixture
def digits(project: Project) -> Project:
    """`digits` 1 (scale 2, champion) and 2 (scale 3, no alias)."""
    project.publish("digits", affine_model(2.0))
    project.publish("digits", affine_model(3.0), alias=None)
    return project


# Settings


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"arms": {"a": {"model": "d@x", "share": 0.6}, "b": {"model": "d@y", "share": 0.5}}}, "add up to 1.1"),
        ({"arms": {"main": {"model": "d@x", "share": 0.1}}}, "cannot be called `main`"),
        ({"arms": {"fallback": {"model": "d@x", "share": 0.1}}}, "cannot be called `fallback`"),
        ({"arms": {"a": {"model": "d", "share": 0.1}}}, "names no version"),
        ({"arms": {"a": {"model": "d@x", "share": 1.1}}}, "less than or equal to 1"),
        ({"arms": {"a": {"model": "d@x", "share": -0.1}}}, "greater than or equal to 0"),
        ({"arms": {"a": {"model": "d@x"}}}, "Field required"),
        ({"arms": {"a": {"model": "d@x", "share": 0.1, "weight": 2}}}, "Extra inputs"),
        ({"arms": {"A b": {"model": "d@x", "share": 0.1}}}, "A b"),
        ({"fallback": "small"}, "names no version"),
        ({"sticky": "x user"}, "no header's name"),
        ({"sticky": "Authorization"}, "write `key`"),
        ({"sticky": "x-user-id"}, "there is none; leave it out"),
        ({"fallback": "digits@champion"}, "which the endpoint serves anyway"),
        ({"arms": {"a": {"model": "digits@champion", "share": 0.1}}}, "which the endpoint serves anyway"),
        ({"arms": {"a": {"model": "d@x", "share": 0.0, "mode": "shadow"}}}, "a shadow of no request"),
    ],
)
def test_rules_that_cannot_hold_are_refused_by_name(rule: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        EndpointSettings.model_validate({"model": "digits@champion", **rule})


def test_copies_for_shadows_are_no_share_of_the_answers() -> None:
    arms = {
        "shadow": {"model": "digits@candidate", "share": 1.0, "mode": "shadow"},
        **{name: {"model": f"digits@{name}", "share": 1 / 3} for name in ("a", "b", "c")},
    }
    rule = EndpointSettings.model_validate({"model": "digits@champion", "arms": arms})
    split = attach_arms(Endpoint("digits", rule, threads=1))[0].traffic
    assert split is not None
    assert [arm.name for arm in split.shadows] == ["shadow"]
    assert split.answering_names == ["main", "a", "b", "c"]


# Who is on which arm


@given(SHARES)
def test_each_arm_has_its_share_and_no_two_have_the_same_client(shares: list[float]) -> None:
    ranges = share_ranges(shares)
    for share, (low, high) in zip(shares, ranges, strict=True):
        assert 0 <= low <= high <= WHOLE
        assert (high - low) / WHOLE == pytest.approx(share, abs=1e-9)
    ordered = sorted(one for one in ranges if one[0] < one[1])
    assert all(before[1] <= after[0] for before, after in pairwise(ordered))


@given(SHARES, st.integers(0, 4), st.floats(0, 1), st.integers(0, WHOLE - 1))
def test_raising_a_share_keeps_everybody_who_was_on_the_arm(
    shares: list[float], which: int, part: float, place: int
) -> None:
    which %= len(shares)
    raised = [*shares]
    raised[which] += part * (1.0 - math.fsum(shares))
    (low, high), (new_low, new_high) = share_ranges(shares)[which], share_ranges(raised)[which]
    assert not low <= place < high or new_low <= place < new_high
    if len(shares) == 2:  # nor does anybody leave the other arm
        other = share_ranges(shares)[1 - which]
        assert share_ranges(raised)[1 - which] == other


@given(st.text(min_size=1), st.binary(min_size=1))
def test_where_a_client_is_does_not_depend_on_the_process(endpoint: str, value: bytes) -> None:
    place = place_of(endpoint.encode(), value)
    assert place == place_of(endpoint.encode(), value)
    assert 0 <= place < WHOLE


def test_where_a_client_is_stays_in_future_versions() -> None:
    assert place_of(b"digits\0", b"user-1") == 13983739863680227721


def test_clients_are_spread_as_the_shares_say(digits: Project) -> None:
    digits.promote("digits", 2, alias="candidate")
    digits.publish("digits", affine_model(5.0), alias="other")
    arms = {**CANARY, "other": {"model": "digits@other", "share": 0.3}}
    split = Split(digits, arms=arms, sticky="x-user-id")
    traffic = split.digits.traffic
    assert traffic is not None
    for headers in ([b"x-user-id"], []):  # by a header, and each by itself
        seen: Counter[str] = Counter()
        for user in range(REQUESTS):
            found = traffic.choose(dict.fromkeys(headers, b"user-%d" % user), "")
            seen["main" if found is None else found.arm] += 1
        for arm, share in {"candidate": 0.1, "other": 0.3, "main": 0.6}.items():
            deviation = math.sqrt(REQUESTS * share * (1 - share))
            assert abs(seen[arm] - REQUESTS * share) < 5 * deviation, seen


def test_a_client_stays_on_its_arm_in_every_process_of_the_same_rules(digits: Project) -> None:
    digits.promote("digits", 2, alias="candidate")
    arms = {"candidate": {"model": "digits@candidate", "share": 0.5}}
    one, other = (Split(digits, arms=arms, sticky="X-User-Id") for _ in range(2))
    found = [one.arm_of({"x-user-id": f"user-{user}"}) for user in range(60)]
    assert set(found) == {"main", "candidate"}
    for split in (one, other):
        assert [split.arm_of({"x-user-id": f"user-{user}"}) for user in range(60)] == found


def test_a_key_keeps_its_client_on_an_arm_where_the_rule_says_so(tmp_path: Path, empty_state: Path) -> None:
    keys = [f"a-key-of-many-characters-{row}" for row in range(40)]
    project = make_project(tmp_path, empty_state, api_keys=keys)
    project.publish("digits", affine_model(2.0))
    project.publish("digits", affine_model(3.0), alias="candidate")
    split = Split(project, arms={"candidate": {"model": "digits@candidate", "share": 0.5}}, sticky="key")
    by_key = {key: {split.arm_of({"authorization": f"Bearer {key}"}) for _ in range(4)} for key in keys}
    assert all(len(found) == 1 for found in by_key.values())
    assert set.union(*by_key.values()) == {"main", "candidate"}


def test_long_values_are_not_remembered(digits: Project) -> None:
    digits.promote("digits", 2, alias="candidate")
    split = Split(digits, arms=CANARY, sticky="x-user-id")
    traffic = split.digits.traffic
    assert traffic is not None
    for user in range(20_000):
        traffic.choose({b"x-user-id": b"%d" % user + b"-" * (user % 2 * 4096)}, "")
    assert len(traffic._drawn) <= 4096
    assert max(map(len, traffic._drawn)) <= 128


# What takes requests


def test_an_alias_starts_and_ends_a_canary(digits: Project) -> None:
    split = Split(digits, arms={"candidate": {"model": "digits@candidate", "share": 1.0}})
    assert split.arm_of() == "main"
    assert split.status()["arms"]["candidate"]["takes"] is False  # type: ignore[index]  # plain JSON
    digits.promote("digits", 2, alias="candidate")
    split.poll()
    answer = ask(split.app, "POST", "/predict/digits", BODY)
    assert (answer.headers["noa-arm"], answer.headers["noa-version"], answer.json["version"]) == ("candidate", "2", 2)
    assert answer.json["outputs"]["total"] == [30.0]  # type: ignore[index]  # plain JSON
    digits.promote("digits", 1, alias="candidate")
    split.poll()
    assert split.arm_of() == "main"
    arm = split.followed[1]
    assert (arm.current, arm.state, arm.announced) == (None, "waiting", None)
    assert "`digits@candidate` is what the endpoint serves anyway" in str(arm.waiting_for)
    digits.promote("digits", 2, alias="candidate")
    split.poll()
    assert split.arm_of() == "candidate"


def test_an_alias_that_is_gone_ends_an_arm_and_leaves_the_main_version(
    digits: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits.promote("digits", 2, alias="candidate")
    split = Split(digits, arms={"candidate": {"model": "digits@candidate", "share": 1.0}})
    assert split.arm_of() == "candidate"
    monkeypatch.setattr(Registry, "holder", lambda *_: None)
    split.poll()
    assert split.arm_of() == "main"
    assert "points to no version" in str(split.followed[1].waiting_for)
    monkeypatch.undo()
    split.poll()
    assert split.arm_of() == "candidate"


def test_a_candidate_that_became_champion_is_no_arm_any_more_and_is_back_after_a_rollback(digits: Project) -> None:
    digits.promote("digits", 2, alias="candidate")
    split = Split(digits, arms={"candidate": {"model": "digits@candidate", "share": 1.0}})
    assert split.arm_of() == "candidate"
    digits.promote("digits", 2)
    split.poll()
    assert split.digits.require().number == 2
    assert split.arm_of() == "main"
    assert split.followed[1].current is None, "one copy in memory is enough"
    digits.promote("digits", 1)
    split.poll()
    assert split.arm_of() == "candidate"


def test_an_ended_arm_lets_its_memory_and_its_lease_go(digits: Project) -> None:
    digits.promote("digits", 2, alias="candidate")
    split = Split(digits, arms=CANARY)
    keeper = LeaseKeeper(split.followed, digits.registry, lease_s=30.0, replica="one")
    keeper.write(0.0)
    with digits.registry() as registry:
        rows = {one.generation.endpoint: one.generation.number for one in registry.endpoints.live_replicas()}
        assert rows == {"digits": 1, "digits~candidate": 2}
        digits.promote("digits", 1, alias="candidate")
        split.poll()
        keeper.write(0.0)
        assert [one.generation.endpoint for one in registry.endpoints.live_replicas()] == ["digits"]
    traffic = split.digits.traffic
    assert traffic is not None
    assert all(seen is None for endpoint, seen in traffic._view.arms)


@pytest.mark.parametrize("features", [4, 5])
def test_an_arm_with_another_signature_is_refused_by_name_at_every_swap(
    project: Project, features: int, caplog: pytest.LogCaptureFixture
) -> None:
    project.publish("digits", affine_model(2.0))
    project.publish("digits", affine_model(3.0, features=5), alias="candidate")
    split = Split(project, arms={"candidate": {"model": "digits@candidate", "share": 1.0}})
    assert split.arm_of() == "main"
    problem = str(split.status()["arms"]["candidate"]["problem"])  # type: ignore[index]  # plain JSON
    assert "`digits/2`" in problem
    assert "input `x` is float32(batch, 5), the endpoint's is float32(batch, 4)" in problem
    assert problem in caplog.text
    # The main version changes under it, or the arm does.
    if features == 5:
        project.publish("digits", affine_model(7.0, features=5))
        split.poll()
        answer = ask(split.app, "POST", "/predict/digits", {"inputs": [[1.0] * 5]})
    else:
        project.publish("digits", affine_model(7.0), alias="candidate")
        split.poll()
        answer = ask(split.app, "POST", "/predict/digits", BODY)
    assert answer.headers["noa-arm"] == "candidate"
    assert "problem" not in split.status()["arms"]["candidate"]  # type: ignore[index]  # plain JSON


def test_free_axes_may_have_other_names_but_not_another_meaning() -> None:
    from noa.signatures import Signature, TensorSpec
    from noa_serving._traffic import signature_difference

    def signature(*axes: str) -> Signature:
        first, second = axes
        inputs = tuple(TensorSpec(name=n, dtype="float32", shape=(a, 4)) for n, a in (("x", first), ("m", second)))
        return Signature(inputs=inputs, outputs=(TensorSpec(name="y", dtype="float32", shape=(first,)),))

    assert signature_difference(signature("n", "n"), signature("batch", "batch")) is None
    assert "input `m`" in str(signature_difference(signature("n", "n"), signature("n", "k")))


def test_nobody_can_call_or_list_an_arm(digits: Project) -> None:
    digits.promote("digits", 2, alias="candidate")
    split = Split(digits, arms=CANARY)
    for path in ("/predict/digits~candidate", "/v2/models/digits~candidate/infer", "/invocations/digits~candidate"):
        assert ask(split.app, "POST", path, BODY).status == 404
    assert ask(split.app, "GET", "/v2/models/digits~candidate").status == 404
    assert [row["name"] for row in json.loads(ask(split.app, "POST", "/v2/repository/index").body)] == ["digits"]
    assert "candidate" not in ask(split.app, "GET", "/openapi.json").body.decode()
    assert ask(split.app, "GET", "/v2/health/ready").json == {"ready": True, "live": True}


def test_a_path_that_names_a_version_goes_to_the_arm_that_serves_it(digits: Project) -> None:
    digits.promote("digits", 2, alias="candidate")
    split = Split(digits, arms={"candidate": {"model": "digits@candidate", "share": 0.0}})
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    for number, arm, total in ((1, None, 20.0), (2, "candidate", 30.0)):
        base = f"/v2/models/digits/versions/{number}"
        answer = ask(split.app, "POST", f"{base}/infer", {"inputs": [tensor]})
        assert (answer.headers.get("noa-arm"), answer.json["model_version"]) == (arm, str(number))
        assert answer.json["outputs"][1]["data"] == [total]  # type: ignore[index]  # plain JSON
        assert answer.json["parameters"].get("arm") == arm  # type: ignore[union-attr]  # plain JSON
        assert ask(split.app, "GET", f"{base}/ready").json == {"name": "digits", "ready": True}
    assert split.arm_of() == "main", "its share is 0"
    assert ask(split.app, "GET", "/v2/models/digits").json["versions"] == ["1", "2"]
    rows = ask(split.app, "GET", "/v2/models/digits/stats").json["model_stats"]
    assert [(row["name"], row["version"]) for row in rows] == [("digits", "1"), ("digits", "2")]  # type: ignore[union-attr]
    missing = ask(split.app, "POST", "/v2/models/digits/versions/3/infer", {"inputs": [tensor]})
    assert (missing.status, "`1`, `2`" in missing.error) == (404, True)


# The ways in


@contextmanager
def every_way_in(split: Split) -> Iterator[Mapping[str, Callable[[int], tuple[str, float]]]]:
    """Give, by name, functions that ask for one item (of that many rows) and return the arm and the first total."""
    with serving_http(split.app) as url, serving_grpc(split.app) as address, httpx.Client(base_url=url) as http:

        def plain(rows: int) -> tuple[str, float]:
            answer = http.post("/predict/digits", json={"inputs": BODY["inputs"] * rows})
            if answer.status_code != 200:
                return str(answer.status_code), 0.0
            return answer.headers.get("noa-arm", "main"), answer.json()["outputs"]["total"][0]

        def chunked(rows: int) -> tuple[str, float]:  # never on the fast way
            body = json.dumps({"inputs": BODY["inputs"] * rows}).encode()
            headers = {"content-type": "application/json"}
            answer = http.post("/predict/digits", content=iter([body]), headers=headers)
            if answer.status_code != 200:
                return str(answer.status_code), 0.0
            return answer.headers.get("noa-arm", "main"), answer.json()["outputs"]["total"][0]

        def binary(rows: int) -> tuple[str, float]:
            with Client(url) as client:
                found = client.predict("digits", np.array(BODY["inputs"] * rows, np.float32))
            return found.arm or "main", float(found.outputs["total"][0])

        def grpc(rows: int) -> tuple[str, float]:
            with triton.InferenceServerClient(address) as client:
                tensor = triton.InferInput("x", [rows, 4], "FP32")
                tensor.set_data_from_numpy(np.array(BODY["inputs"] * rows, np.float32))
                try:
                    found = client.infer("digits", [tensor])
                except InferenceServerException as exc:
                    return str(exc.status()), 0.0
                response = found.get_response()
            return response.parameters["arm"].string_param or "main", float(found.as_numpy("total")[0])

        yield {"plain": plain, "chunked": chunked, "binary": binary, "grpc": grpc}


def test_all_ways_in_split_and_count_alike(digits: Project) -> None:
    digits.promote("digits", 2, alias="candidate")
    split = Split(digits, arms={"candidate": {"model": "digits@candidate", "share": 0.5}})
    with every_way_in(split) as ways:
        for name, way in ways.items():
            seen = [way(1) for _ in range(24)]
            assert set(seen) == {("main", 20.0), ("candidate", 30.0)}, name
    for arm in ("main", "candidate"):
        assert split.samples("noa_requests_total", endpoint="digits", arm=arm, code="200") > 8
    assert split.samples("noa_requests_total", endpoint="digits", code="200") == 4 * 24
    assert split.samples("noa_request_seconds_count", endpoint="digits", arm="candidate") > 8
    assert split.samples("noa_stage_seconds_count", arm="candidate", stage="run") > 8
    assert split.samples("noa_arm_share", arm="candidate") == 0.5


def test_a_page_of_metrics_has_each_line_once_also_after_a_candidate_became_champion(digits: Project) -> None:
    digits.promote("digits", 2, alias="candidate")
    split = Split(digits, arms={"candidate": {"model": "digits@candidate", "share": 1.0}}, fallback="digits/1")
    moves = [("champion", 2), ("champion", 1), ("candidate", 1), ("candidate", 2)]
    for alias, number in moves:
        split.arm_of()
        digits.promote("digits", number, alias=alias)
        split.poll()
        read(ask(split.app, "GET", "/metrics").body.decode())


def test_logs_name_the_arm_that_answered(tmp_path: Path, empty_state: Path) -> None:
    log, folder = tmp_path / "access.jsonl", tmp_path / "payloads"
    project = make_project(
        tmp_path, empty_state, access_log=str(log), payload_log={"folder": str(folder), "sample": 1.0}
    )
    project.publish("digits", affine_model(2.0))
    project.publish("digits", affine_model(3.0), alias="candidate")
    project.publish("small", affine_model(7.0))
    arms = {"candidate": {"model": "digits@candidate", "share": 0.5}}
    split = Split(project, arms=arms, fallback="small@champion")
    assert split.application.observer is not None
    split.application.observer.start()
    with every_way_in(split) as ways:
        for way in ways.values():
            for _ in range(16):
                way(1)
        for one in split.followed[:2]:
            break_model(one)
        for way in ways.values():
            assert way(1) == ("fallback", 70.0)
    split.application.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    inference = [line for line in lines if line["route"] != "control"]
    by_arm = {arm: {line["version"] for line in inference if line.get("arm") == arm} for arm in (None, "candidate")}
    assert by_arm == {None: {1}, "candidate": {2}}
    fallen = [line for line in inference if line.get("arm") == "fallback"]
    assert {(line["model"], line["version"], line["status"]) for line in fallen} == {("small", 1, 200)}
    assert {line["route"] for line in fallen} == {"predict", "infer", "grpc"}
    assert all(line["target"] == "digits" and "stages" in line for line in inference)
    table = pq.read_table(folder / "digits").to_pylist()
    kept = {(row["arm"], row["model"], row["version"], row["outputs"]["total"][0]) for row in table}
    assert kept == {
        (None, "digits", 1, 20.0),
        ("candidate", "digits", 2, 30.0),
        ("fallback", "small", 1, 70.0),
    }


# The fallback


def break_model(endpoint: Endpoint) -> None:
    """Have the loaded version of an endpoint fail at every run."""

    def run(_: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise MemoryError("a model that breaks")

    assert endpoint.current is not None
    endpoint.current = replace(endpoint.current, run=run)


@pytest.fixture
def guarded(digits: Project) -> Split:
    digits.publish("small", affine_model(7.0))
    digits.promote("digits", 2, alias="candidate")
    return Split(digits, arms={"candidate": {"model": "digits@candidate", "share": 0.5}}, fallback="small@champion")


@pytest.mark.parametrize("is_inline", [True, False])
def test_the_fallback_answers_when_a_version_fails_and_is_counted(
    guarded: Split, is_inline: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for one in guarded.followed[:2]:
        break_model(one)
        if not is_inline:
            assert one.current is not None
            one.current = replace(one.current, inline_items=0)
    with every_way_in(guarded) as ways:
        for name, way in ways.items():
            assert {way(rows) for rows in (1, 3, 1)} == {("fallback", 70.0)}, name
    assert guarded.samples("noa_requests_total", arm="fallback", code="200") == 12
    assert guarded.samples("noa_fallbacks_total", reason="error") == 12
    assert guarded.status()["fallback"]["took"] == 12  # type: ignore[index]  # plain JSON
    assert guarded.samples("noa_requests_total", endpoint="digits", code="500") == 0
    assert "the fallback answers" in caplog.text
    assert guarded.application.admission.in_flight == 0


def test_the_first_error_is_answered_where_the_fallback_fails_too(guarded: Split) -> None:
    for one in guarded.followed:
        break_model(one)
    with every_way_in(guarded) as ways:
        assert ways["plain"](1) == ("500", 0.0)
        assert ways["chunked"](1) == ("500", 0.0)
        assert ways["grpc"](1) == ("StatusCode.INTERNAL", 0.0)
    assert guarded.samples("noa_requests_total", endpoint="digits", code="500") == 3
    assert guarded.samples("noa_requests_total", arm="fallback") == 0
    assert guarded.application.admission.in_flight == 0


def test_the_fallback_answers_while_nothing_is_loaded(project: Project) -> None:
    project.publish("small", affine_model(7.0))
    split = Split(project, fallback="small@champion")
    assert not split.digits.is_ready, "it answers, but not with what it promises"
    with every_way_in(split) as ways:
        for name, way in ways.items():
            assert way(1) == ("fallback", 70.0), name
    assert split.samples("noa_fallbacks_total", arm="main", reason="absent") == 4
    versioned = ask(split.app, "POST", "/v2/models/digits/versions/1/infer", {"inputs": []})
    assert versioned.status == 503, "a path that names a version wants no other"


def test_bad_requests_never_reach_the_fallback(guarded: Split) -> None:
    assert ask(guarded.app, "POST", "/predict/digits", {"inputs": [[1.0]]}).status == 400
    assert guarded.samples("noa_fallbacks_total") == 0
    path = "/v2/models/digits/versions/1/infer"
    break_model(guarded.digits)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    assert ask(guarded.app, "POST", path, {"inputs": [tensor]}).status == 500
    assert guarded.samples("noa_fallbacks_total") == 0


def test_a_fallback_with_another_signature_is_refused_by_name(digits: Project) -> None:
    digits.publish("small", mixed_model)
    split = Split(digits, fallback="small@champion")
    break_model(split.digits)
    assert ask(split.app, "POST", "/predict/digits", BODY).status == 500
    assert "input `x` is missing" in str(split.status()["fallback"]["problem"])  # type: ignore[index]  # plain JSON


def test_the_fallback_answers_what_the_queue_cannot_take(tmp_path: Path, empty_state: Path) -> None:
    project = make_project(tmp_path, empty_state, max_queue_items=1, timeout_s=60)
    project.publish("digits", slow_model)
    project.publish("small", lambda folder: slow_model(folder, steps=1, size=384))
    split = Split(project, fallback="small@champion")
    row = {"inputs": [[1.0] * 384]}
    with serving_http(split.app) as url, httpx.Client(base_url=url, timeout=60) as http, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: http.post("/predict/digits", json=row), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    arms = Counter(answer.headers.get("noa-arm", "main") for answer in answers)
    assert arms["main"] >= 1
    assert arms["fallback"] >= 1
    assert split.samples("noa_fallbacks_total", arm="main", reason="overload") == arms["fallback"]
    assert split.application.admission.in_flight == 0


def test_what_the_fallback_computes_is_counted_in_the_bytes_of_bodies(guarded: Split) -> None:
    for one in guarded.followed[:2]:
        break_model(one)
    admission, most = guarded.application.admission, [0]
    reserve = admission.reserve

    def watched(num_bytes: int) -> None:
        reserve(num_bytes)
        most[0] = max(most[0], admission.num_bytes)

    admission.reserve = watched  # type: ignore[method-assign]  # to see it in between
    rows = BODY["inputs"] * 4000
    with serving_http(guarded.app) as url:
        answer = httpx.post(f"{url}/predict/digits", json={"inputs": rows}, timeout=20)
    assert (answer.status_code, answer.headers["noa-arm"]) == (200, "fallback")
    assert most[0] == int(answer.request.headers["content-length"])
    assert (admission.num_bytes, admission.in_flight) == (0, 0)


def test_a_client_that_goes_away_drops_what_the_fallback_has_not_begun(guarded: Split) -> None:
    for one in guarded.followed:
        if one.arm != "fallback":
            break_model(one)
    fallback = guarded.followed[-1]
    assert fallback.current is not None
    fallback.current = replace(fallback.current, inline_items=0)

    async def scenario() -> None:
        computing, route = guarded.application.computing, guarded.application.find_hot("/predict/digits")
        assert route is not None
        told: list[object] = []
        with computing.enter() as place:
            body = json.dumps(BODY).encode()
            prepared = route.prepare({b"content-type": b"application/json"}, body)
            from noa_serving._deadline import Deadline

            job = computing.submit(prepared, place, Deadline.after(30.0), told.append)
        computing.ticks.flush()
        assert computing.queue.waiting_items == 1, "the fallback waits in the queue"
        job.drop()
        assert computing.queue.waiting_items == 0
        assert guarded.application.admission.in_flight == 0
        await asyncio.sleep(0)
        assert told == []

    asyncio.run(scenario())


def test_the_way_of_a_request_without_arms_makes_nothing_new(digits: Project) -> None:
    split = Split(digits)
    route = split.application.find_hot("/predict/digits")
    assert route is not None
    prepared = route.prepare({b"content-type": b"application/json"}, json.dumps(BODY).encode())
    assert prepared.attempt is None
    assert split.digits.traffic is None


def test_choosing_an_arm_takes_less_than_a_microsecond(digits: Project) -> None:
    """Best of many, so that a busy machine does not count; about 0.3 us on a quiet one."""
    digits.promote("digits", 2, alias="candidate")
    traffic = Split(digits, arms=CANARY, sticky="x-user-id").digits.traffic
    assert traffic is not None
    headers = {b"x-user-id": b"user-7"}
    best = math.inf
    for _ in range(50):
        start = time.perf_counter()
        for _ in range(200):
            traffic.choose(headers, "")
        best = min(best, (time.perf_counter() - start) / 200)
    assert best < 2e-6
