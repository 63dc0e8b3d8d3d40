"""Any two models compared: files, folders, formats; what is told, and the first node that differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import graph_kit as graphs
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from noa.errors import InvalidInputError, NotFoundError
from noa.settings import ConversionSettings
from noa_conversion import ModelFiles, compare_models, convert_folder, open_model
from noa_conversion.comparison import Tolerance
from noa_conversion.equivalence import EquivalenceReport

SETTINGS = ConversionSettings()
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def compared(first: Path, second: Path, **options: Any) -> EquivalenceReport:
    with open_model(first) as source, open_model(second) as target:
        return compare_models(source, target, settings=SETTINGS, **options)


def saved(folder: Path, name: str, proto: onnx.ModelProto) -> Path:
    return graphs.save(proto, folder / f"{name}.onnx")


def elementwise(kinds: list[str], axes: list[int | str]) -> onnx.ModelProto:
    nodes = [helper.make_node(kind, [f"v{i}"], [f"v{i + 1}"], name=f"node{i}") for i, kind in enumerate(kinds)]
    nodes[-1].output[0] = "y"
    nodes[0].input[0] = "x"
    return graphs.model(nodes, [graphs.value("x", FLOAT, axes)], [graphs.value("y", FLOAT, axes)])


def test_equal_files_are_equal_on_two_shapes_with_every_axis_varied(tmp_path: Path) -> None:
    first = saved(tmp_path, "a", graphs.tokens_model())
    report = compared(first, saved(tmp_path, "b", graphs.tokens_model()))
    assert report.passed and report.problem is None and report.first_difference is None
    assert [dict(run) for run in report.runs] == [{"batch": 1, "seq": 8}, {"batch": 7, "seq": 5}]
    assert "0 to 49" in report.inputs
    json.dumps(report.to_dict(), allow_nan=False)


def test_other_weights_are_found_with_the_first_node_that_differs(tmp_path: Path) -> None:
    report = compared(
        saved(tmp_path, "a", graphs.tokens_model()), saved(tmp_path, "b", graphs.tokens_model(shift=0.05))
    )
    assert not report.passed
    assert report.first_difference is not None
    assert (report.first_difference.node, report.first_difference.kind) == ("head", "MatMul")
    assert set(report.worst_inputs) == {"ids"}
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_difference_that_washes_out_before_the_output_is_still_found_where_it_began(tmp_path: Path) -> None:
    """`Abs` after `Neg` hides it in one branch only: halving would look behind it."""

    def build(name: str, kind: str) -> Path:
        nodes = [
            helper.make_node(kind, ["x"], ["first"], name="first"),
            helper.make_node("Abs", ["first"], ["hidden"], name="hide"),
            helper.make_node("Add", ["hidden", "first"], ["y"], name="join"),
        ]
        axes = ["batch", 4]
        return saved(
            tmp_path, name, graphs.model(nodes, [graphs.value("x", FLOAT, axes)], [graphs.value("y", FLOAT, axes)])
        )

    report = compared(build("a", "Identity"), build("b", "Neg"))
    assert report.first_difference is not None and report.first_difference.node == "first"


def test_a_nan_in_one_only_is_a_difference_and_is_counted(tmp_path: Path) -> None:
    report = compared(
        saved(tmp_path, "a", elementwise(["Abs", "Sqrt"], ["batch", 4])),
        saved(tmp_path, "b", elementwise(["Neg", "Sqrt"], ["batch", 4])),
    )
    assert not report.passed
    assert "NaN" in str(report.differences[0].problem) or "NaN" in str(report.differences[-1].problem)
    assert any(difference.other_not_finite for difference in report.differences)


def test_how_nan_in_the_inputs_spreads_is_told_and_decides_nothing(tmp_path: Path) -> None:
    first = saved(tmp_path, "a", elementwise(["Abs"], ["batch", 4]))
    report = compared(first, first)
    assert report.passed
    assert any("NaN and infinities in the inputs reach the same" in note for note in report.notes)


def test_real_inputs_are_used_as_they_are(tmp_path: Path) -> None:
    first = saved(tmp_path, "a", graphs.tokens_model())
    ids = np.arange(12, dtype=np.int64).reshape(3, 4)
    report = compared(first, first, inputs={"ids": ids})
    assert report.passed and report.inputs == "given"
    assert [run["batch"] for run in report.runs] == [1, 3, 7]
    assert all(run["seq"] == 4 for run in report.runs)


def test_sizes_climb_until_the_source_computes(tmp_path: Path) -> None:
    """A convolution over 3x3 three times needs more than the small sizes; a reshape wants a round one."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["y"], name="fold"),
    ]
    proto = graphs.model(
        nodes,
        [graphs.value("x", FLOAT, ["batch", "width"])],
        [graphs.value("y", FLOAT, ["batch", "rows", 16])],
        {"shape": np.array([0, -1, 16], np.int64)},
    )
    first = saved(tmp_path, "a", proto)
    report = compared(first, first)
    assert report.passed
    assert all(run["width"] % 16 == 0 for run in report.runs)


