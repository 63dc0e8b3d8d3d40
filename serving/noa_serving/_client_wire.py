"""What noa's clients send and read, apart from how the bytes travel: the same for the synchronous and the async one."""

from __future__ import annotations

import errno
import json
import math
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast
from urllib.parse import quote, urlsplit

import numpy as np

from noa.errors import InvalidInputError, NotFoundError, ServiceError, SignatureError
from noa.signatures import DType, TensorSpec, dtype_name, is_float, numpy_dtype
from noa.text_tensors import check_texts, is_text, pack_texts, unpack_texts

DTYPES = {
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
    "BF16": "bfloat16",
    "BYTES": "string",
}
_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
_HEADER_LENGTH = "inference-header-content-length"
_RETRIED = (429, 503)
_LONGEST_WAIT_S = 60.0
_SHOWN_BYTES = 120
_START_SERVER = "Start it with `noa serve` or `noa up`, or correct the address"
_WRONG_SERVER = "Check the address: `noa status` lists the project's servers"
_LOOK_AT_SERVER = "See `noa status` and the server's log"

Inputs = Mapping[str, np.ndarray] | np.ndarray
Row = Mapping[str, object]


class NoAnswerError(ServiceError):
    """A server is away, is silent for too long, or speaks no HTTP; where it is away `facts["is_refused"]` is true."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What an endpoint answered, and which version computed it."""

    outputs: Mapping[str, np.ndarray]
    model: str
    version: int
    digest: str
    arm: str = ""
    """The arm of the endpoint that answered; empty: its main version."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is. `url` has no path."""

    url: str
    scheme: str
    host: str
    port: int | None


@dataclass(frozen=True, slots=True)
class Request:
    """One request, apart from the headers that every request of a client has."""

    method: Literal["GET", "POST"]
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def parse_address(url: str) -> Address:
    """Return the parts of a server's URL.

    Raises:
        InvalidInputError: it is none.
    """
    parts = urlsplit(url if "//" in url else f"//{url}", scheme="http")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInputError("not the URL of a server", expected="http://HOST:PORT", received=url)
    return Address(f"{parts.scheme}://{parts.netloc}", parts.scheme, parts.hostname, parts.port)


def needs_specs(inputs: Inputs) -> bool:
    """Tell whether the model's metadata must be known to send `inputs`: a name is missing, or a cast may be due."""
    if not isinstance(inputs, Mapping):
        return True
    return any(np.asarray(array).dtype.name not in ("float32", "uint8") for array in inputs.values())


def metadata_request(endpoint: str) -> Request:
    """Return the request for a model's metadata."""
    return Request("GET", f"/v2/models/{quote(endpoint, safe='')}")


def json_request(endpoint: str, body: object) -> Request:
    """Return a plain JSON prediction request with `body` as it is."""
    headers = {"content-type": "application/json"}
    content = json.dumps(body, allow_nan=False).encode()
    return Request("POST", f"/predict/{quote(endpoint, safe='')}", content, headers)


def infer_request(endpoint: str, inputs: Inputs, *, specs: Mapping[str, Row], outputs: Sequence[str]) -> Request:
    """Return an inference request with raw tensors. Without `specs`, arrays are sent in the dtypes they have.

    Raises:
        InvalidInputError: an array is no tensor, would lose values as the model's dtype, or has no name.
    """
    rows: list[dict[str, object]] = []
    chunks: list[bytes] = []
    for name, array in fitting_arrays(inputs, specs).items():
        chunks.append(pack_texts(array) if is_text(array.dtype) else array.tobytes())
        rows.append(
            {
                "name": name,
                "datatype": _DATATYPES[dtype_name(array.dtype)],
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(chunks[-1])},
            }
        )
    table: dict[str, object] = {"inputs": rows, "parameters": {"binary_data_output": True}}
    if outputs:
        table["outputs"] = [{"name": name} for name in outputs]
    head = json.dumps(table).encode()
    headers = {"content-type": "application/octet-stream", _HEADER_LENGTH: str(len(head))}
    return Request("POST", f"/v2/models/{quote(endpoint, safe='')}/infer", b"".join((head, *chunks)), headers)


