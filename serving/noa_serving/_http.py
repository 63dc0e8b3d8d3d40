"""What a request and an answer are here, apart from any server: plain values that routes take and give.

Routes raise `NoaError`; `refuse` turns it into an answer. The status is chosen from the type by one table, so that no
route thinks about numbers, and a text never holds more than the error's own words: no path, no traceback.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

import orjson

from noa.errors import ConflictError, InvalidInputError, NoaError, NotFoundError

Headers: TypeAlias = Mapping[bytes, bytes]
HeaderList: TypeAlias = tuple[tuple[bytes, bytes], ...]

JSON_TYPE: tuple[bytes, bytes] = (b"content-type", b"application/json")
BINARY_TYPE: tuple[bytes, bytes] = (b"content-type", b"application/octet-stream")

_ONCE_ONLY = (b"authorization", b"x-api-key", b"traceparent")

log = logging.getLogger("noa.serving")


class RequestRefusedError(NoaError):
    """A request is refused with a given HTTP status; `retry_after_s` is sent where the caller may come back."""

    def __init__(
        self,
        what: str,
        *,
        status: int,
        retry_after_s: int | None = None,
        close: bool = False,
        expected: object = None,
        received: object = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what, expected=expected, received=received, remedy=remedy)
        self.status = status
        self.retry_after_s = retry_after_s
        self.close = close


class ModelFailedError(RequestRefusedError):
    """What runs the model failed as such: all requests of the batch get this answer, and none is tried alone."""


class Response(NamedTuple):  # made for every request, and far quicker than a frozen dataclass
    """One whole answer. `headers` lack only the content length."""

    status: int
    body: bytes
    headers: HeaderList = (JSON_TYPE,)


def header_table(pairs: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return headers by their names in lower case. Of one that stands twice the last counts; of a key, none does.

    A proxy in front may have judged the other one. A request that names two traces belongs to neither.
    """
    rows = [(name.lower(), value) for name, value in pairs]
    table = dict(rows)
    if len(table) != len(rows):
        names = [name for name, _ in rows]
        table.update((name, b"") for name in _ONCE_ONLY if names.count(name) > 1)
    return table


def json_response(value: object, *, status: int = 200, headers: HeaderList = ()) -> Response:
    """Return `value` as a JSON answer; arrays of numpy are allowed inside."""
    return Response(status, orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), (JSON_TYPE, *headers))


def refuse(error: BaseException) -> Response:
    """Return the answer for an error. What noa did not raise on purpose is logged and answered with a bare 500."""
    headers: list[tuple[bytes, bytes]] = []
    status = status_of(error)
    if isinstance(error, RequestRefusedError):
        if error.retry_after_s is not None:
            headers.append((b"retry-after", str(error.retry_after_s).encode()))
        if error.close:
            headers.append((b"connection", b"close"))
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
    if status == 500:
        log.error("a request failed inside the server", exc_info=error)
        return json_response({"error": "the server failed on this request; its log has the reason"}, status=500)
    return json_response({"error": public_text(error)}, status=status, headers=tuple(headers))


def public_text(error: BaseException) -> str:
    """Return what callers may read of an error: never `where`, which may be a path, nor the text of a library."""
    if not isinstance(error, NoaError):
        return f"the server failed ({type(error).__name__})"
    return str(NoaError(error.what, expected=error.expected, received=error.received, remedy=error.remedy))


def status_of(error: BaseException) -> int:
    """Return the HTTP status that an error is answered with."""
    if isinstance(error, RequestRefusedError):
        return error.status
    table: tuple[tuple[type[NoaError], int], ...] = (
        (InvalidInputError, 400),
        (NotFoundError, 404),
        (ConflictError, 409),
    )
    return next((status for kind, status in table if isinstance(error, kind)), 500)
