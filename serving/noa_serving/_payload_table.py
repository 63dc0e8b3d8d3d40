"""Requests as a table: one row each, its tensors as nested lists, their dtypes those of the model.

A column of nested lists is made of flat numbers and offsets, without a Python object per number. What is redacted is
left out, or becomes a keyed hash per item, by which equal values can be found and no value can be guessed without the
key. pyarrow has no types: what it makes is `Any` here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noa.signatures import dtype_name
from noa_serving._tensors import raw_array

if TYPE_CHECKING:
    from noa_serving._observer import PayloadRow, Record

Redaction = Literal["drop", "hash"]
FORMAT = "noa-payload-log/1"

_HASH_BYTES = 16
_MAX_OFFSET = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Redactor:
    """What is kept of each tensor. `key` is what hashes are made with; without it, nobody can make the same."""

    names: Mapping[str, Redaction]
    key: bytes

    def keep(self, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Return the tensors without those that are dropped."""
        return {name: array for name, array in tensors.items() if self.names.get(name) != "drop"}

    def column(self, name: str, arrays: Sequence[np.ndarray]) -> Any:
        """Return a tensor of many requests, or its hashes, as a column."""
        return nested_lists(arrays) if self.names.get(name) != "hash" else self._hashes(arrays)

    def _hashes(self, arrays: Sequence[np.ndarray]) -> Any:
        rows = [[self._hash(item) for item in array] if array.ndim else [self._hash(array)] for array in arrays]
        return pa.array(rows, pa.list_(pa.string()))

    def _hash(self, item: np.ndarray) -> str:
        data = raw_array(np.ascontiguousarray(item)).tobytes()
        return hashlib.blake2b(data, key=self.key, digest_size=_HASH_BYTES).hexdigest()


def shape_key(row: PayloadRow) -> tuple[object, ...]:
    """Return what rows of one file have in common: endpoint, version, and kind and axes of every tensor."""
    tensors = (*row.inputs.items(), *row.outputs.items())
    return (row.record.target, row.record.version, *((name, one.dtype.str, one.ndim) for name, one in tensors))


def write_table(rows: Sequence[PayloadRow], redactor: Redactor) -> Any:
    """Return rows with one `shape_key` as the bytes of a Parquet file, in a buffer of pyarrow."""
    records = [row.record for row in rows]

    def column(kind: Any, value: Callable[[Record], object]) -> Any:
        return pa.array([value(record) for record in records], kind)

    version = records[0].version
    assert version is not None  # only what a version has answered is kept
    columns: dict[str, Any] = {
        "request_id": column(pa.string(), lambda one: one.request_id),
        "time": column(pa.timestamp("us", "UTC"), lambda one: one.ended_at // 1000),
        "endpoint": column(pa.string(), lambda one: one.target),
        "model": column(pa.string(), lambda one: one.version and one.version.model),
        "version": column(pa.int64(), lambda one: one.version and one.version.number),
        "digest": column(pa.string(), lambda one: one.version and one.version.digest),
        "items": column(pa.int32(), lambda one: one.items),
        "seconds": column(pa.float64(), lambda one: one.taken / 1e9),
    }
    for name, tensors in (("inputs", [row.inputs for row in rows]), ("outputs", [row.outputs for row in rows])):
        if tensors[0]:  # a struct of no fields has no place in a file
            columns[name] = _struct(tensors, redactor)
    facts = {
        "format": FORMAT,
        "redacted": json.dumps(dict(redactor.names), sort_keys=True),
        "model": version.model,
        "version": version.number,
        "digest": version.digest,
    }
    schema = pa.schema([pa.field(name, one.type) for name, one in columns.items()])
    schema = schema.with_metadata({f"noa.{name}": str(value) for name, value in facts.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(list(columns.values()), schema=schema), sink, compression="zstd")
    return sink.getvalue()


def nested_lists(arrays: Sequence[np.ndarray]) -> Any:
    """Return arrays of one dtype and number of axes as a column: one row each, a list in another for each axis."""
    flat = np.concatenate([array.reshape(-1) for array in arrays])
    if flat.dtype.kind == "V":  # Arrow has no bfloat16
        flat = flat.astype(np.float32)
    if len(flat) > _MAX_OFFSET:
        raise OverflowError("a column of the payload log has too many values")
    column: Any = pa.array(flat, pa.large_string() if flat.dtype == object else None)
    for axis in reversed(range(arrays[0].ndim)):
        counts = [int(np.prod(array.shape[:axis], dtype=np.int64)) for array in arrays]
        lengths = np.repeat([array.shape[axis] for array in arrays], counts)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        column = pa.ListArray.from_arrays(pa.array(offsets), column)
    return column


def _struct(tensors: Sequence[Mapping[str, np.ndarray]], redactor: Redactor) -> Any:
    columns: list[Any] = []
    fields: list[Any] = []
    for name, first in tensors[0].items():
        columns.append(redactor.column(name, [one[name] for one in tensors]))
        facts = {"dtype": dtype_name(first.dtype), "axes": str(first.ndim)}
        fields.append(pa.field(name, columns[-1].type, metadata=facts))
    return pa.StructArray.from_arrays(columns, fields=fields)
