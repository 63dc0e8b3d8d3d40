"""Reading and writing one inference of the Open Inference Protocol over gRPC.

Raw contents (`raw_input_contents`) and typed ones (`contents`) exclude each other; a request gets its answer in the way
in which it was sent, and raw if an output has no typed field (FP16). What fits and what is refused is the same as over
REST, by the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import DecodeError

from noa.errors import InvalidInputError, SignatureError
from noa_serving._grpc_messages import schema
from noa_serving._http import Headers, Response
from noa_serving._oip import (
    asked_timeout_s,
    find_input,
    input_twice,
    must_be_writable,
    read_shape,
    read_shared,
    refuse_classification,
)
from noa_serving._prepared import Prepared, check_inputs, choose_outputs
from noa_serving._shared_memory import SharedRegions, Slice, slice_of
from noa_serving._stream_requests import MAX_STEPS, understand
from noa_serving._tensors import (
    DATATYPE_OF,
    array_from_bytes,
    array_from_numbers,
    array_from_texts,
    contiguous,
    raw_array,
)

if TYPE_CHECKING:
    from noa.signatures import TensorSpec
    from noa_serving._generation import Generation
    from noa_serving._streams import StreamRequest

EMPTY_FINAL = "triton_enable_empty_final_response"

_MEASURED_FROM_BYTES = 256 << 10
_MOST_FIELDS = 4096
_MOST_OTHER_BYTES = 256 << 10
_MOST_TYPED_BYTES = 8 << 20  # a varint of one byte becomes a number of eight
_RAW_CONTENTS, _INPUT, _CONTENTS = 7, 5, 5  # numbers of fields in the schema
_TYPED_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def parse_request(body: bytes) -> Any:
    """Return the `ModelInferRequest` in `body`.

    Raises:
        InvalidInputError: it is malformed, or so much of it is no tensor data that its objects would fill the memory.
    """
    if len(body) > _MEASURED_FROM_BYTES:
        _check_overhead(memoryview(body))
    message = schema().classes["ModelInferRequest"]()
    try:
        message.ParseFromString(body)
    except DecodeError as exc:
        raise InvalidInputError("the message is not readable", expected="a ModelInferRequest") from exc
    return message


def prepare(
    generation: Generation, headers: Headers, message: Any, *, max_batch_items: int, regions: SharedRegions
) -> Prepared:
    """Understand one inference request, parsed already.

    Raises:
        InvalidInputError, SignatureError: the request is malformed or does not fit the model.
        RequestRefusedError: too large a batch.
    """
    del headers
    inputs = _read_inputs(generation, message, max_batch_items=max_batch_items, regions=regions)
    names = choose_outputs(generation, [row.name for row in message.outputs])
    batch = check_inputs(generation, inputs, max_batch_items=max_batch_items)
    parts: dict[str, Slice | None] = {}
    for row in message.outputs:
        parameters, where = _values(row.parameters), f"output `{row.name[:80]}`"
        refuse_classification(parameters, where)
        parts[row.name] = slice_of(parameters, where)
    is_raw = bool(message.raw_input_contents) or any(parts.values())
    request_id = message.id

    def encode(outputs: Mapping[str, np.ndarray]) -> Response:
        arrays = {name: contiguous(outputs[name]) for name in names}
        for name, part in parts.items():
            if part is not None:
                regions.write(part, raw_array(arrays[name]))
        answer = _answer(generation, arrays, parts, request_id=request_id, is_raw=is_raw)
        return Response(200, answer.SerializeToString(), ())

    return Prepared(generation, inputs, batch, encode, asked_timeout_s(_values(message.parameters)))


def prepare_stream(
    generation: Generation,
    headers: Headers,
    message: Any,
    *,
    max_batch_items: int,
    started_ns: int,
    regions: SharedRegions,
) -> StreamRequest:
    """Understand a request for a stream, parsed already. Errors as in `prepare`."""
    del headers
    inputs = _read_inputs(generation, message, max_batch_items=max_batch_items, regions=regions)
    for row in message.outputs:
        parameters, where = _values(row.parameters), f"output `{row.name[:80]}`"
        refuse_classification(parameters, where)
        if slice_of(parameters, where) is not None:
            raise InvalidInputError(
                f"{where} is to go to shared memory, where each step would overwrite the one before",
                remedy="Take the outputs of streams from their messages",
            )
    parameters = _values(message.parameters)
    return understand(
        generation,
        inputs,
        [row.name for row in message.outputs],
        max_steps=parameters.get(MAX_STEPS),
        is_single=False,
        max_batch_items=max_batch_items,
        timeout_s=asked_timeout_s(parameters),
        started_ns=started_ns,
    )


def wants_empty_final(message: Any) -> bool:
    """Tell whether a caller of a stream wants an answer without outputs at its end (Triton's parameter).

    Raises:
        InvalidInputError: it is no flag.
    """
    value = _values(message.parameters).get(EMPTY_FINAL, False)
    if not isinstance(value, bool):
        raise InvalidInputError(f"parameter `{EMPTY_FINAL}` is no flag", expected="bool_param")
    return value


def answer_of(generation: Generation, arrays: Mapping[str, np.ndarray], message: Any) -> Any:
    """Return the `ModelInferResponse` to a request with these outputs, raw or typed as the request was."""
    is_raw = bool(message.raw_input_contents)
    return _answer(generation, arrays, {}, request_id=message.id, is_raw=is_raw)


def _read_inputs(
    generation: Generation, message: Any, *, max_batch_items: int, regions: SharedRegions
) -> dict[str, np.ndarray]:
    rows, raw = message.inputs, list(message.raw_input_contents)
    if not rows:
        raise InvalidInputError("the request has no `inputs`", expected="a list of tensors", received="nothing")
    parts = [slice_of(_values(row.parameters), f"input `{row.name[:80]}`") for row in rows]
    if raw and len(raw) != parts.count(None):
        raise InvalidInputError(
            "`raw_input_contents` does not go with `inputs`",
            expected=f"{parts.count(None)} entries, one for each input that is not in shared memory, in order",
            received=len(raw),
        )
    inputs: dict[str, np.ndarray] = {}
    raw_parts = iter(raw)
    for row, part in zip(rows, parts, strict=True):
        spec = find_input(generation, row.name, row.datatype)
        if spec.name in inputs:
            raise input_twice(spec)
        shape = read_shape(spec, list(row.shape), max_batch_items=max_batch_items)
        if part is not None:
            inputs[spec.name] = read_shared(spec, {"data": 0} if row.HasField("contents") else {}, part, shape, regions)
        elif raw:
            if row.HasField("contents"):
                raise SignatureError(
                    f"input `{spec.name}` has both `contents` and `raw_input_contents`",
                    expected="one of them",
                    field=spec.name,
                )
            data, writable = memoryview(next(raw_parts)), must_be_writable(generation)
            inputs[spec.name] = array_from_bytes(spec, data, shape, writable=writable)
        else:
            inputs[spec.name] = _typed_array(spec, row, shape)
    return inputs


def _values(parameters: Any) -> dict[str, object]:
    """Return parameters as plain values."""
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "string_param")
        for name, value in parameters.items()
    }


def _typed_array(spec: TensorSpec, row: Any, shape: Sequence[int]) -> np.ndarray:
    field = _TYPED_FIELDS.get(row.datatype)
    if field is None:
        raise SignatureError(
            f"input `{spec.name}` of {row.datatype} has no typed contents",
            expected="`raw_input_contents`",
            field=spec.name,
        )
    for other, _ in row.contents.ListFields():
        if other.name != field:
            raise SignatureError(
                f"input `{spec.name}` has contents of another type",
                expected=f"`{field}` for {row.datatype}",
                received=f"`{other.name}`",
                field=spec.name,
            )
    values = getattr(row.contents, field)
    if len(values) != math.prod(shape):
        raise SignatureError(
            f"input `{spec.name}` has data that is not its `shape`",
            expected=f"{math.prod(shape)} elements for {tuple(shape)}",
            received=f"{len(values)} elements in `{field}`",
            field=spec.name,
        )
    read = array_from_texts if spec.dtype == "string" else array_from_numbers
    return read(spec, values).reshape(shape)


def _answer(
    generation: Generation,
    arrays: Mapping[str, np.ndarray],
    parts: Mapping[str, Slice | None],
    *,
    request_id: str,
    is_raw: bool,
) -> Any:
    is_raw = is_raw or any(DATATYPE_OF[array.dtype] not in _TYPED_FIELDS for array in arrays.values())
    response = schema().classes["ModelInferResponse"](
        model_name=generation.endpoint, model_version=str(generation.number), id=request_id
    )
    response.parameters["digest"].string_param = generation.digest
    if generation.arm:
        response.parameters["arm"].string_param = generation.arm
    for name, array in arrays.items():
        datatype = DATATYPE_OF[array.dtype]
        row = response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        part, raw = parts.get(name), raw_array(array) if is_raw else array
        if part is not None:
            row.parameters["shared_memory_region"].string_param = part.region
            row.parameters["shared_memory_byte_size"].int64_param = raw.nbytes
            response.raw_output_contents.append(b"")  # Triton's client counts them by output
        elif is_raw:
            response.raw_output_contents.append(raw.tobytes())
        else:
            values = array.reshape(-1).tolist()
            sent = [text.encode() for text in values] if datatype == "BYTES" else values
            getattr(row.contents, _TYPED_FIELDS[datatype]).extend(sent)
    return response


def _check_overhead(body: memoryview) -> None:
    """Refuse a large message that is not mostly raw tensors: small parts become objects of many times their size."""
    count = typed = other = 0
    for number, start, end in _fields(body):
        count += 1
        if number == _INPUT:
            for inner, inner_start, inner_end in _fields(body[start:end]):
                count += 1
                if inner == _CONTENTS:
                    typed += inner_end - inner_start
                else:
                    other += inner_end - inner_start
                _check_sizes(count, typed, other)
        elif number != _RAW_CONTENTS:
            other += end - start
        _check_sizes(count, typed, other)


def _check_sizes(count: int, typed: int, other: int) -> None:
    if count > _MOST_FIELDS or other > _MOST_OTHER_BYTES:
        raise InvalidInputError(
            "the message is large, but little of it is tensor data",
            expected=f"at most {_MOST_FIELDS} fields, and {_MOST_OTHER_BYTES} bytes beside the tensors",
        )
    if typed > _MOST_TYPED_BYTES:
        raise InvalidInputError(
            "the typed contents are too large",
            expected=f"at most {_MOST_TYPED_BYTES} bytes",
            remedy="Send `raw_input_contents`",
        )


def _fields(body: memoryview) -> Sequence[tuple[int, int, int]]:
    """Return number, start and end of the length-delimited fields of a message, at most a few more than allowed."""
    found: list[tuple[int, int, int]] = []
    place = 0
    while place < len(body) and len(found) <= _MOST_FIELDS:
        tag, place = _varint(body, place)
        kind, start = tag & 7, place
        if kind == 2:
            size, start = _varint(body, place)
            place = start + size
        elif kind == 0:
            _, place = _varint(body, place)
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            place = len(body) + 1
        if place > len(body):
            raise InvalidInputError("the message is not readable", expected="a ModelInferRequest")
        found.append((tag >> 3, start, place))
    return found


def _varint(body: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(body[place : place + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, place + index + 1
    raise InvalidInputError("the message is not readable", expected="a ModelInferRequest")
