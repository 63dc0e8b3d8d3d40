"""Whether a model from outside keeps the signature that is to be sealed: what it computes, at two sizes of the batch.

What a file says of its outputs is nobody's check but ours: onnxruntime computes `float32(2, 4)` also where the file
says `float32(2, 7)`, and whoever calls the model would be told the wrong one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from noa.errors import ConversionError, InvalidInputError, SignatureError
from noa.signatures import Signature
from noa.text_tensors import blank_like
from noa_conversion.batches import batch_axis, sizes_of

if TYPE_CHECKING:
    import numpy as np

    from noa.formats import Runnable


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The signature that a file says; and the same without what was only guessed about its outputs, if anything was."""

    signature: Signature
    unguessed: Signature | None = None


def kept_signature(
    model: Runnable, prepared: Prepared, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> Signature:
    """Return the signature that the model keeps: with `outputs` of `inputs`, and with another size of the batch.

    Raises:
        ConversionError: it keeps none; names the output, what the file says and what was computed.
    """
    runs = [(sizes_of(prepared.signature, inputs), outputs)]
    axis = batch_axis(prepared.signature)
    if axis is not None:
        runs.append(_second_run(model, prepared.signature, axis, inputs))
    try:
        _check(prepared.signature, runs)
    except ConversionError:
        if prepared.unguessed in (None, prepared.signature):
            raise
        _check(prepared.unguessed, runs)
        return prepared.unguessed
    return prepared.signature


def _check(signature: Signature, runs: list[tuple[dict[str, int], Mapping[str, np.ndarray]]]) -> None:
    for sizes, outputs in runs:
        try:
            signature.validate_outputs(outputs, sizes=sizes)
        except SignatureError as exc:
            field = exc.facts.get("field")
            declared = next(spec.describe() for spec in signature.outputs if spec.name == field)
            raise ConversionError(
                f"output `{field}` is not what the model says",
                expected=f"{declared}, as the file declares it",
                received=f"{exc.received} computed" + (f" with {_in_words(sizes)}" if sizes else ""),
                remedy="Export the model anew with the right shape of its output, e.g. with its free axes named",
                field=field,
            ) from exc


def _second_run(
    model: Runnable, signature: Signature, axis: str, inputs: Mapping[str, np.ndarray]
) -> tuple[dict[str, int], Mapping[str, np.ndarray]]:
    """Run with another batch, or with other sizes of all free axes where one alone cannot change.

    Raises:
        ConversionError: the model computes none of them, so the axis is not free.
    """
    first = sizes_of(signature, inputs)
    refused: str | None = None
    for sizes in _other_sizes(first, axis):
        try:
            return sizes, model.run(_resized(signature, inputs, sizes))
        except InvalidInputError as exc:
            refused = refused or exc.what
    raise ConversionError(
        f"the axis `{axis}` is not free, as the model says it is: it computes with {_in_words(first)} only",
        expected="any size of it",
        received=refused,
        remedy="Write the size that it takes into the file, in place of the free axis",
    )


def _other_sizes(first: Mapping[str, int], axis: str) -> Iterator[dict[str, int]]:
    batch = first[axis]
    for size in dict.fromkeys((batch + 1, 2 * batch, 1)):
        if size != batch:
            yield {**first, axis: size}
            yield dict.fromkeys(first, size)  # axes of two names that have one size
    yield {name: 2 * size for name, size in first.items()}


def _resized(signature: Signature, inputs: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the inputs with other sizes of their free axes: the values start again where they end."""
    import numpy as np

    given: dict[str, np.ndarray] = {}
    for spec in signature.inputs:
        array = inputs[spec.name]
        for axis, name in enumerate(spec.shape):
            if isinstance(name, str) and array.shape[axis]:
                array = np.take(array, np.arange(sizes[name]) % array.shape[axis], axis=axis)
            elif isinstance(name, str):
                array = blank_like(array, (*array.shape[:axis], sizes[name], *array.shape[axis + 1 :]))
        given[spec.name] = np.ascontiguousarray(array).reshape(array.shape)
    return given


def _in_words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in sizes.items())
