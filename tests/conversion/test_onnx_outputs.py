"""Outputs whose type or rank a file does not say: inferred, or seen in a run, or refused with the way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_kit import FLOAT, INT64, model, value
from onnx import helper

from noa.errors import InvalidInputError
from noa.signatures import Signature
from noa_conversion.model_files import open_model


def signature_of(proto: onnx.ModelProto, path: Path) -> Signature:
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].ClearField("type")
    onnx.save(proto, path)
    with open_model(path) as files:
        return Signature.load(files.folder)


def test_what_can_be_inferred_is(tmp_path: Path) -> None:
    nodes = [helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0])]
    proto = model(nodes, [value("x", FLOAT, ["n", 3])], [value("y", FLOAT, [3, "n"])])
    assert signature_of(proto, tmp_path / "a.onnx").outputs[0].describe() == "float32(3, n)"


def test_what_cannot_be_inferred_is_seen_in_a_run(tmp_path: Path) -> None:
    """The rank hangs on numbers that are computed from a shape, two steps further than the inference follows."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Cast", ["s"], ["f"], to=FLOAT),
        helper.make_node("Sqrt", ["f"], ["q"]),
        helper.make_node("Mul", ["q", "q"], ["p"]),
        helper.make_node("Round", ["p"], ["r"]),
        helper.make_node("Cast", ["r"], ["sizes"], to=INT64),
        helper.make_node("NonZero", ["sizes"], ["places"]),
        helper.make_node("Squeeze", ["places"], ["kept"]),
        helper.make_node("Gather", ["sizes", "kept"], ["again"]),
        helper.make_node("Reshape", ["x", "again"], ["y"]),
    ]
    proto = model(nodes, [value("x", FLOAT, ["n", 3])], [value("y", FLOAT, ["n", 3])])
    assert signature_of(proto, tmp_path / "a.onnx").outputs[0].describe() == "float32(n, 3)"


def test_what_cannot_be_told_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """A shape that is an input of its own: made-up sizes do not fit the data."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    inputs = [value("x", FLOAT, [7]), value("shape", INT64, ["rank"])]
    proto = model(nodes, inputs, [value("y", FLOAT, [7])])
    with pytest.raises(InvalidInputError, match=r"`y`.*how many axes.*--bind") as caught:
        signature_of(proto, tmp_path / "a.onnx")
    assert caught.value.facts["field"] == "y"
    with open_model(tmp_path / "a.onnx", bind={"shape": np.asarray([7, 1])}) as files:
        assert Signature.load(files.folder).outputs[0].describe() == "float32(7, 1)"
