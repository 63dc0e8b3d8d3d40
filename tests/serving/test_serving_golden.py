"""Golden requests: only what answers as its evidence says may answer anybody."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_kit import Project, affine_model, endpoint, wait_until

from noa.digests import build_manifest
from noa_registry import Evidence, equivalence_evidence
from noa_registry.evidence import AllowedDifference, GoldenRequest, GoldenRequests, with_golden
from noa_serving import Client, start_server
from noa_serving._application import describe
from noa_serving._endpoint import Endpoint

LIMIT = AllowedDifference(absolute=1e-4, relative=1e-4, of_largest=0.0, disagreement=0.0, reason="float32")


def answered(scale: float, *, error: float = 0.0, outputs: Sequence[str] = ("y", "total")) -> GoldenRequests:
    """What a model that multiplies by `scale` answers at batch 1 and 3; the second answer is off by `error`."""
    requests: list[GoldenRequest] = []
    for batch in (1, 3):
        x = np.arange(batch * 4, dtype=np.float32).reshape(batch, 4)
        found = {"y": x * np.float32(scale), "total": (x * np.float32(scale)).sum(axis=1)}
        if batch == 3:
            found["total"] = found["total"] + np.float32(error) * np.array([0, 1, 0], dtype=np.float32)
        requests.append(GoldenRequest(inputs={"x": x}, outputs={name: found[name] for name in outputs}))
    return GoldenRequests(source="torch", requests=tuple(requests), allowed=dict.fromkeys(outputs, LIMIT))


def proven(golden: GoldenRequests) -> Callable[[Path], tuple[Evidence, ...]]:
    def evidence(folder: Path) -> tuple[Evidence, ...]:
        fact = equivalence_evidence(
            source="torch",
            source_digest="sha256:" + "1" * 64,
            target="onnx",
            target_digest=build_manifest(folder).digest,
            passed=True,
            values={},
        )
        return (with_golden(fact, golden),)

    return evidence


def digits_of(client: Client) -> dict[str, Any]:
    table: Any = client.status()["endpoints"]
    return table["digits"]


def follow(project: Project, one: Endpoint, now: float = 0.0) -> bool:
    with project.registry() as registry:
        return one.follow(registry, clock=lambda: now)


def test_a_version_that_answers_its_golden_requests_is_served_and_says_how_many(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.publish("digits", affine_model(2.0), evidence=proven(answered(2.0, error=1e-4)))
    one = Endpoint("digits", endpoint("digits@champion"), threads=1)
    with caplog.at_level(logging.INFO, logger="noa.serving"):
        assert follow(project, one)
    assert describe(one)["golden_requests"] == 2
    assert "2 golden requests answered" in caplog.text
    assert one.require().statistics.run.count == 0, "they are nobody's requests"


def test_a_version_that_answers_otherwise_is_refused_by_request_output_and_difference(project: Project) -> None:
    project.publish("digits", affine_model(2.0))
    one = Endpoint("digits", endpoint("digits@champion"), threads=1)
    follow(project, one)
    project.publish("digits", affine_model(3.0), evidence=proven(answered(3.0, error=0.5)))
    assert not follow(project, one)
    assert one.require().number == 1
    assert one.failure is not None
    assert one.failure.reason.startswith("golden request 2 of 2: output `total` is not what `torch` answered")
    assert "0.5 in item 1" in one.failure.reason
    project.publish("digits", affine_model(3.0), evidence=proven(answered(3.0)))
    assert follow(project, one)
    assert (one.require().number, one.failure) == (3, None)


def test_golden_requests_of_another_model_refuse_it(project: Project) -> None:
    project.publish("digits", affine_model(2.0), evidence=proven(answered(2.0, outputs=("y",))))
    one = Endpoint("digits", endpoint("digits@champion"), threads=1)
    assert not follow(project, one)
    assert one.failure is not None
    assert "golden request 1 of 2 is not of this model" in one.failure.reason


def test_a_version_without_them_is_served_and_says_so(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    project.publish("digits", affine_model(2.0))
    one = Endpoint("digits", endpoint("digits@champion"), threads=1)
    with caplog.at_level(logging.INFO, logger="noa.serving"):
        assert follow(project, one)
    assert describe(one)["golden_requests"] == 0
    assert "no golden requests in its evidence" in caplog.text


@pytest.mark.bentoml
def test_a_server_refuses_what_answers_otherwise_and_goes_on(project: Project, tmp_path: Path) -> None:
    project.publish("digits", affine_model(2.0), evidence=proven(answered(2.0)))
    endpoints = {"digits": endpoint("digits@champion")}
    with (
        start_server(project.settings, endpoints=endpoints, log_file=tmp_path / "server.log") as process,
        Client(process.wait_ready().url) as client,
    ):
        assert digits_of(client)["golden_requests"] == 2
        project.publish("digits", affine_model(3.0), evidence=proven(answered(2.0)))
        wait_until(lambda: "refused" in digits_of(client), what="the refusal")
        refused = digits_of(client)["refused"]
        assert refused["version"] == 2
        assert "golden request 1 of 2: output `y`" in refused["reason"]
        assert client.predict("digits", np.ones((1, 4), np.float32)).version == 1
