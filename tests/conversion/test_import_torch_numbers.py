"""Numbers that PyTorch holds but does not compute with as ONNX does: 64 bits, unsigned integers, NaN and infinity."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
import pytest
from graph_kit import INT64, value
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from noa.errors import ConversionError
from noa_conversion import import_onnx_to_torch
from noa_conversion.importers.torch import handlers
from noa_conversion.importers.torch.table import COMPUTES_UNSIGNED, HANDLERS

del handlers  # importing it fills the table

UNSIGNED = [np.uint16, np.uint32, np.uint64]
ROWS = np.asarray([0, 2]), np.asarray([1, 0])


def node_model(
    kind: str, inputs: dict[str, np.ndarray], weights: dict[str, np.ndarray], outputs: int = 1, **attributes: Any
) -> onnx.ModelProto:
    given = [value(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for name, array in inputs.items()]
    results = [onnx.ValueInfoProto(name=f"y{i}") for i in range(outputs)]
    node = helper.make_node(kind, [*inputs, *weights], [result.name for result in results], **attributes)
    initialisers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph([node], "test", given, results, initialisers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def assert_exact(kind: str, x: np.ndarray, *weights: np.ndarray, outputs: int = 1, **attributes: Any) -> None:
    """Compare with onnx's reference, bit for bit: onnxruntime has no kernels for most of these types."""
    proto = node_model(kind, {"x": x}, {f"w{i}": w for i, w in enumerate(weights)}, outputs, **attributes)
    with np.errstate(all="ignore"):
        expected: Any = ReferenceEvaluator(proto).run(None, {"x": x})
    given = import_onnx_to_torch(proto.SerializeToString()).run({"x": x})
    for wish, gift in zip(expected, given.values(), strict=True):
        assert gift.dtype == wish.dtype
        np.testing.assert_array_equal(gift, wish)


def table(dtype: Any) -> np.ndarray:
    most = np.iinfo(dtype).max
    return np.asarray([[3, most, most - 1], [most, 0, most]], dtype)


@pytest.mark.parametrize(
    "fill", [np.int64(2**62 + 3), np.int64(-(2**53) - 1), np.uint64(2**64 - 3), np.uint32(2**32 - 1)]
)
def test_a_border_of_64_bits_is_exact(fill: np.generic) -> None:
    assert_exact("Pad", np.asarray([[1, 0, 1]], fill.dtype), np.asarray([0, 1, 0, 1]), np.asarray(fill))


@pytest.mark.parametrize("bounds", [(2**53 + 1, 2**62 + 3), (-(2**53) - 1, 2**62 + 3)])
def test_bounds_and_counts_of_64_bits_are_exact(bounds: tuple[int, int]) -> None:
    x = np.asarray([2**53 + 3, 2**62 + 5, -5, 7, -(2**63)])
    assert_exact("Clip", x, np.asarray(bounds[0]), np.asarray(bounds[1]))
    assert_exact("Mod", x, np.asarray([2**53 + 1, 2**61 + 1, 3, -5, 2**62 - 1]))
    assert_exact("Mod", x, np.asarray([2**53 + 1, 2**61 + 1, 3, -5, 2**62 - 1]), fmod=1)


