"""Models that are kept as they came: weights, pickles and MLflow folders. Nothing of them is loaded here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

from noa.atomic_write import write_file
from noa.digests import canonical_json
from noa.errors import InvalidInputError
from noa.signatures import Axis, DType, Signature, TensorSpec
from noa_conversion.files import WEIGHTS_FILE, copy_folder
from noa_conversion.formats.mlflow_format import LAYOUT_FILE, MODEL_FOLDER, InputLayout
from noa_conversion.formats.pickle_format import CONTENT_FOLDER
from noa_conversion.formats.weights_format import NOTHING

_SAFETENSORS: dict[str, DType] = {
    "BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "U8": "uint8", "U16": "uint16",
    "U32": "uint32", "U64": "uint64", "F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16",
}  # fmt: skip
_COLUMNS: dict[str, DType] = {
    "boolean": "bool", "integer": "int32", "long": "int64", "float": "float32", "double": "float64",
}  # fmt: skip
_EMPTY = TensorSpec(name=NOTHING, dtype="uint8", shape=(0,))


def prepare_weights(source: Path, folder: Path) -> Signature:
    """Copy a safetensors file; the signature's outputs are its tensors (those of dtypes that signatures know)."""
    with source.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = cast("dict[str, dict[str, Any]]", json.loads(file.read(length)))
    outputs = tuple(
        TensorSpec(name=name, dtype=_SAFETENSORS[row["dtype"]], shape=tuple(row["shape"]))
        for name, row in sorted(header.items())
        if name != "__metadata__" and row["dtype"] in _SAFETENSORS and name.isprintable()
    )
    shutil.copyfile(source, folder / WEIGHTS_FILE)
    signature = Signature(inputs=(_EMPTY,), outputs=outputs or (_EMPTY,))
    signature.save(folder)
    return signature


def prepare_pickle(source: Path, folder: Path) -> Signature:
    """Copy a file that is never read."""
    (folder / CONTENT_FOLDER).mkdir()
    shutil.copyfile(source, folder / CONTENT_FOLDER / source.name)
    signature = Signature(inputs=(_EMPTY,), outputs=(_EMPTY,))
    signature.save(folder)
    return signature


def prepare_mlflow(source: Path, mlmodel: dict[str, Any], folder: Path) -> Signature:
    """Copy an MLflow folder and write what it takes and gives beside it.

    Raises:
        InvalidInputError: the model has no signature, or one that is not made of numbers.
    """
    signature, layout = mlflow_signature(mlmodel)
    copy_folder(source, folder / MODEL_FOLDER)
    write_file(folder / LAYOUT_FILE, canonical_json({"inputs": layout}))
    signature.save(folder)
    return signature


def mlflow_signature(mlmodel: dict[str, Any]) -> tuple[Signature, InputLayout]:
    """Return the signature of an MLmodel, and how MLflow wants the inputs.

    Raises:
        InvalidInputError: it has none, or one that noa has no tensors for.
    """
    stored = mlmodel.get("signature")
    try:
        table = cast("dict[str, str]", stored)
        inputs, outputs = (cast("list[dict[str, Any]]", json.loads(table[side])) for side in ("inputs", "outputs"))
        layout: InputLayout = "columns"
        if inputs[0]["type"] == "tensor":
            layout = "tensors" if len(inputs) > 1 or inputs[0].get("name") else "array"
        return (
            Signature(
                inputs=tuple(_mlflow_spec(row, index, "input") for index, row in enumerate(inputs)),
                outputs=tuple(_mlflow_spec(row, index, "output") for index, row in enumerate(outputs)),
            ),
            layout,
        )
    except (KeyError, TypeError, ValueError, IndexError) as exc:
        raise InvalidInputError(
            "the MLflow model has no signature with inputs and outputs",
            remedy="Log it with one: `mlflow.models.infer_signature(inputs, outputs)`",
        ) from exc


def _mlflow_spec(row: dict[str, Any], index: int, side: str) -> TensorSpec:
    name = str(row.get("name") or (side if index == 0 else f"{side}_{index}"))
    if row["type"] != "tensor":
        dtype = _COLUMNS.get(str(row["type"]))
        if dtype is None or not name.isprintable():
            raise InvalidInputError(
                f"{side} `{name!a}` of the MLflow model is of a type that noa has no tensors for",
                expected=", ".join(_COLUMNS),
                received=str(row["type"]),
            )
        return TensorSpec(name=name, dtype=dtype, shape=("batch",))
    spec = row["tensor-spec"]
    sizes = [int(size) for size in spec["shape"]]
    free: list[Axis] = ["batch" if axis == 0 else f"{name}_{axis}" for axis in range(len(sizes))]
    shape = [free[axis] if size < 0 else size for axis, size in enumerate(sizes)]
    return TensorSpec(name=name, dtype=cast("DType", str(spec["dtype"])), shape=tuple(shape))
