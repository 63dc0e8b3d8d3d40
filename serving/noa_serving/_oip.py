"""The Open Inference Protocol (KServe v2) over REST: reading and writing inference, and the model's metadata.

JSON tensors may be flat or nested; raw tensors (the binary extension) follow the JSON header in the order of the
inputs. Both directions may mix the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import orjson

from noa.errors import InvalidInputError, SignatureError
from noa_serving._binary_plan import remember
from noa_serving._http import BINARY_TYPE, JSON_TYPE, Headers, Response
from noa_serving._json_body import JsonObject, check_content_type, json_kind, parse_object
from noa_serving._prepared import Prepared, check_inputs, choose_outputs, too_many_items
from noa_serving._tensors import (
    DATATYPE_OF,
    DATATYPES,
    array_from_bytes,
    array_from_json,
    check_shape,
    contiguous,
    reshape_flat,
)

if TYPE_CHECKING:
    from noa.signatures import TensorSpec
    from noa_serving._generation import Generation

HEADER_LENGTH = b"inference-header-content-length"
EXTENSIONS = ("binary_tensor_data", "model_repository")
_PLATFORMS = {"onnx": "onnxruntime_onnx", "torch": "pytorch_exported_program", "jax": "jax_stablehlo"}
_COPYING_FORMATS = frozenset({"torch"})  # its tensors share memory with ours and must be writable


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the answer shall hold: the outputs in order, and whether each is written as raw bytes."""

    outputs: tuple[tuple[str, bool], ...]
    request_id: str | None


def metadata(generation: Generation) -> JsonObject:
    """Return the model metadata; a free axis is written -1."""
    return {
        "name": generation.endpoint,
        "versions": [str(generation.number)],
        "platform": _PLATFORMS.get(generation.format, f"noa_{generation.format}"),
        "inputs": [_tensor_metadata(spec) for spec in generation.signature.inputs],
        "outputs": [_tensor_metadata(spec) for spec in generation.signature.outputs],
    }


def prepare(generation: Generation, headers: Headers, body: bytes, *, max_batch_items: int) -> Prepared:
    """Understand one inference request.

    Raises:
        InvalidInputError, SignatureError: the request is malformed or does not fit the model.
        RequestRefusedError: another content type, or too large a batch.
    """
    check_content_type(headers, binary=True)
    header_length = _header_length(headers, len(body))
    header = body[:header_length]
    plan = generation.binary_plans.get(header)
    known = None if plan is None else plan.read(body, header_length)
    if plan is not None and known is not None:
        return Prepared(generation, known, plan.batch, plan.encode, plan.timeout_s)
    table = parse_object(header)
    raw = memoryview(body)[header_length:]
    inputs = _read_inputs(generation, table, raw, max_batch_items=max_batch_items)
    wanted = _read_wanted(generation, table)
    batch = check_inputs(generation, inputs, max_batch_items=max_batch_items)

    def encode(outputs: Mapping[str, np.ndarray]) -> Response:
        return _encode(generation, wanted, outputs)

    timeout_s = _asked_timeout_s(table)
    if raw and wanted.request_id is None and generation.format not in _COPYING_FORMATS:
        remember(generation, header, inputs, num_bytes=len(raw), batch=batch, encode=encode, timeout_s=timeout_s)
    return Prepared(generation, inputs, batch, encode, timeout_s)


def _header_length(headers: Headers, size: int) -> int:
    text = headers.get(HEADER_LENGTH)
    if text is None:
        return size
    if not text.isdigit() or len(text) > 18 or int(text) > size:
        raise InvalidInputError(
            "the header `Inference-Header-Content-Length` is wrong",
            expected=f"the length of the JSON part, at most {size} bytes",
            received=text[:40].decode("latin-1"),
        )
    return int(text)


def _read_inputs(
    generation: Generation, table: JsonObject, raw: memoryview, *, max_batch_items: int
) -> dict[str, np.ndarray]:
    rows = table.get("inputs")
    if not isinstance(rows, list) or not rows:
        raise InvalidInputError("the request has no `inputs`", expected="a list of tensors", received=json_kind(rows))
    inputs: dict[str, np.ndarray] = {}
    start = 0
    for row in cast("list[object]", rows):
        spec, tensor = _known_input(generation, row)
        if spec.name in inputs:
            raise SignatureError(f"input `{spec.name}` stands twice", expected="each input once", field=spec.name)
        shape = check_shape(spec, tensor.get("shape"))
        if shape and isinstance(spec.shape[0], str) and shape[0] > max_batch_items:
            raise too_many_items(shape[0], max_batch_items)
        size = _binary_size(spec, tensor)
        if size is None:
            data = tensor.get("data")
            if not isinstance(data, list):
                raise SignatureError(
                    f"input `{spec.name}` has no `data`", expected="a list", received=json_kind(data), field=spec.name
                )
            inputs[spec.name] = reshape_flat(spec, array_from_json(spec, cast("object", data)), shape)
        else:
            end = start + size
            writable = generation.format in _COPYING_FORMATS
            inputs[spec.name] = array_from_bytes(spec, _slice(spec, raw, start, end), shape, writable=writable)
            start = end
    if start != len(raw):
        raise InvalidInputError("the body has bytes that belong to no input", expected=start, received=len(raw))
    return inputs


