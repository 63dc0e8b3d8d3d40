"""Bodies: from bytes to a JSON object, or a refusal that says why.

orjson is strict (no NaN, no infinity, bounded depth) but lets the last of two equal keys win. A client that sends an
input twice has a bug, so bodies in which a key stands twice are refused; the costly look happens only when a cheap
count says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import cast

import orjson

from noa.errors import InvalidInputError
from noa_serving._http import Headers, RequestRefusedError

JsonObject = dict[str, object]
_JSON_TYPES = (b"", b"application/json", b"text/json", b"application/vnd.api+json")


def parse_object(body: bytes, *, names: Iterable[bytes] = ()) -> JsonObject:
    """Parse a JSON object. `names` are the quoted keys that must not stand twice.

    Raises:
        InvalidInputError: there is no body, it is malformed, is no object, or says a key twice.
    """
    if not body:
        raise InvalidInputError("the request has no body", expected="a JSON object")
    try:
        value: object = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise InvalidInputError(f"the body is not valid JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise InvalidInputError(
            "the body is not what it should be", expected="a JSON object", received=json_kind(value)
        )
    if (b"\\" in body and b"\\u" in body) or any(body.count(name) > 1 for name in names):
        _refuse_twins(body)
    return cast("JsonObject", value)


def check_content_type(headers: Headers, *, binary: bool = False, also: bool = False) -> None:
    """Refuse a body that says it is something else than JSON, or is compressed.

    `binary` allows bytes as well; `also` says that the caller knows the type as one of its own.

    Raises:
        RequestRefusedError: 415.
    """
    encoding = headers.get(b"content-encoding", b"identity")
    if encoding.lower() not in (b"", b"identity"):
        raise RequestRefusedError(
            "compressed bodies are not read", status=415, expected="no content-encoding", received=_shown(encoding)
        )
    kind = headers.get(b"content-type", b"")
    if also or kind == b"application/json":
        return
    kind = kind.partition(b";")[0].strip().lower()
    if kind in _JSON_TYPES or (binary and kind == b"application/octet-stream"):
        return
    raise RequestRefusedError(
        "the body has a content type that is not read here",
        status=415,
        expected="application/json" + (" or application/octet-stream" if binary else ""),
        received=_shown(kind),
        remedy="Send the header `content-type: application/json`",
    )


def json_kind(value: object) -> str:
    """Return what a JSON value is, in words."""
    words: dict[type, str] = {dict: "an object", list: "a list", str: "text", bool: "true/false", type(None): "null"}
    return words.get(type(value), "a number")


def _refuse_twins(body: bytes) -> None:
    def pairs(items: list[tuple[str, object]]) -> JsonObject:
        table = dict(items)
        if len(table) < len(items):
            names = [name for name, _ in items]
            twin = next(name for name in names if names.count(name) > 1)
            raise InvalidInputError(f"the key `{twin[:80]}` stands twice in one object", expected="each key once")
        return table

    try:
        json.loads(body, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError("the body is not valid JSON") from exc


def _shown(raw: bytes) -> str:
    return raw[:80].decode("latin-1")
