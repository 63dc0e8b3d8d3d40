"""What a graph takes and gives is known without its weights."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from noa.errors import InvalidInputError
from noa_conversion.onnx_graph.interface import read_interface


def test_the_interface_of_a_graph_is_read_past_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    weights = numpy_helper.from_array(np.zeros((4, 1 << 22), np.float32), "weights")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "weights"], ["y"])],
        "large",
        [
            onnx.helper.make_tensor_value_info("x", 1, ["batch", 4]),
            onnx.helper.make_tensor_value_info("weights", 1, [4, 1 << 22]),
        ],
        [onnx.helper.make_tensor_value_info("y", 1, ["batch", 1 << 22])],
        [weights],
    )
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())

    tracemalloc.start()
    found = read_interface(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert [value.name for value in (*found.inputs, *found.outputs)] == ["x", "y"]
    assert peak < 8 << 20 < path.stat().st_size


@pytest.mark.parametrize("data", [b"", b"no graph at all", b"\x3a\x7f", b"\x08\x0a", b"\x3a\x00\x3a\x00"])
def test_what_is_no_graph_is_said_so(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match=r"`model\.onnx` is no ONNX file"):
        read_interface(path)
