"""The Open Inference Protocol (KServe v2) over REST: reading and writing inference.

JSON tensors may be flat or nested; raw tensors (the binary extension) follow the JSON header in the order of the
inputs. Both directions may mix the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import orjson

from noa.errors import InvalidInputError, SignatureError
from noa_serving._binary_plan import MAX_PLANS, remember
from noa_serving._http import BINARY_TYPE, JSON_TYPE, HeaderList, Headers, Response
from noa_serving._json_body import JsonObject, check_content_type, json_kind, parse_object
from noa_serving._prepared import Prepared, check_inputs, choose_outputs, too_many_items
from noa_serving._shared_memory import SharedRegions, Slice, slice_of
from noa_serving._tensors import (
    DATATYPE_OF,
    DATATYPES,
    array_from_bytes,
    array_from_json,
    check_count,
    check_shape,
    check_size,
    contiguous,
    json_value,
    raw_array,
    reshape_flat,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from noa.signatures import TensorSpec
    from noa_serving._generation import Generation

HEADER_LENGTH = b"inference-header-content-length"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
SHARED_MEMORY = "system_shared_memory"
_COPYING_FORMATS = frozenset({"torch"})  # its tensors share memory with ours and must be writable


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the answer shall hold: the outputs in order, and whether each is written as raw bytes, or where to."""

    outputs: tuple[tuple[str, bool | Slice], ...]
    request_id: str | None


def prepare(
    generation: Generation, headers: Headers, body: bytes, *, max_batch_items: int, regions: SharedRegions
) -> Prepared:
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
    inputs = _read_inputs(generation, table, raw, max_batch_items=max_batch_items, regions=regions)
    wanted = _read_wanted(generation, table)
    batch = check_inputs(generation, inputs, max_batch_items=max_batch_items)

    encode = _encoder(generation, wanted, regions)
    timeout_s = asked_timeout_s(_parameters(table, "the request"))
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
    generation: Generation, table: JsonObject, raw: memoryview, *, max_batch_items: int, regions: SharedRegions
) -> dict[str, np.ndarray]:
    rows = table.get("inputs")
    if not isinstance(rows, list) or not rows:
        raise InvalidInputError("the request has no `inputs`", expected="a list of tensors", received=json_kind(rows))
    inputs: dict[str, np.ndarray] = {}
    start = 0
    for row in cast("list[object]", rows):
        if not isinstance(row, dict):
            raise InvalidInputError("an entry of `inputs` is no tensor", expected="an object", received=json_kind(row))
        tensor = cast("JsonObject", row)
        spec = find_input(generation, tensor.get("name"), tensor.get("datatype"))
        if spec.name in inputs:
            raise input_twice(spec)
        shape = read_shape(spec, tensor.get("shape"), max_batch_items=max_batch_items)
        parameters = _parameters(tensor, f"input `{spec.name}`")
        part = slice_of(parameters, f"input `{spec.name}`") if parameters else None
        size = _binary_size(spec, tensor, parameters)
        if part is not None:
            inputs[spec.name] = read_shared(spec, tensor, part, shape, regions)
        elif size is None:
            data = tensor.get("data")
            if not isinstance(data, list):
                raise SignatureError(
                    f"input `{spec.name}` has no `data`", expected="a list", received=json_kind(data), field=spec.name
                )
            inputs[spec.name] = reshape_flat(spec, array_from_json(spec, cast("object", data)), shape)
        else:
            end = start + size
            writable = must_be_writable(generation)
            inputs[spec.name] = array_from_bytes(spec, _slice(spec, raw, start, end), shape, writable=writable)
            start = end
    if start != len(raw):
        raise InvalidInputError("the body has bytes that belong to no input", expected=start, received=len(raw))
    return inputs


def find_input(generation: Generation, name: object, datatype: object) -> TensorSpec:
    """Return the input that a tensor of a request is for.

    Raises:
        SignatureError: the model has no such input, or it has another datatype.
    """
    spec = generation.specs.get(name) if isinstance(name, str) else None
    if spec is None:
        known = ", ".join(f"`{one}`" for one in generation.input_names)
        shown = name[:80] if isinstance(name, str) else json_kind(name)
        raise SignatureError(f"input `{shown}` is not known", expected=known, received=f"`{shown}`", field=shown)
    if datatype != DATATYPES[spec.dtype]:
        shown = datatype[:40] if isinstance(datatype, str) else "nothing" if datatype is None else json_kind(datatype)
        raise SignatureError(
            f"input `{spec.name}` has the wrong datatype", expected=DATATYPES[spec.dtype], received=shown, field=name
        )
    return spec


def read_shape(spec: TensorSpec, value: object, *, max_batch_items: int) -> tuple[int, ...]:
    """Return the shape that a tensor of a request claims, before anything of its size is made.

    Raises:
        SignatureError: it is malformed or does not fit.
        RequestRefusedError: 413, the batch is larger than the server accepts.
    """
    shape = check_shape(spec, value)
    if shape and isinstance(spec.shape[0], str) and shape[0] > max_batch_items:
        raise too_many_items(shape[0], max_batch_items)
    if spec.dtype == "string":
        check_count(spec, math.prod(shape))
    return shape


def must_be_writable(generation: Generation) -> bool:
    """Tell whether the format's library needs arrays of its own, not views of a request."""
    return generation.format in _COPYING_FORMATS


def input_twice(spec: TensorSpec) -> SignatureError:
    """Return the refusal of an input that stands twice in a request."""
    return SignatureError(f"input `{spec.name}` stands twice", expected="each input once", field=spec.name)


