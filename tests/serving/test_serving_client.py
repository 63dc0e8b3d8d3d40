"""noa's own client and the public Triton client against a real server."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import tritonclient.http as triton

from noa.errors import InvalidInputError, NotFoundError, ServiceError
from noa_serving import Client, NoAnswerError

pytestmark = pytest.mark.bentoml
X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32)


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as one:
        yield one


def test_predict_returns_arrays_and_the_version_that_computed_them(client: Client) -> None:
    prediction = client.predict("digits", {"x": X})
    assert np.array_equal(prediction.outputs["y"], X * 3)
    assert prediction.outputs["y"].flags.writeable
    assert (prediction.model, prediction.version) == ("digits", 2)
    assert prediction.digest.startswith("sha256:")
    assert list(client.predict("digits", X, outputs=["total"]).outputs) == ["total"]


def test_values_are_cast_to_the_models_dtype_unless_something_is_lost(client: Client) -> None:
    assert np.array_equal(client.predict("digits", X.astype(np.int64)).outputs["y"], X * 3)
    assert np.array_equal(client.predict("digits", X.astype(np.float64)).outputs["y"], X * 3)
    inputs = {"pixels": np.zeros((1, 2, 2), np.int64), "index": np.array([1]), "flag": np.array([True])}
    assert client.predict("mixed", inputs).outputs["half"].dtype == np.float16
    with pytest.raises(InvalidInputError, match="`index` loses values"):
        client.predict("mixed", {**inputs, "index": np.array([0.5])})
    with pytest.raises(InvalidInputError, match="`pixels` loses values"):
        client.predict("mixed", {**inputs, "pixels": np.full((1, 2, 2), 300)})
    with pytest.raises(InvalidInputError, match="loses values"):
        client.predict("digits", np.full((1, 4), 1e300))


def test_errors_of_the_server_are_raised_with_its_words(client: Client) -> None:
    with pytest.raises(InvalidInputError, match=r"`x` has the wrong shape.*\(batch, 4\).*\(1, 3\)"):
        client.predict("digits", np.ones((1, 3), np.float32))
    with pytest.raises(NotFoundError, match="`nobody`"):
        client.predict("nobody", {"x": X})
    with pytest.raises(InvalidInputError, match="several inputs"):
        client.predict("mixed", X)


def test_plain_json_metadata_and_readiness(client: Client) -> None:
    assert client.ready()
    assert client.predict_json("digits", {"inputs": [[1, 2, 3, 4]]})["version"] == 2
    assert client.metadata("digits")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert client.endpoints()["digits"]["state"] == "ready"


def test_one_connection_serves_many_calls_and_is_opened_again_after_an_idle_close(client: Client) -> None:
    client.predict("digits", X)
    connection = client._connection
    assert connection is not None
    client.predict("digits", X)
    assert client._connection is connection
    connection.sock.shutdown(socket.SHUT_RDWR)
    assert client.predict("digits", X).version == 2


def test_a_server_that_is_away_is_a_clear_error() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        with Client(f"http://127.0.0.1:{port}", timeout_s=1) as client:
            assert not client.ready()
            with pytest.raises(NoAnswerError, match="does not answer") as caught:
                client.predict("digits", {"x": X})
    error = caught.value
    assert (error.where, error.received) == (client.url, "connection refused: nothing listens there")
    assert (error.expected, error.facts["is_refused"]) == ("an answer over HTTP within 1 s", True)
    assert str(error.remedy).startswith("Start it with `noa serve`")
    with pytest.raises(InvalidInputError, match="not the URL"):
        Client("ftp://127.0.0.1")


class BusyOnce(BaseHTTPRequestHandler):
    """Answers 503 with `Retry-After` first, then 200."""

    calls = 0
    retry_after = "0"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        type(self).calls += 1
        is_busy = type(self).calls == 1
        body = json.dumps({"error": "busy"} if is_busy else {"version": 1}).encode()
        self.send_response(503 if is_busy else 200)
        if is_busy:
            self.send_header("retry-after", self.retry_after)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...  # the base class names it so


@pytest.mark.parametrize(("retry_after", "calls"), [("0", 2), ("50", 1)])
def test_retry_after_is_honoured_within_the_clients_deadline(retry_after: str, calls: int) -> None:
    handler = type("Handler", (BusyOnce,), {"calls": 0, "retry_after": retry_after})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{server.server_port}", timeout_s=5) as client:
            if calls == 2:
                assert client.predict_json("digits", {}) == {"version": 1}
            else:
                with pytest.raises(ServiceError, match="busy"):
                    client.predict_json("digits", {})
        server.shutdown()
    assert handler.calls == calls


@pytest.fixture
def public(url: str) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    yield client
    client.close()


def test_the_public_triton_client_reads_health_metadata_and_index(public: triton.InferenceServerClient) -> None:
    assert public.is_server_live()
    assert public.is_server_ready()
    assert public.is_model_ready("digits")
    assert public.is_model_ready("digits", "2")
    assert not public.is_model_ready("digits", "7")
    assert "binary_tensor_data" in public.get_server_metadata()["extensions"]
    assert public.get_model_metadata("digits")["inputs"][0]["shape"] == [-1, 4]
    assert {row["name"] for row in public.get_model_repository_index()} == {"digits", "first", "mixed"}


def test_the_public_triton_client_reads_statistics_and_configuration(public: triton.InferenceServerClient) -> None:
    tensor = triton.InferInput("x", [2, 4], "FP32")
    tensor.set_data_from_numpy(X)
    public.infer("first", [tensor])
    row = public.get_inference_statistics("first")["model_stats"][0]
    assert (row["version"], row["inference_count"], row["inference_stats"]["success"]["count"]) == ("1", 2, 1)
    assert len(public.get_inference_statistics()["model_stats"]) == 3
    assert public.get_model_config("first", "1")["input"][0]["dims"] == [4]
    with pytest.raises(triton.InferenceServerException, match="promote"):
        public.load_model("first")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_the_public_triton_client_infers_json_and_binary(
    public: triton.InferenceServerClient, binary_in: bool, binary_out: bool
) -> None:
    tensor = triton.InferInput("x", [2, 4], "FP32")
    tensor.set_data_from_numpy(X, binary_data=binary_in)
    wanted = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("y", "total")]
    result = public.infer("digits", [tensor], outputs=wanted, request_id="42")
    assert np.array_equal(result.as_numpy("y"), X * 3)
    assert result.as_numpy("total").tolist() == [30.0, 78.0]
    response = result.get_response()
    assert (response["id"], response["model_version"]) == ("42", "2")
    assert public.infer("digits", [tensor]).as_numpy("y").shape == (2, 4)


def test_the_public_triton_client_gets_the_reason_of_a_refusal(public: triton.InferenceServerClient) -> None:
    tensor = triton.InferInput("x", [1, 3], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 3), np.float32))
    with pytest.raises(triton.InferenceServerException, match="`x` has the wrong shape"):
        public.infer("digits", [tensor])


def test_keep_alive_survives_refused_requests(url: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    connection.connect()
    opened = connection.sock
    for body, status in ((b"{", 400), (b'{"inputs": [[1,2,3,4]]}', 200), (b"[]", 400), (b"", 400)):
        connection.request("POST", "/predict/digits", body, {"content-type": "application/json"})
        response = connection.getresponse()
        response.read()
        assert response.status == status
    assert connection.sock is opened
    connection.close()


def test_what_another_web_server_answers_is_told_with_all_parts_of_an_error() -> None:
    class Stranger(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = b"<html>hello</html>"
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with Client(f"127.0.0.1:{server.server_port}") as client:
                for call in (lambda: client.predict("digits", {"x": X}), lambda: client.predict_json("digits", {})):
                    with pytest.raises(ServiceError, match="not that of a server of noa") as caught:
                        call()
                    assert caught.value.received == "status 200: <html>hello</html>"
                    assert None not in caught.value.to_dict().values()
        finally:
            server.shutdown()
            thread.join()
