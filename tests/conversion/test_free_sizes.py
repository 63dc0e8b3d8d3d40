"""A refusal because of a free size says what to fix, in names that `sizes` takes."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from graph_kit import FLOAT, model, value
from onnx import helper

from noa.errors import ConversionError
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
