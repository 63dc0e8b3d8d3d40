"""NumPy's own file formats as bodies: `.npy` for one array, `.npz` (uncompressed) for several by name.

Read here, not by `np.load`: an array is a view of the body, and nothing is made before dtype and shape fit the model.
Object arrays are pickles and are never read. Texts come and go as NumPy's own text of fixed width (`<U`).
"""

from __future__ import annotations

import ast
import io
import math
import sys
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np

from noa.errors import InvalidInputError, SignatureError
from noa.signatures import dtype_name
from noa.text_tensors import check_texts, text_array
from noa_serving._http import RequestRefusedError
from noa_serving._oip import must_be_writable, read_shape
from noa_serving._tensors import array_from_bytes

if TYPE_CHECKING:
    from noa.signatures import TensorSpec
    from noa_serving._generation import Generation

NPY_TYPE = b"application/x-npy"
NPZ_TYPE = b"application/x-npz"

_MAGIC = b"\x93NUMPY"
_MOST_HEADER_BYTES = 4096
_MOST_TEXT_BYTES = 64 << 20  # of an answer, where each text takes the room of the longest
_CODE_POINT_BYTES = 4


def read_npy(generation: Generation, body: bytes, *, max_batch_items: int) -> dict[str, np.ndarray]:
    """Return the array of a `.npy` body as the input of a model that has one.

    Raises:
        InvalidInputError, SignatureError: it is malformed or does not fit.
        RequestRefusedError: too large a batch.
    """
    if len(generation.input_names) != 1:
        names = ", ".join(f"`{name}`" for name in generation.input_names)
        raise InvalidInputError(
            "the model has several inputs", expected=f"a .npz body with {names}", received="one array"
        )
    spec = generation.specs[generation.input_names[0]]
    return {spec.name: _read_array(generation, spec, memoryview(body), max_batch_items=max_batch_items)}


def read_npz(generation: Generation, body: bytes, *, max_batch_items: int) -> dict[str, np.ndarray]:
    """Return the arrays of an uncompressed `.npz` body by name. Errors as in `read_npy`."""
    inputs: dict[str, np.ndarray] = {}
    for name, data in _entries(body).items():
        spec = generation.specs.get(name)
        if spec is None:
            known = ", ".join(f"`{one}`" for one in generation.input_names)
            raise SignatureError(
                f"input `{name[:80]}` is not known", expected=known, received=f"`{name[:80]}`", field=name[:80]
            )
        inputs[name] = _read_array(generation, spec, data, max_batch_items=max_batch_items)
    return inputs


def write_arrays(arrays: Mapping[str, np.ndarray]) -> tuple[bytes, bytes]:
    """Return media type and body: `.npy` of a single array, `.npz` of several.

    Raises:
        RequestRefusedError: 406, texts do not go into NumPy's, or there are numbers of bfloat16.
    """
    for name, one in arrays.items():
        if one.dtype.kind == "V":
            raise without_bfloat(name, "NumPy's files have")
    arrays = {name: _fixed_width(name, one) if one.dtype == object else one for name, one in arrays.items()}
    file = io.BytesIO()
    if len(arrays) == 1:
        np.lib.format.write_array(file, next(iter(arrays.values())), allow_pickle=False)
        return NPY_TYPE, file.getvalue()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    return NPZ_TYPE, file.getvalue()


def without_bfloat(name: str, who: str) -> RequestRefusedError:
    """Return the refusal of an output that a media type has no numbers for."""
    return RequestRefusedError(
        f"output `{name}` is bfloat16, which {who} no numbers for",
        status=406,
        expected="another media type, or other outputs",
        remedy="Accept `application/json`, or use the Open Inference Protocol with raw tensors",
    )


def _read_array(generation: Generation, spec: TensorSpec, data: memoryview, *, max_batch_items: int) -> np.ndarray:
    dtype, is_fortran, sizes, start = _read_header(spec, data)
    if dtype_name(dtype) != spec.dtype:
        raise SignatureError(
            f"input `{spec.name}` has the wrong dtype",
            expected=spec.dtype,
            received=dtype_name(dtype),
            field=spec.name,
        )
    shape = read_shape(spec, sizes, max_batch_items=max_batch_items)
    raw = data[start:]
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise SignatureError(
            f"input `{spec.name}` has the wrong number of bytes",
            expected=f"{math.prod(shape) * dtype.itemsize} bytes for {dtype.name}{shape}",
            received=f"{len(raw)} bytes",
            field=spec.name,
        )
    if spec.dtype == "string":
        return _read_texts(spec, raw, dtype, shape, is_fortran=is_fortran)
    if dtype.byteorder == ">":
        raw = memoryview(np.frombuffer(raw, dtype).astype(dtype.newbyteorder("<")).tobytes())
    if not is_fortran:
        return array_from_bytes(spec, raw, shape, writable=must_be_writable(generation))
    turned = array_from_bytes(spec, raw, shape[::-1], writable=False).transpose()
    return np.ascontiguousarray(turned).reshape(shape)


