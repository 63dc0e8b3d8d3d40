"""Server-sent events: what a stream looks like on the wire, in noa's own form and in that of Triton's extension.

Source: WHATWG HTML, "Server-sent events"; Triton Inference Server, docs/protocol/extension_generate.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import orjson

from noa_serving._http import HeaderList, refuse
from noa_serving._tensors import json_value

if TYPE_CHECKING:
    from noa_serving._generation import Generation
    from noa_serving._stream_counts import EndReason

EVENT_HEADERS: HeaderList = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx sends each event at once
)


class EventForm(Protocol):
    """How the events of one way in are written."""

    def step(self, generation: Generation, number: int, arrays: Mapping[str, np.ndarray]) -> bytes:
        """Return the event of a step; `number` counts from 1."""
        ...

    def end(self, generation: Generation, steps: int, reason: EndReason) -> bytes:
        """Return the event after the last step, empty where this form has none."""
        ...

    def error(self, error: Exception) -> bytes:
        """Return the event of an error after the first step."""
        ...


class NamedEvents:
    """`event: step` with the outputs, `event: end` with the reason, `event: error` as errors are elsewhere."""

    def step(self, generation: Generation, number: int, arrays: Mapping[str, np.ndarray]) -> bytes:
        """Return e.g. `{"outputs": {"next": [[5]]}}` under the id of its number."""
        del generation
        return b"event: step\nid: %d\ndata: %b\n\n" % (
            number,
            _json({"outputs": {name: json_value(array) for name, array in arrays.items()}}),
        )

    def end(self, generation: Generation, steps: int, reason: EndReason) -> bytes:
        """Return why it ended, after how many steps, and which version computed."""
        table: dict[str, object] = {"reason": reason, "steps": steps, "model": generation.model}
        table |= {"version": generation.number, "digest": generation.digest}
        if generation.arm:
            table["arm"] = generation.arm
        return b"event: end\ndata: %b\n\n" % _json(table)

    def error(self, error: Exception) -> bytes:
        """Return the text of an error, and the status that it would have had before the first step."""
        status, text = _told(error)
        return b"event: error\ndata: %b\n\n" % _json({"error": text, "status": status})


class GenerateEvents:
    """Triton's: events without names, one for each step; outputs lie flat, and one that has one element is bare."""

    def step(self, generation: Generation, number: int, arrays: Mapping[str, np.ndarray]) -> bytes:
        """Return e.g. `{"model_name": "writer", "model_version": "3", "next": 5}`."""
        del number
        table: dict[str, object] = {"model_name": generation.endpoint, "model_version": str(generation.number)}
        for name, array in arrays.items():
            table[name] = json_value(array.reshape(()) if array.size == 1 else array.reshape(-1))
        return b"data: %b\n\n" % _json(table)

    def end(self, generation: Generation, steps: int, reason: EndReason) -> bytes:
        """Return nothing: the end of the answer is the end of the stream."""
        del generation, steps, reason
        return b""

    def error(self, error: Exception) -> bytes:
        """Return `{"error": ...}`."""
        return b"data: %b\n\n" % _json({"error": _told(error)[1]})


def _told(error: Exception) -> tuple[int, str]:
    """Return status and text of an error, as HTTP answers it."""
    answer = refuse(error)
    return answer.status, str(orjson.loads(answer.body)["error"])


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
