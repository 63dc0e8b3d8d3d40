"""The description of the plain JSON routes for people and programs: an OpenAPI 3.1 document and one page without
scripts.

Both are made from the signatures of what is loaded at that moment; examples are requests that work as they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from html import escape
from typing import TYPE_CHECKING

from noa import __version__
from noa.signatures import is_float
from noa_serving._client_stub import client_stub, curl_examples
from noa_serving._http import Response
from noa_serving._media import ARROW_TYPE
from noa_serving._npy_body import NPY_TYPE, NPZ_TYPE

if TYPE_CHECKING:
    from noa.signatures import Signature, TensorSpec
    from noa_serving._endpoint import Endpoint
    from noa_serving._generation import Generation

Json = dict[str, object]
_MAX_EXAMPLE_ELEMENTS = 4096

_ERRORS: dict[str, str] = {
    "400": "The request does not fit the model; the text names the field, what was expected and what was received.",
    "401": "A key is missing or wrong.",
    "403": "The server, or the scope of the key, does not allow it.",
    "404": "There is no such endpoint or version.",
    "406": "The answer cannot be written in a type that `accept` names.",
    "413": "The body or the batch is too large.",
    "415": "The body is in a type that is not read here.",
    "429": "The client has used up its quota; `Retry-After` says when to come back.",
    "503": "Busy or not ready; `Retry-After` says when to come back.",
    "504": "The answer took too long.",
}
_ANSWER_HEADERS = ("noa-model", "noa-version", "noa-digest", "noa-arm")
_READ_PATHS = ("/", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/status", "/metrics", "/ping")
_INFERENCE: Json = {
    "title": "Open Inference Protocol",
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "inputs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": {"type": "string"},
                    "datatype": {"type": "string"},
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                    "data": {"type": "array"},
                    "parameters": {"type": "object"},
                },
            },
        },
        "outputs": {
            "type": "array",
            "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
        },
    },
}
_SCORING: Json = {
    "title": "MLflow scoring protocol",
    "type": "object",
    "properties": {
        "inputs": {},
        "instances": {"type": "array"},
        "dataframe_split": {
            "type": "object",
            "required": ["columns", "data"],
            "properties": {"columns": {"type": "array"}, "data": {"type": "array"}, "index": {"type": "array"}},
        },
        "dataframe_records": {"type": "array", "items": {"type": "object"}},
    },
}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}"
    "pre{background:#f4f4f4;padding:.8rem;overflow:auto}table{border-collapse:collapse}"
    "td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left}"
)


def document(endpoints: Sequence[Endpoint]) -> Json:
    """Return the OpenAPI document of all endpoints; one that is not ready has a path without a schema."""
    paths: Json = {path: {"get": _reading()} for path in _READ_PATHS}
    for one in endpoints:
        paths[f"/predict/{one.name}"] = {"post": _operation(one)}
        if one.settings.stream.is_on:
            paths[f"/predict/{one.name}/stream"] = {"post": _streaming(one)}
            paths[f"/v2/models/{one.name}/generate_stream"] = {"post": _generating(one)}
        paths[f"/invocations/{one.name}"] = {"post": _other_way(one, _SCORING)}
        paths[f"/v2/models/{one.name}/infer"] = {"post": _other_way(one, _INFERENCE)}
        paths |= {f"/v2/models/{one.name}{end}": {"get": _reading()} for end in ("", "/ready", "/stats", "/config")}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "noa",
            "version": __version__,
            "description": "Plain prediction, MLflow's scoring protocol, and the Open Inference Protocol below /v2.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def page(endpoints: Sequence[Endpoint]) -> Response:
    """Return the page that shows each endpoint with its tensors and a command to try."""
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>noa</title><style>{_STYLE}</style><h1>noa</h1>"]
    for one in endpoints:
        parts.append(f"<h2>{escape(one.name)}</h2><p><code>{escape(one.settings.model)}</code>: {one.state}")
        if (generation := one.current) is not None:
            parts.append(_describe_html(generation))
    parts.append(
        "<p><a href=/openapi.json>OpenAPI document</a> · <a href=/metrics>metrics</a> · <a href=/status>status</a>"
    )
    policy = (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'")
    return Response(200, "\n".join(parts).encode(), ((b"content-type", b"text/html; charset=utf-8"), policy))


def example_body(generation: Generation) -> Json | None:
    """Return a request that the model accepts: one item of zeros (empty texts); None if it would be very large."""
    arrays = generation.example
    if sum(array.size for array in arrays.values()) > _MAX_EXAMPLE_ELEMENTS:
        return None
    return {"inputs": {name: array.tolist() for name, array in arrays.items()}}


def _operation(endpoint: Endpoint) -> Json:
    answers = _refusals()
    operation: Json = {
        "operationId": f"predict_{endpoint.name}",
        "summary": f"Predict with {endpoint.settings.model}",
        "responses": {"200": {"description": "The prediction."}, **answers},
    }
    if (generation := endpoint.current) is None:
        operation["description"] = "Not ready; its model is not loaded yet."
        return operation
    operation["requestBody"] = {"required": True, "content": _request_content(generation)}
    headers: Json = {name: {"schema": {"type": "string"}} for name in _ANSWER_HEADERS}
    success: Json = {"description": "The prediction.", "headers": headers}
    success["content"] = _json_content(_answer_schema(generation.signature))
    operation["responses"] = {"200": success, **answers}
    return operation


def _streaming(endpoint: Endpoint) -> Json:
    """Return the operation of a stream: the requests of a prediction, answered in events."""
    operation: Json = {
        "operationId": f"stream_{endpoint.name}",
        "summary": f"Call {endpoint.settings.model} step by step",
        "description": "Server-sent events: `step` with the outputs of each step, then `end` with the reason, or "
        "`error`. JSON may say `max_steps`, other bodies say it in the header `noa-max-steps`.",
        "responses": {"200": _events("An event for each step.", names=("step", "end", "error")), **_refusals()},
    }
    if (generation := endpoint.current) is not None:
        operation["requestBody"] = {"required": True, "content": _request_content(generation, streams=True)}
    return operation


def _generating(endpoint: Endpoint) -> Json:
    generation = endpoint.current
    names = () if generation is None else generation.input_names
    schema: Json = {
        "title": "Triton's generate extension",
        "type": "object",
        "properties": {"id": {"type": "string"}, "parameters": {"type": "object"}, **{name: {} for name in names}},
    }
    operation = _other_way(endpoint, schema)
    operation["responses"] = {"200": _events("An event for each step, without a name."), **_refusals()}
    return operation


def _events(text: str, *, names: Sequence[str] = ()) -> Json:
    """Return an answer in events; the schema is that of one of them."""
    data: Json = {"type": "string", "contentMediaType": "application/json"}
    schema: Json = {"type": "object", "required": ["data"], "properties": {"data": data}}
    if names:
        schema["required"] = ["event", "data"]
        schema["properties"] = {"event": {"enum": list(names)}, "id": {"type": "string"}, "data": data}
    return {"description": text, "content": {"text/event-stream": {"schema": schema}}}


def _other_way(endpoint: Endpoint, schema: Json) -> Json:
    """Return an operation of a public protocol, whose own pages say more than its outline here."""
    return {
        "summary": f"{schema['title']}: {endpoint.settings.model}",
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": {"description": "The outputs.", "content": _json_content({})}, **_refusals()},
    }


def _reading() -> Json:
    return {"responses": {"200": {"description": "What is asked for."}, **_refusals()}}


def _refusals() -> Json:
    return {
        code: {"description": text, "content": _json_content({"$ref": "#/components/schemas/Error"})}
        for code, text in _ERRORS.items()
    }


def _request_content(generation: Generation, *, streams: bool = False) -> Json:
    signature = generation.signature
    plan = generation.stream if streams else None
    optional = frozenset[str]() if plan is None else plan.optional
    columns = _named(signature.inputs, _batched_or_single, optional)
    rows = _named(signature.inputs, lambda spec: _nested(spec.dtype, spec.shape[1:]), optional)
    by_column: Json = {"anyOf": [columns]}
    by_row: Json = rows
    if len(signature.inputs) == 1:
        by_column = {"anyOf": [columns, _batched_or_single(signature.inputs[0])]}
        by_row = {"anyOf": [rows, _nested(signature.inputs[0].dtype, signature.inputs[0].shape[1:])]}
    given = list(generation.output_names if plan is None else plan.emits)
    properties: Json = {
        "inputs": by_column,
        "instances": {"type": "array", "minItems": 1, "items": by_row},
        "outputs": {"type": "array", "items": {"enum": given}, "uniqueItems": True},
    }
    if plan is not None:
        properties["max_steps"] = {"type": "integer", "minimum": 1, "maximum": plan.max_steps}
    schema: Json = {
        "type": "object",
        "properties": properties,
        "oneOf": [{"required": ["inputs"]}, {"required": ["instances"]}],
        "additionalProperties": False,
    }
    example = example_body(generation)
    media: Json = {"schema": schema}
    if example is not None:
        media["example"] = example
    binary: Json = {"schema": {"type": "string", "format": "binary"}}
    kinds = (NPY_TYPE, NPZ_TYPE, ARROW_TYPE)
    return {"application/json": media, **{kind.decode(): binary for kind in kinds}}


def _answer_schema(signature: Signature) -> Json:
    outputs: Json = {
        "type": "object",
        "properties": {spec.name: {"description": spec.describe()} for spec in signature.outputs},
    }
    return {
        "type": "object",
        "required": ["outputs", "model", "version", "digest"],
        "properties": {
            "outputs": outputs,
            "model": {"type": "string"},
            "version": {"type": "integer", "minimum": 1},
            "digest": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
        },
    }


def _named(
    specs: Sequence[TensorSpec], schema_of: Callable[[TensorSpec], Json], optional: Collection[str] = ()
) -> Json:
    return {
        "type": "object",
        "properties": {spec.name: schema_of(spec) for spec in specs},
        "required": [spec.name for spec in specs if spec.name not in optional],
        "additionalProperties": False,
    }


def _batched_or_single(spec: TensorSpec) -> Json:
    whole = _nested(spec.dtype, spec.shape)
    whole["description"] = spec.describe()
    if not spec.shape or not isinstance(spec.shape[0], str):
        return whole
    return {"anyOf": [whole, _nested(spec.dtype, spec.shape[1:])]}


def _nested(dtype: str, shape: Sequence[int | str]) -> Json:
    schema: Json = _element(dtype)
    for axis in reversed(shape):
        schema = {"type": "array", "items": schema}
        if isinstance(axis, int):
            schema |= {"minItems": axis, "maxItems": axis}
        else:
            schema["minItems"] = 1
    return schema


def _element(dtype: str) -> Json:
    if dtype == "bool":
        return {"type": "boolean"}
    if dtype == "string":
        return {"type": "string"}
    if is_float(dtype):
        return {"type": "number"}
    is_unsigned = dtype.startswith("u")
    bits = int(dtype.lstrip("uint"))
    low = 0 if is_unsigned else -(2 ** (bits - 1))
    high = 2**bits - 1 if is_unsigned else 2 ** (bits - 1) - 1
    return {"type": "integer", "minimum": low, "maximum": high}


def _json_content(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _describe_html(generation: Generation) -> str:
    rows = "".join(
        f"<tr><td>{side}<td>{escape(spec.name)}<td>{escape(spec.describe())}"
        for side, specs in (("input", generation.signature.inputs), ("output", generation.signature.outputs))
        for spec in specs
    )
    commands = "".join(f"<pre>{escape(one)}</pre>" for one in curl_examples(generation, example_body(generation)))
    commands += f"<p>From Python:<pre>{escape(client_stub(generation))}</pre>"
    digest = escape(generation.digest)
    return f"<p>serves <b>{escape(generation.reference)}</b> <code>{digest}</code><table>{rows}</table>{commands}"
