"""A shadow from its first request to what follows from the verdict: the registry, the workers, the ways in."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_kit import serving_grpc
from observe_kit import JSON_BODY, total
from serving_kit import Project, affine_model, ask, make_project, open_pipe, wait_until

from noa.errors import StorageError
from noa.references import parse_reference
from noa.settings import EndpointSettings, GateSettings, Settings
from noa_cli.__main__ import run
from noa_registry import Registry
from noa_serving import Client, start_server
from noa_serving._application import Application
from noa_serving._asgi import AsgiApplication
from noa_serving._comparing import Comparison, Pair
from noa_serving._crew import lone_crew
from noa_serving._endpoint import Endpoint
from noa_serving._follower import Follower
from noa_serving._http import Response
from noa_serving._prepared import Prepared
from noa_serving._shadow_pages import ShadowPages
from noa_serving._shadows import Shadows
from noa_serving._traffic import make_endpoints, with_arms
from noa_serving._verdict import judge
from noa_serving._verdict_action import Case, keep_evidence, move_alias

QUICK = {"min_agreement": 0.6, "max_extra_errors": 0.4, "max_latency_ratio": 0.0, "error": 0.1, "min_requests": 5}
SAME = affine_model(2.0001)  # another version, within the tolerance of the first
OTHER = affine_model(3.0)
ANSWER = 2.0


def shadowed(**verdict: object) -> EndpointSettings:
    arm = {"model": "digits@candidate", "mode": "shadow", "share": 1.0, "verdict": {**QUICK, **verdict}}
    return EndpointSettings.model_validate({"model": "digits@champion", "arms": {"candidate": arm}})


@pytest.fixture
def pair_project(tmp_path: Path, empty_state: Path) -> Project:
    """`digits` 1 answers, 2 computes the same, 3 computes something else; nobody is the candidate yet."""
    project = make_project(tmp_path, empty_state)
    project.publish("digits", affine_model(ANSWER))
    project.publish("digits", SAME, alias=None)
    project.publish("digits", OTHER, alias=None)
    return project


class InProcess:
    """The application of one worker in this process, whose shadows look when they are told to."""

    def __init__(
        self, project: Project, folder: Path, rule: EndpointSettings, *, open_registry: Callable[[], Registry] | None
    ) -> None:
        settings = Settings.model_validate({**project.settings.model_dump(), "endpoints": {"digits": rule}})
        self.endpoints: list[Endpoint] = make_endpoints(settings.endpoints, threads=1, crew=None)
        crew = self.endpoints[0].crew
        self.follower = Follower(with_arms(self.endpoints), project.registry, poll_interval_s=0.05)
        self.follower.poll()
        self.shadows = Shadows(
            self.endpoints, settings, pages=ShadowPages(folder, 0, 1), crew=crew, open_registry=open_registry
        )
        self.application = Application(settings.serving, self.endpoints, self.follower, crew=crew, shadows=self.shadows)
        self.app = AsgiApplication(self.application)
        self.now = 1000.0
        self.look()
        self.shadows.begin(lambda: True)

    def look(self) -> None:
        self.now += 1.0
        self.shadows.turn(self.now)

    @property
    def row(self) -> dict[str, Any]:
        return dict(self.shadows.rows("digits")["candidate"])

    def compared(self) -> int:
        return sum(one.compared for one in self.shadows.lane.counts().values())

    def decide(self, count: int = 60) -> dict[str, Any]:
        """Send requests until there is a verdict."""
        for index in range(count):
            assert ask(self.app, "POST", "/predict/digits", json.loads(JSON_BODY)).status == 200
            wait_until(lambda index=index: self.compared() > index)
        self.look()
        return self.row


@pytest.fixture
def started(pair_project: Project, tmp_path: Path) -> Iterator[Callable[..., InProcess]]:
    running: list[InProcess] = []

    def start(number: int, *, gates: dict[str, GateSettings] | None = None, **verdict: object) -> InProcess:
        pair_project.promote("digits", number, alias="candidate")
        settings = pair_project.settings.model_copy(update={"gates": gates or {}})
        running.append(
            InProcess(pair_project, tmp_path, shadowed(**verdict), open_registry=lambda: Registry.open(settings))
        )
        return running[-1]

    yield start
    for one in running:
        one.application.close()


def _holder(project: Project, alias: str) -> int | None:
    with project.registry() as registry:
        found = registry.resolve_digest("digits", alias)
    return None if found is None else found[0]


def _evidence(project: Project, number: int) -> list[Any]:
    with project.registry() as registry:
        return [one for one in registry.evidence("digits", number) if one.kind == "shadow"]


def test_what_agrees_is_promoted_and_the_ledger_the_evidence_and_the_event_say_why(
    started: Callable[..., InProcess], pair_project: Project
) -> None:
    running = started(2, decide="act")
    row = running.decide()
    assert row["verdict"]["decision"] == "promote"
    assert "moved to version 2" in row["done"]
    assert _holder(pair_project, "champion") == 2
    with pair_project.registry() as registry:
        entry = registry.history("digits", alias="champion")[0]
        event = registry.events.newest(name="digits", limit=1)[0]
    assert entry.reason.startswith("shadow of digits: agreement 1 (")
    assert entry.actor.startswith("flow shadow digits/candidate by ")
    assert event.payload["reason"] == entry.reason
    (fact,) = _evidence(pair_project, 2)
    assert fact.passed is True
    assert fact.values["compared_with"] == "digits/1"
    assert fact.values["counts"]["compared"] == 60
    assert fact.values["questions"][0]["low"] >= 0.6
    assert "Robbins" in fact.values["test"]
    running.follower.poll()
    running.look()
    assert running.row == {"model": "digits@candidate", "state": "idle"}


def test_what_disagrees_ends_and_the_alias_goes_to_what_answers(
    started: Callable[..., InProcess], pair_project: Project
) -> None:
    running = started(3, decide="act")
    row = running.decide()
    assert row["verdict"]["decision"] == "roll back"
    assert row["done"] == "`digits@candidate` was moved to version 1, which answers"
    assert (_holder(pair_project, "champion"), _holder(pair_project, "candidate")) == (1, 1)
    with pair_project.registry() as registry:
        assert "agreement 0 (" in registry.history("digits", alias="candidate")[0].reason
    assert _evidence(pair_project, 3)[0].passed is False


def test_where_the_past_of_the_alias_leads_to_what_answers_it_is_rolled_back(
    started: Callable[..., InProcess], pair_project: Project
) -> None:
    pair_project.promote("digits", 1, alias="candidate")
    running = started(3, decide="act")
    assert running.decide()["done"] == "`digits@candidate` was rolled back to version 1"
    with pair_project.registry() as registry:
        assert registry.history("digits", alias="candidate")[0].action == "rollback"


def test_told_only_moves_nothing_and_keeps_the_evidence(
    started: Callable[..., InProcess], pair_project: Project
) -> None:
    running = started(2)
    assert running.decide()["done"] == "told; nothing was moved"
    assert (_holder(pair_project, "champion"), _holder(pair_project, "candidate")) == (1, 2)
    assert len(_evidence(pair_project, 2)) == 1
    before = running.compared()
    assert ask(running.app, "POST", "/predict/digits", json.loads(JSON_BODY)).status == 200
    time.sleep(0.1)
    running.look()
    assert running.compared() == before, "what is decided is compared no more"
    assert len(_evidence(pair_project, 2)) == 1


def test_a_gate_is_not_passed_by(started: Callable[..., InProcess], pair_project: Project) -> None:
    gate = GateSettings(min_metrics={"accuracy": 0.9}, aliases=("champion",))
    running = started(2, decide="act", gates={"digits": gate})
    done = running.decide()["done"]
    assert done.startswith("nothing was moved: the gate refuses `digits/2` as `champion`")
    assert _holder(pair_project, "champion") == 1


def test_a_gate_can_ask_for_what_a_shadow_has_shown(started: Callable[..., InProcess], pair_project: Project) -> None:
    gates = {"digits": GateSettings(require=("shadow",), aliases=("champion",))}
    with Registry.open(pair_project.settings.registry, gates=gates) as registry:
        assert not registry.check("digits", 2, record=False).passed
        started(2).decide()
        assert registry.check("digits", 2, record=False).passed
        assert not registry.check("digits", 3, record=False).passed


def test_of_two_servers_that_judge_one_moves_the_alias_and_the_other_says_so(pair_project: Project) -> None:
    pair_project.promote("digits", 2, alias="candidate")
    counts = Comparison(compared=60, agreed=60.0)
    with pair_project.registry() as registry:
        digests = {number: registry.resolve(f"digits/{number}").digest for number in (1, 2)}
        case = Case(
            pair=Pair("digits", "candidate", 1, digests[1], 2, digests[2]),
            main=parse_reference("digits@champion"),
            arm=parse_reference("digits@candidate"),
            acts=True,
            error=0.1,
        )
        verdict = judge(counts, shadowed().arms["candidate"].verdict)
        assert "was moved to version 2" in move_alias(registry, case, verdict)
        done = move_alias(registry, case, verdict)
        assert done.startswith("nothing was moved: `digits@champion` is not held by version 1")
        assert len(registry.history("digits", alias="champion")) == 2


def test_an_older_version_and_what_follows_no_alias_is_told_only(pair_project: Project) -> None:
    pair_project.promote("digits", 3)
    counts = Comparison(compared=60, agreed=60.0)
    verdict = judge(counts, shadowed().arms["candidate"].verdict)
    worse = judge(Comparison(compared=60), shadowed().arms["candidate"].verdict)
    with pair_project.registry() as registry:
        digests = {number: registry.resolve(f"digits/{number}").digest for number in (2, 3)}
        case = Case(
            pair=Pair("digits", "candidate", 3, digests[3], 2, digests[2]),
            main=parse_reference("digits@champion"),
            arm=parse_reference("digits/2"),
            acts=True,
            error=0.1,
        )
        assert "older version" in move_alias(registry, case, verdict)
        pinned = replace(case, main=parse_reference("digits/3"))
        assert "does not follow an alias" in move_alias(registry, pinned, verdict)
        assert "pinned to version 2" in move_alias(registry, case, worse)
        assert registry.history("digits", alias="champion")[0].to_number == 3
        changed = replace(case, pair=case.pair._replace(arm_digest=digests[3]))
        with pytest.raises(Exception, match="is not what was compared"):
            keep_evidence(registry, changed, verdict, {})


def test_a_registry_that_is_away_is_tried_again_and_the_evidence_is_kept_once(
    pair_project: Project, tmp_path: Path
) -> None:
    pair_project.promote("digits", 2, alias="candidate")
    problems = [StorageError("the database is locked"), StorageError("the database is locked")]

    def open_registry() -> Registry:
        if problems:
            raise problems.pop()
        return Registry.open(pair_project.settings)

    running = InProcess(pair_project, tmp_path, shadowed(decide="act"), open_registry=open_registry)
    try:
        assert running.decide()["done"] == "waits for the registry: the database is locked"
        assert _holder(pair_project, "champion") == 1
        for _ in range(10):
            running.look()
        assert _holder(pair_project, "champion") == 2
        assert len(_evidence(pair_project, 2)) == 1
    finally:
        running.application.close()


def test_all_ways_in_are_compared_and_no_answer_is_changed(started: Callable[..., InProcess]) -> None:
    running = started(3, min_requests=10_000, min_agreement=0.0001, max_extra_errors=0.9)
    x = np.ones((1, 4), np.float32)
    assert ask(running.app, "POST", "/predict/digits", {"inputs": {"x": x.tolist()}}).json["outputs"] == {
        "y": [[2.0] * 4],
        "total": [8.0],
    }
    wait_until(lambda: running.compared() == 1)

    async def through_the_protocol() -> bytes:
        protocol, pipe = open_pipe(running.app)
        body = json.dumps({"inputs": {"x": x.tolist()}}).encode()
        head = (
            b"POST /predict/digits HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        )
        protocol.data_received(head % len(body) + body)
        for _ in range(5):
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        return pipe.written

    assert b'"total":[8.0]' in asyncio.run(through_the_protocol())
    wait_until(lambda: running.compared() == 2)
    with serving_grpc(running.app) as address, triton.InferenceServerClient(address) as client:
        tensor = triton.InferInput("x", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        answer: Any = client.infer("digits", [tensor])
        assert answer.as_numpy("total") == 8.0
    wait_until(lambda: running.compared() == 3)
    running.look()
    counts = running.row["counts"]
    assert counts["agreement"] == 0.0
    assert counts["outputs"]["total"]["max_difference"] == 4.0
    text = running.application.render_own_metrics().decode()
    assert total(text, "noa_shadow_compared_total", endpoint="digits", arm="candidate", version="3") == 3
    assert total(text, "noa_shadow_agreed_total") == 0


def test_what_is_refused_or_answered_by_another_version_is_not_compared(
    started: Callable[..., InProcess], pair_project: Project
) -> None:
    running = started(2)
    assert ask(running.app, "POST", "/predict/digits", {"inputs": {"x": [[1.0]]}}).status == 400
    pair_project.promote("digits", 3)
    running.follower.poll()
    assert ask(running.app, "POST", "/predict/digits", json.loads(JSON_BODY)).status == 200
    time.sleep(0.1)
    assert running.compared() == 0, "the new pair is not open before the next look"
    running.look()
    assert ask(running.app, "POST", "/predict/digits", json.loads(JSON_BODY)).status == 200
    wait_until(lambda: running.compared() == 1)
    running.look()
    assert (running.row["compared_with"], running.row["counts"]["compared"]) == (3, 1)


def test_an_old_version_is_not_kept_in_memory_by_its_shadow(
    started: Callable[..., InProcess], pair_project: Project
) -> None:
    import gc
    import weakref

    running = started(2)
    assert ask(running.app, "POST", "/predict/digits", json.loads(JSON_BODY)).status == 200
    wait_until(lambda: running.compared() == 1)
    old = running.endpoints[0].current
    assert old is not None
    gone = weakref.ref(old)
    del old
    pair_project.promote("digits", 3)
    running.follower.poll()
    running.look()
    gc.collect()
    assert gone() is None


def test_inputs_in_memory_of_the_client_are_compared_as_they_were_answered(started: Callable[..., InProcess]) -> None:
    running = started(2)
    main, mirror = running.endpoints[0].current, running.shadows.mirror("digits")
    assert main is not None
    assert mirror is not None
    memory = bytearray(np.ones((1, 4), np.float32).tobytes())
    shared = {"x": np.frombuffer(memory, np.float32).reshape(1, 4)}
    kept = {"x": np.frombuffer(bytes(memory), np.float32).reshape(1, 4)}

    async def answer(inputs: dict[str, np.ndarray]) -> None:
        prepared = Prepared(main, inputs, 1, lambda _: Response(200, b"", ()))
        mirror.encoder(prepared)(main.compute(inputs, 1))
        memory[:] = bytes(len(memory))
        await asyncio.sleep(0)

    asyncio.run(answer(shared))
    asyncio.run(answer(kept))
    wait_until(lambda: running.compared() == 2)
    assert next(iter(running.shadows.lane.counts().values())).agreed == 2.0


def _predict(url: str, count: int) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    for _ in range(count):
        connection.request("POST", "/predict/digits", JSON_BODY, {"content-type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        response.read()
    connection.close()


@pytest.mark.bentoml
def test_two_workers_count_together_and_one_of_them_promotes(
    tmp_path: Path, empty_state: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = make_project(tmp_path, empty_state, workers=2)
    project.publish("digits", affine_model(ANSWER))
    project.publish("digits", SAME, alias="candidate")
    log = tmp_path_factory.mktemp("log") / "server.log"
    with start_server(project.settings, endpoints={"digits": shadowed(decide="act")}, log_file=log) as process:
        url = process.wait_ready().url
        with Client(url) as client:

            def state() -> str:
                row: Any = client.status()["endpoints"]
                return str(row["digits"].get("shadows", {}).get("candidate", {}).get("state"))

            wait_until(lambda: state() == "comparing", what="the shadow to be loaded")
            deadline = time.monotonic() + 60
            while _holder(project, "champion") == 1 and time.monotonic() < deadline:
                _predict(url, 5)
                time.sleep(0.05)
            assert _holder(project, "champion") == 2
            wait_until(lambda: '"version":2' in json.dumps(client.status(), separators=(",", ":")))
            _predict(url, 20)
    with project.registry() as registry:
        assert len(registry.history("digits", alias="champion")) == 2
        assert len([one for one in registry.evidence("digits", 2) if one.kind == "shadow"]) == 1


def test_a_verdict_on_an_arm_that_answers_is_refused() -> None:
    arm = {"model": "digits@candidate", "share": 0.1, "verdict": {"decide": "act"}}
    with pytest.raises(ValueError, match="`verdict` is about shadows"):
        EndpointSettings.model_validate({"model": "digits@champion", "arms": {"candidate": arm}})


def test_without_a_shadow_there_is_neither_mirror_nor_thread() -> None:
    crew = lone_crew(["digits"])
    endpoints = make_endpoints({"digits": EndpointSettings(model="digits@champion")}, threads=1, crew=crew)
    assert endpoints[0].traffic is None


@pytest.mark.bentoml
def test_the_command_shows_the_split_and_what_the_shadow_has_shown(
    tmp_path: Path, empty_state: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "noa.toml").write_text("")
    project = make_project(tmp_path, empty_state)
    project.publish("digits", affine_model(ANSWER))
    project.publish("digits", OTHER, alias="candidate")
    rule = shadowed(min_requests=100, min_agreement=0.001, max_extra_errors=0.9)

    def command(*arguments: str, code: int = 0) -> str:
        capfd.readouterr()
        assert run(["-C", str(tmp_path), "endpoints", "traffic", *arguments]) == code
        captured = capfd.readouterr()
        return captured.out if code == 0 else captured.err

    def shown() -> list[dict[str, Any]]:
        return json.loads(command("digits", "--json"))

    with start_server(project.settings, endpoints={"digits": rule}, log_file=tmp_path / "log") as process:
        url = process.wait_ready().url
        wait_until(lambda: shown()[1]["state"] == "comparing", what="the shadow to be loaded")
        _predict(url, 20)
        wait_until(lambda: shown()[1]["requests"] == 20, what="the requests to be compared")
        main, shadow = shown()
        assert (main["name"], main["version"], main["requests"], main["share"]) == ("main", 1, 20, 1.0)
        assert (shadow["name"], shadow["mode"]) == ("candidate", "shadow")
        assert (shadow["version"], shadow["compared_with"]) == (2, 1)
        assert (shadow["agreement"], shadow["verdict"], shadow["errors"]) == (0.0, "go on", 0)
        assert shadow["findings"][0]["high"] > 0.001
        assert shadow["outputs"]["total"]["max_difference"] > 0
        text = command("digits")
        assert "candidate (shadow)" in text
        assert "candidate: waits for agreement: more requests; 80 more requests to the least number" in text
        assert "`digits`" in command("nothing", code=1)
