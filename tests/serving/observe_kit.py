"""What tests of observation share: reading a page of metrics, sending one request, a record as the server makes it."""

from __future__ import annotations

import http.client
import json
import re

from noa_serving._observer import Record, Version

JSON_BODY = json.dumps({"inputs": {"x": [[1.25, 2.5, 3.75, 4.125]]}})
_JSON = {"content-type": "application/json"}
_SAMPLE = re.compile(r"(\w+)\{(.*)\} (\S+)")


def read(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the samples of a page; one that stands twice is an error."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, labels, value = _SAMPLE.fullmatch(line).groups()  # type: ignore[union-attr]
            key = name, frozenset(re.findall(r'(\w+)="([^"]*)"', labels))
            assert key not in found, line
            found[key] = float(value)
    return found


def total(text: str, name: str, **labels: str) -> float:
    return sum(value for (one, having), value in read(text).items() if one == name and labels.items() <= having)


def values_of(text: str, name: str, label: str) -> set[str]:
    return {dict(labels)[label] for (one, labels) in read(text) if one == name}


RECORD = Record(
    ended_at=1_700_000_000_000_000_000,
    target="digits",
    route="predict",
    status=200,
    taken=1_500_000,
    client="ci",
    request_id="r-1",
    trace_id="ab" * 16,
    version=Version("digits", 3, "sha256:0"),
    items=2,
    stages=(1000, 2000, 3000, 4000, 5000, 2),
)


def post(url: str, path: str, body: str = JSON_BODY, headers: dict[str, str] | None = None) -> int:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    try:
        connection.request("POST", path, body, {**_JSON, **(headers or {})})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()