def fitting_arrays(inputs: Inputs, specs: Mapping[str, Row]) -> dict[str, np.ndarray]:
    """Return arrays by name in the dtypes of `specs`, or of their own without any. Errors as in `infer_request`."""
    arrays = inputs if isinstance(inputs, Mapping) else _name_single(specs, inputs)
    return {name: _contiguous(name, np.asarray(array), specs.get(name)) for name, array in arrays.items()}


def read_object(answer: Answer, url: str) -> dict[str, object]:
    """Return an answer's JSON object.

    Raises:
        ServiceError: it holds none.
    """
    try:
        found = cast("object", json.loads(answer.body))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise stranger(url, "a JSON object", f"status {answer.status}{_first_words(answer)}")
    return cast("dict[str, object]", found)


def read_inputs(metadata: Mapping[str, object], url: str) -> dict[str, Row]:
    """Return the rows of a model's inputs in its metadata by name.

    Raises:
        ServiceError: it is no such metadata.
    """
    rows = metadata.get("inputs")
    if not isinstance(rows, list):
        names = ", ".join(f"`{name}`" for name in metadata)
        raise stranger(url, "the metadata of a model, with its `inputs`", f"an object of {names or 'nothing'}")
    return {str(row["name"]): row for row in cast("list[dict[str, object]]", rows)}


def read_specs(metadata: Mapping[str, object], url: str) -> tuple[TensorSpec, ...]:
    """Return a model's inputs; a free axis is called `batch`."""
    return tuple(
        TensorSpec(
            name=name,
            dtype=cast("DType", DTYPES[str(row["datatype"])]),
            shape=tuple("batch" if size == -1 else size for size in cast("list[int]", row["shape"])),
        )
        for name, row in read_inputs(metadata, url).items()
    )


def read_prediction(answer: Answer, url: str) -> Prediction:
    """Return the arrays of an answer with raw tensors, as copies of their own.

    Raises:
        ServiceError: it holds none.
    """
    try:
        return _parse_prediction(answer)
    except (ValueError, KeyError, TypeError, SignatureError) as exc:
        raise stranger(url, "tensors as they were asked for", f"status {answer.status}{_first_words(answer)}") from exc


def wait_before_retry(answer: Answer) -> float | None:
    """Return how long to wait before the request is sent again, seconds; None if that would not help."""
    if answer.status not in _RETRIED:
        return None
    text = answer.headers.get("retry-after", "1")
    return min(float(text), _LONGEST_WAIT_S) if text.isdigit() else 1.0


def error_of(answer: Answer, url: str) -> Exception:
    """Return the error that an answer other than 200 is."""
    kind = ServiceError
    if answer.status == 404:
        kind = NotFoundError
    elif answer.status in (400, 401, 403, 405, 406, 413, 415):
        kind = InvalidInputError
    try:  # noa's own words tell what was expected and received, and what to do
        return kind(str(read_object(answer, url)["error"]), where=url, status=answer.status)
    except (ServiceError, KeyError):
        return kind(
            f"the server answered {answer.status}",
            where=url,
            expected="status 200, or an error in JSON as noa's servers answer it",
            received=f"status {answer.status}{_first_words(answer)}",
            remedy=_WRONG_SERVER if answer.status < 500 else _LOOK_AT_SERVER,
            status=answer.status,
        )


def no_answer(error: Exception, url: str, *, timeout_s: float) -> NoAnswerError:
    """Return the error for a server that does not answer, or not in HTTP."""
    received, remedy = str(error) or type(error).__name__, _LOOK_AT_SERVER
    is_refused = isinstance(error, ConnectionRefusedError) or f"[Errno {errno.ECONNREFUSED}]" in received
    if is_refused:
        received, remedy = "connection refused: nothing listens there", _START_SERVER
    elif isinstance(error, ssl.SSLError):
        remedy = "Check that it is `https` there, and `serving.tls_ca` and `serving.client_certificate`"
    elif isinstance(error, TimeoutError):
        received = f"nothing within {timeout_s:g} s"
    elif isinstance(error, OSError) and not isinstance(error, ConnectionError):
        remedy = _WRONG_SERVER  # no such host, no way there
    return NoAnswerError(
        "the server does not answer",
        where=url,
        expected=f"an answer over HTTP within {timeout_s:g} s",
        received=received,
        remedy=remedy,
        is_refused=is_refused,
    )


