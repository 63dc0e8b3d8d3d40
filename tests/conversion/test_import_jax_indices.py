"""Indices in imported models: right in range, refused out of range where they are known, marked where they are not."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import onnxruntime
import pytest
import torch
from graph_kit import INT64, model, value
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from noa.errors import ConversionError
from noa_conversion import import_onnx_to_torch
from noa_conversion.importers.jax import import_onnx_to_jax

X = np.arange(12).reshape(4, 3)
INT32 = TensorProto.INT32
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


IMAGES = np.random.default_rng(1).normal(size=(2, 3, 4, 4)).astype(np.float32)
ROI: tuple[list[Any], int] = ([IMAGES, np.asarray([[0, 0, 3, 3], [20, 20, 30, 30]], np.float32), None], 2)
POOLED: tuple[list[Any], int] = ([np.ones((1, 1, 2), np.float32), None], 1)
ROTATED: tuple[list[Any], int] = ([IMAGES, *([np.ones((5, 2), np.float32)] * 2), None], 3)
AVERAGE, LARGEST = {"sampling_ratio": 2}, {"sampling_ratio": 2, "mode": "max"}
HALVES = {"kernel_shape": [2], "strides": [2]}
POSITIONS = np.asarray([[0, 1, 2, 3], [1, 2, 3, 4]])
# name: (operator, attributes, inputs and which of them is the index, in range, out of range)
PLACES: dict[str, tuple[str, dict[str, Any], tuple[list[Any], int], Any, Any]] = {
    "regions": ("RoiAlign", AVERAGE, ROI, [0, 1], [0, 2]),
    "regions before the first": ("RoiAlign", AVERAGE, ROI, [0, 1], [0, -1]),
    "largest regions": ("RoiAlign", LARGEST, ROI, [1, 1], [0, 7]),
    "pooled": ("MaxUnpool", HALVES, POOLED, [[[0, 3]]], [[[0, 4]]]),
    "pooled before the first": ("MaxUnpool", HALVES, POOLED, [[[0, 3]]], [[[-1, 3]]]),
    "positions": ("RotaryEmbedding", {}, ROTATED, POSITIONS, POSITIONS + 1),
    "positions before the first": ("RotaryEmbedding", {}, ROTATED, POSITIONS, POSITIONS - 1),
}
CLASSES = np.log(np.full((4, 3), 1 / 3, np.float32))


def placed(name: str, index: Any, *, known: bool) -> tuple[bytes, dict[str, np.ndarray]]:
    kind, attributes, (given, place), _, _ = PLACES[name]
    arrays = [np.asarray(index, np.int64) if i == place else array for i, array in enumerate(given)]
    feed = {f"x{i}": array for i, array in enumerate(arrays)}
    inputs = [
        value(key, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for i, (key, array) in enumerate(feed.items())
        if not (known and i == place)
    ]
    weights = {f"x{place}": feed.pop(f"x{place}")} if known else {}
    node = helper.make_node(kind, [f"x{i}" for i in range(len(arrays))], ["y"], **attributes)
    graph = helper.make_graph([node], "test", inputs, [helper.make_empty_tensor_value_info("y")])
    graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in weights.items())
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 23 if kind == "RotaryEmbedding" else 16)], ir_version=10
    ).SerializeToString(), feed


@pytest.mark.parametrize("known", [True, False], ids=["known", "at run time"])
@pytest.mark.parametrize("name", PLACES)
def test_places_in_range_give_what_onnxruntime_gives(name: str, known: bool) -> None:
    data, feed = placed(name, PLACES[name][3], known=known)
    (expected,) = onnxruntime.InferenceSession(data).run(None, feed)
    np.testing.assert_allclose(import_onnx_to_jax(data).run(feed)["y"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PLACES)
def test_a_place_out_of_range_is_refused_or_marked(name: str) -> None:
    kind, _, _, inside, outside = PLACES[name]
    data, _ = placed(name, outside, known=True)
    with pytest.raises(ConversionError, match=rf"`{kind}` cannot .*its indices reach from .* outside of an axis of"):
        import_onnx_to_jax(data)
    data, feed = placed(name, outside, known=False)
    result = import_onnx_to_jax(data).run(feed)["y"]
    right, feed = placed(name, inside, known=False)
    is_marked, is_right = np.isnan(result), result == import_onnx_to_jax(right).run(feed)["y"]
    assert is_marked.any()
    assert (is_marked | is_right).all() or kind == "RoiAlign"
    if kind == "RoiAlign":
        np.testing.assert_array_equal(is_marked.all((1, 2, 3)), [False, True])


@pytest.mark.parametrize("label", [3, -1])
def test_a_class_that_there_is_not_gives_no_loss(label: int) -> None:
    node = helper.make_node("NegativeLogLikelihoodLoss", ["x", "t"], ["y"], reduction="none", ignore_index=-100)
    labels = np.asarray([0, 2, -100, label])
    data = model([node], [value("x", 1, [4, 3]), value("t", INT64, [4])], [value("y", 1, [4])]).SerializeToString()
    losses = import_onnx_to_jax(data).run({"x": CLASSES, "t": labels})["y"]
    np.testing.assert_allclose(losses, [np.log(3), np.log(3), 0, np.nan], rtol=1e-6)


def test_a_sequence_that_is_turned_beyond_its_end_is_marked() -> None:
    node = helper.make_node("ReverseSequence", ["x", "n"], ["y"], time_axis=1, batch_axis=0)
    data = model([node], [value("x", 1, [2, 3]), value("n", INT64, [2])], [value("y", 1, [2, 3])]).SerializeToString()
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    turned = import_onnx_to_jax(data).run({"x": x, "n": np.asarray([2, 4])})["y"]
    np.testing.assert_array_equal(turned, [[1, 0, 2], [np.nan, 5, 4]])
    in_torch = import_onnx_to_torch(data).module(torch.from_numpy(x), torch.tensor([2, 4]))
    np.testing.assert_array_equal(in_torch.numpy(), turned)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_zeros_of_both_signs_are_one_number_to_top_k(dtype: Any, largest: int) -> None:
    """And its values keep their signs."""
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = np.asarray([[-0.0, 0.0, -0.0, 0.0, -1.0], [0.0, 1.0, -0.0, 1e-3, np.inf]], dtype)
    node = helper.make_node("TopK", ["x", "k"], ["y", "at"], largest=largest)
    outputs = [value("y", number, [2, 4]), value("at", INT64, [2, 4])]
    data = model([node], [value("x", number, [2, 5])], outputs, {"k": np.asarray([4])}).SerializeToString()
    expected, places = onnxruntime.InferenceSession(data).run(None, {"x": x})
    given = import_onnx_to_jax(data).run({"x": x})
    np.testing.assert_array_equal(given["at"], places)
    np.testing.assert_array_equal(given["y"], expected)
    np.testing.assert_array_equal(np.signbit(given["y"]), np.signbit(np.asarray(expected)))


def recurrent(lengths: list[int] | None) -> bytes:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((1, 6, size)).astype(np.float32) for name, size in (("w", 3), ("r", 2))}
    node = helper.make_node("GRU", ["x", "w", "r", "", "lengths"], ["y", "last"], hidden_size=2)
    inputs = [value("x", 1, [5, 2, 3])] + ([value("lengths", INT32, [2])] if lengths is None else [])
    known = {} if lengths is None else {"lengths": np.asarray(lengths, np.int32)}
    outputs = [value("y", 1, [5, 1, 2, 2]), value("last", 1, [1, 2, 2])]
    return model([node], inputs, outputs, weights | known).SerializeToString()


@pytest.mark.parametrize("length", [-1, 6])
def test_a_sequence_of_impossible_length_is_refused_or_marked(length: int) -> None:
    for read in (import_onnx_to_jax, import_onnx_to_torch):
        with pytest.raises(ConversionError, match=f"`sequence_lens` has {length} steps, and there are 5"):
            read(recurrent([3, length]))
    x = np.random.default_rng(1).standard_normal((5, 2, 3)).astype(np.float32)
    lengths = np.asarray([3, length], np.int32)
    (expected, last) = onnxruntime.InferenceSession(recurrent([3, 5])).run(None, {"x": x})
    in_jax = import_onnx_to_jax(recurrent(None)).run({"x": x, "lengths": lengths})
    module = import_onnx_to_torch(recurrent(None)).module
    with torch.no_grad():
        in_torch = module(torch.from_numpy(x), torch.from_numpy(lengths))
        exported = torch.export.export(module, (torch.from_numpy(x), torch.from_numpy(lengths))).module()
        again = exported(torch.from_numpy(x), torch.from_numpy(lengths))
    for y, final in ((in_jax["y"], in_jax["last"]), *([part.numpy() for part in each] for each in (in_torch, again))):
        for output, right in ((y, expected), (final, last)):
            np.testing.assert_allclose(output[..., 0, :], np.asarray(right)[..., 0, :], rtol=1e-4, atol=1e-5)
            assert np.isnan(output[..., 1, :]).all()


@pytest.mark.parametrize("length", [-1, 6])
def test_an_lstm_with_a_sequence_of_impossible_length_is_marked_in_both(length: int) -> None:
    """PyTorch's own operator computes it, where lengths are given at run time and the steps are free."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((1, 8, size)).astype(np.float32) for name, size in (("w", 3), ("r", 2))}
    node = helper.make_node("LSTM", ["x", "w", "r", "", "lengths"], ["y", "h", "c"], hidden_size=2)
    inputs = [value("x", 1, ["time", 2, 3]), value("lengths", INT32, [2])]
    outputs = [value("y", 1, ["time", 1, 2, 2]), value("h", 1, [1, 2, 2]), value("c", 1, [1, 2, 2])]
    data = model([node], inputs, outputs, weights).SerializeToString()
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    lengths = np.asarray([3, length], np.int32)
    with torch.no_grad():
        found = import_onnx_to_torch(data).module(torch.from_numpy(x), torch.from_numpy(lengths))
    right = import_onnx_to_jax(data).run({"x": x, "lengths": lengths})
    for output, wish in zip(found, right.values(), strict=True):
        np.testing.assert_allclose(output.numpy(), wish, rtol=1e-4, atol=1e-5)
        assert np.isnan(output.numpy()[..., 1, :]).all()


def test_cubic_samples_at_the_border_are_onnxruntimes() -> None:
    x = (np.arange(25, dtype=np.float32) ** 2).reshape(1, 1, 5, 5)
    grid = np.linspace(-1.6, 1.6, 18, dtype=np.float32).reshape(1, 3, 3, 2)
    node = helper.make_node("GridSample", ["x", "grid"], ["y"], mode="cubic", padding_mode="border", align_corners=1)
    inputs = [value("x", 1, x.shape), value("grid", 1, grid.shape)]
    data = model([node], inputs, [value("y", 1, [1, 1, 3, 3])], {}).SerializeToString()
    (expected,) = onnxruntime.InferenceSession(data).run(None, {"x": x, "grid": grid})
    given = import_onnx_to_jax(data).run({"x": x, "grid": grid})["y"]
    np.testing.assert_allclose(given, np.asarray(expected), rtol=1e-4, atol=1e-2)
