"""Indices in imported models: right in range, refused out of range where they are known, marked where they are not."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import onnxruntime
import pytest
from graph_kit import INT64, model, value
from onnx import helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from noa.errors import ConversionError
from noa_conversion.importers.jax import import_onnx_to_jax

X = np.arange(12).reshape(4, 3)
ROW, PAIRS = np.asarray([[0, -1, 2]]), np.asarray([[0, 1], [-1, -3]])
# name: (operator, indices in range, indices out of range, the shape of the updates)
CASES: dict[str, tuple[str, np.ndarray, np.ndarray, tuple[int, ...] | None]] = {
    "rows": ("Gather", np.asarray([0, -4, 3]), np.asarray([0, 4, 1]), None),
    "rows before the first": ("Gather", np.asarray([0, -4, 3]), np.asarray([0, -5, 1]), None),
    "one row": ("Gather", np.asarray([-1]), np.asarray([9]), None),
    "elements": ("GatherElements", ROW, ROW - 4, None),
    "tuples": ("GatherND", PAIRS, PAIRS + 3, None),
    "written elements": ("ScatterElements", ROW, ROW + 2, (1, 3)),
    "written tuples": ("ScatterND", PAIRS, PAIRS - 3, (2,)),
}


def graph(kind: str, dtype: str, indices: np.ndarray, updates: tuple[int, ...] | None, *, known: bool) -> bytes:
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = ["x", "indices", *(["updates"] if updates else [])]
    inputs = [value("x", number, [4, 3])] + ([] if known else [value("indices", INT64, indices.shape)])
    weights = ({"indices": indices} if known else {}) | ({"updates": np.ones(updates, dtype)} if updates else {})
    shape: dict[str, tuple[int, ...]] = {"Gather": (*indices.shape, 3), "GatherND": indices.shape[:1]}
    shape["GatherElements"] = indices.shape
    output = value("y", number, shape.get(kind, X.shape))
    return model([helper.make_node(kind, names, ["y"])], inputs, [output], weights).SerializeToString()


@pytest.mark.parametrize("known", [True, False], ids=["known", "at run time"])
@pytest.mark.parametrize("name", CASES)
def test_indices_in_range_give_what_onnxruntime_gives(name: str, known: bool) -> None:
    kind, indices, _, updates = CASES[name]
    data = graph(kind, "float32", indices, updates, known=known)
    feed = {"x": X.astype(np.float32)} | ({} if known else {"indices": indices})
    (expected,) = onnxruntime.InferenceSession(data).run(None, feed)
    np.testing.assert_array_equal(import_onnx_to_jax(data).run(feed)["y"], expected)


@pytest.mark.parametrize("name", CASES)
def test_a_known_index_out_of_range_is_refused(name: str) -> None:
    kind, _, indices, updates = CASES[name]
    with pytest.raises(ConversionError, match=rf"`{kind}` cannot .*its indices reach from .* outside of an axis of"):
        import_onnx_to_jax(graph(kind, "float32", indices, updates, known=True))


@pytest.mark.parametrize(
    ("dtype", "mark"), [("float32", np.nan), ("float16", np.nan), ("int32", -(2**31)), ("uint8", 255)]
)
@pytest.mark.parametrize("name", CASES)
def test_an_index_out_of_range_at_run_time_is_marked(name: str, dtype: str, mark: Any) -> None:
    """onnxruntime raises; what was in range before the mark stays what it is when it is read."""
    kind, _, indices, updates = CASES[name]
    data = graph(kind, dtype, indices, updates, known=False)
    feed = {"x": X.astype(dtype), "indices": indices}
    if dtype == "float32":
        with pytest.raises((InvalidArgument, Fail)):
            onnxruntime.InferenceSession(data).run(None, feed)
    imported = import_onnx_to_jax(data)
    result = np.asarray(jax.jit(imported.apply)(imported.params, *feed.values()))
    is_marked = np.isnan(result) if result.dtype.kind == "f" else result == mark
    if updates is not None or name == "one row":
        assert is_marked.all()
    else:
        assert is_marked.any()
        assert np.isin(result[~is_marked], X).all()
    if name == "rows":
        np.testing.assert_array_equal(is_marked, [[False] * 3, [True] * 3, [False] * 3])
