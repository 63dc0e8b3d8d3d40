"""MLflow's scoring protocol: `POST /invocations` (one endpoint) and `/invocations/{endpoint}`.

    {"inputs": ...}  {"instances": [...]}                            as in plain prediction
    {"dataframe_split": {"columns": [...], "data": [[...], ...]}}    a table by rows, an `index` is ignored
    {"dataframe_records": [{"age": 3, "fare": 7.5}, ...]}

A table's columns are the model's inputs, or the features, in order, of a single input with two axes. The answer is
`{"predictions": ...}`: the output, or an object of outputs if there are several.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np

from noa.errors import InvalidInputError
from noa_serving._http import Headers, Response, json_response
from noa_serving._json_body import JsonObject, check_content_type, json_kind, parse_object
from noa_serving._plain import read_columns, read_rows
from noa_serving._prepared import Prepared, check_inputs, too_many_items
from noa_serving._tensors import contiguous, json_value

if TYPE_CHECKING:
    from noa_serving._generation import Generation

_FORMS = ("inputs", "instances", "dataframe_split", "dataframe_records")


def prepare(generation: Generation, headers: Headers, body: bytes, *, max_batch_items: int) -> Prepared:
    """Understand one scoring request.

    Raises:
        InvalidInputError, SignatureError: the request is malformed or does not fit the model.
        RequestRefusedError: another content type, or too large a batch.
    """
    check_content_type(headers)
    table = parse_object(body)
    inputs, is_single = _read_inputs(generation, table, max_batch_items=max_batch_items)
    batch = check_inputs(generation, inputs, max_batch_items=max_batch_items)

    def encode(outputs: Mapping[str, np.ndarray]) -> Response:
        arrays = {
            name: contiguous(outputs[name][0, ...] if is_single else outputs[name]) for name in generation.output_names
        }
        plain = {name: json_value(array) for name, array in arrays.items()}
        return json_response(
            {"predictions": plain if len(plain) > 1 else next(iter(plain.values()))}, headers=generation.headers
        )

    return Prepared(generation, inputs, batch, encode)


def _read_inputs(
    generation: Generation, table: JsonObject, *, max_batch_items: int
) -> tuple[dict[str, np.ndarray], bool]:
    forms = [key for key in table if key in _FORMS]
    strangers = [key for key in table if key not in _FORMS and not (key == "params" and not table[key])]
    if len(forms) != 1 or strangers:
        raise InvalidInputError(
            "the request is no scoring request",
            expected="exactly one of " + ", ".join(f"`{form}`" for form in _FORMS),
            received=", ".join(f"`{key[:80]}`" for key in list(table)[:8]) or "an empty object",
            remedy="noa's models take no `params`" if "params" in strangers else None,
        )
    form, value = forms[0], table[forms[0]]
    if form == "inputs":
        return read_columns(generation, value, max_batch_items=max_batch_items)
    if form == "instances":
        return read_rows(generation, value, max_batch_items=max_batch_items), False
    columns, rows = _split(value) if form == "dataframe_split" else _records(value)
    if len(rows) > max_batch_items:
        raise too_many_items(len(rows), max_batch_items)
    return _from_table(generation, columns, rows, max_batch_items=max_batch_items), False


def _split(value: object) -> tuple[list[str], list[list[object]]]:
    table = cast("JsonObject", value) if isinstance(value, dict) else {}
    columns, data = table.get("columns"), table.get("data")
    if not set(table) <= {"columns", "data", "index"} or not isinstance(columns, list) or not isinstance(data, list):
        raise InvalidInputError(
            "`dataframe_split` is malformed",
            expected='{"columns": [...], "data": [[...], ...]}',
            received=json_kind(value),
        )
    names = [str(name) for name in cast("list[object]", columns)]
    rows: list[list[object]] = []
    for index, row in enumerate(cast("list[object]", data)):
        if not isinstance(row, list) or len(cast("list[object]", row)) != len(names):
            raise InvalidInputError(
                f"row {index} of `dataframe_split` does not go with its columns",
                expected=f"a list of {len(names)} values",
            )
        rows.append(cast("list[object]", row))
    return names, rows


def _records(value: object) -> tuple[list[str], list[list[object]]]:
    if not isinstance(value, list):
        raise InvalidInputError("`dataframe_records` is no list", expected="a list of rows", received=json_kind(value))
    names: list[str] = []
    rows: list[list[object]] = []
    for index, row in enumerate(cast("list[object]", value)):
        table = cast("JsonObject", row) if isinstance(row, dict) else {}
        names = names or list(table)
        if not table or set(table) != set(names):
            raise InvalidInputError(
                f"row {index} of `dataframe_records` has other columns than the first",
                expected=", ".join(f"`{name[:80]}`" for name in names[:8]) or "an object of columns",
                received=json_kind(row),
            )
        rows.append([table[name] for name in names])
    return names, rows


def _from_table(
    generation: Generation, columns: list[str], rows: list[list[object]], *, max_batch_items: int
) -> dict[str, np.ndarray]:
    if not rows:
        raise InvalidInputError("the table has no rows", expected="at least one row")
    if len(set(columns)) != len(columns):
        raise InvalidInputError("a column stands twice", expected="each column once")
    spec = generation.signature.inputs[0]
    is_matrix = len(generation.input_names) == 1 and len(spec.shape) == 2 and spec.name not in columns
    if is_matrix:
        by_name: JsonObject = {spec.name: rows}
    else:
        by_name = {name: [row[index] for row in rows] for index, name in enumerate(columns)}
    inputs, is_single = read_columns(generation, by_name, max_batch_items=max_batch_items)
    if is_single:
        raise InvalidInputError(
            "the table's columns have no values for each row",
            expected=", ".join(s.describe() for s in generation.specs.values()),
        )
    return inputs
