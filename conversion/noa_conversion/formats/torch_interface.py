"""What a stored exported program says that it takes and gives, read from its JSON: without torch, weights or a run.

A program names its inputs by position only, so tensors are compared with a signature in order, after its constants and
the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from noa.errors import InvalidInputError
from noa.signatures import Signature, TensorSpec
from noa_conversion.formats.program_differences import check_count, differing_tensor
from noa_conversion.formats.torch_archive import PROGRAM_FILE, read_graph

_DTYPES: Final[Mapping[int, str]] = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    12: "bool",
    13: "bfloat16",
}
"""`ScalarType` of torch's export schema, by number. Source: torch/_export/serde/schema.py, torch 2.5 to 2.9."""


def check_interface(data: bytes, weights: int, signature: Signature, path: Path) -> None:
    """Compare the program with a signature; it takes constants of its own, as many `weights`, and then the inputs.

    Raises:
        InvalidInputError: another number of tensors, or one has another dtype, rank or size; `facts["field"]` names it.
    """
    graph, constants = read_graph(data, path)
    values, inputs, outputs = (cast("Any", graph.get(key, ())) for key in ("tensor_values", "inputs", "outputs"))
    if not (isinstance(values, Mapping) and isinstance(inputs, list) and isinstance(outputs, list)):
        raise InvalidInputError(f"`{PROGRAM_FILE}` holds no graph", where=str(path))
    for side, given, specs in (
        ("inputs", inputs[constants + weights :], signature.inputs),
        ("outputs", outputs, signature.outputs),
    ):
        check_count(path, side, specs, len(given))
        for argument, spec in zip(given, specs, strict=True):
            _check_tensor(_meta(argument, values), spec, path)


def _meta(argument: object, values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what is recorded of an argument, None if it is no tensor or nothing is."""
    try:
        name = cast("Any", argument)["as_tensor"]["name"]
        return cast("Mapping[str, Any]", values[name])
    except (KeyError, TypeError):
        return None


def _check_tensor(meta: Mapping[str, Any] | None, spec: TensorSpec, path: Path) -> None:
    """Refuse another dtype, rank or fixed size, and a size where the signature leaves it free."""
    if meta is None:
        return
    dtype = _DTYPES.get(meta.get("dtype", 0))
    sizes = [size.get("as_int") for size in meta.get("sizes", ())]
    fits = len(sizes) == len(spec.shape) and all(
        size is None or size == axis for size, axis in zip(sizes, spec.shape, strict=True)
    )
    if dtype not in (None, spec.dtype) or not fits:
        shown = ", ".join("?" if size is None else str(size) for size in sizes)
        raise differing_tensor(path, spec, f"{dtype}({shown})")