def test_inputs_that_no_size_suits_ask_for_real_ones(tmp_path: Path) -> None:
    proto = graphs.model(
        [helper.make_node("Add", ["x", "bias"], ["y"], name="add")],
        [graphs.value("x", FLOAT, ["batch", "width"])],
        [graphs.value("y", FLOAT, ["batch", "width"])],
        {"bias": np.ones(37, np.float32)},
    )
    first = saved(tmp_path, "a", proto)
    assert compared(first, first).runs[0]["width"] == 1  # a size of one is spread over the bias
    assert compared(first, first, sizes={"width": 37}).passed
    with pytest.raises(InvalidInputError, match=r"--input FILE.*--size"):
        compared(first, first, sizes={"width": 36})


def test_a_target_with_a_fixed_batch_is_compared_there_and_it_is_told(tmp_path: Path) -> None:
    report = compared(
        saved(tmp_path, "a", elementwise(["Exp"], ["batch", 4])), saved(tmp_path, "b", elementwise(["Exp"], [2, 4]))
    )
    assert report.passed
    assert any("only batch=2" in note for note in report.notes)
    assert all(run["batch"] == 2 for run in report.runs)


def test_names_of_axes_do_not_matter_and_names_of_inputs_do(tmp_path: Path) -> None:
    first = saved(tmp_path, "a", elementwise(["Exp"], ["batch", "width"]))
    assert compared(first, saved(tmp_path, "b", elementwise(["Exp"], ["N", "W"]))).passed
    renamed = elementwise(["Exp"], ["batch", "width"])
    renamed.graph.input[0].name = renamed.graph.node[0].input[0] = "z"
    report = compared(first, saved(tmp_path, "c", renamed))
    assert not report.passed and "the inputs differ" in str(report.problem)


def test_a_target_that_cannot_compute_an_odd_batch_is_different(tmp_path: Path) -> None:
    proto = graphs.model(
        [helper.make_node("Reshape", ["x", "one"], ["y"], name="force")],
        [graphs.value("x", FLOAT, ["batch", 4])],
        [graphs.value("y", FLOAT, ["batch", 4])],
        {"one": np.array([1, 4], np.int64)},
    )
    report = compared(saved(tmp_path, "a", elementwise(["Identity"], ["batch", 4])), saved(tmp_path, "b", proto))
    assert not report.passed and "could not compute a batch of 7" in str(report.problem)


def test_a_stated_tolerance_replaces_that_of_the_dtype(tmp_path: Path) -> None:
    first = saved(tmp_path, "a", graphs.tokens_model())
    second = saved(tmp_path, "b", graphs.tokens_model(shift=0.01))
    assert not compared(first, second).passed
    wide = Tolerance(absolute=0, relative=0, of_largest=0.05, disagreement=0.1, reason="a test")
    assert compared(first, second, allow=lambda _spec: wide).passed


def test_a_torch_program_and_its_onnx_are_bisected_by_the_programs_names(zoo: Any, tmp_path: Path) -> None:
    folder = zoo.copy(zoo.folder("torch", "rows", "onnx"), tmp_path / "edited")
    proto = onnx.load(folder / "model.onnx")
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "out.bias")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
    onnx.save(proto, folder / "model.onnx")
    with open_model(zoo.folder("torch", "rows", "torch")) as source, open_model(folder) as target:
        report = compare_models(source, target, settings=SETTINGS)
        assert compare_models(source, source, settings=SETTINGS).passed
    assert not report.passed and report.first_difference is not None
    assert report.first_difference.kind is None or "linear" in report.first_difference.kind


