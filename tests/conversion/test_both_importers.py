"""Cases that both importers compute alike: as onnxruntime where it runs them, else as the standard says.

Each was once computed otherwise by one of the two. Where the engines differ, `docs/convert.md` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from graph_kit import INT64, value
from onnx import TensorProto, helper, numpy_helper

from noa.errors import ConversionError
from noa_conversion import import_onnx_to_jax, import_onnx_to_torch

F32 = np.float32
INF = np.float32(np.inf)
IMPORTERS = {"torch": import_onnx_to_torch, "jax": import_onnx_to_jax}


def draw(*shape: int) -> np.ndarray:
    return (2 * np.random.default_rng(len(shape)).standard_normal(shape)).astype(np.float32)


def node_model(
    kind: str,
    inputs: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
    *,
    outputs: str = "y",
    opset: int = 21,
    known: str = "",
    result: int | None = None,
) -> bytes:
    """Return a model of one node; the inputs whose letters are in `known` are initialisers."""
    number = helper.np_dtype_to_tensor_dtype(next(iter(inputs.values())).dtype)
    names = outputs.split(",")
    given = [result or number] + [INT64 if kind == "MaxPool" else number] * (len(names) - 1)
    declared = [
        helper.make_tensor_value_info(name, dtype, None) for name, dtype in zip(names, given, strict=True) if name
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, list(inputs), names, name="node", **attributes)],
        "test",
        [
            value(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
            if name not in known
        ],
        declared,
        [numpy_helper.from_array(inputs[name], name) for name in known],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return proto.SerializeToString()


def run(target: str, data: bytes, inputs: Mapping[str, np.ndarray], *, known: str = "") -> list[np.ndarray]:
    feed = {name: array for name, array in inputs.items() if name not in known}
    if target == "onnxruntime":
        return [np.asarray(found) for found in onnxruntime.InferenceSession(data).run(None, feed)]
    return list(IMPORTERS[target](data).run(feed).values())


def assert_like_onnxruntime(
    target: str, kind: str, inputs: Mapping[str, np.ndarray], attributes: Mapping[str, Any], **options: Any
) -> None:
    data, known = node_model(kind, inputs, attributes, **options), options.get("known", "")
    expected = run("onnxruntime", data, inputs, known=known)
    found = run(target, data, inputs, known=known)
    for wish, gift in zip(expected, found, strict=True):
        assert gift.dtype == wish.dtype
        np.testing.assert_allclose(gift, wish, rtol=1e-5, atol=1e-6)


both = pytest.mark.parametrize("target", IMPORTERS)


@both
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"input_forget": 1},
        {
            "activations": ["HardSigmoid", "Softsign", "ScaledTanh"],
            "activation_alpha": [0.3, 1.0],
            "activation_beta": [0.4, 2.0],
        },
    ],
    ids=["plain", "coupled", "activations"],
)
def test_clip_bounds_the_gates_of_an_lstm_and_not_its_cell(target: str, options: Mapping[str, Any]) -> None:
    inputs = {"x": np.ones((6, 1, 3), F32), "w": np.ones((1, 8, 3), F32), "r": np.ones((1, 8, 2), F32)}
    assert_like_onnxruntime(target, "LSTM", inputs, {"hidden_size": 2, "clip": 0.5, **options}, outputs="y,h,c")


@both
@pytest.mark.parametrize("mode", ["ceil", "floor", "round_prefer_ceil", "round_prefer_floor", "linear", "cubic"])
@pytest.mark.parametrize(("size", "scale"), [(7, 0.5), (5, 0.5), (9, 0.37), (7, 0.3), (5, 1.7)])
def test_symmetric_half_pixels_lie_where_onnxruntime_has_them(target: str, mode: str, size: int, scale: float) -> None:
    inputs = {"x": draw(1, 1, 2, size), "r": np.zeros(0, F32), "s": np.asarray([1, 1, 1, scale], F32)}
    rule = {"mode": mode} if mode in ("linear", "cubic") else {"mode": "nearest", "nearest_mode": mode}
    options = {"coordinate_transformation_mode": "half_pixel_symmetric", **rule}
    assert_like_onnxruntime(target, "Resize", inputs, options, opset=19, known="rs")


def test_a_place_a_hair_before_a_pixel_takes_that_pixel() -> None:
    from noa_conversion.importers.torch.resize_weights import AxisResize, ResizeRule, resize_weights

    rule = ResizeRule(
        mode="linear", coordinates="asymmetric", nearest="floor", cubic=-0.75, antialias=False, exclude_outside=False
    )
    scale = float(np.nextafter(1.0, 2.0))  # the second place is at 0.99999999999999978
    indices, weights = resize_weights(AxisResize(size=4, new_size=4, scale=scale), rule)
    np.testing.assert_allclose((indices * weights).sum(axis=1), np.arange(4), atol=1e-12)


@both
@pytest.mark.parametrize(
    ("shape", "mode", "more"),
    [
        (13, "NOTSET", 0),
        (12, "NOTSET", 0),
        (12, "SAME_UPPER", 0),
        (13, "SAME_LOWER", 0),
        (13, "SAME_UPPER", 1),
        (11, "NOTSET", 1),
        (8, "SAME_UPPER", 0),
        (8, "SAME_LOWER", 0),
    ],
)
def test_a_shape_that_transposed_convolution_does_not_fill_is_filled_at_its_end(
    target: str, shape: int, mode: str, more: int
) -> None:
    inputs = {"x": np.arange(1, 5, dtype=F32).reshape(1, 1, 4), "w": np.ones((1, 1, 2), F32), "b": np.asarray([9], F32)}
    options = {"strides": [3], "output_shape": [shape], "auto_pad": mode, "output_padding": [more]}
    assert_like_onnxruntime(target, "ConvTranspose", inputs, options)


@both
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint32", "int64", "uint64", "float16"])
def test_shrunk_integers_wrap_around(target: str, dtype: str) -> None:
    inputs = {"x": np.asarray([0, 1, 2, 3, 100], dtype)}
    assert_like_onnxruntime(target, "Shrink", inputs, {"lambd": 1.5, "bias": 3.0})


@both
@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("mode", range(4))
def test_attention_shows_its_products_before_their_cap(target: str, mode: int, opset: int) -> None:
    inputs = {"q": draw(1, 1, 1, 2), "k": draw(1, 1, 2, 2), "v": draw(1, 1, 2, 2), "m": draw(1, 2)}
    options = {"softcap": 0.5, "qk_matmul_output_mode": mode}
    assert_like_onnxruntime(target, "Attention", inputs, options, outputs="y,,,p", opset=opset)


@both
@pytest.mark.parametrize("beta", [1.0, 0.0, 2.0])
@pytest.mark.parametrize("with_c", [True, False])
def test_nothing_times_infinity_is_no_number_in_gemm(target: str, beta: float, with_c: bool) -> None:
    inputs = {"a": np.full((1, 1), INF), "b": np.ones((1, 1), F32)} | ({"c": np.ones((1, 1), F32)} if with_c else {})
    assert_like_onnxruntime(target, "Gemm", inputs, {"alpha": 0.0, "beta": beta})


@both
@pytest.mark.parametrize(
    ("dtype", "a", "c", "factors", "expected"),
    [
        ("int32", [[3, 5]], [7], (0.5, 0.5), 14),
        ("int32", [[3, 5]], [7], (0.5, 0.0), 10),
        ("int32", [[-3, -5]], [1], (0.5, 0.5), -10),
        ("int64", [[3, 5]], [7], (1.0, 1.0), 28),
        ("uint32", [[2**31, 13]], None, (0.5, 1.0), 19),
        ("int32", [[2**30, 2**30]], [1], (1.0, 1.0), 2**30 + 1),
        ("int32", [[2**24, 1]], [1], (1.0, 3.0), 2**25 + 6),
    ],
)
def test_integer_gemm_is_cut_to_a_whole_number_once(
    target: str, dtype: str, a: list[list[int]], c: list[int] | None, factors: tuple[float, float], expected: int
) -> None:
    inputs = {"a": np.asarray(a, dtype), "b": np.asarray([[2], [3]], dtype)}
    inputs |= {} if c is None else {"c": np.asarray(c, dtype)}
    data = node_model("Gemm", inputs, {"alpha": factors[0], "beta": factors[1]})
    (found,) = run(target, data, inputs)
    assert found.dtype == dtype
    assert found.tolist() == [[expected]]


@both
@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (1, 1, 4, 1), (1, 1, 3, 4), (1, 1, 1, 1), (1, 1, 2, 1, 3)])
@pytest.mark.parametrize("aligned", [0, 1])
def test_an_axis_of_one_pixel_has_the_place_that_onnxruntime_gives_it(
    target: str, shape: tuple[int, ...], aligned: int
) -> None:
    rank = len(shape) - 2
    inputs = {"t": draw(1, rank, rank + 1), "s": np.asarray(shape, np.int64)}
    assert_like_onnxruntime(target, "AffineGrid", inputs, {"align_corners": aligned}, opset=20, known="s")


@both
@pytest.mark.parametrize("by_columns", [0, 1])
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_first_of_equal_maxima_is_the_first_by_rows(target: str, by_columns: int, dilation: int) -> None:
    inputs = {"x": np.round(draw(1, 2, 5, 6) / 4)}
    options = {"kernel_shape": [2, 3], "dilations": [dilation, dilation], "storage_order": by_columns}
    assert_like_onnxruntime(target, "MaxPool", inputs, options, outputs="y,i")


@both
@pytest.mark.parametrize(
    ("first", "then", "opset"),
    [("FLOAT4E2M1", "FLOAT", 23), ("FLOAT4E2M1", "FLOAT16", 23), ("INT4", "INT8", 23), ("UINT4", "UINT8", 23)],
)
def test_what_comes_back_from_a_narrow_type_has_the_type_of_the_file(
    target: str, first: str, then: str, opset: int
) -> None:
    codes = [getattr(TensorProto, name) for name in (first, then)]
    nodes = [helper.make_node("Cast", ["x"], ["n"], to=codes[0]), helper.make_node("Cast", ["n"], ["y"], to=codes[1])]
    graph = helper.make_graph(
        nodes, "test", [value("x", TensorProto.FLOAT, [3])], [helper.make_tensor_value_info("y", codes[1], [3])]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)
    x = np.asarray([1.5, 4, 0], F32)
    (found,) = run(target, proto.SerializeToString(), {"x": x})
    assert found.dtype == helper.tensor_dtype_to_np_dtype(codes[1])
    narrow = x.astype(ml_dtypes.float4_e2m1fn) if first.startswith("FLOAT") else np.trunc(x)
    np.testing.assert_array_equal(found.astype(F32), narrow.astype(F32))


@both
@pytest.mark.parametrize("known", ["sea", "dsea"])
def test_a_slice_that_names_an_axis_twice_is_refused(target: str, known: str) -> None:
    numbers = {"s": [0, 1], "e": [3, 3], "a": [1, -1]}
    inputs = {"d": draw(3, 4)} | {name: np.asarray(n, np.int64) for name, n in numbers.items()}
    data = node_model("Slice", inputs, {}, known=known)
    with pytest.raises(ConversionError, match=r"`Slice` cannot .*its axes .* twice"):
        run(target, data, inputs, known=known)


@both
@pytest.mark.parametrize("step", [2**63 - 1, -(2**63), -(2**63) + 1, 2**31, -(2**31)])
def test_a_step_past_all_numbers_takes_the_first_element(target: str, step: int) -> None:
    numbers = {"s": [2], "e": [-(2**63) if step < 0 else 2**63 - 1], "a": [1], "t": [step]}
    inputs = {"d": draw(3, 4)} | {name: np.asarray(n, np.int64) for name, n in numbers.items()}
    (found,) = run(target, node_model("Slice", inputs, {}, known="seat"), inputs, known="seat")
    np.testing.assert_array_equal(found, inputs["d"][:, 2:3])


@both
@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("Conv", {"dilations": [2**63 - 1]}),
        ("Conv", {"pads": [2**63 - 1, -(2**63) + 1]}),
        ("MaxPool", {"kernel_shape": [2], "dilations": [2**63 - 1]}),
        ("MaxPool", {"kernel_shape": [2], "pads": [2**63 - 1, -(2**63) + 1]}),
        ("ConvTranspose", {"output_padding": [-(2**63)]}),
        ("LRN", {"size": 2**63 - 1}),
    ],
)
def test_distances_that_no_axis_has_are_refused_by_name(target: str, kind: str, attributes: Mapping[str, Any]) -> None:
    inputs = {"x": np.ones((1, 1, 5), F32)} | ({} if kind in ("MaxPool", "LRN") else {"w": np.ones((1, 1, 2), F32)})
    with pytest.raises(
        ConversionError, match=rf"`{kind}` cannot .*( holds -?9223372036854775\d+|shape .* takes .* and )"
    ):
        run(target, node_model(kind, inputs, attributes), inputs)


@both
def test_padding_that_no_axis_has_is_refused_by_name(target: str) -> None:
    inputs = {"x": np.ones(5, F32), "p": np.asarray([2**63 - 1, -(2**63) + 1], np.int64)}
    with pytest.raises(
        ConversionError, match=r"`Pad` cannot .*(its `pads` holds 9223372036854775807|shape .* takes .* and )"
    ):
        run(target, node_model("Pad", inputs, {}, known="p"), inputs, known="p")


@both
def test_sizes_times_numbers_of_64_bits_wrap_around_as_in_onnxruntime(target: str) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Mul", ["s", "big"], ["d"]),
        helper.make_node("Cast", ["d"], ["e"], to=TensorProto.INT32),
        helper.make_node("Mul", ["e", "e"], ["z"]),
    ]
    outputs = [value(name, dtype, [2]) for name, dtype in zip("dez", (INT64, *[TensorProto.INT32] * 2), strict=True)]
    big = numpy_helper.from_array(np.asarray([2**61, 2**40 + 7]), "big")
    graph = helper.make_graph(nodes, "test", [value("x", TensorProto.FLOAT, ["rows", "columns"])], outputs, [big])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    onnx.checker.check_model(onnx.load_from_string(data))
    for shape in ((3, 4), (5, 7)):
        feed = {"x": np.ones(shape, F32)}
        for wish, gift in zip(run("onnxruntime", data, feed), run(target, data, feed), strict=True):
            np.testing.assert_array_equal(gift, wish)
