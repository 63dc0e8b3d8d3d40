"""The Open Inference Protocol over REST, as raw requests."""

from __future__ import annotations

import json

import numpy as np
import pytest
from serving_kit import Answer, ask

from noa_serving._asgi import AsgiApplication

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32)
TENSOR: dict[str, object] = {"name": "x", "datatype": "FP32", "shape": [2, 4], "data": X.reshape(-1).tolist()}


def infer(app: AsgiApplication, body: object, path: str = "/v2/models/digits/infer") -> Answer:
    return ask(app, "POST", path, body)


def binary(
    app: AsgiApplication, table: dict[str, object], raw: bytes, *, pad: int = 0, length: str | None = None, **path: str
) -> Answer:
    head = json.dumps(table).encode() + b" " * pad
    headers = {"inference-header-content-length": length or str(len(head)), "content-type": "application/octet-stream"}
    return ask(app, "POST", path.get("path", "/v2/models/digits/infer"), head + raw, headers)


def raw_tensor(array: np.ndarray, name: str = "x", datatype: str = "FP32", **parameters: object) -> dict[str, object]:
    sizes = {"binary_data_size": array.nbytes, **parameters}
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": sizes}


@pytest.mark.parametrize("data", [X.tolist(), X.reshape(-1).tolist()], ids=["nested", "flat"])
def test_json_tensors_are_answered_flat_with_names_and_shapes(app: AsgiApplication, data: list[object]) -> None:
    table = infer(app, {"id": "7", "inputs": [{**TENSOR, "data": data}]}).json
    assert (table["model_name"], table["model_version"], table["id"]) == ("digits", "2", "7")
    assert table["outputs"][0] == {
        "name": "y",
        "datatype": "FP32",
        "shape": [2, 4],
        "data": (X * 3).reshape(-1).tolist(),
    }
    assert table["outputs"][1]["data"] == [30.0, 78.0]


@pytest.mark.parametrize("pad", range(5))
def test_raw_tensors_in_and_out_at_any_alignment(app: AsgiApplication, pad: int) -> None:
    answer = binary(app, {"inputs": [raw_tensor(X)], "parameters": {"binary_data_output": True}}, X.tobytes(), pad=pad)
    length = int(answer.headers["inference-header-content-length"])
    table = json.loads(answer.body[:length])
    assert [row["parameters"]["binary_data_size"] for row in table["outputs"]] == [32, 8]
    assert np.array_equal(np.frombuffer(answer.body[length : length + 32], np.float32).reshape(2, 4), X * 3)
    assert np.array_equal(np.frombuffer(answer.body[length + 32 :], np.float32), [30, 78])


def test_outputs_filter_and_per_output_binary_flag(app: AsgiApplication) -> None:
    wanted = [{"name": "total", "parameters": {"binary_data": True}}, {"name": "y"}]
    answer = infer(app, {"inputs": [TENSOR], "outputs": wanted})
    length = int(answer.headers["inference-header-content-length"])
    rows = json.loads(answer.body[:length])["outputs"]
    assert [row["name"] for row in rows] == ["total", "y"]
    assert "data" in rows[1]
    assert np.array_equal(np.frombuffer(answer.body[length:], np.float32), [30, 78])


def test_raw_and_json_tensors_may_be_mixed_and_half_precision_comes_raw(app: AsgiApplication) -> None:
    pixels = np.array([[[1, 2], [3, 4]]], dtype=np.uint8)
    table = {
        "inputs": [
            {"name": "index", "datatype": "INT64", "shape": [1], "data": [1]},
            raw_tensor(pixels, "pixels", "UINT8"),
            {"name": "flag", "datatype": "BOOL", "shape": [1], "data": [True]},
        ],
        "outputs": [{"name": "half", "parameters": {"binary_data": True}}],
    }
    answer = binary(app, table, pixels.tobytes(), path="/v2/models/mixed/infer")
    length = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.body[:length])["outputs"][0]["datatype"] == "FP16"
    assert np.array_equal(np.frombuffer(answer.body[length:], np.float16), [1, 2, 3, 4])


CLASSES = {"name": "y", "parameters": {"classification": 3}}

