"""Named tensors in a safetensors file, texts among them.

Safetensors knows numbers only. A tensor of texts is kept as its packed bytes (`noa.text_tensors`), uint8, and its shape
in the file's metadata under `noa.texts`. A file of numbers is to the byte what safetensors itself writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from noa.atomic_write import set_usual_mode
from noa.digests import canonical_json
from noa.errors import InvalidInputError
from noa.signatures import numpy_dtype
from noa.text_tensors import is_text, pack_texts, unpack_texts

if TYPE_CHECKING:
    import numpy as np

_TEXTS: Final = "noa.texts"
_DTYPES: Final = {
    "BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "U8": "uint8", "U16": "uint16",
    "U32": "uint32", "U64": "uint64", "F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16",
}  # fmt: skip
"""Dtypes by the names in a file. The library's own reader of bytes leaves out BF16."""
_LENGTH_BYTES: Final = 8  # of a safetensors header


def save_tensors(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write tensors in their order."""
    import numpy as np
    from safetensors.numpy import save_file

    texts = {name: list(array.shape) for name, array in arrays.items() if is_text(array.dtype)}
    stored = {
        name: np.frombuffer(pack_texts(array), np.uint8) if name in texts else np.ascontiguousarray(array)
        for name, array in arrays.items()
    }
    save_file(stored, path, metadata={_TEXTS: canonical_json(texts).decode()} if texts else None)
    set_usual_mode(path)


def load_tensors(data: bytes) -> dict[str, np.ndarray]:
    """Return the tensors in a file.

    Raises:
        InvalidInputError: it is not what `save_tensors` writes.
    """
    import numpy as np
    from safetensors import SafetensorError, deserialize

    try:
        arrays = {
            name: np.frombuffer(row["data"], numpy_dtype(_DTYPES[row["dtype"]])).reshape(row["shape"])
            for name, row in deserialize(data)
        }
        for name, shape in _shapes_of_texts(data).items():
            packed = memoryview(arrays[name].tobytes())
            arrays[name] = unpack_texts(packed, shape, field=name, name=f"tensor `{name}`")
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as exc:
        raise InvalidInputError(f"not a safetensors file as noa writes it: {exc}") from exc
    return arrays


def _shapes_of_texts(data: bytes) -> dict[str, list[int]]:
    size = int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = cast("dict[str, dict[str, str]]", json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + size]))
    return cast("dict[str, list[int]]", json.loads(header.get("__metadata__", {}).get(_TEXTS, "{}")))
