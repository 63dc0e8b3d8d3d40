"""Whatever comes in, what goes out is an answer below 500 that is JSON, and no place in flight is lost."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from serving_kit import Answer, call

from noa_serving._asgi import AsgiApplication

PATHS = ["/predict/digits", "/predict/mixed", "/v2/models/digits/infer", "/v2/models/mixed/infer"]
KEYS = ["inputs", "instances", "outputs", "id", "parameters", "x", "pixels", "index", "flag", "name", "data", "shape"]
KEYS += ["datatype", "binary_data_size", "binary_data_output", "binary_data"]
WORDS = [*KEYS, "FP32", "INT64", "BOOL", "UINT8", "BYTES", "y", "total"]

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(WORDS),
    st.text(max_size=5),
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner),
    max_leaves=20,
)
tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "pixels", "index", "flag"]) | leaves,
        "datatype": st.sampled_from(["FP32", "INT64", "BOOL", "UINT8"]) | leaves,
        "shape": st.lists(st.integers(-1, 5) | st.just(2**62), max_size=4) | values,
        "data": st.lists(leaves, max_size=8) | values,
        "parameters": st.dictionaries(st.just("binary_data_size"), st.integers(-1, 40) | leaves) | values,
    },
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=3) | values},
    optional={"outputs": values, "id": values, "parameters": values, "instances": values},
)
fitting = st.fixed_dictionaries(
    {
        "inputs": st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.just("x"),
                    "datatype": st.just("FP32"),
                    "shape": st.sampled_from([[1, 4], [2, 4], [4]]),
                    "data": st.lists(st.floats(-9, 9), min_size=4, max_size=8),
                }
            ),
            min_size=1,
            max_size=1,
        )
    }
)
EXAMPLES = int(os.environ.get("NOA_FUZZ_EXAMPLES", "0"))  # of each test; `make fuzz` sets it
relaxed = settings(max_examples=EXAMPLES or 150, deadline=None, suppress_health_check=list(HealthCheck))


def check(app: AsgiApplication, answer: Answer) -> None:
    assert answer.status < 500, answer.body
    if answer.status != 200:
        assert set(json.loads(answer.body)) == {"error"}
        assert "Traceback" not in answer.error
    assert app._application.admission.in_flight == 0


def test_the_check_finds_what_must_not_come_out(app: AsgiApplication) -> None:
    for status, body in ((500, b'{"error": "x"}'), (400, b'{"detail": "x"}'), (400, b'{"error": "Traceback ..."}')):
        with pytest.raises(AssertionError):
            check(app, Answer(status=status, body=body, headers={}))
    app._application.admission.enter()
    with pytest.raises(AssertionError):
        check(app, Answer(status=200, body=b"{}", headers={}))
    app._application.admission.leave()


def test_what_is_made_up_reaches_the_model_too(app: AsgiApplication) -> None:
    """Else only refusals were checked."""

    def is_computed(body: object) -> bool:
        path, kind = "/v2/models/digits/infer", {"content-type": "application/json"}
        return asyncio.run(call(app, "POST", path, json.dumps(body).encode(), kind)).status == 200

    found = find(requests | values | fitting, is_computed, settings=settings(relaxed, max_examples=1000))
    assert is_computed(found)


@relaxed
@given(path=st.sampled_from(PATHS), body=requests | values | fitting)
def test_any_json_is_answered(app: AsgiApplication, path: str, body: object) -> None:
    check(app, asyncio.run(call(app, "POST", path, json.dumps(body).encode(), {"content-type": "application/json"})))


@relaxed
@given(
    path=st.sampled_from(PATHS),
    table=requests | values,
    raw=st.binary(max_size=64),
    length=st.one_of(st.none(), st.integers(-5, 400).map(str), st.text(st.characters(max_codepoint=255), max_size=8)),
    cut=st.integers(0, 400),
)
def test_any_binary_frame_is_answered(
    app: AsgiApplication, path: str, table: object, raw: bytes, length: str | None, cut: int
) -> None:
    head = json.dumps(table).encode()
    text = str(len(head)) if length is None else length
    headers = {"inference-header-content-length": text, "content-type": "application/octet-stream"}
    body = (head + raw)[: max(cut, 1)] if cut < 200 else head + raw
    check(app, asyncio.run(call(app, "POST", path, body, headers)))


@relaxed
@given(path=st.sampled_from(PATHS), body=st.binary(max_size=200), kind=st.sampled_from(["application/json", "x", ""]))
def test_any_bytes_are_answered(app: AsgiApplication, path: str, body: bytes, kind: str) -> None:
    check(app, asyncio.run(call(app, "POST", path, body, {"content-type": kind})))


@relaxed
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE", "x"]),
    parts=st.lists(
        st.sampled_from(
            ["v2", "models", "digits", "versions", "2", "infer", "predict", "repository", "index", "ready", ""]
        )
        | st.text(max_size=6),
        max_size=7,
    ),
)
def test_any_path_is_answered(app: AsgiApplication, method: str, parts: list[str]) -> None:
    answer = asyncio.run(call(app, method, "/" + "/".join(parts), b""))
    assert answer.status < 500, answer.body