def test_values_of_a_program_and_its_onnx_that_share_a_name_are_equal(zoo: Any) -> None:
    """Otherwise bisecting by these names would accuse the wrong node."""
    from noa_conversion.bisection.onnx_values import OnnxValues
    from noa_conversion.bisection.search import compare_inside
    from noa_conversion.bisection.torch_values import TorchValues

    for name in ("image", "rows"):
        program, graph = (
            TorchValues(zoo.folder("torch", name, "torch")),
            OnnxValues(zoo.folder("torch", name, "onnx")),
        )
        common = {value.name for value in program.order} & {value.name for value in graph.order}
        assert len(common) >= 5
        inputs = zoo.draw_inputs(zoo.torch_model(name).signature, 3)
        assert compare_inside(program, graph, inputs, settings=SETTINGS, how="") is None


@pytest.mark.parametrize("name", ["nothing.onnx", "nothing"])
def test_what_is_not_there_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such model"), open_model(tmp_path / name):
        pass


def test_a_folder_without_a_format_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InvalidInputError, match=r"holds no format.*model\.onnx.*notes\.txt"), open_model(tmp_path):
        pass
    with pytest.raises(InvalidInputError, match="kind is not known"), open_model(tmp_path / "notes.txt"):
        pass


def test_an_input_is_bound_to_a_constant(tmp_path: Path) -> None:
    proto = graphs.model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], name="fold")],
        [graphs.value("x", FLOAT, ["batch", 6]), graphs.value("shape", INT64, [3])],
        [graphs.value("y", FLOAT, ["batch", 2, 3])],
    )
    path = saved(tmp_path, "a", proto)
    with open_model(path, bind={"shape": np.array([-1, 2, 3])}) as bound:
        report = compare_models(bound, bound, settings=SETTINGS)
        assert report.passed
    for name, array, message in (
        ("shape", np.array([2, 3]), "does not fit"),
        ("shape", np.array([0.5, 2, 3]), "does not fit"),
        ("form", np.array([1]), "no input `form`"),
    ):
        with pytest.raises(InvalidInputError, match=message), open_model(path, bind={name: array}):
            pass


def test_jax_and_onnx_of_one_model_are_compared(zoo: Any) -> None:
    source = ModelFiles(format="jax", folder=zoo.folder("jax", "image", "jax"), label="jax")
    target = ModelFiles(format="onnx", folder=zoo.folder("jax", "image", "onnx"), label="onnx")
    report = compare_models(source, target, settings=SETTINGS)
    assert report.passed, report


@pytest.mark.parametrize(
    ("x", "what"),
    [
        (np.zeros((0, 4), np.float32), r"input `x` is empty: (0, 4)"),
        (np.full((3, 4), np.nan, np.float32), "output `y`"),
    ],
)
def test_where_no_number_was_compared_nothing_is_equal(x: np.ndarray, what: str, tmp_path: Path) -> None:
    first = saved(tmp_path, "a", elementwise(["Neg"], ["batch", 4]))
    report = compared(first, saved(tmp_path, "b", elementwise(["Abs"], ["batch", 4])), inputs={"x": x})
    assert not report.passed and report.is_vacuous
    assert report.problem is not None and report.problem.startswith(f"nothing was compared: {what}")


def test_one_number_among_others_is_compared(tmp_path: Path) -> None:
    x = np.full((1, 4), np.nan, np.float32)
    x[0, 2] = 1
    first = saved(tmp_path, "a", elementwise(["Neg"], ["batch", 4]))
    report = compared(first, first, inputs={"x": x})
    assert report.passed and {difference.compared for difference in report.differences} == {1, 7}


def test_inputs_without_a_row_are_not_run(tmp_path: Path) -> None:
    """JAX computes no batch of 0, and that is no difference."""
    path = saved(tmp_path, "model", graphs.tokens_model())
    report = compared(path, path, inputs={"ids": np.zeros((0, 4), np.int64)})
    assert report.is_vacuous and not report.runs
    assert report.problem == "nothing was compared: input `ids` is empty: (0, 4)"


