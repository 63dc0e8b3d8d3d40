"""Tensors of texts (BYTES) through every way in and out: the same texts everywhere, and hostile bytes are refused."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
import tritonclient.utils.shared_memory as triton_shared_memory
from grpc_kit import serving_grpc
from http_kit import serving_http
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from observe_kit import RECORD
from serving_kit import Answer, Project, ask, build_app, endpoint, make_project
from text_kit import COLOURS, echo_model, texts_model
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from noa.errors import InvalidInputError, SignatureError
from noa.signatures import TensorSpec
from noa.text_tensors import pack_texts, text_array, unpack_texts
from noa_serving import Client, start_server
from noa_serving._asgi import AsgiApplication
from noa_serving._json_body import parse_object
from noa_serving._observer import PayloadRow
from noa_serving._payload_table import Redactor, nested_lists, write_table
from noa_serving._tensors import MAX_TEXTS, array_from_bytes, array_from_json
from noa_serving.load_test import example_inputs

WORDS = [["red", "nothing"], ["", 'a: b, "c"\n\0é日😀']]
NUMBERS = [[0, -1], [-1, -1]]
SCALE = [1.0, 7.0]
OUTPUTS = {"echo": WORDS, "numbers": NUMBERS, "scaled": [2.0, 14.0], "colour": ["green", "none of them: é"]}
NPY, NPZ, ARROW = "application/x-npy", "application/x-npz", "application/vnd.apache.arrow.stream"
SPEC = TensorSpec(name="text", dtype="string", shape=("batch",))
TEXTS = st.lists(st.text(max_size=8), min_size=1, max_size=6)
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Project:
    made = make_project(tmp_path_factory.mktemp("texts"), empty_state)
    made.publish("texts", texts_model)
    made.publish("echo", echo_model)
    return made


@pytest.fixture(scope="module")
def app(project: Project, tmp_path_factory: pytest.TempPathFactory) -> AsgiApplication:
    folder = tmp_path_factory.mktemp("regions")
    return build_app(project.settings, regions=folder, texts="texts@champion", echo="echo@champion")


@pytest.fixture(scope="module")
def url(app: AsgiApplication) -> Iterator[str]:
    with serving_http(app) as one:
        yield one


@pytest.fixture(scope="module")
def grpc_address(app: AsgiApplication) -> Iterator[str]:
    with serving_grpc(app) as one:
        yield one


def objects(values: object) -> np.ndarray:
    return np.array(values, dtype=object)


def oip_row(values: object = WORDS, **changes: object) -> dict[str, object]:
    return {"name": "words", "datatype": "BYTES", "shape": [2, 2], "data": values, **changes}


def oip(app: AsgiApplication, row: Mapping[str, object], **more: object) -> Answer:
    scale = {"name": "scale", "datatype": "FP32", "shape": [2], "data": SCALE}
    return ask(app, "POST", "/v2/models/texts/infer", {"inputs": [row, scale], **more})


def binary(app: AsgiApplication, data: bytes, shape: Sequence[int], *, size: int | None = None) -> Answer:
    row = {"name": "text", "datatype": "BYTES", "shape": list(shape)}
    table = {"inputs": [{**row, "parameters": {"binary_data_size": len(data) if size is None else size}}]}
    head = json.dumps(table).encode()
    return ask(app, "POST", "/v2/models/echo/infer", head + data, {"inference-header-content-length": str(len(head))})


def outputs_of(answer: Answer) -> dict[str, object]:
    assert answer.status == 200, answer.body
    return {row["name"]: row["data"] for row in answer.json["outputs"]}  # type: ignore[index, attr-defined]  # JSON


def test_plain_json_takes_and_gives_texts_in_all_its_forms(app: AsgiApplication) -> None:
    columns = ask(app, "POST", "/predict/texts", {"inputs": {"words": WORDS, "scale": SCALE}})
    assert columns.json["outputs"] == OUTPUTS
    rows = [{"words": words, "scale": scale} for words, scale in zip(WORDS, SCALE, strict=True)]
    assert ask(app, "POST", "/predict/texts", {"instances": rows}).json["outputs"] == OUTPUTS
    single = ask(app, "POST", "/predict/texts", {"inputs": rows[0]})
    assert single.json["outputs"] == {name: values[0] for name, values in OUTPUTS.items()}
    assert ask(app, "POST", "/predict/echo", {"inputs": "one text"}).json["outputs"] == {"echo": "one text"}
    assert ask(app, "POST", "/invocations/echo", {"inputs": ["a", "b"]}).json == {"predictions": ["a", "b"]}
    split = {"dataframe_split": {"columns": ["text"], "data": [["a"], ["b"]]}}
    assert ask(app, "POST", "/invocations/echo", split).json == {"predictions": ["a", "b"]}


def test_the_inference_protocol_takes_and_gives_texts_in_json(app: AsgiApplication) -> None:
    for values in (WORDS, [text for row in WORDS for text in row]):
        found = outputs_of(oip(app, oip_row(values)))
        assert found["echo"] == [text for row in WORDS for text in row]
        assert found["colour"] == OUTPUTS["colour"]
    metadata = ask(app, "GET", "/v2/models/texts").json
    assert metadata["inputs"][0] == {"name": "words", "datatype": "BYTES", "shape": [-1, 2]}  # type: ignore[index]  # JSON
    config = ask(app, "GET", "/v2/models/texts/config").json
    assert config["input"][0]["data_type"] == "TYPE_STRING"  # type: ignore[index]  # JSON


@given(texts=TEXTS)
@example(texts=["x" * 70_000, ""])
@SLOW
def test_raw_texts_come_back_to_the_byte(app: AsgiApplication, texts: list[str]) -> None:
    data = pack_texts(objects(texts))
    assert outputs_of(binary(app, data, [len(texts)])) == {"echo": texts}
    row = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}
    body = {"inputs": [row], "parameters": {"binary_data_output": True}, "id": "7"}
    answer = ask(app, "POST", "/v2/models/echo/infer", body)
    length = int(answer.headers["inference-header-content-length"])
    head = json.loads(answer.body[:length])
    assert head["outputs"][0]["parameters"]["binary_data_size"] == len(data)
    assert answer.body[length:] == data


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (oip_row(["a", 1, "b", "c"]), "expected string; received a number"),
        (oip_row(["a", None, "b", "c"]), "received null"),
        (oip_row([1, 2, 3, 4]), "received a number"),
        (oip_row([["a", "b"], ["c"]]), "is ragged"),
        (oip_row([["a", "b"], [["c"], ["d"]]]), "is ragged"),
        (oip_row(["a", ["b"], "c", "d"]), "is ragged"),
        (oip_row(["a"]), "is not its `shape`"),
        (oip_row(datatype="FP32"), "expected BYTES; received FP32"),
        (oip_row(shape=[2**62, 2]), "too many items"),
        (oip_row(shape=[2, 2, 2]), "wrong shape"),
    ],
)
def test_bad_texts_in_json_are_refused_by_name(app: AsgiApplication, row: dict[str, object], reason: str) -> None:
    answer = oip(app, row)
    assert (answer.status, reason in answer.error) == (400 if "items" not in reason else 413, True), answer.body


def test_bad_texts_in_plain_json_are_refused_by_name(app: AsgiApplication) -> None:
    for value, reason in ((["a", 1.5], "received a number"), ([["a"], "b"], "is ragged"), ([], "is empty")):
        answer = ask(app, "POST", "/predict/echo", {"inputs": {"text": value}})
        assert (answer.status, reason in answer.error) == (400, True), answer.body
    lone = b'{"inputs": {"text": ["\\ud800"]}}'
    assert ask(app, "POST", "/predict/echo", lone, {"content-type": "application/json"}).status == 400
    twice = b'{"inputs": {"text": [["a:b"]], "text": ["c"]}}'
    assert "stands twice" in ask(app, "POST", "/predict/echo", twice, {"content-type": "application/json"}).error


HOSTILE = {
    "no length": (b"\x01\x00\x00", [1], "at least 4 bytes"),
    "no bytes": (b"", [1], "at least 4 bytes"),
    "cut short": (b"\x05\x00\x00\x00abcd", [1], "is cut short in text 0"),
    "second cut short": (b"\x01\x00\x00\x00a\x03\x00\x00\x00", [2], "is cut short in text 1"),
    "length cut short": (b"\x03\x00\x00\x00abc\x01", [2], "is cut short in text 1"),
    "2 GiB": (struct.pack("<I", 2**31) + b"abcd", [1], "is cut short"),
    "4 GiB": (b"\xff\xff\xff\xffabcd", [1], "is cut short"),
    "more": (b"\x01\x00\x00\x00ab", [1], "bytes after its last text"),
    "no UTF-8": (b"\x02\x00\x00\x00\xff\xfe", [1], "no UTF-8"),
    "a surrogate": (b"\x03\x00\x00\x00\xed\xa0\x80", [1], "no UTF-8"),
    "overlong": (b"\x02\x00\x00\x00\xc0\x80", [1], "no UTF-8"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_raw_texts_are_refused_with_the_same_words_over_rest_and_grpc(
    app: AsgiApplication, grpc_address: str, name: str
) -> None:
    data, shape, reason = HOSTILE[name]
    answer = binary(app, data, shape)
    assert (answer.status, reason in answer.error) == (400, True), answer.body
    if not data:
        return  # gRPC takes an empty entry for typed contents that are missing
    message = service_pb2.ModelInferRequest(model_name="echo", raw_input_contents=[data])
    message.inputs.add(name="text", datatype="BYTES", shape=shape)
    with triton_grpc.InferenceServerClient(grpc_address) as client, pytest.raises(Exception, match="INVALID") as caught:
        client._client_stub.ModelInfer(message)
    assert answer.error in str(caught.value)


def test_more_texts_than_a_tensor_may_have_are_refused_before_they_are_made() -> None:
    spec = TensorSpec(name="text", dtype="string", shape=("batch", "width"))
    with pytest.raises(SignatureError, match="too many texts"):
        array_from_json(spec, [["a"] * (MAX_TEXTS + 1)])
    for shape in ((2**31, 2**31), (1, MAX_TEXTS * 2)):
        with pytest.raises(SignatureError, match="wrong number of bytes"):
            array_from_bytes(spec, memoryview(b"\0" * 64), shape, writable=False)


@given(texts=TEXTS, cut=st.integers(0, 80), extra=st.binary(max_size=4), flip=st.integers(0, 400))
@settings(max_examples=300, deadline=None)
def test_a_reader_of_raw_texts_refuses_or_reads_the_very_bytes(
    texts: list[str], cut: int, extra: bytes, flip: int
) -> None:
    data = bytearray(pack_texts(objects(texts))[: cut or None] + extra)
    if flip and data:
        data[flip % len(data)] ^= 1 << flip % 8
    for count in (len(texts), len(texts) + 1, 0):
        try:
            found = array_from_bytes(SPEC, memoryview(bytes(data)), (count,), writable=False)
        except SignatureError as exc:
            assert "input `text`" in str(exc)
        else:
            assert found.shape == (count,)
            assert pack_texts(found) == bytes(data)


@given(texts=TEXTS)
def test_packed_texts_are_what_tritons_client_writes(texts: list[str]) -> None:
    array = objects(texts)
    public = triton.InferInput("text", [len(texts)], "BYTES")
    public.set_data_from_numpy(objects([text.encode() for text in texts]))
    assert public._get_binary_data() == pack_texts(array)
    found = unpack_texts(memoryview(pack_texts(array)), array.shape, field="text", name="it")
    assert found.tolist() == texts


def use(client: Any, made: Any, values: np.ndarray, *, binary_data: bool | None = None) -> Any:
    words, scale = made.InferInput("words", [2, 2], "BYTES"), made.InferInput("scale", [2], "FP32")
    ways = {} if binary_data is None else {"binary_data": binary_data}
    words.set_data_from_numpy(values, **ways)
    scale.set_data_from_numpy(np.array(SCALE, np.float32), **ways)
    wanted = [made.InferRequestedOutput(name, **ways) for name in OUTPUTS]
    return client.infer("texts", [words, scale], outputs=wanted)


def decoded(array: np.ndarray) -> object:
    return [[each.decode() for each in row] if isinstance(row, np.ndarray) else row.decode() for row in array]


@pytest.mark.parametrize("values", [objects(WORDS), objects([[t.encode() for t in row] for row in WORDS])])
def test_the_public_clients_work_unmodified(url: str, grpc_address: str, values: np.ndarray) -> None:
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        for binary_data in (True, False):
            result = use(client, triton, values, binary_data=binary_data)
            echo = result.as_numpy("echo")
            assert decoded(echo) == WORDS if binary_data else echo.tolist() == WORDS
            assert result.as_numpy("numbers").tolist() == NUMBERS
    with triton_grpc.InferenceServerClient(grpc_address) as client:
        result = use(client, triton_grpc, values)
        assert decoded(result.as_numpy("echo")) == WORDS
        assert decoded(result.as_numpy("colour")) == OUTPUTS["colour"]
        assert client.get_model_config("texts").config.input[0].data_type == 13  # TYPE_STRING


def test_typed_texts_over_grpc_are_answered_typed(grpc_address: str) -> None:
    message = service_pb2.ModelInferRequest(model_name="echo")
    row = message.inputs.add(name="text", datatype="BYTES", shape=[2])
    row.contents.bytes_contents.extend([b"one", "zwölf".encode()])
    with triton_grpc.InferenceServerClient(grpc_address) as client:
        answer = client._client_stub.ModelInfer(message)
        assert list(answer.outputs[0].contents.bytes_contents) == [b"one", "zwölf".encode()]
        row.contents.bytes_contents[1] = b"\xff"
        with pytest.raises(Exception, match="no UTF-8"):
            client._client_stub.ModelInfer(message)
        row.contents.bytes_contents.append(b"more")
        with pytest.raises(Exception, match="not its `shape`"):
            client._client_stub.ModelInfer(message)


def test_texts_in_shared_memory_go_both_ways(url: str) -> None:
    key, texts = f"/noa_test_{uuid4().hex}", ["one", "zwölf"]
    handle = triton_shared_memory.create_shared_memory_region("texts", key, 128)
    try:
        packed = pack_texts(objects(texts))
        triton_shared_memory.set_shared_memory_region(handle, [np.frombuffer(packed, np.uint8)])
        with triton.InferenceServerClient(url.removeprefix("http://")) as client:
            client.register_system_shared_memory("texts", key, 128)
            row, echo = triton.InferInput("text", [2], "BYTES"), triton.InferRequestedOutput("echo")
            row.set_shared_memory("texts", len(packed))
            echo.set_shared_memory("texts", 64, offset=64)
            client.infer("echo", [row], outputs=[echo])
            found = triton_shared_memory.get_contents_as_numpy(handle, np.object_, [2], offset=64)
            assert [each.decode() for each in found] == texts
            row.set_shared_memory("texts", len(packed) - 1)
            with pytest.raises(InferenceServerException, match="cut short"):
                client.infer("echo", [row])
            row.set_shared_memory("texts", len(packed))
            echo.set_shared_memory("texts", 4, offset=64)
            with pytest.raises(InferenceServerException, match="does not fit"):
                client.infer("echo", [row], outputs=[echo])
            client.unregister_system_shared_memory("texts")
    finally:
        triton_shared_memory.destroy_shared_memory_region(handle)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def send(app: AsgiApplication, body: bytes, kind: str, *, name: str = "echo", accept: str = "*/*") -> Answer:
    return ask(app, "POST", f"/predict/{name}", body, {"content-type": kind, "accept": accept})


@pytest.mark.parametrize("turn", [np.asarray, np.asfortranarray, lambda a: a.astype(">U9")])
def test_numpy_bodies_hold_text_of_fixed_width(app: AsgiApplication, turn: Callable[..., np.ndarray]) -> None:
    file = io.BytesIO()
    np.savez(file, words=turn(np.array(WORDS)), scale=np.array(SCALE, np.float32))
    found = np.load(io.BytesIO(send(app, file.getvalue(), NPZ, name="texts").body))
    wanted = [[text[:9] for text in row] for row in WORDS] if turn not in (np.asarray, np.asfortranarray) else WORDS
    assert found["echo"].tolist() == wanted
    assert found["colour"].tolist() == OUTPUTS["colour"]
    assert np.load(io.BytesIO(send(app, npy(np.array(["", ""])), NPY).body)).tolist() == ["", ""]


def test_bad_numpy_texts_are_refused(app: AsgiApplication) -> None:
    body = npy(np.array(["ab", "cd"]))
    code = body.index(b"a\0\0\0")
    for points, reason in ((0x110000, "is no text"), (0xD800, "no UTF-8")):
        answer = send(app, body[:code] + struct.pack("<I", points) + body[code + 4 :], NPY)
        assert (answer.status, reason in answer.error) == (400, True), answer.body
    assert "wrong number of bytes" in send(app, body[:-1], NPY).error
    assert "wrong number of bytes" in send(app, body.replace(b"<U2", b"<U9"), NPY).error
    assert "expected string; received float32" in send(app, npy(np.zeros(2, np.float32)), NPY).error
    assert "expected string; received bytes16" in send(app, npy(np.array([b"ab", b"cd"])), NPY).error
    refused = ask(app, "POST", "/predict/echo", {"inputs": ["a\0"]}, {"accept": NPY})
    assert (refused.status, "no NUL" in refused.error) == (406, True)
    long = ask(app, "POST", "/predict/echo", {"inputs": ["a" * 1_000_000] + ["b"] * 17}, {"accept": NPY})
    assert (long.status, "longest of 1000000" in long.error) == (406, True)


def arrow(columns: Mapping[str, pa.Array]) -> bytes:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch(columns)
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_arrow_bodies_hold_utf8(app: AsgiApplication, kind: pa.DataType) -> None:
    flat = pa.array([text for row in WORDS for text in row], kind)
    columns = {"words": pa.FixedSizeListArray.from_arrays(flat, 2), "scale": pa.array(SCALE, pa.float32())}
    table = pa.ipc.open_stream(send(app, arrow(columns), ARROW, name="texts").body).read_all()
    assert table.column("echo").to_pylist() == WORDS * 2
    assert table.column("colour").to_pylist() == OUTPUTS["colour"] * 2  # type: ignore[operator]  # a list
    assert "has nulls" in send(app, arrow({"text": pa.array(["a", None], kind)}), ARROW).error
    assert "expected string; received int64" in send(app, arrow({"text": pa.array([1, 2])}), ARROW).error
    wrong = {"words": columns["words"], "scale": pa.array(["1", "2"])}
    assert "expected float32; received string" in send(app, arrow(wrong), ARROW, name="texts").error
    body = arrow({"text": pa.array(["abcd", "e"], kind)})
    assert "not readable" in send(app, body.replace(b"abcd", b"ab\xff\xfe"), ARROW).error


def test_noas_client_sends_and_reads_texts(url: str) -> None:
    with Client(url) as client:
        for words in (objects(WORDS), np.array(WORDS)):
            found = client.predict("texts", {"words": words, "scale": np.array(SCALE, np.float32)}).outputs
            assert {name: array.tolist() for name, array in found.items()} == OUTPUTS
        assert client.predict("echo", np.array(["a", "b"])).outputs["echo"].tolist() == ["a", "b"]
        assert client.inputs("echo") == (SPEC,)
        for wrong in (np.array([1.0]), objects(["a", 1]), objects(["\ud800"]), np.array([b"a"])):
            with pytest.raises(InvalidInputError, match="`text`"):
                client.predict("echo", {"text": wrong})
        with pytest.raises(InvalidInputError, match="`scale` holds no numbers"):
            client.predict("texts", {"words": objects(WORDS), "scale": np.array(["1", "2"])})
        made = example_inputs(client.inputs("texts"), batch=3, seed=0)
        assert client.predict("texts", made).outputs["echo"].tolist() == made["words"].tolist()


@pytest.mark.bentoml
def test_requests_of_texts_are_batched_on_a_real_server_and_kept(project: Project, tmp_path: Path) -> None:
    log = project.settings.serving.payload_log.model_copy(
        update={"folder": tmp_path / "kept", "sample": 1.0, "max_file_s": 0.2}
    )
    serving = project.settings.serving.model_copy(update={"payload_log": log})
    changed = project.settings.model_copy(update={"serving": serving})
    with start_server(changed, endpoints={"texts": endpoint("texts@champion")}) as process:
        url = process.wait_ready().url
        with triton.InferenceServerClient(url.removeprefix("http://"), concurrency=4) as client:
            asked: list[Any] = []
            for index in range(40):
                words, scale = triton.InferInput("words", [1, 2], "BYTES"), triton.InferInput("scale", [1], "FP32")
                words.set_data_from_numpy(objects([[f"text {index}", COLOURS[index % 3]]]))
                scale.set_data_from_numpy(np.array([index % 3], np.float32))
                asked.append(client.async_infer("texts", [words, scale]))
            for index, one in enumerate(asked):
                result = one.get_result()
                assert decoded(result.as_numpy("echo")) == [[f"text {index}", COLOURS[index % 3]]]
                assert decoded(result.as_numpy("colour")) == [COLOURS[index % 3]]
                assert result.as_numpy("numbers").tolist() == [[-1, index % 3]]
    rows = [row for path in (tmp_path / "kept").rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert {row["inputs"]["words"][0][0] for row in rows} == {f"text {index}" for index in range(40)}


def test_texts_are_batched_only_as_they_are_alone(app: AsgiApplication) -> None:
    for name in ("texts", "echo"):
        generation = next(one for one in app._application.endpoints.values() if one.name == name).require()
        assert generation.batching.refusal is None
        assert generation.example[generation.input_names[0]].reshape(-1)[0] == ""


def test_the_payload_log_keeps_texts_as_utf8_and_redacts_them() -> None:
    rows = [PayloadRow(RECORD, {"x": objects([[text, "z"]])}, {"y": objects([text])}) for text in ("é", "b", "é")]
    assert nested_lists([row.inputs["x"] for row in rows]).to_pylist() == [[["é", "z"]], [["b", "z"]], [["é", "z"]]]
    table = pq.read_table(pa.BufferReader(write_table(rows, Redactor(names={"x": "hash"}, key=b"k" * 32))))
    found = table.to_pylist()
    assert [row["outputs"]["y"] for row in found] == [["é"], ["b"], ["é"]]
    hashes = [row["inputs"]["x"] for row in found]
    assert hashes[0] == hashes[2] != hashes[1]
    assert "é" not in str(hashes)
    assert table.schema.field("outputs").type.field(0).metadata[b"dtype"] == b"string"
    assert rows[0].num_bytes > 3 * 49, "texts weigh more than their references"


def test_pages_and_document_show_texts(app: AsgiApplication) -> None:
    document = ask(app, "GET", "/openapi.json").json
    content = document["paths"]["/predict/echo"]["post"]["requestBody"]["content"]  # type: ignore[index]  # JSON
    media = content["application/json"]
    assert media["example"] == {"inputs": {"text": [""]}}
    assert ask(app, "POST", "/predict/echo", media["example"]).status == 200
    named = media["schema"]["properties"]["inputs"]["anyOf"][0]["properties"]["text"]["anyOf"]
    assert named[1] == {"type": "string"}
    assert "string(batch)" in ask(app, "GET", "/docs").body.decode()


def test_colons_in_nested_texts_do_no_harm() -> None:
    body = json.dumps({"inputs": {"words": [["a: b", "c::"], ["d", ""]]}}).encode()
    assert parse_object(body) == json.loads(body)
    with pytest.raises(InvalidInputError, match="stands twice"):
        parse_object(b'{"inputs": {"words": [["a:"]], "words": [["b"]]}}')


def test_text_arrays_keep_nuls_and_shapes() -> None:
    array = text_array(["a\0", "\0", "", "b"], (2, 2))
    assert array.tolist() == [["a\0", "\0"], ["", "b"]]
    assert unpack_texts(memoryview(pack_texts(array)), (2, 2), field="x", name="x").tolist() == array.tolist()
