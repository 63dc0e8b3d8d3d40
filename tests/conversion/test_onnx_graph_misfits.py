"""Which nodes no runtime computes, by the shapes of their inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from noa_conversion.onnx_graph.functions import InputType
from noa_conversion.onnx_graph.misfits import is_misfit
from noa_conversion.onnx_graph.model import OnnxNode

FLOAT = np.dtype(np.float32)


def is_wrong(kind: str, *inputs: tuple[int | None, ...] | list[int], **attributes: Any) -> bool:
    """Judge an operator: a tuple is the shape of an input, a list its whole numbers."""
    entries = [
        InputType(dtype=np.dtype(np.int64), shape=(len(given),), array=np.asarray(given, np.int64))
        if isinstance(given, list)
        else InputType(dtype=FLOAT, shape=given)
        for given in inputs
    ]
    names = tuple(f"in{index}" for index in range(len(inputs)))
    node = OnnxNode(kind=kind, version=20, name="node", inputs=names, outputs=("out",), attributes=attributes)
    return is_misfit(node, entries)


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes"),
    [
        ("Squeeze", ((2, 3), [1]), {}),
        ("Reshape", ((2, 3), [4]), {}),
        ("Reshape", ((2, 3), [4, -1]), {}),
        ("MatMul", ((2, 3), (4, 2)), {}),
        ("Add", ((2, 3), (4,)), {}),
        ("Concat", ((2, 3), (4, 2)), {"axis": 1}),
        ("Conv", ((2, 1, 3), (1, 1, 5)), {}),
        ("LSTM", ((1, 1, 2, 3), (1, 8, 3), (1, 8, 2)), {"hidden_size": 2}),
    ],
)
def test_shapes_that_no_runtime_computes_are_found(kind: str, inputs: Any, attributes: dict[str, Any]) -> None:
    assert is_wrong(kind, *inputs, **attributes)


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes"),
    [
        ("Squeeze", ((2, 1), [1]), {}),
        ("Squeeze", ((2, None), [1]), {}),
        ("Reshape", ((2, 3), [3, 2]), {}),
        ("Reshape", ((None, 3), [4]), {}),
        ("Reshape", ((2, 3), (1,)), {}),
        ("Add", ((2, 3), (1,)), {}),
        ("Transpose", ((2, 3),), {"perm": "no list"}),
        ("Add", ((2, 3),), {}),
        ("NoSuchOperator", ((2, 3),), {}),
    ],
)
def test_what_may_fit_or_is_wrong_for_another_reason_is_no_misfit(
    kind: str, inputs: Any, attributes: dict[str, Any]
) -> None:
    assert not is_wrong(kind, *inputs, **attributes)
