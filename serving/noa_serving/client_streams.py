"""What noa's clients ask of streams and read of them, apart from how the bytes travel.

    with Client(url) as client:
        for step in client.stream("writer", {"tokens": tokens}):
            print(step.number, step.outputs["next"])

A stream that broke off is not taken up again: its steps so far are gone with the server's state.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast
from urllib.parse import quote

import numpy as np

from noa.errors import InvalidInputError, ServiceError
from noa.signatures import numpy_dtype
from noa_serving._client_wire import (
    DTYPES,
    Answer,
    Inputs,
    NoAnswerError,
    Request,
    Row,
    error_of,
    fitting_arrays,
    read_inputs,
    stranger,
)

_MOST_EVENT_BYTES = 256 << 20
_SHOWN = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step gave. `number` counts from 1; a NaN or infinity comes as NaN: JSON has neither."""

    number: int
    outputs: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEnd:
    """Why a stream ended (`stop`, `max_steps`, `deadline`), and which version computed all of it."""

    reason: str
    steps: int
    model: str
    version: int
    digest: str
    arm: str = ""


class StepStream:
    """The steps of one stream as they come. It is asked for with the first step; `end` is there after the last.

    It has a connection of its own, which `close`, the end of a `with` block or of the object gives up.
    """

    def __init__(self, steps: Generator[Step, None, StreamEnd]) -> None:
        self.end: StreamEnd | None = None
        self._steps = steps

    def close(self) -> None:
        """Let the server compute no more of it."""
        self._steps.close()

    def __iter__(self) -> StepStream:
        return self

    def __next__(self) -> Step:
        try:
            return next(self._steps)
        except StopIteration as exc:
            self.end = cast("StreamEnd | None", exc.value) or self.end
            raise

    def __enter__(self) -> StepStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStepStream:
    """As `StepStream`, in an event loop; `aclose` or the end of an `async with` block gives it up."""

    def __init__(self, steps: AsyncGenerator[Step | StreamEnd]) -> None:
        self.end: StreamEnd | None = None
        self._steps = steps

    async def aclose(self) -> None:
        """Let the server compute no more of it."""
        await self._steps.aclose()

    def __aiter__(self) -> AsyncStepStream:
        return self

    async def __anext__(self) -> Step:
        found = await anext(self._steps)
        if isinstance(found, Step):
            return found
        self.end = found
        await self.aclose()
        raise StopAsyncIteration

    async def __aenter__(self) -> AsyncStepStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Event(NamedTuple):
    """One server-sent event."""

    name: str
    id: str
    data: str


class EventReader:
    """Parses server-sent events, however their bytes are cut.

    Source: WHATWG HTML, "Server-sent events", without `retry`, which nobody here follows.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[str, str] = {}
        self._data: list[str] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[Event]:
        """Return the events that are whole now.

        Raises:
            ValueError: an event is no text, or larger than any could be.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._size += len(line)
            event = self._take(line.rstrip(b"\r").decode())
            if event is not None:
                yield event
        if self._size + len(self._rest) > _MOST_EVENT_BYTES:
            raise ValueError("an event is too large")

    def _take(self, line: str) -> Event | None:
        if not line:
            fields, data = self._fields, self._data
            self._fields, self._data, self._size = {}, [], 0
            return Event(fields.get("event", "message"), fields.get("id", ""), "\n".join(data)) if data else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name:
            self._fields[name] = value
        return None


class StepReader:
    """Makes steps of the events of one answer. `metadata` is the model's, by which outputs get their dtypes."""

    def __init__(self, metadata: Mapping[str, object], url: str) -> None:
        rows = metadata.get("outputs")
        self._rows = {str(row["name"]): row for row in cast("list[Row]", rows if isinstance(rows, list) else [])}
        self._url = url
        self._events = EventReader()
        self.steps = 0

    def read(self, data: bytes) -> Iterator[Step | StreamEnd]:
        """Return the steps that are whole now, and the end if it is there.

        Raises:
            NotFoundError, InvalidInputError, ServiceError: the stream ended with an error of the server.
            ServiceError: what came is no stream of noa's.
        """
        try:
            events = list(self._events.feed(data))
            for event in events:
                if event.name == "error":
                    table = _object(event)
                    status = table.get("status")
                    answer = Answer(status if isinstance(status, int) else 500, {}, event.data.encode())
                    raise error_of(answer, self._url)
                if event.name == "end":
                    yield _read_end(_object(event))
                elif event.name == "step":
                    yield self._read_step(event)
        except (ValueError, KeyError, TypeError) as exc:
            raise stranger(self._url, "events of a stream", f"{type(exc).__name__} in {data[:_SHOWN]!r}") from exc

    def _read_step(self, event: Event) -> Step:
        outputs = cast("dict[str, object]", _object(event)["outputs"])
        self.steps = int(event.id)
        arrays = {name: _array(self._rows[name], values) for name, values in outputs.items()}
        return Step(number=self.steps, outputs=arrays)


def stream_request(
    endpoint: str,
    inputs: Inputs,
    metadata: Mapping[str, object],
    url: str,
    *,
    outputs: Sequence[str],
    max_steps: int | None,
    deadline_s: float | None,
) -> Request:
    """Return the request for a stream. Arrays without elements are left out, as the server begins with such.

    Raises:
        InvalidInputError: an array is no tensor, would lose values as the model's dtype, has no name, or holds a number
            that JSON has not.
    """
    arrays = fitting_arrays(inputs, read_inputs(metadata, url))
    table: dict[str, object] = {"inputs": {name: _json_values(one) for name, one in arrays.items() if one.size}}
    if outputs:
        table["outputs"] = list(outputs)
    if max_steps is not None:
        table["max_steps"] = max_steps
    headers = {"content-type": "application/json", "accept": "text/event-stream"}
    if deadline_s is not None:
        headers["noa-timeout-ms"] = str(max(1, round(deadline_s * 1000)))
    try:
        body = json.dumps(table, allow_nan=False).encode()
    except ValueError as exc:
        raise InvalidInputError("an input holds NaN or an infinity", expected="finite numbers") from exc
    return Request("POST", f"/predict/{quote(endpoint, safe='')}/stream", body, headers)


def broken_off(steps: int, reason: object, url: str) -> ServiceError:
    """Return the error of a stream that ended without an end."""
    return NoAnswerError(
        f"the stream broke off after {steps} steps",
        where=url,
        expected="an event `end`",
        received=str(reason) or type(reason).__name__,
        remedy="Ask again; see `noa status` and the server's log for why",
        is_refused=False,
    )


def _read_end(table: Mapping[str, object]) -> StreamEnd:
    return StreamEnd(
        reason=str(table["reason"]),
        steps=int(str(table["steps"])),
        model=str(table["model"]),
        version=int(str(table["version"])),
        digest=str(table["digest"]),
        arm=str(table.get("arm", "")),
    )


def _object(event: Event) -> dict[str, object]:
    table: object = json.loads(event.data)
    if not isinstance(table, dict):
        raise TypeError("an event holds no object")
    return cast("dict[str, object]", table)


def _array(row: Row, values: object) -> np.ndarray:
    """Return what a JSON list writes down, in the dtype of an output; `null` is NaN."""
    dtype = numpy_dtype(DTYPES[str(row["datatype"])])
    if dtype.kind == "V":  # bfloat16 is sent as float32
        return np.array(values, dtype=np.float32).astype(dtype)
    return np.array(values, dtype=dtype)


def _json_values(array: np.ndarray) -> object:
    return cast("object", (array.astype(np.float32) if array.dtype.kind == "V" else array).tolist())
