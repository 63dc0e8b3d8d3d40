"""The least precise floats that a model holds: its outputs are no more exact than what they were computed from.

Read from the signature and from what a format folder says of its weights, without reading the weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from noa.errors import InvalidInputError
from noa.signatures import Signature
from noa_conversion.comparison import MANTISSA_BITS
from noa_conversion.files import WEIGHTS_FILE

_MODEL_FILE: Final = "model.onnx"
_SAFETENSORS: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MAX_HEADER_BYTES: Final = 100_000_000  # the limit of the format itself


def least_precise(folder: Path, signature: Signature) -> str | None:
    """Return the dtype with the fewest bits of mantissa among weights, inputs and outputs; None: there are no floats.

    `folder` holds a format that was loaded before.

    Raises:
        InvalidInputError: a file is missing or corrupt.
    """
    found = {spec.dtype for spec in (*signature.inputs, *signature.outputs)}
    if (folder / WEIGHTS_FILE).is_file():
        found |= _dtypes_of_weights(folder / WEIGHTS_FILE)
    if (folder / _MODEL_FILE).is_file():
        from noa_conversion.onnx_precision import dtypes_of_initialisers

        found |= dtypes_of_initialisers(folder / _MODEL_FILE)
    return min((name for name in found if name in MANTISSA_BITS), key=MANTISSA_BITS.__getitem__, default=None)


def _dtypes_of_weights(path: Path) -> set[str]:
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size <= _MAX_HEADER_BYTES else {}
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        return {_SAFETENSORS.get(entry["dtype"], "") for entry in entries}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise InvalidInputError(f"`{WEIGHTS_FILE}` is not a whole safetensors file", where=str(path)) from exc
