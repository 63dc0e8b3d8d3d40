"""Checks of an ONNX file before any runtime sees it: claims about sizes, files outside the folder, unknown domains.

A hostile file may claim a tensor of terabytes, point its data at `/etc/passwd`, or nest graphs until a reader's stack
ends. Everything here reads the parsed protobuf only; nothing is allocated by a claim.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, NoReturn

from noa.errors import InvalidInputError
from noa_conversion.onnx_graph.calls import check_calls, functions_of, key_of, plain_domain
from noa_conversion.onnx_graph.scopes import in_order, nodes_within, subgraph_protos

if TYPE_CHECKING:
    import onnx

MAX_TENSOR_BYTES = 1 << 36
"""Largest constant tensor a file may claim, 64 GiB: above any model this room converts, below what harms a server.

It is for reading a file, whatever the settings, and so for what is stored already; what a conversion computes is
bounded by `conversion.max_value_bytes` besides (`onnx_graph/limits.py`).
"""
EMBEDDED = f"embedded:{secrets.token_hex(16)}"
"""The "other file" of tensors that a reader left in the bytes it read. No file can name it: it differs per process."""
_MAX_DEPTH = 16
_MOST_ITEM_BYTES = 8
_FLOAT_BYTES = 4  # what `ConstantOfShape` makes unless it says otherwise
_KNOWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
_WHOLE_NUMBERS = (2, 3, 4, 5, 6, 7, 12, 13)  # TensorProto.DataType: u8, i8, u16, i16, i32, i64, u32, u64
_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
# Operators whose output is as large as a constant says.
_SIZED_BY_INPUT = {"ConstantOfShape": 0, "Expand": 1}


def parse_model(data: bytes, path: Path, *, any_domain: bool = False) -> onnx.ModelProto:
    """Parse and check the bytes of an ONNX file.

    A file may name any domain; its operators must be of a known one or functions of the file. With `any_domain` they
    need not: the caller looks at each operator itself.

    Raises:
        InvalidInputError: not a whole ONNX model, or one that is not safe to load; names the tensor, node or function.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.ModelProto.FromString(data)
    except (DecodeError, RecursionError, ValueError) as exc:
        raise _no_model(f"`{path.name}` is not a whole ONNX model: {exc}", data, path) from exc
    if not model.opset_import or not model.graph.output:
        raise _no_model(f"`{path.name}` holds no ONNX graph", data, path)
    for tensor in _all_tensors(model, path):
        _check_tensor(tensor, path)
    if not any_domain:
        _check_operators(model, path)
    return model


def _no_model(problem: str, data: bytes, path: Path) -> InvalidInputError:
    return InvalidInputError(
        problem,
        where=str(path),
        expected="a serialized `ModelProto` with an opset and a graph that has outputs",
        received=f"{len(data)} bytes that begin with {data[:12]!r}",
        remedy="Compare its size and SHA-256 with the source's: a download that broke off, or a pointer of Git LFS, "
        "looks like this",
    )


def has_external_data(model: onnx.ModelProto, path: Path) -> bool:
    """Tell whether some tensor's bytes lie in another file."""
    import onnx

    return any(
        tensor.data_location == onnx.TensorProto.EXTERNAL
        and all(entry.value != EMBEDDED for entry in tensor.external_data if entry.key == "location")
        for tensor in _all_tensors(model, path)
    )