def _read_texts(
    spec: TensorSpec, raw: memoryview, dtype: np.dtype, shape: tuple[int, ...], *, is_fortran: bool
) -> np.ndarray:
    """Return texts of fixed width, whose size fits the shape; NumPy takes NULs at their ends for filling."""
    if not dtype.itemsize:
        return text_array([""] * math.prod(shape), shape)
    points = np.frombuffer(raw, dtype.byteorder + "u4" if dtype.byteorder in "<>" else "u4")
    if points.size and int(points.max()) > sys.maxunicode:
        raise SignatureError(
            f"input `{spec.name}` holds something that is no text", expected="Unicode", field=spec.name
        )
    found = np.frombuffer(raw, dtype).reshape(shape, order="F" if is_fortran else "C").astype(object)
    check_texts(found, field=spec.name, name=f"input `{spec.name}`")
    return np.ascontiguousarray(found).reshape(shape)


def _fixed_width(name: str, array: np.ndarray) -> np.ndarray:
    texts = cast("list[str]", array.reshape(-1).tolist())
    width = max(map(len, texts), default=0)
    if len(texts) * width * _CODE_POINT_BYTES > _MOST_TEXT_BYTES or any(text.endswith("\0") for text in texts):
        raise RequestRefusedError(
            f"the texts of output `{name}` do not go into NumPy's text of fixed width",
            status=406,
            expected=f"at most {_MOST_TEXT_BYTES} bytes where each takes the room of the longest, and no NUL at an end",
            received=f"{len(texts)} texts, the longest of {width} characters",
            remedy="Accept `application/json` or `application/vnd.apache.arrow.stream`",
        )
    return array.astype(f"<U{max(width, 1)}")


def _read_header(spec: TensorSpec, data: memoryview) -> tuple[np.dtype, bool, list[object], int]:
    """Return dtype, order, sizes and the place of the first value."""
    if bytes(data[:6]) != _MAGIC or len(data) < 12 or data[6] not in (1, 2):
        raise _unreadable(spec)
    width = 2 if data[6] == 1 else 4
    start = 8 + width
    length = int.from_bytes(data[8:start], "little")
    if length > min(_MOST_HEADER_BYTES, len(data) - start):
        raise _unreadable(spec)
    try:
        table: object = ast.literal_eval(bytes(data[start : start + length]).decode("latin-1").strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError) as exc:  # all that it raises for malformed text
        raise _unreadable(spec) from exc
    if not isinstance(table, dict) or set(cast("dict[object, object]", table)) != {"descr", "fortran_order", "shape"}:
        raise _unreadable(spec)
    row = cast("dict[str, object]", table)
    descr, is_fortran, sizes = row["descr"], row["fortran_order"], row["shape"]
    if not isinstance(descr, str) or not isinstance(is_fortran, bool) or not isinstance(sizes, tuple):
        raise _unreadable(spec)
    try:
        dtype = np.dtype(descr)
    except (TypeError, ValueError, SyntaxError) as exc:
        raise _unreadable(spec) from exc
    if dtype.hasobject:
        raise InvalidInputError(
            f"input `{spec.name}` is a pickle",
            expected="an array of numbers, or of text (`<U`)",
            received="an array of Python objects",
        )
    return dtype, is_fortran, list(cast("tuple[object, ...]", sizes)), start + length


def _entries(body: bytes) -> dict[str, memoryview]:
    found: dict[str, memoryview] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            for row in archive.infolist():
                name = row.filename.removesuffix(".npy")
                if row.compress_type != zipfile.ZIP_STORED or row.file_size > len(body) or name in found:
                    raise InvalidInputError(
                        "the .npz body is compressed, or names an array twice", remedy="Write it with `np.savez`"
                    )
                found[name] = memoryview(archive.read(row))
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, ValueError, RuntimeError, NotImplementedError) as exc:
        raise InvalidInputError("the body is not readable", expected="an .npz file as `np.savez` writes it") from exc
    return found


def _unreadable(spec: TensorSpec) -> InvalidInputError:
    return InvalidInputError(
        f"input `{spec.name}` is not readable", expected="a .npy file of version 1 or 2, as `np.save` writes it"
    )
