"""Made-up inputs: seeded, inside the tables that they index, every free axis with a size of its own."""

from __future__ import annotations

import graph_kit as graphs
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from noa.errors import InvalidInputError
from noa.signatures import Signature, TensorSpec
from noa_conversion.generated_inputs import InputRange, describe_ranges, generate_inputs, poison_inputs, size_ladder
from noa_conversion.onnx_input_ranges import find_input_ranges

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="ids", dtype="int64", shape=("batch", "seq")),
        TensorSpec(name="image", dtype="float32", shape=("batch", 3, "height", "width")),
        TensorSpec(name="flags", dtype="bool", shape=("batch",)),
        TensorSpec(name="pixels", dtype="uint8", shape=(4,)),
    ),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch",)),),
)


def ranges_of(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], dtype: int = INT64) -> dict[str, InputRange]:
    inputs = [graphs.value("x", dtype, ["batch", 4])]
    return find_input_ranges(graphs.model(nodes, inputs, [graphs.value("y", FLOAT, ["a", "b", "c"])], weights))


TABLE = {"table": np.ones((9, 5), np.float32)}


def test_an_index_stays_inside_its_table() -> None:
    found = ranges_of([helper.make_node("Gather", ["table", "x"], ["y"])], TABLE)["x"]
    assert (found.low, found.high) == (0, 9)
    assert "9 rows" in found.reason


def test_an_index_is_followed_through_what_only_moves_it() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=INT64),
        helper.make_node("Transpose", ["whole"], ["turned"], perm=[1, 0]),
        helper.make_node("Gather", ["table", "turned"], ["y"]),
    ]
    assert ranges_of(nodes, TABLE, FLOAT)["x"].high == 9


def test_a_constant_that_is_added_moves_the_range() -> None:
    nodes = [helper.make_node("Add", ["x", "two"], ["moved"]), helper.make_node("Gather", ["table", "moved"], ["y"])]
    found = ranges_of(nodes, {**TABLE, "two": np.array(2, np.int64)})["x"]
    assert (found.low, found.high) == (0, 7)
    nodes[0] = helper.make_node("Sub", ["x", "two"], ["moved"])
    found = ranges_of(nodes, {**TABLE, "two": np.array(2, np.int64)})["x"]
    assert (found.low, found.high) == (2, 11)


def test_a_branch_for_negative_indices_leaves_the_range_as_it_is() -> None:
    """`Where(x < 0, x + 9, x)`, as exporters write indices that count from the end."""
    nodes = [
        helper.make_node("Less", ["x", "zero"], ["is_negative"]),
        helper.make_node("Add", ["x", "rows"], ["from_the_end"]),
        helper.make_node("Where", ["is_negative", "from_the_end", "x"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["y"]),
    ]
    found = ranges_of(nodes, {**TABLE, "zero": np.array(0, np.int64), "rows": np.array(9, np.int64)})["x"]
    assert (found.low, found.high) == (0, 9)


def test_the_smaller_of_two_tables_counts() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["left"]),
        helper.make_node("Gather", ["small", "x"], ["right"]),
        helper.make_node("Add", ["left", "right"], ["y"]),
    ]
    assert ranges_of(nodes, {**TABLE, "small": np.ones((2, 5), np.float32)})["x"].high == 2


def test_an_index_that_is_computed_is_zero_or_one() -> None:
    nodes = [helper.make_node("Mul", ["x", "x"], ["square"]), helper.make_node("Gather", ["table", "square"], ["y"])]
    assert ranges_of(nodes, TABLE)["x"].is_flag


def test_an_input_that_decides_a_shape_is_refused_by_name() -> None:
    proto = graphs.model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [graphs.value("x", FLOAT, ["batch", 4]), graphs.value("shape", INT64, [2])],
        [graphs.value("y", FLOAT, ["a", "b"])],
    )
    ranges = find_input_ranges(proto)
    signature = Signature(
        inputs=(
            TensorSpec(name="x", dtype="float32", shape=("batch", 4)),
            TensorSpec(name="shape", dtype="int64", shape=(2,)),
        ),
        outputs=SIGNATURE.outputs,
    )
    with pytest.raises(InvalidInputError, match=r"`shape` decide a shape.*--bind shape="):
        generate_inputs(signature, {"batch": 2}, ranges=ranges, seed=0)


def test_an_index_inside_a_branch_is_seen() -> None:
    branch = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["inner"])], "then", [], [graphs.value("inner", FLOAT, [])]
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["table"], ["other"])], "else", [], [graphs.value("other", FLOAT, [])]
    )
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=other)
    proto = helper.make_model(
        helper.make_graph(
            [node],
            "g",
            [graphs.value("x", INT64, ["batch"])],
            [graphs.value("y", FLOAT, ["a", "b"])],
            [onnx.numpy_helper.from_array(array, name) for name, array in {**TABLE, "yes": np.array(True)}.items()],
        )
    )
    assert find_input_ranges(proto)["x"].high == 9


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), high=st.integers(1, 1000))
def test_drawn_inputs_fit_the_signature_and_the_range_and_repeat(seed: int, high: int) -> None:
    sizes = {"batch": 3, "seq": 5, "height": 7, "width": 9}
    ranges = {"ids": InputRange(high=high)}
    drawn = generate_inputs(SIGNATURE, sizes, ranges=ranges, seed=seed)
    assert SIGNATURE.validate(drawn) == 3
    assert drawn["ids"].min() >= 0 and drawn["ids"].max() < high
    again = generate_inputs(SIGNATURE, sizes, ranges=ranges, seed=seed)
    assert all((drawn[name] == again[name]).all() for name in drawn)