REFUSED: list[tuple[str, dict[str, object], str]] = [
    ("no inputs", {}, "no `inputs`"),
    ("empty inputs", {"inputs": []}, "no `inputs`"),
    ("input no object", {"inputs": [1]}, "no tensor"),
    ("unknown input", {"inputs": [{**TENSOR, "name": "z"}]}, "`z` is not known"),
    ("name no text", {"inputs": [{**TENSOR, "name": 3}]}, "is not known"),
    ("input twice", {"inputs": [TENSOR, TENSOR]}, "stands twice"),
    ("wrong datatype", {"inputs": [{**TENSOR, "datatype": "INT64"}]}, "expected FP32; received INT64"),
    ("bytes", {"inputs": [{**TENSOR, "datatype": "BYTES"}]}, "expected FP32; received BYTES"),
    ("no datatype", {"inputs": [{"name": "x", "shape": [2, 4], "data": [1]}]}, "expected FP32; received nothing"),
    ("no shape", {"inputs": [{"name": "x", "datatype": "FP32", "data": [1]}]}, "malformed `shape`"),
    ("negative shape", {"inputs": [{**TENSOR, "shape": [-2, -4]}]}, "malformed `shape`"),
    ("boolean shape", {"inputs": [{**TENSOR, "shape": [True, 4]}]}, "malformed `shape`"),
    ("fraction in shape", {"inputs": [{**TENSOR, "shape": [2.0, 4]}]}, "malformed `shape`"),
    ("huge shape", {"inputs": [{**TENSOR, "shape": [2**62, 4]}]}, "too many items"),
    ("wrong shape", {"inputs": [{**TENSOR, "shape": [2, 5]}]}, "expected (batch, 4); received (2, 5)"),
    ("data too short", {"inputs": [{**TENSOR, "data": [1, 2]}]}, "expected 8 elements for (2, 4); received 2 elements"),
    ("nested otherwise", {"inputs": [{**TENSOR, "data": X.T.tolist()}]}, "nested lists of shape (4, 2)"),
    ("data no list", {"inputs": [{**TENSOR, "data": 3}]}, "no `data`"),
    ("no data", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4]}]}, "no `data`"),
    ("id no text", {"inputs": [TENSOR], "id": 7}, "`id` is not text"),
    ("unknown output", {"inputs": [TENSOR], "outputs": [{"name": "z"}]}, "output `z` is not known"),
    ("nameless output", {"inputs": [TENSOR], "outputs": [{}]}, "has no name"),
    ("outputs no list", {"inputs": [TENSOR], "outputs": {}}, "`outputs` is no list"),
    ("parameters no object", {"inputs": [TENSOR], "parameters": []}, "`parameters`"),
    ("flag no flag", {"inputs": [TENSOR], "parameters": {"binary_data_output": 1}}, "no flag"),
    ("classification", {"inputs": [TENSOR], "outputs": [CLASSES]}, "output `y` asks for `classification`"),
    ("zero items", {"inputs": [{**TENSOR, "shape": [0, 4], "data": []}]}, "empty"),
]