@pytest.mark.parametrize("count", [3, 5000])
def test_a_range_far_from_zero_has_all_its_numbers(count: int) -> None:
    first = 2**53
    shape = numpy_helper.from_array(np.asarray([first, first + count, 1]), "numbers")
    nodes = [
        helper.make_node("Split", ["numbers"], ["a", "b", "c"], num_outputs=3),
        *(helper.make_node("Squeeze", [name], [f"{name}0"]) for name in "abc"),
        helper.make_node("Range", ["a0", "b0", "c0"], ["r"]),
        helper.make_node("Add", ["r", "x"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "test", [value("x", INT64, [1])], [onnx.ValueInfoProto(name="y")], [shape])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    given = import_onnx_to_torch(proto.SerializeToString()).run({"x": np.asarray([1])})["y"]
    np.testing.assert_array_equal(given, np.arange(first, first + count) + 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint64, np.int32])
def test_an_index_outside_of_the_depth_marks_nothing(dtype: Any) -> None:
    """What ONNX says; its reference implementation wraps such an index around instead."""
    if np.dtype(dtype).kind == "f":
        places = [0, 2.7, -1, -1.5, -3, 3, -4.2, 1e30, np.nan, np.inf, -np.inf]
        marks = [0, 2, 2, 2, 0, None, None, None, None, None, None]
    elif dtype is np.uint64:
        places, marks = [0, 2, 3, 2**64 - 1], [0, 2, None, None]
    else:
        places, marks = [0, 2, -1, -3, -4, 3], [0, 2, 2, 0, None, None]
    x = np.asarray(places, dtype)
    proto = node_model("OneHot", {"x": x}, {"depth": np.asarray([3]), "levels": np.asarray([2**53 + 1, 2**62 + 1])})
    given = import_onnx_to_torch(proto.SerializeToString()).run({"x": x})["y0"]
    expected = np.full((len(places), 3), 2**53 + 1)
    for row, mark in enumerate(marks):
        if mark is not None:
            expected[row, mark] = 2**62 + 1
    np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("dtype", UNSIGNED)
@pytest.mark.parametrize("kind", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
def test_the_place_of_the_greatest_unsigned_integer(kind: str, dtype: Any, last: int) -> None:
    assert_exact(kind, table(dtype), axis=1, select_last_index=last)


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("exclusive", [0, 1])
def test_running_sums_of_unsigned_integers_wrap(dtype: Any, reverse: int, exclusive: int) -> None:
    assert_exact("CumSum", table(dtype), np.asarray(1), reverse=reverse, exclusive=exclusive)


@pytest.mark.parametrize("dtype", UNSIGNED)
@pytest.mark.parametrize("kind", ["ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd", "ReduceL1"])
def test_unsigned_integers_are_reduced(kind: str, dtype: Any) -> None:
    assert_exact(kind, table(dtype), np.asarray([1]))


@pytest.mark.parametrize("dtype", UNSIGNED)
@pytest.mark.parametrize("largest", [0, 1])
def test_unsigned_integers_are_sorted(dtype: Any, largest: int) -> None:
    assert_exact("TopK", table(dtype), np.asarray([2]), outputs=2, axis=1, largest=largest)
    assert_exact("Unique", table(dtype), outputs=4)


@pytest.mark.parametrize("dtype", UNSIGNED)
@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_unsigned_integers_are_written_at_indices(dtype: Any, reduction: str) -> None:
    x = table(dtype)
    assert_exact("ScatterElements", x, np.asarray(ROWS), x[:, :2], axis=1, reduction=reduction)
    assert_exact("ScatterND", x, np.asarray([[0, 0], [1, 2]]), x[0, 1:], reduction=reduction)


@pytest.mark.parametrize("dtype", UNSIGNED)
def test_unsigned_integers_are_moved(dtype: Any) -> None:
    x = table(dtype)
    image = np.resize(x, (1, 4, 2, 2))
    assert_exact("GatherElements", x, np.asarray(ROWS), axis=1)
    assert_exact("Slice", x, *map(np.asarray, ([2], [-9], [1], [-1])))
    assert_exact("ReverseSequence", x, np.asarray([2, 1]), batch_axis=0, time_axis=1)
    assert_exact("Trilu", x)
    assert_exact("NonZero", x)
    assert_exact("DepthToSpace", image, blocksize=2, mode="CRD")
    assert_exact("Col2Im", image.reshape(1, 4, 4), *map(np.asarray, ([4, 4], [2, 2])), strides=[2, 2])
    if dtype is not np.uint16:
        assert_exact("Einsum", x, x.T.copy(), equation="ij,jk->ik")


def test_integers_of_64_bits_are_picked_and_not_rounded_when_images_grow() -> None:
    image = np.asarray([[[[2**62 + 1, 2**53 + 1], [-(2**61) - 3, 5]]]])
    nothing, scales = np.zeros(0, np.float32), np.asarray([1, 1, 2, 2], np.float32)
    proto = node_model("Resize", {"x": image}, {"roi": nothing, "scales": scales}, mode="nearest")
    given = import_onnx_to_torch(proto.SerializeToString()).run({"x": image})["y0"]
    np.testing.assert_array_equal(given, image.repeat(2, 2).repeat(2, 3))


def test_a_double_beyond_signed_64_bits_becomes_an_unsigned_integer() -> None:
    assert_exact("Cast", np.asarray([1e19, 1.8e19, 2.0**63, 5.9, 0.0]), to=TensorProto.UINT64)


@pytest.mark.parametrize(
    ("kind", "x", "weights"),
    [
        ("ReduceMean", table(np.uint64), [np.asarray([1])]),
        ("Pow", np.asarray([2, 3, 4]), [np.asarray([1, 2, 2**64 - 1], np.uint64)]),
        ("GridSample", np.ones((1, 1, 2, 2), np.uint32), [np.zeros((1, 2, 2, 2), np.float32)]),
        ("Softmax", table(np.uint16), []),
        ("Sum", table(np.uint64), []),
    ],
)
def test_what_pytorch_cannot_compute_unsigned_is_refused_at_the_import(
    kind: str, x: np.ndarray, weights: list[np.ndarray]
) -> None:
    proto = node_model(kind, {"x": x}, {f"w{i}": w for i, w in enumerate(weights)})
    with pytest.raises(ConversionError, match=rf"operator `{kind}` .* opset 20\)"):
        import_onnx_to_torch(proto.SerializeToString())


def test_the_list_of_operators_with_unsigned_integers_names_operators_only() -> None:
    assert {("", kind) for kind in COMPUTES_UNSIGNED} <= set(HANDLERS.kinds())


@pytest.mark.parametrize("numbers", [[-np.inf, 1, 2], [np.inf, 1, -2], [np.nan, 1, -2], [np.inf, -np.inf, 1]])
def test_a_range_without_end_is_quantised_as_the_reference_does(numbers: list[float]) -> None:
    assert_exact("DynamicQuantizeLinear", np.asarray(numbers, np.float32), outputs=3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_no_number_becomes_the_lowest_when_quantised(dtype: Any) -> None:
    import onnxruntime

    x = np.asarray([np.nan, np.inf, -np.inf, 1e30, 0.5], np.float32)
    weights = {"scale": np.asarray(0.5, np.float32), "zero": np.asarray(3, dtype)}
    data = node_model("QuantizeLinear", {"x": x}, weights).SerializeToString()
    (expected,) = onnxruntime.InferenceSession(data).run(None, {"x": x})
    np.testing.assert_array_equal(import_onnx_to_torch(data).run({"x": x})["y0"], expected)


@pytest.mark.parametrize("kind", ["ArgMax", "ArgMin", "ReduceMax", "ReduceMin"])
def test_no_number_is_the_extreme_as_in_the_reference(kind: str) -> None:
    x = np.asarray([[1, np.nan, 3, np.nan], [np.nan, 1, 2, 0], [np.inf, 2, -np.inf, 1]], np.float32)
    assert_exact(kind, x, **({"axis": 1} if kind.startswith("Arg") else {}))


def test_a_refusal_is_all_that_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = list(logger.filters)
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ConversionError, match="MatMul"):
        import_onnx_to_torch(node_model("MatMul", {"x": x}, {"w": x}).SerializeToString())
    captured = capfd.readouterr()
    assert (captured.out, captured.err, list(logger.filters)) == ("", "", before)
