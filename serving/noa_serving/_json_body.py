"""Bodies: from bytes to a JSON object, or a refusal that says why.

orjson is strict (no NaN, no infinity, bounded depth) but lets the last of two equal keys win. A client that sends a key
twice has a bug, so such bodies are refused. Each key has one colon, and other colons are in strings only: a body with
no more colons than keys were read has no key twice. Only where that does not settle it comes the costly look.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import orjson

from noa.errors import InvalidInputError
from noa_serving._http import Headers, RequestRefusedError

JsonObject = dict[str, object]
_JSON_TYPES = (b"", b"application/json", b"text/json", b"application/vnd.api+json")
_DEPTH = 4
"""Objects within objects that are looked at; what is deeper gets the costly look, and fits no request."""
_TEXTS = frozenset({str, dict})


def parse_object(body: bytes) -> JsonObject:
    """Parse a JSON object.

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
    table = cast("JsonObject", value)
    # Far quicker than `count`, which looks at each byte.
    colons = len(body) - len(body.replace(b":", b""))
    if colons != _count_keys(table) and (b"\\" in body or colons != _count_keys(table) + _count_in_texts(table)):
        _refuse_twins(body)
    return table


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


def _count_keys(table: Mapping[str, Any], depth: int = _DEPTH) -> int:
    """Return how many keys were read: all of them where keys are at home, so not those of objects among numbers."""
    count = len(table)
    for value in table.values():
        kind = type(value)
        if kind is list:
            if value and type(value[0]) is dict and depth:
                for row in value:
                    if type(row) is dict:
                        count += _count_keys(row, depth - 1)
        elif kind is dict and depth:
            count += _count_keys(value, depth - 1)
    return count


def _count_in_texts(value: Any, depth: int = 2 * _DEPTH) -> int:
    """Return how many colons the strings hold that stand where `_count_keys` looks: names, an id, parameters."""
    kind = type(value)
    if kind is str:
        return value.count(":")
    if not depth or not value:
        return 0
    if kind is dict:
        return sum([key.count(":") + _count_in_texts(child, depth - 1) for key, child in value.items()])
    if kind is list and (type(value[0]) in _TEXTS or _is_nested_texts(value[0])):  # not through lists of numbers
        return sum([_count_in_texts(child, depth - 1) for child in value])
    return 0


def _is_nested_texts(value: Any) -> bool:
    """Tell whether lists within lists begin with a text: a tensor of texts."""
    while type(value) is list and value:
        value = value[0]
    return type(value) is str


def _refuse_twins(body: bytes) -> None:
    def pairs(items: list[tuple[str, object]]) -> JsonObject:
        table = dict(items)
        if len(table) < len(items):
            names = [name for name, _ in items]
            twin = next(name for name in names if names.count(name) > 1)
            raise InvalidInputError(f"the key `{twin[:80]}` stands twice in one object", expected="each key once")
        return table

    try:
        json.loads(body, object_pairs_hook=pairs, parse_int=float)  # `int` refuses thousands of digits
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError("the body is not valid JSON") from exc


def _shown(raw: bytes) -> str:
    return raw[:80].decode("latin-1")