@pytest.mark.parametrize("rows", ["batch", 3])
def test_a_difference_beyond_a_bound_of_the_graph_is_found(tmp_path: Path, rows: int | str) -> None:
    def clipped(name: str, high: float) -> Path:
        x, y = (graphs.value(label, FLOAT, [rows, 5]) for label in "xy")
        weights = {"low": np.asarray(-9, np.float32), "high": np.asarray(high, np.float32)}
        node = helper.make_node("Clip", ["x", "low", "high"], ["y"])
        return saved(tmp_path, name, graphs.model([node], [x], [y], weights))

    report = compared(clipped("a", 9.0), clipped("b", 30.0))
    assert not report.passed
    assert "beyond 9" in report.inputs
    assert compared(clipped("a", 9.0), clipped("c", 9.0)).passed


def renamed(proto: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    """The same graph under other names; what had one of the new names gets another."""
    names = {**{new: f"{new}_inner" for new in names.values()}, **names}
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = names.get(value.name, value.name)
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    return proto


def two_steps(*, slope: float = 2.0) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Mul", ["x", "k"], ["m"], name="scale"),
        helper.make_node("Sub", ["m", "z"], ["y"], name="less"),
    ]
    inputs = [graphs.value(name, FLOAT, ["n", 3]) for name in "xz"]
    weights = {"k": np.array(slope, np.float32)}
    return graphs.model(nodes, inputs, [graphs.value("y", FLOAT, ["n", 3])], weights)


def test_models_that_differ_in_names_only_are_compared_once_it_is_said_which_is_which(tmp_path: Path) -> None:
    first = saved(tmp_path, "a", two_steps())
    second = saved(tmp_path, "b", renamed(two_steps(), {"x": "args_0", "y": "sub_7", "m": "y"}))
    report = compared(first, second)
    assert not report.passed and not report.runs
    assert report.problem is not None and "--rename args_0=x --rename sub_7=y" in report.problem
    report = compared(first, second, rename={"args_0": "x", "sub_7": "y"})
    assert report.passed and len(report.runs) == 2


def test_inputs_that_change_places_are_told_apart_by_name(tmp_path: Path) -> None:
    """`x` and `z` have one shape: by position they would be swapped without a word."""
    first = saved(tmp_path, "a", two_steps())
    second = saved(tmp_path, "b", renamed(two_steps(), {"x": "p", "z": "q"}))
    assert compared(first, second, rename={"p": "x", "q": "z"}).passed
    report = compared(first, second, rename={"p": "z", "q": "x"})
    assert not report.passed and report.runs


def test_the_first_node_that_differs_is_found_under_other_names(tmp_path: Path) -> None:
    """An inner value of the target that has the name of the source's output is not taken for it."""
    first = saved(tmp_path, "a", two_steps())
    second = saved(tmp_path, "b", renamed(two_steps(slope=2.5), {"x": "args_0", "y": "out", "m": "y"}))
    report = compared(first, second, rename={"args_0": "x", "out": "y"})
    assert report.first_difference is not None and report.first_difference.node == "less"
    second = saved(tmp_path, "c", renamed(two_steps(slope=2.5), {"x": "args_0", "y": "out"}))
    report = compared(first, second, rename={"args_0": "x", "out": "y"})
    assert report.first_difference is not None and report.first_difference.node == "scale"


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_program_under_other_names_is_compared_with_its_graph_both_ways(tmp_path: Path, framework: str) -> None:
    first = saved(tmp_path, "a", two_steps())
    second = saved(tmp_path, "b", renamed(two_steps(), {"x": "args_0", "y": "out"}))
    third = saved(tmp_path, "c", renamed(two_steps(slope=2.5), {"x": "args_0", "y": "out"}))
    with open_model(second) as source:
        convert_folder("onnx", source.folder, framework, tmp_path / framework, settings=SETTINGS)
    program = tmp_path / framework
    assert compared(first, program, rename={"args_0": "x", "out": "y"}).passed
    assert compared(program, first, rename={"x": "args_0", "y": "out"}).passed
    report = compared(program, saved(tmp_path, "d", two_steps(slope=2.5)), rename={"x": "args_0", "y": "out"})
    assert not report.passed and report.first_difference is not None
    assert compared(third, program).first_difference is not None


@pytest.mark.parametrize(
    ("rename", "said"),
    [({"nothing": "y"}, "no input or output of that name"), ({"x": "z"}, "two tensors of the target")],
)
def test_a_rename_that_fits_nothing_is_refused(tmp_path: Path, rename: dict[str, str], said: str) -> None:
    first = saved(tmp_path, "a", two_steps())
    with pytest.raises(InvalidInputError, match=said):
        compared(first, first, rename=rename)


