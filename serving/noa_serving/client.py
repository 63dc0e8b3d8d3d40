"""A small synchronous client: tensors in, tensors out, over one kept-alive connection.

`predict` speaks the Open Inference Protocol with raw tensors. A busy server's `Retry-After` is honoured up to the
client's own deadline; a connection that the server closed while idle is opened again, once. Not for use from several
threads at once; `AsyncClient` sends many requests at once.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Generator, Sequence
from typing import cast

from noa.signatures import TensorSpec
from noa_serving._client_wire import (
    Address,
    Answer,
    Inputs,
    Prediction,
    Request,
    error_of,
    infer_request,
    json_request,
    metadata_request,
    needs_specs,
    no_answer,
    parse_address,
    read_inputs,
    read_object,
    read_prediction,
    read_specs,
    wait_before_retry,
)
from noa_serving.client_streams import Step, StepReader, StepStream, StreamEnd, broken_off, stream_request

_PART_BYTES = 64 << 10


class Client:
    """Calls one server. `timeout_s` bounds one whole call, retries included.

    `tls` says how an `https` server is checked and what is shown to it; None: as the system does.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 30.0, tls: ssl.SSLContext | None = None
    ) -> None:
        self._address: Address = parse_address(url)
        self.url = self._address.url
        self.timeout_s = timeout_s
        self._tls = tls
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._connection: http.client.HTTPConnection | None = None

    def predict(self, endpoint: str, inputs: Inputs, *, outputs: Sequence[str] = ()) -> Prediction:
        """Send arrays with a batch axis and return the outputs. One bare array will do for a model with one input.

        Arrays are cast to the model's dtypes if nothing is lost, e.g. int64 holding small whole numbers to float32.

        Raises:
            NotFoundError: no such endpoint.
            InvalidInputError: the server refused the input; the message is the server's.
            ServiceError: the server does not answer, is not ready or is overloaded for longer than `timeout_s`.
        """
        specs = read_inputs(self.metadata(endpoint), self.url) if needs_specs(inputs) else {}
        return read_prediction(self._call(infer_request(endpoint, inputs, specs=specs, outputs=outputs)), self.url)

    def predict_json(self, endpoint: str, body: object) -> dict[str, object]:
        """Send a plain JSON prediction request as it is and return the JSON answer. Errors as in `predict`."""
        return read_object(self._call(json_request(endpoint, body)), self.url)

    def stream(
        self,
        endpoint: str,
        inputs: Inputs,
        *,
        outputs: Sequence[str] = (),
        max_steps: int | None = None,
        deadline_s: float | None = None,
    ) -> StepStream:
        """Call a model step by step: the steps come one by one, over a connection of their own.

        `max_steps` and `deadline_s`, for all steps together, ask for less than the server would give. `timeout_s` of
        the client bounds how long the first step, and then each further one, may take to come. What waits for the steps
        to be taken is not computed.

        Raises, with the first step or a later one:
            NotFoundError: no such endpoint, or it has no streams.
            InvalidInputError: the server refused the input, or the model cannot compute it.
            ServiceError: the server does not answer or is overloaded for too long, the model failed, or the stream
                broke off. It is not taken up again.
        """
        steps = self._stream(endpoint, inputs, outputs=outputs, max_steps=max_steps, deadline_s=deadline_s)
        return StepStream(steps)

    def metadata(self, endpoint: str) -> dict[str, object]:
        """Return the model metadata of the Open Inference Protocol. Errors as in `predict`."""
        return read_object(self._call(metadata_request(endpoint)), self.url)

    def inputs(self, endpoint: str) -> tuple[TensorSpec, ...]:
        """Return the input tensors of an endpoint; a free first axis is called `batch`. Errors as in `predict`."""
        return read_specs(self.metadata(endpoint), self.url)

    def endpoints(self) -> dict[str, dict[str, object]]:
        """Return each endpoint with its model reference and state."""
        table = read_object(self._call(Request("GET", "/")), self.url)
        return cast("dict[str, dict[str, object]]", table["endpoints"])

    def status(self) -> dict[str, object]:
        """Return what the server knows about its endpoints: versions, digests, swaps and refused versions."""
        return read_object(self._call(Request("GET", "/status")), self.url)

    def metrics(self) -> str:
        """Return what the server has counted, as Prometheus text."""
        return self._call(Request("GET", "/metrics")).body.decode()

    def ready(self) -> bool:
        """Tell whether the server answers and every endpoint is loaded. Never raises for a server that is away."""
        return self.answers("/v2/health/ready")

    def answers(self, path: str) -> bool:
        """Tell whether `GET path` answers 200 at the first try."""
        try:
            return self._exchange(Request("GET", path), self.timeout_s).status == 200
        except (OSError, http.client.HTTPException):
            self.close()
            return False

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stream(
        self, endpoint: str, inputs: Inputs, *, outputs: Sequence[str], max_steps: int | None, deadline_s: float | None
    ) -> Generator[Step, None, StreamEnd]:
        metadata = self.metadata(endpoint)
        request = stream_request(
            endpoint, inputs, metadata, self.url, outputs=outputs, max_steps=max_steps, deadline_s=deadline_s
        )
        reader = StepReader(metadata, self.url)
        connection = self._new_connection(self.timeout_s)
        try:
            response = self._begin_stream(connection, request)
            while True:
                try:
                    data = response.read1(_PART_BYTES)
                except (OSError, http.client.HTTPException) as exc:
                    raise broken_off(reader.steps, exc, self.url) from exc
                if not data:
                    raise broken_off(reader.steps, "the end of the answer", self.url)
                for found in reader.read(data):
                    if isinstance(found, StreamEnd):
                        return found
                    yield found
        finally:
            connection.close()

    def _begin_stream(self, connection: http.client.HTTPConnection, request: Request) -> http.client.HTTPResponse:
        """Send a request until its answer begins with 200."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                headers = {**self._headers, **request.headers}
                connection.request(request.method, request.path, body=request.body, headers=headers)
                response = connection.getresponse()
                if response.status == 200:
                    return response
                found = {name.lower(): value for name, value in response.getheaders()}
                answer = Answer(response.status, found, response.read())
            except (OSError, http.client.HTTPException) as exc:
                raise no_answer(exc, self.url, timeout_s=self.timeout_s) from exc
            wait_s = wait_before_retry(answer)
            if wait_s is None or time.monotonic() + wait_s >= deadline:
                raise error_of(answer, self.url)
            connection.close()
            time.sleep(wait_s)

    def _call(self, request: Request) -> Answer:
        deadline = time.monotonic() + self.timeout_s
        while True:
            answer = self._try(request, max(deadline - time.monotonic(), 0.001))
            if answer.status == 200:
                return answer
            wait_s = wait_before_retry(answer)
            if wait_s is None or time.monotonic() + wait_s >= deadline:
                raise error_of(answer, self.url)
            time.sleep(wait_s)

    def _try(self, request: Request, timeout_s: float) -> Answer:
        was_open = self._connection is not None
        try:
            try:
                return self._exchange(request, timeout_s)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                self.close()
                if not was_open:
                    raise
                return self._exchange(request, timeout_s)
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            raise no_answer(exc, self.url, timeout_s=self.timeout_s) from exc

    def _exchange(self, request: Request, timeout_s: float) -> Answer:
        connection = self._open(timeout_s)
        headers = {**self._headers, **request.headers}
        connection.request(request.method, request.path, body=request.body, headers=headers)
        response = connection.getresponse()
        content = response.read()
        found = {name.lower(): value for name, value in response.getheaders()}
        if response.will_close:
            self.close()
        return Answer(response.status, found, content)

    def _open(self, timeout_s: float) -> http.client.HTTPConnection:
        connection = self._connection
        if connection is None:
            connection = self._new_connection(timeout_s)
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection = connection
        elif connection.sock is not None:  # pyright: ignore[reportUnnecessaryComparison]  # None after the server closed
            connection.sock.settimeout(timeout_s)
        return connection

    def _new_connection(self, timeout_s: float) -> http.client.HTTPConnection:
        host, port = self._address.host, self._address.port
        if self._address.scheme != "https":
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=self._tls)
