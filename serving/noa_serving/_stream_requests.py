"""Understanding a request for a stream, whichever way it came.

`POST /predict/{endpoint}/stream` takes the bodies of `POST /predict/{endpoint}`; JSON may say `max_steps` beside
`inputs`, other bodies say it in the header `noa-max-steps`. `POST /v2/models/{model}/generate_stream` takes Triton's
generate request: the inputs by name beside `parameters`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from noa.errors import InvalidInputError
from noa_serving._http import Headers, RequestRefusedError
from noa_serving._json_body import JsonObject, check_content_type, json_kind, parse_object
from noa_serving._media import media_of_body, output_names, read_inputs
from noa_serving._oip import asked_timeout_s
from noa_serving._plain import read_columns, read_table
from noa_serving._prepared import too_many_items
from noa_serving._streams import StreamRequest

if TYPE_CHECKING:
    from noa_serving._generation import Generation

STEPS_HEADER = b"noa-max-steps"
MAX_STEPS = "max_steps"

_EVENT_TYPES = (b"text/event-stream", b"text/*", b"*/*")
_MAX_DIGITS = 9
_GENERATE_PARAMETERS = (MAX_STEPS, "timeout", "stream")
"""`stream` says nothing here: the path does. Clients of Triton send it."""


def read_plain(
    generation: Generation, headers: Headers, body: bytes, *, max_batch_items: int, started_ns: int
) -> StreamRequest:
    """Understand a request of `POST /predict/{endpoint}/stream`.

    Raises:
        InvalidInputError, SignatureError: it is malformed or does not fit the model.
        RequestRefusedError: another content type, or too large.
    """
    check_accept(headers)
    media = media_of_body(headers)
    max_steps, is_single = _steps_of(headers), False
    if media == "json":
        table = parse_object(body)
        max_steps = table.pop(MAX_STEPS, max_steps)
        optional = () if generation.stream is None else generation.stream.optional
        inputs, names, is_single = read_table(generation, table, max_batch_items=max_batch_items, optional=optional)
    else:
        inputs = read_inputs(generation, media, body, max_batch_items=max_batch_items)
        names = output_names(headers)
    return understand(
        generation,
        inputs,
        names,
        max_steps=max_steps,
        is_single=is_single,
        max_batch_items=max_batch_items,
        started_ns=started_ns,
    )


def read_generate(
    generation: Generation, headers: Headers, body: bytes, *, max_batch_items: int, started_ns: int
) -> StreamRequest:
    """Understand a request of Triton's generate extension. Errors as in `read_plain`.

    An input is a bare value, a flat list (one item without the axis of the batch) or nested lists.

    Source: Triton Inference Server, docs/protocol/extension_generate.md. What is neither an input nor a parameter that
    is known is refused here; Triton hands it to the model.
    """
    check_content_type(headers)
    check_accept(headers)
    table = parse_object(body)
    request_id = table.pop("id", "")
    if not isinstance(request_id, str):
        raise InvalidInputError("`id` is not text", expected="text", received=json_kind(request_id))
    parameters = table.pop("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidInputError("`parameters` is no object", expected="an object", received=json_kind(parameters))
    asked = cast("JsonObject", parameters)
    for name in asked:
        if name not in _GENERATE_PARAMETERS:
            known = ", ".join(f"`{one}`" for one in _GENERATE_PARAMETERS)
            raise InvalidInputError(f"parameter `{name[:80]}` is not known", expected=known, received=f"`{name[:80]}`")
    columns = {name: _with_axes(generation, name, value) for name, value in table.items()}
    inputs, is_single = read_columns(generation, columns, max_batch_items=max_batch_items)
    return understand(
        generation,
        inputs,
        (),
        max_steps=asked.get(MAX_STEPS),
        is_single=is_single,
        max_batch_items=max_batch_items,
        timeout_s=asked_timeout_s(asked),
        started_ns=started_ns,
    )


def understand(
    generation: Generation,
    inputs: Mapping[str, np.ndarray],
    names: Sequence[str],
    *,
    max_steps: object,
    is_single: bool,
    max_batch_items: int,
    started_ns: int,
    timeout_s: float | None = None,
) -> StreamRequest:
    """Return a request whose inputs were read; `names` are the outputs that it asks for, none for all that are sent.

    Raises:
        InvalidInputError, SignatureError: it does not fit the model, or asks for more than may be.
        RequestRefusedError: too large.
    """
    plan = generation.stream
    assert plan is not None  # a route of streams is made only where the settings have them, and so has each version
    whole = plan.begin(inputs, generation.specs)
    batch = generation.check(whole)
    if batch > max_batch_items:
        raise too_many_items(batch, max_batch_items)
    for name, array in inputs.items():
        if array.size == 0 and name not in plan.optional:
            raise InvalidInputError(f"input `{name}` is empty", expected="at least one item", received=str(array.shape))
    return StreamRequest(
        generation=generation,
        plan=plan,
        inputs=whole,
        batch=batch,
        is_single=is_single,
        wanted=_wanted(plan.emits, names),
        max_steps=_max_steps(max_steps, plan.max_steps),
        timeout_s=timeout_s,
        started_ns=started_ns,
    )


def check_accept(headers: Headers) -> None:
    """Refuse a caller that wants no events.

    Raises:
        RequestRefusedError: 406.
    """
    accept = headers.get(b"accept")
    if accept is None or any(kind in accept.lower() for kind in _EVENT_TYPES):
        return
    raise RequestRefusedError(
        "a stream is answered in events",
        status=406,
        expected="`accept: text/event-stream`, or none",
        received=accept[:80].decode("latin-1"),
    )


def _wanted(emits: tuple[str, ...], names: Sequence[str]) -> tuple[str, ...]:
    for index, name in enumerate(names):
        if name not in emits:
            known = ", ".join(f"`{one}`" for one in emits)
            what = f"output `{name[:80]}` is not one that this stream sends"
            raise InvalidInputError(what, expected=known, received=f"`{name[:80]}`")
        if name in names[:index]:
            raise InvalidInputError(f"output `{name}` is asked for twice", expected="each output once")
    return tuple(names) or emits


def _max_steps(value: object, limit: int) -> int:
    if value is None:
        return limit
    if type(value) is not int or not 1 <= value <= limit:
        raise InvalidInputError(
            f"`{MAX_STEPS}` is not possible",
            expected=f"a whole number from 1 to {limit}",
            received=str(value) if type(value) is int else json_kind(value),
        )
    return value


def _steps_of(headers: Headers) -> int | None:
    text = headers.get(STEPS_HEADER)
    if text is None:
        return None
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise InvalidInputError(
            "the header `noa-max-steps` is wrong", expected="a whole number", received=text[:40].decode("latin-1")
        )
    return int(text)


def _with_axes(generation: Generation, name: str, value: object) -> object:
    """Return a bare value as one element of its input."""
    spec = generation.specs.get(name)
    if spec is None or isinstance(value, list):
        return value
    for _ in spec.shape[1:]:
        value = [value]
    return value