def test_every_free_axis_varies_and_the_first_pair_tells_axes_apart() -> None:
    first, second = next(iter(size_ladder(SIGNATURE, {})))
    assert first["batch"] == 1 and second["batch"] == 7
    for sizes in (first, second):
        assert len({sizes[axis] for axis in ("seq", "height", "width")}) == 3
    assert all(first[axis] != second[axis] for axis in first)


def test_a_size_that_is_asked_for_is_kept() -> None:
    assert all(sizes["seq"] == 128 for rung in size_ladder(SIGNATURE, {"seq": 128}) for sizes in rung)


def test_special_values_are_put_into_floats_only() -> None:
    drawn = generate_inputs(SIGNATURE, {"batch": 1, "seq": 2, "height": 3, "width": 3}, ranges={}, seed=0)
    poisoned = poison_inputs(drawn, seed=0)
    assert poisoned is not None
    assert np.isnan(poisoned["image"]).sum() == 1 and np.isinf(poisoned["image"]).sum() == 2
    assert (poisoned["ids"] == drawn["ids"]).all()
    assert np.isfinite(drawn["image"]).all()
    assert poison_inputs({"ids": drawn["ids"]}, seed=0) is None


def test_too_large_an_input_is_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match="`image` is too large"):
        generate_inputs(SIGNATURE, {"batch": 1000, "seq": 1, "height": 1000, "width": 1000}, ranges={}, seed=0)


@pytest.mark.parametrize("kind", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_a_label_is_one_of_the_classes(kind: str) -> None:
    inputs = [graphs.value("scores", FLOAT, ["batch", 4]), graphs.value("labels", INT64, ["batch"])]
    node = helper.make_node(kind, ["scores", "labels"], ["y"])
    found = find_input_ranges(graphs.model([node], inputs, [graphs.value("y", FLOAT, [])]))["labels"]
    assert (found.low, found.high) == (0, 4)


def lstm(clip: float) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((1, 8, 3)), "r": rng.standard_normal((1, 8, 2))}
    node = helper.make_node("LSTM", ["x", "w", "r"], ["", "", "c"], hidden_size=2, clip=clip)
    initialisers = {name: array.astype(np.float32) for name, array in weights.items()}
    return graphs.model(
        [node], [graphs.value("x", FLOAT, [6, 1, 3])], [graphs.value("c", FLOAT, [1, 1, 2])], initialisers
    )


BOUNDS: dict[str, tuple[list[onnx.NodeProto], float | None]] = {
    "constants": ([helper.make_node("Clip", ["x", "low", "high"], ["y"])], 6.0),
    "attributes": ([helper.make_node("ThresholdedRelu", ["x"], ["y"], alpha=2.5)], 2.5),
    "left out": ([helper.make_node("HardSigmoid", ["x"], ["y"], alpha=0.25)], 2.0),
    "compared": ([helper.make_node("Greater", ["x", "high"], ["y"])], 6.0),
    "so far that it bounds nothing": ([helper.make_node("Max", ["x", "least"], ["y"])], None),
    "none": ([helper.make_node("Relu", ["x"], ["y"])], None),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_that_the_graph_holds_is_seen(name: str) -> None:
    nodes, expected = BOUNDS[name]
    numbers = {"low": np.float32(-1), "high": np.float32(6), "least": np.finfo(np.float32).min}
    result = TensorProto.BOOL if name == "compared" else FLOAT
    outputs = [graphs.value("y", result, ["a", 4])]
    proto = graphs.model(
        nodes, [graphs.value("x", FLOAT, ["a", 4])], outputs, {key: np.asarray(n) for key, n in numbers.items()}
    )
    found = find_input_ranges(proto).get("x", InputRange())
    assert found.beyond == expected
    assert (found.high, found.decides_shape) == (None, False)


def test_far_draws_take_the_cell_of_an_lstm_past_its_clip() -> None:
    proto = lstm(0.5)
    ranges = find_input_ranges(proto)
    assert ranges["x"].beyond == 0.5
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(6, 1, 3)),),
        outputs=(TensorSpec(name="c", dtype="float32", shape=(1, 1, 2)),),
    )
    session = onnxruntime.InferenceSession(proto.SerializeToString())

    def reach(*, is_far: bool) -> float:
        draws = (generate_inputs(signature, {}, ranges=ranges, seed=seed, is_far=is_far) for seed in range(4))
        return max(float(np.abs(np.asarray(session.run(None, draw)[0])).max()) for draw in draws)

    assert reach(is_far=True) > 0.5
    near = generate_inputs(signature, {}, ranges=ranges, seed=0)["x"]
    np.testing.assert_array_equal(near, generate_inputs(signature, {}, ranges={}, seed=0)["x"])
    assert "beyond 0.5" in describe_ranges(signature, ranges)["x"]