def _parse_prediction(answer: Answer) -> Prediction:
    length = int(answer.headers.get(_HEADER_LENGTH, len(answer.body)))
    table = cast("dict[str, object]", json.loads(answer.body[:length]))
    outputs: dict[str, np.ndarray] = {}
    start = length
    for row in cast("list[dict[str, object]]", table["outputs"]):
        name, shape = str(row["name"]), cast("list[int]", row["shape"])
        if row["datatype"] == "BYTES":
            end = start + cast("dict[str, int]", row["parameters"])["binary_data_size"]
            packed = memoryview(answer.body)[start:end]
            outputs[name] = unpack_texts(packed, shape, field=name, name=f"output `{name}`")
            start = end
            continue
        dtype = numpy_dtype(DTYPES[str(row["datatype"])]).newbyteorder("<")
        size = math.prod(shape)
        array = np.frombuffer(answer.body, dtype=dtype, count=size, offset=start).reshape(shape)
        outputs[name] = array.astype(dtype.newbyteorder("="))
        start += size * dtype.itemsize
    return Prediction(
        outputs=outputs,
        model=answer.headers.get("noa-model", ""),
        version=int(answer.headers.get("noa-version", "0")),
        digest=answer.headers.get("noa-digest", ""),
        arm=answer.headers.get("noa-arm", ""),
    )


def stranger(url: str, expected: str, received: str) -> ServiceError:
    """Return the error for an answer that no server of noa gives."""
    what = "the answer is not that of a server of noa"
    return ServiceError(what, where=url, expected=expected, received=received, remedy=_WRONG_SERVER)


def _first_words(answer: Answer) -> str:
    text = " ".join(answer.body[:_SHOWN_BYTES].decode(errors="replace").split())
    return f": {text}" if text else ""


def _name_single(specs: Mapping[str, Row], array: np.ndarray) -> dict[str, np.ndarray]:
    if len(specs) != 1:
        names = ", ".join(f"`{name}`" for name in specs)
        raise InvalidInputError("the model has several inputs", expected=f"arrays named {names}", received="one array")
    return {next(iter(specs)): array}


def _contiguous(name: str, array: np.ndarray, spec: Row | None) -> np.ndarray:
    wanted = DTYPES.get(str(spec["datatype"])) if spec is not None else None
    if is_text(array.dtype) and wanted in (None, "string"):
        check_texts(array, field=name, name=f"input `{name}`")
        return array
    if wanted == "string":
        raise InvalidInputError(f"input `{name}` holds no texts", expected="str", received=array.dtype.name)
    if wanted is not None and array.dtype.name != wanted:
        if is_text(array.dtype):
            raise InvalidInputError(f"input `{name}` holds no numbers", expected=wanted, received="texts")
        with np.errstate(all="ignore"):
            cast_array = array.astype(numpy_dtype(wanted))
        if not _is_same(array, cast_array):
            raise InvalidInputError(
                f"input `{name}` loses values as {wanted}", expected=wanted, received=array.dtype.name
            )
        array = cast_array
    if array.dtype.name not in _DATATYPES:
        raise InvalidInputError(
            f"input `{name}` has no tensor dtype", expected="numbers or texts", received=array.dtype.name
        )
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _is_same(before: np.ndarray, after: np.ndarray) -> bool:
    if before.dtype.kind not in "biuf" and before.dtype.name != "bfloat16":
        return False
    if is_float(after.dtype.name) and is_float(before.dtype.name):
        return bool((np.isfinite(after) == np.isfinite(before)).all())  # precision may go, magnitude may not
    if after.dtype.kind == "b":
        return before.dtype.kind == "b"
    return bool((after.astype(before.dtype) == before).all())
