"""Options of operators, and older forms of them, that ONNX's own suite leaves out: JAX against onnxruntime."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from noa.errors import ConversionError
from noa_conversion.importers.jax import import_onnx_to_jax


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.asarray(numbers, np.int64)


IMAGE, SEQUENCE = draw(2, 4, 7, 9), draw(5, 3, 4)
LENGTHS = np.asarray([5, 2, 4], np.int32)
EMPTY = np.asarray([0, 2, 5], np.int32)
FAR = np.asarray([np.nan, np.inf, -np.inf, 1e20, -1e20, 3.5e9, 0, 1.5, 2.5], np.float32)
LSTM = [draw(2, 24, 4), draw(2, 24, 6), draw(2, 48), LENGTHS, draw(2, 3, 6), draw(2, 3, 6, seed=1), draw(2, 18)]
GRU = [draw(2, 18, 4), draw(2, 18, 6), draw(2, 36), LENGTHS, draw(2, 3, 6)]
RNN = [draw(2, 6, 4), draw(2, 6, 6), draw(2, 12), LENGTHS, draw(2, 3, 6)]
BOTH = {"direction": "bidirectional", "hidden_size": 6}
TABLE = draw(3, 4)

# name: (operator, opset, inputs, attributes, number of outputs). An integer array is a constant of the graph.
CASES: dict[str, tuple[str, int, list[Any], dict[str, Any], int]] = {
    "clip by attributes": ("Clip", 6, [IMAGE], {"min": -0.5, "max": 0.5}, 1),
    "softmax over the rest, opset 11": ("Softmax", 11, [IMAGE], {"axis": 2}, 1),
    "log softmax over the rest": ("LogSoftmax", 11, [IMAGE], {"axis": 1}, 1),
    "hardmax over the rest": ("Hardmax", 11, [IMAGE], {"axis": 2}, 1),
    "sum over axes by attribute": ("ReduceSum", 11, [IMAGE], {"axes": [1, -1], "keepdims": 0}, 1),
    "pad by attributes": ("Pad", 2, [IMAGE], {"pads": [0, 0, 1, 2, 0, 1, 0, -3], "value": 1.5}, 1),
    "slice by attributes": ("Slice", 9, [IMAGE], {"starts": [1, -6], "ends": [99, -1], "axes": [1, 3]}, 1),
    "slice backwards": ("Slice", 13, [IMAGE, ints(-1, 8), ints(-99, 1), ints(2, 3), ints(-2, -3)], {}, 1),
    "slice to the largest end": ("Slice", 13, [IMAGE, ints(2), ints(2**63 - 1), ints(3)], {}, 1),
    "split by attribute": ("Split", 11, [IMAGE], {"split": [2, 7], "axis": 3}, 2),
    "split unevenly": ("Split", 18, [IMAGE], {"num_outputs": 4, "axis": 3}, 4),
    "squeeze by attribute": ("Squeeze", 11, [draw(2, 1, 3)], {"axes": [1]}, 1),
    "unsqueeze by attribute": ("Unsqueeze", 11, [TABLE], {"axes": [0, -1]}, 1),
    "upsample nearest": ("Upsample", 9, [IMAGE, np.asarray([1, 1, 2, 3], np.float32)], {"mode": "nearest"}, 1),
    "upsample linear": ("Upsample", 9, [IMAGE, np.asarray([1, 1, 2, 2], np.float32)], {"mode": "linear"}, 1),
    "resize, opset 10": ("Resize", 10, [IMAGE, np.asarray([1, 1, 0.5, 1.5], np.float32)], {"mode": "nearest"}, 1),
    "resize to sizes": ("Resize", 19, [IMAGE, None, None, ints(2, 4, 5, 21)], {"mode": "linear"}, 1),
    "average pool, uneven": (
        "AveragePool",
        19,
        [IMAGE],
        {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 0, 1], "count_include_pad": 1},
        1,
    ),
    "average pool, dilated": ("AveragePool", 19, [IMAGE], {"kernel_shape": [2, 2], "dilations": [2, 3]}, 1),
    "max pool with places, columns first": (
        "MaxPool",
        12,
        [IMAGE],
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "storage_order": 1},
        2,
    ),
    "max pool of bytes": (
        "MaxPool",
        12,
        [np.arange(48, dtype=np.uint8).reshape(1, 1, 6, 8)],
        {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]},
        1,
    ),
    "lp pool": ("LpPool", 18, [IMAGE], {"kernel_shape": [2, 3], "p": 3, "strides": [2, 2]}, 1),
    "grouped transposed convolution": (
        "ConvTranspose",
        11,
        [IMAGE, draw(4, 3, 3, 2), draw(6)],
        {"group": 2, "strides": [2, 3], "pads": [1, 0, 2, 1], "output_padding": [1, 0], "dilations": [1, 2]},
        1,
    ),
    "transposed convolution to a shape": (
        "ConvTranspose",
        11,
        [IMAGE, draw(4, 3, 3, 3)],
        {"strides": [2, 2], "output_shape": [14, 18]},
        1,
    ),
    "lower same padding": ("Conv", 11, [IMAGE, draw(5, 4, 4, 4)], {"auto_pad": "SAME_LOWER", "strides": [2, 3]}, 1),
    "one-dimensional convolution": ("Conv", 11, [draw(2, 4, 11), draw(4, 2, 3)], {"group": 2, "dilations": [2]}, 1),
    "lstm with everything": ("LSTM", 14, [SEQUENCE, *LSTM], BOTH, 3),
    "lstm, coupled and clipped": ("LSTM", 14, [SEQUENCE, *LSTM[:3]], {**BOTH, "input_forget": 1, "clip": 0.4}, 3),
    "lstm, other activations": (
        "LSTM",
        14,
        [SEQUENCE, *LSTM[:3]],
        {
            **BOTH,
            "activations": ["HardSigmoid", "LeakyRelu", "Tanh", "Sigmoid", "Tanh", "ScaledTanh"],
            "activation_alpha": [0.3, 0.1, 0.7],
            "activation_beta": [0.4, 1.2],
        },
        3,
    ),
    "gru with everything": ("GRU", 14, [SEQUENCE, *GRU], {**BOTH, "linear_before_reset": 1}, 2),
    "gru, reset before": ("GRU", 14, [SEQUENCE, *GRU], BOTH, 2),
    "rnn with everything": ("RNN", 14, [SEQUENCE, *RNN], {**BOTH, "activations": ["Relu", "Softsign"]}, 2),
    "rnn backwards": (
        "RNN",
        14,
        [SEQUENCE, *(w[:1] for w in RNN[:3]), LENGTHS],
        {"direction": "reverse", "hidden_size": 6},
        2,
    ),
    "sequences without steps": ("LSTM", 14, [SEQUENCE, *LSTM[:3], EMPTY, *LSTM[4:]], BOTH, 3),
    "sequences without steps, gru": ("GRU", 14, [SEQUENCE, *GRU[:3], EMPTY, *GRU[4:]], BOTH, 2),
    "sequences without steps, rnn": ("RNN", 14, [SEQUENCE, *RNN[:3], EMPTY, *RNN[4:]], BOTH, 2),
    **{
        f"{mode} {pads}": (
            "Pad",
            19,
            [np.arange(12, dtype=np.float32).reshape(2, 6), ints(0, pads[0], 0, pads[1])],
            {"mode": mode},
            1,
        )
        for mode in ("edge", "reflect", "wrap")
        for pads in ((2, -1), (-1, 2), (-2, -1), (-3, 2))
    },
    **{
        f"quantised infinities, {zero.dtype}": ("QuantizeLinear", 21, [FAR, np.float32([0.5]), zero], {}, 1)
        for zero in map(np.asarray, (np.uint8([3]), np.int8([-3]), np.uint16([7]), np.int16([5])))
    },
    "quantised by an infinite range": ("DynamicQuantizeLinear", 11, [np.asarray([1, -np.inf, 2], np.float32)], {}, 3),
    "quantised by a range up to infinity": ("DynamicQuantizeLinear", 11, [np.asarray([1, np.inf], np.float32)], {}, 3),
    "gather from the end": ("Gather", 13, [IMAGE, ints(-1, 0, -7)], {"axis": 2}, 1),
    "gather one": ("Gather", 13, [IMAGE, np.asarray(-2, np.int64)], {"axis": 3}, 1),
    "gather along fewer": ("GatherElements", 13, [TABLE, np.asarray([[-1, 0], [2, 1]], np.int64)], {"axis": 0}, 1),
    "scatter, opset 11": ("ScatterElements", 11, [TABLE, np.asarray([[-1, 0]], np.int64), draw(1, 2)], {"axis": 0}, 1),
    "one hot": ("OneHot", 11, [ints(0, -1, 9, 2), ints(4), np.asarray([2, 5], np.float32)], {"axis": 0}, 1),
    "smallest of integers": ("TopK", 11, [np.asarray([[3, -2, 3, 7]], np.int32), ints(3)], {"largest": 0}, 2),
    "top k, opset 1": ("TopK", 1, [TABLE], {"k": 2, "axis": 0}, 2),
    "sums from the end": ("CumSum", 14, [TABLE, ints(1)], {"exclusive": 1, "reverse": 1}, 1),
    "last of the largest": (
        "ArgMax",
        13,
        [np.asarray([[1, 3, 3, 0]], np.float32)],
        {"axis": 1, "select_last_index": 1},
        1,
    ),
    "product of one element power": ("Pow", 15, [np.abs(TABLE), np.asarray([2.5], np.float32)], {}, 1),
    "integers to a power": ("Pow", 15, [np.asarray([2, -3], np.int32), np.asarray([3, 2], np.int32)], {}, 1),
    "integers divided towards zero": ("Div", 14, [np.asarray([7, -7], np.int32), np.asarray([2, 2], np.int32)], {}, 1),
    "remainders of both kinds": ("Mod", 13, [np.asarray([7, -7], np.int32), np.asarray([-3, 3], np.int32)], {}, 1),
    "local response": ("LRN", 13, [IMAGE], {"size": 5, "alpha": 0.3, "beta": 0.6, "bias": 1.5}, 1),
    "instance normalisation": ("InstanceNormalization", 6, [IMAGE, draw(4), draw(4, seed=1)], {"epsilon": 1e-3}, 1),
    "layer normalisation in the middle": (
        "LayerNormalization",
        17,
        [IMAGE, draw(4, 7, 9), draw(4, 7, 9)],
        {"axis": 1},
        3,
    ),
    "gemm with everything": (
        "Gemm",
        13,
        [draw(4, 3), draw(5, 4), draw(3, 1)],
        {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0},
        1,
    ),
    "vector times matrices": ("MatMul", 13, [draw(4), draw(2, 4, 3)], {}, 1),
    "equation with dots": ("Einsum", 12, [draw(2, 3, 4), draw(2, 4, 5)], {"equation": "...ij, ...jk -> ...ik"}, 1),
    "determinant of four": ("Det", 11, [draw(2, 4, 4)], {}, 1),
    "regions of the old kind": (
        "RoiAlign",
        10,
        [IMAGE, np.asarray([[0, 0, 6, 5], [2, 1, 8.5, 6]], np.float32), ints(0, 1)],
        {"output_height": 3, "output_width": 2, "spatial_scale": 0.8, "sampling_ratio": 2},
        1,
    ),
    "quantised matrices by column": (
        "MatMulInteger",
        10,
        [
            np.arange(12, dtype=np.uint8).reshape(3, 4),
            np.arange(8, dtype=np.uint8).reshape(4, 2),
            np.asarray(3, np.uint8),
            np.asarray([1, 5], np.uint8),
        ],
        {},
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_what_onnxruntime_does(name: str) -> None:
    kind, opset, arrays, attributes, outputs = CASES[name]
    given = {f"x{i}": array for i, array in enumerate(arrays) if array is not None}
    is_constant = {
        key: array.dtype == np.int64 or (i and kind in ("Upsample", "Resize"))
        for i, (key, array) in enumerate(given.items())
    }
    node = helper.make_node(
        kind,
        [f"x{i}" if array is not None else "" for i, array in enumerate(arrays)],
        [f"y{i}" for i in range(outputs)],
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        "test",
        [
            helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for key, array in given.items()
            if not is_constant[key]
        ],
        [helper.make_empty_tensor_value_info(f"y{i}") for i in range(outputs)],
        [numpy_helper.from_array(array, key) for key, array in given.items() if is_constant[key]],
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()
    feeds = {key: array for key, array in given.items() if not is_constant[key]}
    expected = onnxruntime.InferenceSession(data).run(None, feeds)
    imported = import_onnx_to_jax(data)
    received = jax.jit(imported.apply)(imported.params, *feeds.values())
    for wanted, got in zip(expected, received if outputs > 1 else [received], strict=True):
        assert got.shape == wanted.shape
        assert got.dtype == jax.dtypes.canonicalize_dtype(wanted.dtype)
        np.testing.assert_allclose(np.asarray(got), wanted, rtol=1e-5, atol=2e-5)  # sums in another order


@pytest.mark.parametrize(("kind", "weights"), [("LSTM", LSTM), ("GRU", GRU), ("RNN", RNN)])
def test_layers_with_the_batch_first_compute_what_onnxruntime_does_with_the_time_first(
    kind: str, weights: list[np.ndarray]
) -> None:
    """onnxruntime refuses `layout=1`; ONNX's reference takes one direction of it only."""
    count = 3 if kind == "LSTM" else 2
    states = [array if array.ndim == 3 else None for array in weights[4:]]

    def run(layout: int, engine: Any) -> list[np.ndarray]:
        given = [SEQUENCE, *weights]
        if layout:
            turned = [
                array if state is None else state.swapaxes(0, 1)
                for array, state in zip(weights[4:], states, strict=True)
            ]
            given = [SEQUENCE.swapaxes(0, 1), *weights[:4], *turned]
        inputs = {f"x{i}": array for i, array in enumerate(given)}
        options: dict[str, Any] = {**BOTH, "layout": layout}
        node = helper.make_node(kind, list(inputs), [f"y{i}" for i in range(count)], **options)
        declared = [
            helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for key, array in inputs.items()
        ]
        outputs = [helper.make_empty_tensor_value_info(f"y{i}") for i in range(count)]
        graph = helper.make_graph([node], "test", declared, outputs)
        return engine(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), inputs)

    def in_jax(model: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return list(import_onnx_to_jax(model.SerializeToString()).run(inputs).values())

    def in_onnxruntime(model: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(y) for y in onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)]

    (y, *finals), (expected, *ends) = run(1, in_jax), run(0, in_onnxruntime)
    np.testing.assert_allclose(y, expected.transpose(2, 0, 1, 3), rtol=1e-5, atol=2e-5)
    for final, end in zip(finals, ends, strict=True):
        np.testing.assert_allclose(final, end.swapaxes(0, 1), rtol=1e-5, atol=2e-5)


