"""Arrow IPC streams as bodies: a column per input, in any number of record batches.

A column holds numbers or texts for a tensor of one axis, and fixed-size lists (one in another) for one of more. A model
with one input of two axes also takes a column per feature, in order. Compressed batches, dictionaries and nulls are
refused: what arrives has the size that it says, and every value is there. pyarrow has no types: what it makes is `Any`
here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from noa.errors import InvalidInputError, SignatureError
from noa.signatures import dtype_name
from noa_serving._http import RequestRefusedError
from noa_serving._npy_body import without_bfloat
from noa_serving._oip import must_be_writable, read_shape
from noa_serving._prepared import too_many_items
from noa_serving._tensors import check_count

if TYPE_CHECKING:
    from noa.signatures import TensorSpec
    from noa_serving._generation import Generation

_MOST_BATCHES = 1024
_MOST_COLUMNS = 4096
_MOST_LEVELS = 32


def read_arrow(generation: Generation, body: bytes, *, max_batch_items: int) -> dict[str, np.ndarray]:
    """Return the columns of an Arrow IPC stream as the model's inputs.

    Raises:
        InvalidInputError, SignatureError: it is malformed or does not fit.
        RequestRefusedError: too large a batch.
    """
    try:
        table = pa.Table.from_batches(list(_batches(body)))
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, struct.error) as exc:
        raise InvalidInputError("the body is not readable", expected="an uncompressed Arrow IPC stream") from exc
    if table.num_rows > max_batch_items:
        raise too_many_items(table.num_rows, max_batch_items)
    names = table.column_names
    single = _matrix_input(generation, names)
    if single is not None:
        parts = [_read_column(single, table.column(index), ()) for index in range(len(names))]
        return {single.name: np.stack(parts, axis=1)}
    inputs: dict[str, np.ndarray] = {}
    for index, name in enumerate(names):
        spec = generation.specs.get(name)
        if spec is None or name in inputs:
            known = ", ".join(f"`{one}`" for one in generation.input_names)
            raise SignatureError(
                f"column `{name[:80]}` is not an input, or stands twice", expected=known, field=name[:80]
            )
        tail = tuple(size for size in spec.shape[1:] if isinstance(size, int))
        array = _read_column(spec, table.column(index), tail if len(tail) == len(spec.shape) - 1 else None)
        read_shape(spec, list(array.shape), max_batch_items=max_batch_items)
        inputs[name] = array.copy() if must_be_writable(generation) else array
    return inputs


def write_arrow(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return arrays as an Arrow IPC stream of one record batch.

    Raises:
        RequestRefusedError: 406, they are not rows (without a first axis, or of different lengths), or are bfloat16.
    """
    sizes = {array.shape[0] if array.ndim else -1 for array in arrays.values()}
    if len(sizes) != 1 or -1 in sizes:
        raise RequestRefusedError(
            "these outputs are no table",
            status=406,
            expected="outputs with one value or list for each item",
            received=", ".join(f"{name}{array.shape}" for name, array in arrays.items()),
            remedy="Accept `application/json` or `application/x-npy`",
        )
    for name, array in arrays.items():
        if array.dtype.kind == "V":
            raise without_bfloat(name, "Arrow has")
    batch = pa.record_batch({name: _to_column(array) for name, array in arrays.items()})
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _batches(body: bytes) -> Iterator[Any]:
    reader = ipc.MessageReader.open_stream(pa.BufferReader(body))
    first = next(iter(reader), None)
    if first is None or first.type != "schema":
        raise InvalidInputError("the body begins with no schema", expected="an Arrow IPC stream")
    schema = ipc.read_schema(first)
    if len(schema) > _MOST_COLUMNS:
        raise InvalidInputError("the table has too many columns", expected=f"at most {_MOST_COLUMNS}")
    for field in schema:
        _check_type(field.name, field.type)
    for index, message in enumerate(reader):
        if message.type != "record batch" or index >= _MOST_BATCHES or _is_compressed(memoryview(message.metadata)):
            raise InvalidInputError(
                "the stream holds something that is not read here",
                expected=f"at most {_MOST_BATCHES} record batches, neither compressed nor dictionaries",
                received=message.type,
            )
        yield ipc.read_record_batch(message, schema)


def _check_type(name: str, kind: Any) -> None:
    leaf = kind
    for _ in range(_MOST_LEVELS):
        if not pa.types.is_fixed_size_list(leaf):
            break
        leaf = leaf.value_type
    is_number = pa.types.is_integer(leaf) or pa.types.is_floating(leaf) or pa.types.is_boolean(leaf)
    if not (is_number or pa.types.is_string(leaf) or pa.types.is_large_string(leaf)):
        raise SignatureError(
            f"column `{name[:80]}` holds no tensors",
            expected="numbers or texts, or fixed-size lists of them",
            received=str(kind)[:80],
            field=name[:80],
        )


def _is_compressed(message: memoryview) -> bool:
    """Tell whether a record batch's buffers are compressed, from its flatbuffer.

    pyarrow unpacks them while it reads, to whatever size they claim. Source: Arrow's format/Message.fbs: field 2 of
    `Message` is the header, field 3 of `RecordBatch` the compression.
    """

    def field(table: int, index: int) -> int:
        vtable = table - struct.unpack_from("<i", message, table)[0]
        place = 4 + 2 * index
        if place >= struct.unpack_from("<H", message, vtable)[0]:
            return 0
        return int(struct.unpack_from("<H", message, vtable + place)[0])

    root = int(struct.unpack_from("<I", message, 0)[0])
    header = root + field(root, 2)
    batch = header + int(struct.unpack_from("<I", message, header)[0])
    return field(batch, 3) != 0


def _matrix_input(generation: Generation, names: list[str]) -> TensorSpec | None:
    """Return the input whose features the columns are, None if the columns are inputs."""
    spec = generation.signature.inputs[0]
    is_matrix = len(generation.input_names) == 1 and len(spec.shape) == 2 and spec.name not in names
    return spec if is_matrix and spec.shape[1] == len(names) else None


def _read_column(spec: TensorSpec, column: Any, tail: tuple[int, ...] | None) -> np.ndarray:
    values = column.combine_chunks()
    sizes = [len(values)]
    while True:
        if values.null_count:
            raise SignatureError(f"input `{spec.name}` has nulls", expected="a value in each place", field=spec.name)
        if not pa.types.is_fixed_size_list(values.type):
            break
        sizes.append(values.type.list_size)
        values = values.flatten()
    if spec.dtype == "string":
        check_count(spec, len(values))
    array = values.to_numpy(zero_copy_only=False)
    name = dtype_name(array.dtype)
    if name != spec.dtype or (tail is not None and tuple(sizes[1:]) != tail):
        raise SignatureError(
            f"input `{spec.name}` has the wrong dtype or shape",
            expected=spec.describe() if tail != () else spec.dtype,
            received=f"{name}{tuple(sizes)}",
            field=spec.name,
        )
    return array.reshape(sizes)


def _to_column(array: np.ndarray) -> Any:
    flat = np.ascontiguousarray(array).reshape(-1)
    column = pa.array(flat, pa.large_string() if flat.dtype == object else None)
    for size in reversed(array.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column