def scaled(factor: float) -> onnx.ModelProto:
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"], name="scale")]
    sides = [graphs.value("x", FLOAT, ["batch", 3])], [graphs.value("y", FLOAT, ["batch", 3])]
    return graphs.model(nodes, *sides, {"factor": np.array(factor, np.float32)})


def test_small_outputs_of_opposite_signs_are_different_and_the_node_is_found(tmp_path: Path) -> None:
    report = compared(saved(tmp_path, "a", scaled(1e-7)), saved(tmp_path, "b", scaled(-1e-7)))
    assert not report.passed
    assert report.first_difference is not None and report.first_difference.node == "scale"


def test_unrelated_probabilities_of_many_classes_are_different(tmp_path: Path) -> None:
    def classes(seed: int) -> onnx.ModelProto:
        weights = {"w": np.random.default_rng(seed).normal(size=(8, 50_000)).astype(np.float32)}
        nodes = [helper.make_node("MatMul", ["x", "w"], ["s"]), helper.make_node("Softmax", ["s"], ["y"])]
        sides = [graphs.value("x", FLOAT, ["batch", 8])], [graphs.value("y", FLOAT, ["batch", 50_000])]
        return graphs.model(nodes, *sides, weights)

    first = saved(tmp_path, "a", classes(1))
    assert not compared(first, saved(tmp_path, "b", classes(2))).passed
    assert compared(first, first).passed


def test_outputs_that_are_always_empty_prove_nothing(tmp_path: Path) -> None:
    def sliced(kind: str, *, keeps_whole: bool = False) -> onnx.ModelProto:
        nodes = [helper.make_node(kind, ["x"], ["t"]), helper.make_node("Slice", ["t", "zero", "zero"], ["y"])]
        outputs = [graphs.value("y", FLOAT, [0, 3])] + ([graphs.value("t", FLOAT, [2, 3])] if keeps_whole else [])
        return graphs.model(nodes, [graphs.value("x", FLOAT, [2, 3])], outputs, {"zero": np.zeros(1, np.int64)})

    report = compared(saved(tmp_path, "a", sliced("Neg")), saved(tmp_path, "b", sliced("Abs")))
    assert not report.passed and report.is_vacuous
    assert report.problem == "nothing was compared: output `y` is empty in every run"
    both = saved(tmp_path, "c", sliced("Neg", keeps_whole=True))
    report = compared(both, both)
    assert report.passed and any("`y` is empty by its signature" in note for note in report.notes)


def test_an_output_that_never_changes_is_told(tmp_path: Path) -> None:
    report = compared(saved(tmp_path, "a", scaled(0.0)), saved(tmp_path, "b", scaled(0.0)))
    assert report.passed and report.constant_outputs == ("y",)
    assert any("`y` was the same for all inputs" in note for note in report.notes)
    report = compared(tmp_path / "a.onnx", tmp_path / "b.onnx", inputs={"x": np.ones((3, 3), np.float32)})
    assert report.constant_outputs == ()  # the inputs were the same too
    assert compared(saved(tmp_path, "c", scaled(2.0)), tmp_path / "c.onnx").constant_outputs == ()


def test_what_was_tried_is_told(tmp_path: Path) -> None:
    first = saved(tmp_path, "a", scaled(2.0))
    tried = compared(first, first).tried
    low, high = tried.ranges["x"]
    assert tried.is_made_up and tried.batches == (1, 7) and -5 < low < 0 < high < 5
    assert str(tried).startswith("made-up inputs, batches: 1, 7; `x` -")
    given = compared(first, first, inputs={"x": np.arange(6, dtype=np.float32).reshape(2, 3)})
    assert given.to_dict()["tried"] == {"made_up": False, "batches": [1, 2, 7], "ranges": {"x": [0.0, 5.0]}}


def test_data_under_a_second_name_are_refused_as_a_link_is(tmp_path: Path) -> None:
    proto = scaled(2.0)
    path = tmp_path / "linked.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="data.bin", size_threshold=0)
    (tmp_path / "other.bin").hardlink_to(tmp_path / "data.bin")
    with pytest.raises(InvalidInputError, match=r"`factor` keeps its data in `data.bin`, a hard link: it has 2 names"):
        compared(path, path)
    (tmp_path / "other.bin").unlink()
    assert compared(path, path).passed