def refused(kind: str, arrays: list[np.ndarray], opset: int, **attributes: Any) -> bytes:
    names = [f"x{i}" for i in range(len(arrays))]
    inputs = [helper.make_tensor_value_info("x0", helper.np_dtype_to_tensor_dtype(arrays[0].dtype), arrays[0].shape)]
    weights = [numpy_helper.from_array(array, name) for name, array in zip(names[1:], arrays[1:], strict=True)]
    node = helper.make_node(kind, names, ["y"], **attributes)
    graph = helper.make_graph([node], "test", inputs, [helper.make_empty_tensor_value_info("y")], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()


def test_what_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(ConversionError, match=r"`Tile` cannot .*`repeats` \[-1, 2\] holds a negative number"):
        import_onnx_to_jax(refused("Tile", [draw(2, 2), ints(-1, 2)], 13))
    with pytest.raises(ConversionError, match=r"`Pad` cannot .*takes 5 and 2 elements away from an axis of 6"):
        import_onnx_to_jax(refused("Pad", [draw(6), ints(-5, -2)], 19, mode="edge"))
    with pytest.raises(ConversionError, match=r"`Pad` cannot .*nothing to copy from on an axis of size 0"):
        import_onnx_to_jax(refused("Pad", [draw(6), ints(-6, 2)], 19, mode="wrap"))
