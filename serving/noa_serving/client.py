"""A small synchronous client: tensors in, tensors out, over one kept-alive connection.

`predict` speaks the Open Inference Protocol with raw tensors. A busy server's `Retry-After` is honoured up to the
client's own deadline; a connection that the server closed while idle is opened again, once. Not for use from several
threads at once.
"""

from __future__ import annotations

import http.client
import json
import math
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast
from urllib.parse import quote, urlsplit

import numpy as np

from noa.errors import InvalidInputError, NotFoundError, ServiceError
from noa.signatures import DType, TensorSpec

_DTYPES = {
    "BOOL": "bool",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_DATATYPES = {dtype: name for name, dtype in _DTYPES.items()}
_HEADER_LENGTH = "Inference-Header-Content-Length"
_RETRIED = (429, 503)
_LONGEST_WAIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What an endpoint answered, and which version computed it."""

    outputs: Mapping[str, np.ndarray]
    model: str
    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Client:
    """Calls one server. `timeout_s` bounds one whole call, retries included."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 30.0) -> None:
        parts = urlsplit(url if "//" in url else f"//{url}", scheme="http")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInputError("not the URL of a server", expected="http://HOST:PORT", received=url)
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.timeout_s = timeout_s
        self._host, self._port, self._scheme = parts.hostname, parts.port, parts.scheme
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._connection: http.client.HTTPConnection | None = None

    def predict(
        self, endpoint: str, inputs: Mapping[str, np.ndarray] | np.ndarray, *, outputs: Sequence[str] = ()
    ) -> Prediction:
        """Send arrays with a batch axis and return the outputs. One bare array will do for a model with one input.

        Arrays are cast to the model's dtypes if nothing is lost, e.g. int64 holding small whole numbers to float32.

        Raises:
            NotFoundError: no such endpoint.
            InvalidInputError: the server refused the input; the message is the server's.
            ServiceError: the server does not answer, is not ready or is overloaded for longer than `timeout_s`.
        """
        specs = {str(row["name"]): row for row in self._inputs_of(endpoint)} if self._needs_specs(inputs) else {}
        arrays = inputs if isinstance(inputs, Mapping) else _name_single(specs, inputs)
        rows: list[dict[str, object]] = []
        chunks: list[bytes] = []
        for name, array in arrays.items():
            array = _contiguous(name, np.asarray(array), specs.get(name))
            chunks.append(array.tobytes())
            rows.append(
                {
                    "name": name,
                    "datatype": _DATATYPES[array.dtype.name],
                    "shape": list(array.shape),
                    "parameters": {"binary_data_size": len(chunks[-1])},
                }
            )
        table: dict[str, object] = {"inputs": rows, "parameters": {"binary_data_output": True}}
        if outputs:
            table["outputs"] = [{"name": name} for name in outputs]
        head = json.dumps(table).encode()
        headers = {"content-type": "application/octet-stream", _HEADER_LENGTH: str(len(head))}
        path = f"/v2/models/{quote(endpoint, safe='')}/infer"
        return _read_prediction(self._call("POST", path, body=b"".join((head, *chunks)), headers=headers))

    def predict_json(self, endpoint: str, body: object) -> dict[str, object]:
        """Send a plain JSON prediction request as it is and return the JSON answer. Errors as in `predict`."""
        path = f"/predict/{quote(endpoint, safe='')}"
        headers = {"content-type": "application/json"}
        answer = self._call("POST", path, body=json.dumps(body, allow_nan=False).encode(), headers=headers)
        return cast("dict[str, object]", json.loads(answer.body))

    def metadata(self, endpoint: str) -> dict[str, object]:
        """Return the model metadata of the Open Inference Protocol. Errors as in `predict`."""
        return cast("dict[str, object]", json.loads(self._call("GET", f"/v2/models/{quote(endpoint, safe='')}").body))

    def inputs(self, endpoint: str) -> tuple[TensorSpec, ...]:
        """Return the input tensors of an endpoint; a free first axis is called `batch`. Errors as in `predict`."""
        return tuple(
            TensorSpec(
                name=str(row["name"]),
                dtype=cast("DType", _DTYPES[str(row["datatype"])]),
                shape=tuple("batch" if size == -1 else size for size in cast("list[int]", row["shape"])),
            )
            for row in self._inputs_of(endpoint)
        )

    def endpoints(self) -> dict[str, dict[str, object]]:
        """Return each endpoint with its model reference and state."""
        table = cast("dict[str, object]", json.loads(self._call("GET", "/").body))
        return cast("dict[str, dict[str, object]]", table["endpoints"])

    def status(self) -> dict[str, object]:
        """Return what the server knows about its endpoints: versions, digests, swaps and refused versions."""
        return cast("dict[str, object]", json.loads(self._call("GET", "/status").body))

    def ready(self) -> bool:
        """Tell whether the server answers and every endpoint is loaded. Never raises for a server that is away."""
        return self.answers("/v2/health/ready")

    def answers(self, path: str) -> bool:
        """Tell whether `GET path` answers 200 at the first try."""
        try:
            return self._exchange("GET", path, None, {}, self.timeout_s).status == 200
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

    def _needs_specs(self, inputs: Mapping[str, np.ndarray] | np.ndarray) -> bool:
        if not isinstance(inputs, Mapping):
            return True
        return any(np.asarray(array).dtype.name not in ("float32", "uint8") for array in inputs.values())

    def _inputs_of(self, endpoint: str) -> list[dict[str, object]]:
        return cast("list[dict[str, object]]", self.metadata(endpoint)["inputs"])

    def _call(
        self,
        method: Literal["GET", "POST"],
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> _Answer:
        deadline = time.monotonic() + self.timeout_s
        while True:
            left_s = deadline - time.monotonic()
            answer = self._try(method, path, body, headers or {}, max(left_s, 0.001))
            if answer.status == 200:
                return answer
            wait_s = _retry_after(answer)
            if answer.status not in _RETRIED or time.monotonic() + wait_s >= deadline:
                raise _error_of(answer, self.url)
            time.sleep(wait_s)

    def _try(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float) -> _Answer:
        was_open = self._connection is not None
        try:
            try:
                return self._exchange(method, path, body, headers, timeout_s)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                self.close()
                if not was_open:
                    raise
                return self._exchange(method, path, body, headers, timeout_s)
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            reason = "timed out" if isinstance(exc, TimeoutError) else str(exc) or type(exc).__name__
            raise ServiceError(f"the server does not answer: {reason}", where=self.url) from exc

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> _Answer:
        connection = self._open(timeout_s)
        connection.request(method, path, body=body, headers={**self._headers, **headers})
        response = connection.getresponse()
        content = response.read()
        found = {name.lower(): value for name, value in response.getheaders()}
        if response.will_close:
            self.close()
        return _Answer(response.status, found, content)

    def _open(self, timeout_s: float) -> http.client.HTTPConnection:
        connection = self._connection
        if connection is None:
            kind = http.client.HTTPSConnection if self._scheme == "https" else http.client.HTTPConnection
            connection = kind(self._host, self._port, timeout=timeout_s)
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection = connection
        elif connection.sock is not None:  # pyright: ignore[reportUnnecessaryComparison]  # None after the server closed
            connection.sock.settimeout(timeout_s)
        return connection


def _name_single(specs: Mapping[str, dict[str, object]], array: np.ndarray) -> dict[str, np.ndarray]:
    if len(specs) != 1:
        names = ", ".join(f"`{name}`" for name in specs)
        raise InvalidInputError("the model has several inputs", expected=f"arrays named {names}", received="one array")
    return {next(iter(specs)): array}


def _contiguous(name: str, array: np.ndarray, spec: Mapping[str, object] | None) -> np.ndarray:
    wanted = _DTYPES.get(str(spec["datatype"])) if spec is not None else None
    if wanted is not None and array.dtype.name != wanted:
        with np.errstate(all="ignore"):
            cast_array = array.astype(wanted)
        if not _is_same(array, cast_array):
            raise InvalidInputError(
                f"input `{name}` loses values as {wanted}", expected=wanted, received=array.dtype.name
            )
        array = cast_array
    if array.dtype.name not in _DATATYPES:
        raise InvalidInputError(f"input `{name}` has no tensor dtype", expected="numbers", received=array.dtype.name)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _is_same(before: np.ndarray, after: np.ndarray) -> bool:
    if before.dtype.kind not in "biuf":
        return False
    if after.dtype.kind == "f" and before.dtype.kind == "f":
        return bool((np.isfinite(after) == np.isfinite(before)).all())  # precision may go, magnitude may not
    if after.dtype.kind == "b":
        return before.dtype.kind == "b"
    return bool((after.astype(before.dtype) == before).all())


def _read_prediction(answer: _Answer) -> Prediction:
    length = int(answer.headers.get(_HEADER_LENGTH.lower(), len(answer.body)))
    table = cast("dict[str, object]", json.loads(answer.body[:length]))
    outputs: dict[str, np.ndarray] = {}
    start = length
    for row in cast("list[dict[str, object]]", table["outputs"]):
        dtype = np.dtype(_DTYPES[str(row["datatype"])]).newbyteorder("<")
        shape = cast("list[int]", row["shape"])
        size = math.prod(shape)
        array = np.frombuffer(answer.body, dtype=dtype, count=size, offset=start).reshape(shape)
        outputs[str(row["name"])] = array.astype(dtype.newbyteorder("="))
        start += size * dtype.itemsize
    return Prediction(
        outputs=outputs,
        model=answer.headers.get("noa-model", ""),
        version=int(answer.headers.get("noa-version", "0")),
        digest=answer.headers.get("noa-digest", ""),
    )


def _retry_after(answer: _Answer) -> float:
    text = answer.headers.get("retry-after", "1")
    return min(float(text), _LONGEST_WAIT_S) if text.isdigit() else 1.0


def _error_of(answer: _Answer, url: str) -> Exception:
    try:
        text = str(cast("dict[str, object]", json.loads(answer.body))["error"])
    except (ValueError, KeyError, TypeError):
        text = f"the server answered {answer.status}"
    if answer.status == 404:
        return NotFoundError(text, where=url, status=answer.status)
    if answer.status in (400, 401, 405, 413, 415):
        return InvalidInputError(text, where=url, status=answer.status)
    return ServiceError(text, where=url, status=answer.status)