@pytest.mark.parametrize(("body", "text"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_bad_requests_are_refused_with_the_reason(app: AsgiApplication, body: dict[str, object], text: str) -> None:
    answer = infer(app, body)
    assert answer.status in (400, 413)
    assert text in answer.error


PATH = "/v2/models/digits/infer"
TWINS = [
    (b'{"inputs": [], "inputs": [%b]}', "inputs"),
    (b'{"id": "a", "inputs": [%b], "id": "b"}', "id"),
    (b'{"id": "a:b", "inputs": [%b], "id": "c"}', "id"),
    (b'{"inputs": [%b], "\\u0069nputs": []}', "inputs"),
    (b'{"id": "\\u003a", "inputs": [%b], "id": "\\u003a"}', "id"),
    (b'{"inputs": [%b], "parameters": {"a": 1, "a": 2}}', "a"),
    (b'{"inputs": [%b], "outputs": [{"name": "y", "name": "total"}]}', "name"),
    (b'{"inputs": [%b], "parameters": {"a": {"b": {"c": {"d": {"e": {"f": 1, "f": 2}}}}}}}', "f"),
    (b'{"inputs": [%b], "outputs": [], "parameters": {"a": [1, {"b": 1, "b": 2}]}}', "b"),
]


@pytest.mark.parametrize(("form", "key"), TWINS)
def test_a_key_that_stands_twice_is_refused_by_name(app: AsgiApplication, form: bytes, key: str) -> None:
    answer = ask(app, "POST", PATH, form % json.dumps(TENSOR).encode())
    assert (answer.status, f"`{key}` stands twice" in answer.error) == (400, True), answer.error


def test_data_that_stands_twice_is_refused_raw_or_not(app: AsgiApplication) -> None:
    twice = json.dumps(TENSOR).encode()[:-1] + b', "data": [1, 2, 3, 4, 5, 6, 7, 8]}'
    answer = ask(app, "POST", PATH, b'{"inputs": [%b]}' % twice)
    assert (answer.status, "`data` stands twice" in answer.error) == (400, True), answer.error
    head = json.dumps({"inputs": [raw_tensor(X)]}).encode()
    head = head.replace(b'"binary_data_size"', b'"binary_data_size": 1, "binary_data_size"')
    headers = {"inference-header-content-length": str(len(head))}
    answer = ask(app, "POST", PATH, head + X.tobytes(), headers)
    assert (answer.status, "`binary_data_size` stands twice" in answer.error) == (400, True), answer.error


@pytest.mark.parametrize(
    "more",
    [
        {"id": "urn:uuid:1"},
        {"id": 'a\\b"c:d\n'},
        {"id": "\u263a:", "parameters": {"a:b": {"c": [":", {"d": ":"}]}}},
        {"parameters": {"a": {"b": {"c": {"d": {"e": {"f": ":"}}}}}}},
        {"parameters": {"a": [1, ":", {"b": 1}], "large": 10**300}},
    ],
)
def test_colons_in_a_right_request_do_no_harm(app: AsgiApplication, more: dict[str, object]) -> None:
    for ascii_only in (True, False):
        body = json.dumps({"inputs": [TENSOR], **more}, ensure_ascii=ascii_only).encode()
        assert ask(app, "POST", PATH, body).status == 200


def test_classification_of_nothing_is_no_classification(app: AsgiApplication) -> None:
    outputs = [{"name": "y", "parameters": {"classification": 0}}]
    assert infer(app, {"inputs": [TENSOR], "outputs": outputs}).status == 200


@pytest.mark.parametrize(
    ("tensor", "raw", "text"),
    [
        (raw_tensor(X, binary_data_size=31), X.tobytes(), "expected 32 bytes"),
        (raw_tensor(X, binary_data_size=64), X.tobytes(), "cut short"),
        (raw_tensor(X, binary_data_size=-1), X.tobytes(), "malformed `binary_data_size`"),
        (raw_tensor(X, binary_data_size="32"), X.tobytes(), "malformed `binary_data_size`"),
        (raw_tensor(X, binary_data_size=2**62), X.tobytes(), "cut short"),
        (raw_tensor(X, binary_data_size=2**70), X.tobytes(), "malformed `binary_data_size`"),
        (raw_tensor(X), X.tobytes() + b"!", "belong to no input"),
        ({**raw_tensor(X), "data": [1]}, X.tobytes(), "both"),
    ],
)
def test_wrong_byte_counts_are_refused(app: AsgiApplication, tensor: dict[str, object], raw: bytes, text: str) -> None:
    answer = binary(app, {"inputs": [tensor]}, raw)
    assert answer.status == 400
    assert text in answer.error


@pytest.mark.parametrize("length", ["-1", "x", "9999999", "9" * 40, "1.5"])
def test_a_wrong_header_length_is_refused(app: AsgiApplication, length: str) -> None:
    answer = binary(app, {"inputs": [raw_tensor(X)]}, X.tobytes(), length=length)
    assert answer.status == 400
    assert "Inference-Header-Content-Length" in answer.error


def test_a_byte_that_is_no_boolean_is_refused(app: AsgiApplication) -> None:
    table = {"inputs": [raw_tensor(np.array([2], dtype=np.uint8), "flag", "BOOL")]}
    assert "0 or 1" in binary(app, table, b"\x02", path="/v2/models/mixed/infer").error


def test_metadata_of_server_and_model(app: AsgiApplication) -> None:
    for path in ("/v2", "/v2/"):
        server = ask(app, "GET", path).json
        assert server["name"] == "noa"
        assert "binary_tensor_data" in server["extensions"]
    model = ask(app, "GET", "/v2/models/digits").json
    assert model["versions"] == ["2"]
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert [row["name"] for row in model["outputs"]] == ["y", "total"]


def test_versions_in_the_path_must_be_the_loaded_one(app: AsgiApplication) -> None:
    assert infer(app, {"inputs": [TENSOR]}, "/v2/models/digits/versions/2/infer").json["model_version"] == "2"
    refused = infer(app, {"inputs": [TENSOR]}, "/v2/models/digits/versions/1/infer")
    assert refused.status == 404
    assert "expected `2`; received `1`" in refused.error
    assert ask(app, "GET", "/v2/models/digits/versions/2/ready").json == {"name": "digits", "ready": True}
    assert ask(app, "GET", "/v2/models/digits/versions/9").status == 404
    assert ask(app, "GET", "/v2/models/digits/versions/x/ready").status == 404


def test_readiness_of_models_and_server(app: AsgiApplication) -> None:
    assert ask(app, "GET", "/v2/health/live").json == {"live": True}
    assert ask(app, "GET", "/v2/models/digits/ready").status == 200
    assert ask(app, "GET", "/v2/models/absent/ready").status == 503
    assert ask(app, "GET", "/v2/models/nobody/ready").status == 404
    ready = ask(app, "GET", "/v2/health/ready")
    assert (ready.status, ready.json["ready"], ready.json["live"]) == (503, False, True)
    assert "`absent`" in ready.error


def test_repository_index_and_refusal_to_load_by_hand(app: AsgiApplication) -> None:
    rows = {row["name"]: row for row in json.loads(ask(app, "POST", "/v2/repository/index", b"").body)}
    assert (rows["digits"]["version"], rows["digits"]["state"]) == ("2", "READY")
    assert rows["absent"]["state"] == "UNAVAILABLE"
    ready = json.loads(ask(app, "POST", "/v2/repository/index", {"ready": True}).body)
    assert "absent" not in {row["name"] for row in ready}
    refused = ask(app, "POST", "/v2/repository/models/digits/unload", b"")
    assert refused.status == 400
    assert "promote" in refused.error
