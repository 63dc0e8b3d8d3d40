"""Plain JSON prediction: `POST /predict/{endpoint}`.

    {"inputs": {"image": [[...], ...]}}     named tensors with a batch axis; or all without it: one item
    {"inputs": [[...], ...]}                the tensor itself, for a model with one input
    {"instances": [{"age": 3, "fare": 7.5}, ...]}   rows: an object of fields per item (or a value, for one input)

Optional: `"outputs": ["probabilities"]`. The answer is `{"outputs": {...}, "model": "digits", "version": 3, "digest":
...}`; for one item without batch axis the outputs have none either. A NaN or infinity in an output is `null`: JSON has
neither. Arrays also come and go as `.npy`, `.npz` and Arrow streams (`_media`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, cast

import numpy as np

from noa.errors import InvalidInputError, SignatureError
from noa_serving._http import Headers, Response, json_response
from noa_serving._json_body import JsonObject, json_kind, parse_object
from noa_serving._media import media_of_answer, media_of_body, output_names, read_inputs, write_answer
from noa_serving._prepared import Prepared, check_inputs, choose_outputs, too_many_items
from noa_serving._tensors import array_from_json, contiguous, json_value

if TYPE_CHECKING:
    from noa_serving._generation import Generation

_KEYS = ("inputs", "instances", "outputs")


def prepare(generation: Generation, headers: Headers, body: bytes, *, max_batch_items: int) -> Prepared:
    """Understand one plain prediction request.

    Raises:
        InvalidInputError, SignatureError: the request is malformed or does not fit the model.
        RequestRefusedError: another content type, or too large a batch.
    """
    media = media_of_body(headers)
    if media == "json":
        inputs, names, is_single = read_table(generation, parse_object(body), max_batch_items=max_batch_items)
    else:
        inputs, is_single = read_inputs(generation, media, body, max_batch_items=max_batch_items), False
        names = output_names(headers)
    wanted = choose_outputs(generation, names)
    answer_media = media_of_answer(headers, media)
    batch = check_inputs(generation, inputs, max_batch_items=max_batch_items)

    def encode(outputs: Mapping[str, np.ndarray]) -> Response:
        arrays = {name: contiguous(outputs[name][0, ...] if is_single else outputs[name]) for name in wanted}
        if answer_media != "json":
            return write_answer(answer_media, generation, arrays)
        return json_response(
            {
                "outputs": {name: json_value(array) for name, array in arrays.items()},
                "model": generation.model,
                "version": generation.number,
                "digest": generation.digest,
            },
            headers=generation.headers,
        )

    return Prepared(generation, inputs, batch, encode)


def read_table(
    generation: Generation, table: JsonObject, *, max_batch_items: int, optional: Collection[str] = ()
) -> tuple[dict[str, np.ndarray], list[str], bool]:
    """Return the inputs, the outputs that are asked for, and whether it is one item without a batch axis.

    Inputs that are `optional` may be left out. Errors as in `prepare`.
    """
    _refuse_strangers(table)
    names = _read_output_names(table)
    if "instances" in table:
        rows = read_rows(generation, table["instances"], max_batch_items=max_batch_items, optional=optional)
        return rows, names, False
    inputs, is_single = read_columns(generation, table["inputs"], max_batch_items=max_batch_items)
    return inputs, names, is_single


def _refuse_strangers(table: JsonObject) -> None:
    for key in table:
        if key not in _KEYS:
            raise InvalidInputError(
                f"the key `{key[:80]}` is not known",
                expected="`inputs` or `instances`; `outputs`, names of outputs, may be beside it",
            )
    if ("inputs" in table) == ("instances" in table):
        received = "both" if "inputs" in table else "neither"
        raise InvalidInputError("the request has no clear input", expected="`inputs` or `instances`", received=received)


def _read_output_names(table: JsonObject) -> list[str]:
    value = table.get("outputs", [])
    if not isinstance(value, list) or not all(isinstance(name, str) for name in cast("list[object]", value)):
        raise InvalidInputError("`outputs` is not a list of names", expected='["name", ...]')
    return cast("list[str]", value)


def read_columns(generation: Generation, value: object, *, max_batch_items: int) -> tuple[dict[str, np.ndarray], bool]:
    """Return inputs that are named (or bare, for a model with one), and whether they are one item without a batch axis.

    Raises:
        InvalidInputError, SignatureError: they are malformed or do not fit.
        RequestRefusedError: too large a batch.
    """
    columns = _name_columns(generation, value)
    inputs: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        spec = generation.specs.get(name)
        if spec is None:
            raise _unknown(generation, name)
        if isinstance(column, list) and spec.shape and isinstance(spec.shape[0], str):
            items = cast("list[object]", column)
            if len(items) > max_batch_items and (len(spec.shape) == 1 or isinstance(items[0], list)):
                raise too_many_items(len(items), max_batch_items)
        inputs[name] = array_from_json(spec, column)
    is_single = bool(inputs) and all(
        array.ndim + 1 == len(spec.shape) and isinstance(spec.shape[0], str)
        for spec, array in ((generation.specs[name], array) for name, array in inputs.items())
    )
    if is_single:
        inputs = {name: array[np.newaxis] for name, array in inputs.items()}
    return inputs, is_single


def _name_columns(generation: Generation, value: object) -> JsonObject:
    if isinstance(value, dict):
        return cast("JsonObject", value)
    if len(generation.input_names) == 1:
        return {generation.input_names[0]: value}
    names = ", ".join(f"`{name}`" for name in generation.input_names)
    raise InvalidInputError("`inputs` names no fields", expected=f"an object with {names}", received=json_kind(value))


def read_rows(
    generation: Generation, value: object, *, max_batch_items: int, optional: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Return inputs that are given item by item; those that are `optional` are in all rows or in none.

    Errors as in `read_columns`.
    """
    if not isinstance(value, list) or not value:
        raise InvalidInputError("`instances` holds no rows", expected="a list of rows", received=json_kind(value))
    rows = cast("list[object]", value)
    if len(rows) > max_batch_items:
        raise too_many_items(len(rows), max_batch_items)
    for spec in generation.signature.inputs:
        if not spec.shape or not isinstance(spec.shape[0], str):
            raise SignatureError(
                f"input `{spec.name}` has no batch axis, so this model takes no rows", remedy="Send `inputs` instead"
            )
    first = cast("JsonObject", rows[0]) if optional and isinstance(rows[0], dict) else {}
    needed = [name for name in generation.input_names if name not in optional or name in first]
    columns: dict[str, list[object]] = {name: [] for name in needed}
    for index, row in enumerate(rows):
        for name, item in _name_row(generation, row, index).items():
            if name not in columns:
                raise _unknown(generation, name)
            columns[name].append(item)
        for name, column in columns.items():
            if len(column) != index + 1:
                raise SignatureError(
                    f"input `{name}` is missing in row {index}",
                    expected=generation.specs[name].describe(),
                    received="nothing",
                    field=name,
                )
    return {name: array_from_json(generation.specs[name], column) for name, column in columns.items()}


def _name_row(generation: Generation, row: object, index: int) -> JsonObject:
    if isinstance(row, dict):
        return cast("JsonObject", row)
    if len(generation.input_names) == 1:
        return {generation.input_names[0]: row}
    names = ", ".join(f"`{name}`" for name in generation.input_names)
    raise InvalidInputError(
        f"row {index} of `instances` names no fields", expected=f"an object with {names}", received=json_kind(row)
    )


def _unknown(generation: Generation, name: str) -> SignatureError:
    known = ", ".join(f"`{one}`" for one in generation.input_names)
    return SignatureError(
        f"input `{name[:80]}` is not known", expected=known, received=f"`{name[:80]}`", field=name[:80]
    )