def _known_input(generation: Generation, row: object) -> tuple[TensorSpec, JsonObject]:
    if not isinstance(row, dict):
        raise InvalidInputError("an entry of `inputs` is no tensor", expected="an object", received=json_kind(row))
    tensor = cast("JsonObject", row)
    name = tensor.get("name")
    spec = generation.specs.get(name) if isinstance(name, str) else None
    if spec is None:
        known = ", ".join(f"`{one}`" for one in generation.input_names)
        shown = name[:80] if isinstance(name, str) else json_kind(name)
        raise SignatureError(f"input `{shown}` is not known", expected=known, received=f"`{shown}`", field=shown)
    datatype = tensor.get("datatype")
    if datatype != DATATYPES[spec.dtype]:
        shown = datatype[:40] if isinstance(datatype, str) else "nothing" if datatype is None else json_kind(datatype)
        raise SignatureError(
            f"input `{spec.name}` has the wrong datatype", expected=DATATYPES[spec.dtype], received=shown, field=name
        )
    return spec, tensor


def _binary_size(spec: TensorSpec, tensor: JsonObject) -> int | None:
    size = _parameters(tensor, f"input `{spec.name}`").get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise SignatureError(
            f"input `{spec.name}` has a malformed `binary_data_size`", expected="a number of bytes", field=spec.name
        )
    if "data" in tensor:
        raise SignatureError(
            f"input `{spec.name}` has both `data` and `binary_data_size`", expected="one of them", field=spec.name
        )
    return size


def _slice(spec: TensorSpec, raw: memoryview, start: int, end: int) -> memoryview:
    if end > len(raw):
        raise SignatureError(
            f"input `{spec.name}` is cut short",
            expected=f"{end - start} bytes after the JSON part and the inputs before it",
            received=f"{len(raw) - start} bytes",
            field=spec.name,
        )
    return raw[start:end]


def _read_wanted(generation: Generation, table: JsonObject) -> _Wanted:
    request_id = table.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InvalidInputError("`id` is not text", expected="text", received=json_kind(request_id))
    all_binary = _flag(_parameters(table, "the request"), "binary_data_output")
    rows = table.get("outputs")
    if rows is None or rows == []:
        return _Wanted(tuple((name, all_binary) for name in generation.output_names), request_id)
    if not isinstance(rows, list):
        raise InvalidInputError("`outputs` is no list", expected="a list of objects", received=json_kind(rows))
    names: list[str] = []
    flags: list[bool] = []
    for row in cast("list[object]", rows):
        name = cast("JsonObject", row).get("name") if isinstance(row, dict) else None
        if not isinstance(name, str):
            raise InvalidInputError("an entry of `outputs` has no name", expected='{"name": ...}')
        names.append(name)
        flags.append(_flag(_parameters(cast("JsonObject", row), f"output `{name[:80]}`"), "binary_data", all_binary))
    choose_outputs(generation, names)
    return _Wanted(tuple(zip(names, flags, strict=True)), request_id)


def _asked_timeout_s(table: JsonObject) -> float | None:
    """Return how long the request is ready to wait: Triton's parameter `timeout`, microseconds; 0 says nothing."""
    timeout_us = _parameters(table, "the request").get("timeout")
    if timeout_us is None or timeout_us == 0:
        return None
    if type(timeout_us) is not int or timeout_us < 0:
        raise InvalidInputError(
            "parameter `timeout` is wrong",
            expected="a whole number of microseconds, 0: none",
            received=json_kind(timeout_us),
        )
    return timeout_us / 1e6


def _parameters(table: JsonObject, where: str) -> JsonObject:
    value = table.get("parameters")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInputError(
            f"`parameters` of {where} is no object", expected="an object", received=json_kind(value)
        )
    return cast("JsonObject", value)


def _flag(parameters: JsonObject, name: str, default: bool = False) -> bool:
    value = parameters.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidInputError(f"parameter `{name}` is no flag", expected="true or false", received=json_kind(value))
    return value


def _encode(generation: Generation, wanted: _Wanted, outputs: Mapping[str, np.ndarray]) -> Response:
    rows: list[JsonObject] = []
    chunks: list[bytes] = []
    for name, is_binary in wanted.outputs:
        array = contiguous(outputs[name])
        row: JsonObject = {"name": name, "datatype": DATATYPE_OF[array.dtype], "shape": array.shape}
        if is_binary:
            raw = array.tobytes()
            row["parameters"] = {"binary_data_size": len(raw)}
            chunks.append(raw)
        else:
            row["data"] = array.reshape(-1)
        rows.append(row)
    table: JsonObject = {"model_name": generation.endpoint, "model_version": str(generation.number)}
    if wanted.request_id is not None:
        table["id"] = wanted.request_id
    table["parameters"] = {"digest": generation.digest}
    table["outputs"] = rows
    head = orjson.dumps(table, option=orjson.OPT_SERIALIZE_NUMPY)
    if not chunks:
        return Response(200, head, (JSON_TYPE, *generation.headers))
    length = (HEADER_LENGTH, str(len(head)).encode())
    return Response(200, b"".join((head, *chunks)), (BINARY_TYPE, length, *generation.headers))


def _tensor_metadata(spec: TensorSpec) -> JsonObject:
    shape = [axis if isinstance(axis, int) else -1 for axis in spec.shape]
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape}