def read_shared(
    spec: TensorSpec, tensor: Mapping[str, object], part: Slice, shape: tuple[int, ...], regions: SharedRegions
) -> np.ndarray:
    """Return an input that a request left in shared memory; `tensor` is the rest of it.

    Raises:
        InvalidInputError, SignatureError: the part does not hold exactly this tensor, or there is `data` as well.
        NotFoundError: no such region.
    """
    if "data" in tensor:
        raise SignatureError(
            f"input `{spec.name}` has both `data` and shared memory", expected="one of them", field=spec.name
        )
    check_size(spec, part.size, shape)
    # A copy of our own, so it is writable as it is.
    return array_from_bytes(spec, memoryview(regions.read(part)), shape, writable=False)


def _binary_size(spec: TensorSpec, tensor: JsonObject, parameters: JsonObject) -> int | None:
    size = parameters.get("binary_data_size")
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
    ways: list[bool | Slice] = []
    for row in cast("list[object]", rows):
        name = cast("JsonObject", row).get("name") if isinstance(row, dict) else None
        if not isinstance(name, str):
            raise InvalidInputError("an entry of `outputs` has no name", expected='{"name": ...}')
        names.append(name)
        where = f"output `{name[:80]}`"
        parameters = _parameters(cast("JsonObject", row), where)
        if parameters:
            refuse_classification(parameters, where)
        ways.append(slice_of(parameters, where) or _flag(parameters, "binary_data", all_binary))
    choose_outputs(generation, names)
    return _Wanted(tuple(zip(names, ways, strict=True)), request_id)


def asked_timeout_s(parameters: Mapping[str, object]) -> float | None:
    """Return how long the request is ready to wait: Triton's parameter `timeout`, microseconds; 0 says nothing.

    Raises:
        InvalidInputError: it is no such number.
    """
    timeout_us = parameters.get("timeout")
    if timeout_us is None or timeout_us == 0:
        return None
    if not isinstance(timeout_us, int) or isinstance(timeout_us, bool) or timeout_us < 0:
        raise InvalidInputError(
            "parameter `timeout` is wrong",
            expected="a whole number of microseconds, 0: none",
            received=json_kind(timeout_us),
        )
    return timeout_us / 1e6


def refuse_classification(parameters: Mapping[str, object], where: str) -> None:
    """Refuse Triton's classification, which answers with texts in place of the tensor.

    Raises:
        InvalidInputError: the parameters of an output ask for it.
    """
    if parameters.get("classification"):
        raise InvalidInputError(
            f"{where} asks for `classification`, which is not supported",
            expected="no such parameter, or 0",
            remedy="Take the tensor and pick the classes from it",
        )


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


def _encoder(
    generation: Generation, wanted: _Wanted, regions: SharedRegions
) -> Callable[[Mapping[str, np.ndarray]], Response]:
    texts = generation.text_outputs
    if wanted.request_id is None and all(way is True and name not in texts for name, way in wanted.outputs):
        return _raw_encoder(generation, wanted)
    return lambda outputs: _encode(generation, wanted, outputs, regions)


def _raw_encoder(generation: Generation, wanted: _Wanted) -> Callable[[Mapping[str, np.ndarray]], Response]:
    """Return an encoder for answers that are all raw: their JSON head depends on the shapes only, and is remembered."""
    names = tuple(name for name, _ in wanted.outputs)
    heads: dict[tuple[tuple[int, ...], ...], tuple[bytes, HeaderList]] = {}

    def encode(outputs: Mapping[str, np.ndarray]) -> Response:
        arrays = [contiguous(outputs[name]) for name in names]
        shapes = tuple([array.shape for array in arrays])
        known = heads.get(shapes)
        if known is None:
            head = _head(generation, [_row(name, array) for name, array in zip(names, arrays, strict=True)], None)
            if len(heads) >= MAX_PLANS:
                heads.clear()
            known = heads[shapes] = head, (BINARY_TYPE, (HEADER_LENGTH, b"%d" % len(head)), *generation.headers)
        return Response(200, b"".join([known[0], *[array.tobytes() for array in arrays]]), known[1])

    return encode


def _encode(
    generation: Generation, wanted: _Wanted, outputs: Mapping[str, np.ndarray], regions: SharedRegions
) -> Response:
    rows: list[JsonObject] = []
    chunks: list[bytes] = []
    for name, way in wanted.outputs:
        array = contiguous(outputs[name])
        row = _row(name, array)
        if way and name in generation.text_outputs:
            array = raw_array(array)
            row["parameters"] = {"binary_data_size": array.nbytes}
        if isinstance(way, Slice):
            regions.write(way, array)
            row["parameters"] = {"shared_memory_region": way.region, "shared_memory_byte_size": array.nbytes}
        elif way:
            chunks.append(array.tobytes())
        else:
            del row["parameters"]
            row["data"] = json_value(array.reshape(-1))
        rows.append(row)
    head = _head(generation, rows, wanted.request_id)
    if not chunks:
        return Response(200, head, (JSON_TYPE, *generation.headers))
    length = (HEADER_LENGTH, str(len(head)).encode())
    return Response(200, b"".join((head, *chunks)), (BINARY_TYPE, length, *generation.headers))


def _row(name: str, array: np.ndarray) -> JsonObject:
    """Return the description of an output that is sent as raw bytes."""
    parameters = {"binary_data_size": array.nbytes}
    return {"name": name, "datatype": DATATYPE_OF[array.dtype], "shape": array.shape, "parameters": parameters}


def _head(generation: Generation, rows: list[JsonObject], request_id: str | None) -> bytes:
    table: JsonObject = {"model_name": generation.endpoint, "model_version": str(generation.number)}
    if request_id is not None:
        table["id"] = request_id
    table["parameters"] = {"digest": generation.digest}
    table["outputs"] = rows
    return orjson.dumps(table, option=orjson.OPT_SERIALIZE_NUMPY)
