"""A refusal because of a free size says what to fix, in names that `sizes` takes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_kit import FLOAT, model, value
from onnx import helper

from noa.errors import ConversionError, InvalidInputError
from noa.settings import ConversionSettings
from noa.signatures import Signature
from noa_conversion.importers.free_sizes import fixing


@pytest.mark.parametrize(
    ("size", "remedy"),
    [
        ("seq", "Fix it: sizes={'seq': NUMBER}, or `--size seq=NUMBER`"),
        ("2*seq + 1", "Fix what it is computed from: sizes={'seq': NUMBER}, or `--size seq=NUMBER`"),
        (
            "FloorDiv(height, 2)*width",
            (
                "Fix what it is computed from: sizes={'height': NUMBER, 'width': NUMBER}, "
                "or `--size height=NUMBER --size width=NUMBER`"
            ),
        ),
        ("mod(seq, 4)", "Fix what it is computed from: sizes={'seq': NUMBER}, or `--size seq=NUMBER`"),
        (7, "Give the inputs of the file fixed sizes"),
    ],
)
def test_only_axes_are_named(size: str | int, remedy: str) -> None:
    assert fixing(size) == remedy


def doubled(pad: int) -> onnx.ModelProto:
    """Twice the axis `n` and some rows more, added to twelve: right for the size 5 that a batch is traced with."""
    weights = {"w": np.ones((12, 2), np.float32), "row": np.ones((pad, 2), np.float32)}
    nodes = [
        helper.make_node("Concat", ["x", "x", "row"], ["c"], axis=0),
        helper.make_node("Add", ["c", "w"], ["y"]),
    ]
    return model(nodes, [value("x", FLOAT, ["n", 2])], [value("y", FLOAT, [12, 2])], weights)


@pytest.mark.torch
def test_what_the_remedy_says_can_be_done() -> None:
    from noa_conversion.importers.torch import import_onnx_to_torch

    data = doubled(2).SerializeToString()
    with pytest.raises(ConversionError) as caught:
        import_onnx_to_torch(data)
    assert "operator `Add`" in str(caught.value), "what fixes it is named"
    named = re.search(r"sizes=\{'(\w+)': NUMBER\}", str(caught.value))
    assert named is not None and named[1] == "n", str(caught.value)
    assert import_onnx_to_torch(data, sizes={named[1]: 5}).inputs[0].shape == (5, 2)


def two_axes(first: str | None, state: str | None) -> onnx.ModelProto:
    """A `LSTM` whose sequences and states have a batch each, and an output of which the file names no axis."""
    weights = {"w": np.ones((1, 16, 3), np.float32), "r": np.ones((1, 16, 4), np.float32)}
    nodes = [helper.make_node("LSTM", ["x", "w", "r", "", "", "h", "h"], ["y", "h_n"], "cell", hidden_size=4)]
    inputs = [value("x", FLOAT, [first, 1, 3]), value("h", FLOAT, [1, state, 4])]
    return model(nodes, inputs, [value("h_n", FLOAT, [None, None, None])], weights)


@pytest.mark.torch
@pytest.mark.jax
def test_both_importers_take_the_names_that_they_print_and_refuse_others_alike() -> None:
    from noa_conversion import import_onnx_to_jax, import_onnx_to_torch

    data = two_axes(None, None).SerializeToString()
    told: list[str] = []
    for import_model in (import_onnx_to_torch, import_onnx_to_jax):
        shapes = [each.shape for each in import_model(data, sizes={"batch": 5, "h_1": 1}).inputs]
        assert shapes == [(5, 1, 3), (1, 1, 4)]
        with pytest.raises(InvalidInputError) as caught:
            import_model(data, sizes={"nope": 1})
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert "`sizes` names `nope`" in told[0] and "`batch`, `h_1`" in told[0]


@pytest.mark.torch
def test_a_fixed_batch_does_not_fix_an_axis_of_an_output_that_has_no_name(tmp_path: Path) -> None:
    from noa_conversion import convert_folder, open_model

    path, folder = tmp_path / "model.onnx", tmp_path / "torch"
    path.write_bytes(two_axes(None, None).SerializeToString())
    with open_model(path, sizes={"batch": 5, "h_1": 1}) as source:
        convert_folder("onnx", source.folder, "torch", folder, settings=ConversionSettings())
    assert Signature.load(folder).outputs[0].describe() == "float32(1, 1, 4)"


@pytest.mark.jax
def test_a_layer_of_two_free_batches_is_refused_by_its_node_and_both_axes_in_jax() -> None:
    from noa_conversion import import_onnx_to_jax

    proto = two_axes("steps", "others")
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "sequences"
    with pytest.raises(ConversionError, match=r"size `sequences`, of `initial_h` `others`.*`cell`.*--size others="):
        _ = import_onnx_to_jax(proto.SerializeToString()).signature
