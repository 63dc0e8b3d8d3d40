"""Whole numbers of 64 bits around a program that computes in 32: what JAX does outside of `jax.enable_x64`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from noa.errors import InvalidInputError
from noa.signatures import Signature, TensorSpec
from noa_conversion.signature_match import NARROWED

if TYPE_CHECKING:
    import numpy as np

_WHOLE = ("int64", "uint64")


def declare_whole_numbers(held: Signature, declared: Signature) -> Signature:
    """Return a program's signature with whole numbers in the 64 bits that its source declares, floats as they are."""

    def widen(spec: TensorSpec, wish: TensorSpec) -> TensorSpec:
        return replace(spec, dtype=wish.dtype) if is_narrowed(wish, spec.dtype) else spec

    return Signature(
        inputs=tuple(map(widen, held.inputs, declared.inputs)),
        outputs=tuple(map(widen, held.outputs, declared.outputs)),
    )


def is_narrowed(spec: TensorSpec, dtype: object) -> bool:
    """Tell whether a program that takes or gives `dtype` holds a declared 64-bit whole number in 32 bits."""
    return spec.dtype in _WHOLE and NARROWED[spec.dtype] == str(dtype)


def held_specs(specs: tuple[TensorSpec, ...], avals: Any) -> tuple[TensorSpec, ...]:
    """Return declared tensors in the widths of a program's own, as far as the two may differ."""
    return tuple(
        replace(spec, dtype=NARROWED[spec.dtype]) if is_narrowed(spec, aval.dtype) else spec
        for spec, aval in zip(specs, avals, strict=True)
    )


def narrow(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    """Return an input in 32 bits.

    Raises:
        InvalidInputError: it holds a number that 32 bits do not; names the input.
    """
    import numpy as np

    held = np.dtype(NARROWED[spec.dtype])
    bounds = np.iinfo(held)
    if array.size and not (bounds.min <= array.min() and array.max() <= bounds.max):
        raise InvalidInputError(
            f"input `{spec.name}` holds whole numbers that the program, which computes in 32 bits, cannot",
            expected=f"{bounds.min} to {bounds.max}",
            received=f"{array.min()} to {array.max()}",
            remedy="Serve the format `onnx` or `torch`, which have 64 bits",
        )
    return array.astype(held)
