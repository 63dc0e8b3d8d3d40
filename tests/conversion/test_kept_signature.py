"""What an imported model computes is compared with the signature that is sealed with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from noa.errors import ConversionError, InvalidInputError
from noa.settings import ConversionSettings
from noa.signatures import Signature, TensorSpec
from noa_conversion import measure_equivalence
from noa_conversion.batches import sizes_of
from noa_conversion.formats.mlflow_format import MlflowRunnable
from noa_conversion.formats.onnx_format import ADAPTER
from noa_conversion.imports.child import prepare
from noa_conversion.imports.kept_signature import Prepared, kept_signature

EXAMPLE = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}


def write(
    path: Path, nodes: list[onnx.NodeProto], shape: list[str | int | None], weights: tuple[onnx.TensorProto, ...] = ()
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def take(source: Path) -> Signature:
    folder = source.with_suffix("")
    folder.mkdir()
    target = folder.with_suffix(".safetensors")
    request = {"kind": "onnx", "source": str(source), "folder": str(folder), "example_target": str(target)}
    signature = prepare(request)
    assert signature == Signature.load(folder)
    return signature


@pytest.mark.parametrize(
    ("shape", "declared"),
    [(["b", 7], "b, 7"), ([2, 4], "2, 4"), (["b", "b"], "b, b"), ([4, "b"], "4, b"), (["b", 4, 1], "b, 4, 1")],
)
def test_an_output_that_is_not_what_the_file_says_is_refused_by_name(
    tmp_path: Path, shape: list[str | int | None], declared: str
) -> None:
    source = write(tmp_path / "lie.onnx", [helper.make_node("Relu", ["x"], ["y"])], shape)

    with pytest.raises(ConversionError, match=r"`y` is not what the model says") as refused:
        take(source)
    assert refused.value.expected == f"float32({declared}), as the file declares it"
    assert str(refused.value.received).startswith("float32(")


def test_a_batch_that_is_not_free_is_refused_by_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    shape = numpy_helper.from_array(np.array([2, 4], np.int64), "shape")
    source = write(tmp_path / "fixed.onnx", nodes, ["b", 4], (shape,))

    with pytest.raises(ConversionError, match=r"axis `b` is not free.*with b=2 only"):
        take(source)


def test_what_was_only_guessed_of_an_output_gives_way_to_what_was_computed(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.onnx", [helper.make_node("Relu", ["x"], ["y"])], [None, 4])
    model = onnx.load(rows)
    model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    onnx.save(model, rows)
    columns = write(tmp_path / "columns.onnx", [helper.make_node("Transpose", ["x"], ["y"])], [None, "batch"])
    model = onnx.load(columns)
    model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    onnx.save(model, columns)

    assert take(rows).outputs[0].shape == ("batch", 4)
    assert take(columns).outputs[0].shape == ("y_0", "batch")


def test_a_real_example_of_any_size_is_tried_with_another_one(tmp_path: Path) -> None:
    source = write(tmp_path / "linear.onnx", [helper.make_node("Relu", ["x"], ["y"])], ["b", 4])
    signature = take(source)
    model = ADAPTER.load(source.with_suffix(""))

    for rows in (1, 2, 5):
        inputs = {"x": np.ones((rows, 4), np.float32)}
        assert kept_signature(model, Prepared(signature=signature), inputs, model.run(inputs)) == signature


class Halves:
    """Takes even sizes of both axes only, which are the same."""

    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("a", "b")),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("a", "b")),),
    )

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        first, second = inputs["x"].shape
        if first != second or first % 2:
            raise InvalidInputError("only even squares")
        return {"y": inputs["x"]}


def test_axes_that_go_together_are_changed_together() -> None:
    model, inputs = Halves(), {"x": np.ones((2, 2), np.float32)}

    assert kept_signature(model, Prepared(signature=model.signature), inputs, inputs | {"y": inputs["x"]})


def test_formats_that_agree_and_do_not_keep_their_signature_are_not_equivalent(tmp_path: Path) -> None:
    lie = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("b", 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("b", 7)),),
    )
    folders: list[Path] = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        write(folder / "model.onnx", [helper.make_node("Relu", ["x"], ["y"])], ["b", 7])
        lie.save(folder)
        folders.append(folder)

    evidence = measure_equivalence(
        source="onnx",
        source_folder=folders[0],
        target="onnx",
        target_folder=folders[1],
        samples=EXAMPLE,
        settings=ConversionSettings(),
    )

    assert not evidence.passed
    assert "both computed (1, 4), and the signature says float32(b, 7)" in str(evidence.values["problem"])


def test_outputs_are_checked_with_the_sizes_of_the_inputs() -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("b", 4)),),
        outputs=(
            TensorSpec(name="y", dtype="float32", shape=("b", "n")),
            TensorSpec(name="z", dtype="float32", shape=("n",)),
        ),
    )
    sizes = sizes_of(signature, EXAMPLE)
    good = {"y": np.ones((2, 3), np.float32), "z": np.ones(3, np.float32)}

    signature.validate_outputs(good, sizes=sizes)
    for bad in (
        {"y": good["y"]},
        good | {"z": np.ones(4, np.float32)},
        good | {"y": np.ones((3, 3), np.float32)},
        good | {"z": np.ones(3, np.float64)},
    ):
        with pytest.raises(InvalidInputError, match=r"output `[yz]` is not what the signature says"):
            signature.validate_outputs(bad, sizes=sizes)
    assert replace(signature, outputs=signature.outputs[:1]).validate_outputs(good, sizes=sizes) is None


class Gives:
    """A model of MLflow's that gives what it was made with."""

    def __init__(self, value: np.ndarray) -> None:
        self._value = value

    def predict(self, given: object) -> np.ndarray:
        return self._value


def test_an_mlflow_model_that_computes_another_shape_than_it_says_is_an_error(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("b", 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("b", 7)),),
    )

    right = MlflowRunnable(Gives(np.ones((2, 7), np.float32)), signature, "array", tmp_path)
    assert right.run(EXAMPLE)["y"].shape == (2, 7)
    wrong = MlflowRunnable(Gives(np.ones((2, 4), np.float32)), signature, "array", tmp_path)
    with pytest.raises(InvalidInputError, match=r"output `y`.*\(b=2, 7\); received float32\(2, 4\)"):
        wrong.run(EXAMPLE)