def read_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Put the bytes that lie in other files into a model that was parsed and checked.

    Raises:
        InvalidInputError: such a file is a hard link (it may be any file of this machine, as with a symbolic one), or
            onnx refuses it; names the tensor.
    """
    import onnx

    for tensor in _all_tensors(model, path):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _refuse_hard_link(tensor, path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (onnx.checker.ValidationError, ValueError) as exc:
        reason = str(exc).partition("\n")[0][:300]
        raise InvalidInputError(f"the data beside `{path.name}` are not read: {reason}", where=str(path)) from exc


def _refuse_hard_link(tensor: onnx.TensorProto, path: Path) -> None:
    location = next(entry.value for entry in tensor.external_data if entry.key == "location")
    names = (path.parent / location).stat().st_nlink
    if names > 1:
        raise _refuse(
            tensor,
            path,
            f"keeps its data in `{location}`, a hard link: it has {names} names, maybe outside the folder too",
            expected="a file with one name",
            remedy="Copy it (`cp` makes a file of its own) and give the copy this name",
        )


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    """Refuse operators that are foreign code, circles, and functions that cannot be inlined in bounded memory."""

    def refuse(what: str) -> NoReturn:
        raise InvalidInputError(what, where=str(path))

    functions = functions_of(model.functions, refuse)
    check_calls(model.graph.node, functions, refuse)
    known = {plain_domain(domain) for domain in _KNOWN_DOMAINS}
    for nodes in (model.graph.node, *(function.node for function in functions.values())):
        in_order(nodes, refuse)
        for node in nodes_within(nodes):
            for graph in subgraph_protos(node):
                in_order(graph.node, refuse)
            if plain_domain(node.domain) not in known and key_of(node) not in functions:
                raise InvalidInputError(
                    f"node `{node.name or node.op_type}` of `{path.name}` needs the operator `{node.op_type}` of the "
                    f"domain `{node.domain}`, which would be foreign code",
                    where=str(path),
                    expected=f"a function of the file, or one of {', '.join(sorted(_KNOWN_DOMAINS - {''}))}",
                    received=f"{node.domain}.{node.op_type}",
                )


def _all_tensors(model: onnx.ModelProto, path: Path) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(model.graph, path, 0)
    for function in model.functions:
        yield from _node_tensors(function.node, path, 0)
        yield from _attribute_tensors(function.attribute_proto, path, 0)


def _graph_tensors(graph: onnx.GraphProto, path: Path, depth: int) -> Iterator[onnx.TensorProto]:
    if depth > _MAX_DEPTH:
        raise InvalidInputError(
            "graphs are nested too deeply", where=str(path), expected=f"at most {_MAX_DEPTH} levels"
        )
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        index = _SIZED_BY_INPUT.get(node.op_type, -1)
        if 0 <= index < len(node.input) and (shape := constants.get(node.input[index])) is not None:
            _check_claimed_shape(node, shape, path)
    yield from _node_tensors(graph.node, path, depth)


def _node_tensors(nodes: object, path: Path, depth: int) -> Iterator[onnx.TensorProto]:
    for node in nodes:  # pyright: ignore[reportGeneralTypeIssues]  # a protobuf repeated field has no public type
        yield from _attribute_tensors(node.attribute, path, depth)


def _attribute_tensors(attributes: Iterable[onnx.AttributeProto], path: Path, depth: int) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        sparse = (
            *((attribute.sparse_tensor,) if attribute.HasField("sparse_tensor") else ()),
            *attribute.sparse_tensors,
        )
        for entry in sparse:
            yield from (entry.values, entry.indices)
        for graph in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
            yield from _graph_tensors(graph, path, depth + 1)


def _check_tensor(tensor: onnx.TensorProto, path: Path) -> None:
    import onnx

    if any(size < 0 for size in tensor.dims):
        raise _refuse(tensor, path, "claims a negative size", expected="sizes of 0 or more")
    if tensor.data_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        if tensor.data_type == onnx.TensorProto.STRING and len(tensor.string_data) == math.prod(tensor.dims):
            return
        raise _refuse(tensor, path, "has no usable type", expected="numbers, or as many texts as it claims")
    claimed = _claimed_bytes(tensor)
    if claimed > MAX_TENSOR_BYTES:
        raise _refuse(tensor, path, f"claims {claimed} bytes", expected=f"at most {MAX_TENSOR_BYTES} bytes")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(tensor, path, claimed)
    elif tensor.HasField("raw_data"):
        if len(tensor.raw_data) != claimed:
            raise _refuse(tensor, path, f"claims {claimed} bytes", expected=f"the {len(tensor.raw_data)} it holds")
    else:
        held = sum(len(getattr(tensor, field)) for field in _TYPED_FIELDS)
        elements = math.prod(tensor.dims)
        if not elements / 8 <= held <= 2 * elements:
            raise _refuse(tensor, path, f"claims {elements} elements", expected=f"the {held} it holds")


def _check_external(tensor: onnx.TensorProto, path: Path, claimed: int) -> None:
    entries: dict[Any, Any] = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if location == EMBEDDED:
        if int(entries["length"]) != claimed:
            raise _refuse(tensor, path, f"claims {claimed} bytes", expected=f"the {entries['length']} it holds")
        return
    if not all(isinstance(text, str) for entry in entries.items() for text in entry):
        raise _refuse(tensor, path, "has an unreadable place", expected="texts")
    pure = PurePosixPath(location)
    is_inside = bool(location) and not pure.is_absolute() and ".." not in pure.parts and "\\" not in location
    is_inside = is_inside and not PureWindowsPath(location).drive and "\0" not in location
    target = path.parent / location if is_inside else path
    if not is_inside or not target.resolve().is_relative_to(path.parent.resolve()):
        raise _refuse(tensor, path, f"keeps its data outside the folder, in `{location}`", expected="a file beside it")
    try:
        offset = int(entries.get("offset", "0") or 0)
        length = int(entries.get("length", "") or claimed)
    except ValueError as exc:
        raise _refuse(tensor, path, "has an unreadable place", expected="whole numbers") from exc
    if not target.is_file():
        raise _refuse(tensor, path, f"keeps its data in `{location}`, which is missing", expected="that file")
    size = os.stat(target).st_size  # noqa: PTH116  # one call for a value that Path.stat also gives; kept beside is_file
    if offset < 0 or length != claimed or offset + length > size:
        raise _refuse(
            tensor, path, f"claims {claimed} bytes at {offset} of `{location}`", expected=f"a place within {size} bytes"
        )


def _check_claimed_shape(node: onnx.NodeProto, shape: onnx.TensorProto, path: Path) -> None:
    from onnx import numpy_helper

    _check_tensor(shape, path)
    if len(shape.external_data) or math.prod(shape.dims) > 64 or shape.data_type not in _WHOLE_NUMBERS:
        return
    sizes = [int(size) for size in numpy_helper.to_array(shape).reshape(-1)]
    item_bytes = _made_item_bytes(node)
    made = math.prod(max(size, 1) for size in sizes) * item_bytes
    if made > MAX_TENSOR_BYTES:
        raise InvalidInputError(
            f"node `{node.name or node.op_type}` makes a tensor of shape {tuple(sizes)}",
            where=str(path),
            expected=f"at most {MAX_TENSOR_BYTES} bytes",
            received=f"{made} bytes, {item_bytes} for each element",
        )


def _made_item_bytes(node: onnx.NodeProto) -> int:
    """Return the bytes of one element that a node makes; the most that there are where the node alone does not say."""
    if node.op_type != "ConstantOfShape":
        return _MOST_ITEM_BYTES
    value = next((entry.t for entry in node.attribute if entry.name == "value"), None)
    return _FLOAT_BYTES if value is None else _item_bytes(value.data_type)


def _claimed_bytes(tensor: onnx.TensorProto) -> int:
    elements = math.prod(tensor.dims)
    if (bits := packed_bits(tensor.data_type)) < 8:
        return (elements * bits + 7) // 8
    return elements * _item_bytes(tensor.data_type)


def _item_bytes(data_type: int) -> int:
    import onnx

    try:
        return onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize
    except (KeyError, ValueError, TypeError):
        return 1


def packed_bits(data_type: int) -> int:
    """Return the bits of an element of which several share a byte, or 8 for all other types."""
    import onnx

    tensor = onnx.TensorProto
    if data_type in (tensor.INT4, tensor.UINT4, tensor.FLOAT4E2M1):
        return 4
    return 2 if data_type in (getattr(tensor, "INT2", -1), getattr(tensor, "UINT2", -1)) else 8


def _refuse(
    tensor: onnx.TensorProto, path: Path, claim: str, *, expected: str, remedy: str | None = None
) -> InvalidInputError:
    return InvalidInputError(
        f"tensor `{tensor.name}` {claim}",
        where=str(path),
        expected=expected,
        received=str(tuple(tensor.dims)),
        remedy=remedy,
    )
