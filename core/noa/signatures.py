"""Signatures: what a model takes and gives, as named tensors.

A `TensorSpec` has a name, a dtype and a shape whose entries are sizes or names of free axes (`"batch"`). A free axis
takes any size, but the same size wherever its name appears in one request. `Signature.validate` is the one check that
every room uses before a model sees an input. Tensors of texts have the dtype `string` (`noa.text_tensors`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

from noa.errors import DependencyMissingError, InvalidInputError, SignatureError
from noa.regular_files import open_regular
from noa.text_tensors import check_texts, is_text
from noa.texts import check_text

if TYPE_CHECKING:
    import numpy as np

DType: TypeAlias = Literal[
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "bfloat16",
    "string",
]
Axis: TypeAlias = int | str
SIGNATURE_FILE = "signature.json"
_FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})
_REMEDIES = {
    "object": "Texts are `string`",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor by name. `shape` holds sizes, and names for free axes, e.g. `("batch", 1, 8, 8)`."""

    name: str
    dtype: DType
    shape: tuple[Axis, ...]

    def __post_init__(self) -> None:
        check_text(self.name, field="name of a tensor", controls="", formats=False)
        for axis in self.shape:
            if isinstance(axis, str):
                check_text(axis, field=f"name of an axis of tensor `{self.name}`", controls="", formats=False)
        if self.dtype not in get_args(DType):
            raise InvalidInputError(
                f"tensor `{self.name}` has a dtype that signatures do not know",
                expected=", ".join(get_args(DType)),
                received=repr(self.dtype),
                remedy=_REMEDIES.get(str(self.dtype), "Cast it inside of the model, or declare one of these"),
                field=self.name,
            )

    def describe(self) -> str:
        """Return e.g. `float32(batch, 1, 8, 8)`."""
        return f"{self.dtype}({', '.join(map(str, self.shape))})"

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The named inputs and outputs of a model, in the order in which the model takes and gives them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        for side in (self.inputs, self.outputs):
            names = [spec.name for spec in side]
            if not names or len(set(names)) != len(names):
                raise InvalidInputError("a signature needs distinct tensor names", received=str(names))

    def validate(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Check `inputs` and return the size of the first free axis (1 if there is none).

        Raises:
            SignatureError: an input is missing, unknown, or has another dtype, rank or size; `facts["field"]` names it.
        """
        for name in inputs:
            if all(spec.name != name for spec in self.inputs):
                raise SignatureError(
                    f"input `{name}` is not known",
                    expected=", ".join(f"`{spec.name}`" for spec in self.inputs),
                    received=f"`{name}`",
                    field=name,
                )
        free: dict[str, int] = {}
        for spec in self.inputs:
            array = inputs.get(spec.name)
            if array is None:
                raise SignatureError(
                    f"input `{spec.name}` is missing", expected=spec.describe(), received="nothing", field=spec.name
                )
            _check_tensor(spec, array, free)
        return next(iter(free.values()), 1)

    def validate_outputs(self, outputs: Mapping[str, np.ndarray], *, sizes: Mapping[str, int]) -> None:
        """Check what a model computed from inputs whose free axes have `sizes`. More outputs than these are no matter.

        A free axis that no input has may have any size, the same one in all outputs.

        Raises:
            SignatureError: an output is missing, or has another dtype, rank or size; `facts["field"]` names it.
        """
        free = dict(sizes)
        for spec in self.outputs:
            array = outputs.get(spec.name)
            if array is None or dtype_name(array.dtype) != spec.dtype or not fits_shape(spec, array.shape, free):
                raise SignatureError(
                    f"output `{spec.name}` is not what the signature says",
                    expected=f"{spec.dtype}({_axes_in_words(spec, free)})",
                    received="nothing" if array is None else f"{dtype_name(array.dtype)}{tuple(array.shape)}",
                    field=spec.name,
                )

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values; `from_dict` reads them back."""
        return {
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
        }

    @staticmethod
    def from_dict(value: object) -> Signature:
        """Parse what `to_dict` wrote.

        Raises:
            InvalidInputError: a part is missing or has the wrong type.
        """
        try:
            table = cast("dict[str, list[dict[str, object]]]", value)
            return Signature(
                inputs=tuple(_spec_from_dict(row) for row in table["inputs"]),
                outputs=tuple(_spec_from_dict(row) for row in table["outputs"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise InvalidInputError("a signature is not readable", received=str(value)[:120]) from exc

    def save(self, folder: Path) -> None:
        """Write `signature.json` into a format's folder."""
        (folder / SIGNATURE_FILE).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @staticmethod
    def load(folder: Path) -> Signature:
        """Read `signature.json` from a format's folder."""
        path = folder / SIGNATURE_FILE
        try:
            with open_regular(path) as file:
                return Signature.from_dict(json.loads(file.read()))
        except (OSError, ValueError) as exc:
            raise InvalidInputError("a format has no readable signature", where=str(path)) from exc


def dtype_name(dtype: np.dtype) -> str:
    """Return the name that signatures have for a dtype of NumPy's; it may be one that they do not know."""
    return "string" if is_text(dtype) else dtype.name


@cache
def numpy_dtype(name: str) -> np.dtype:
    """Return the dtype in which a tensor of a signature is held; texts are Python's, in `object`.

    Raises:
        DependencyMissingError: bfloat16, and `ml_dtypes`, which NumPy has it from, is not installed.
    """
    import numpy as np

    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as exc:
            raise DependencyMissingError("ml_dtypes", extra="onnx", purpose="a tensor of bfloat16") from exc
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(object if name == "string" else name)


def is_float(name: str) -> bool:
    """Tell whether a dtype of a signature is one of floating-point numbers; NumPy does not count bfloat16 to them."""
    return name in _FLOATS


def fits_shape(spec: TensorSpec, shape: tuple[int, ...], free: dict[str, int]) -> bool:
    """Tell whether a tensor of this shape fits; `free` holds the sizes of free axes and takes up those it lacks."""
    fits = len(shape) == len(spec.shape)
    for axis, size in zip(spec.shape, shape, strict=False):
        fits = fits and (free.setdefault(axis, size) if isinstance(axis, str) else axis) == size
    return fits


def _axes_in_words(spec: TensorSpec, free: Mapping[str, int]) -> str:
    return ", ".join(f"{a}={free[a]}" if isinstance(a, str) and a in free else str(a) for a in spec.shape)


def _check_tensor(spec: TensorSpec, array: np.ndarray, free: dict[str, int]) -> None:
    name = dtype_name(array.dtype)
    if name != spec.dtype:
        raise SignatureError(
            f"input `{spec.name}` has the wrong dtype", expected=spec.dtype, received=name, field=spec.name
        )
    if not fits_shape(spec, array.shape, free):
        raise SignatureError(
            f"input `{spec.name}` has the wrong shape",
            expected=f"({_axes_in_words(spec, free)})",
            received=str(tuple(array.shape)),
            field=spec.name,
        )
    if name == "string":
        check_texts(array, field=spec.name, name=f"input `{spec.name}`")


def _spec_from_dict(row: dict[str, object]) -> TensorSpec:
    axes = cast("list[object]", row["shape"])
    shape = tuple(axis if isinstance(axis, str) else int(cast("int", axis)) for axis in axes)
    return TensorSpec(name=str(row["name"]), dtype=cast("DType", row["dtype"]), shape=shape)
