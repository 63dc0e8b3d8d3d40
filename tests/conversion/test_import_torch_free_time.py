"""Recurrent layers in PyTorch whose number of steps is a free axis: any number, trained and exported again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from graph_kit import FLOAT, value
from onnx import helper, numpy_helper

from noa.errors import ConversionError
from noa.settings import ConversionSettings
from noa_conversion import import_onnx_to_torch
from noa_conversion.importers.torch.importer import convert_onnx_to_torch

HIDDEN = 4


def stacked(kind: str, layers: int, **attributes: Any) -> bytes:
    """Layers on top of each other, as exporters write them: the second one's input depends on weights."""
    rng = np.random.default_rng(layers)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * HIDDEN
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    weights: dict[str, np.ndarray] = {"joined": np.asarray([0, 0, -1], np.int64)}
    nodes: list[Any] = []
    last, width = "x", 3
    for layer in range(layers):
        for name, shape in (("w", (gates, width)), ("r", (gates, HIDDEN)), ("b", (2 * gates,))):
            weights[f"{name}{layer}"] = rng.standard_normal((directions, *shape)).astype(np.float32) * 0.5
        names = [last, *(f"{name}{layer}" for name in "wrb")]
        nodes += [
            helper.make_node(
                kind, names, [f"y{layer}", f"h{layer}"], f"layer{layer}", hidden_size=HIDDEN, **attributes
            ),
            helper.make_node("Transpose", [f"y{layer}"], [f"t{layer}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"t{layer}", "joined"], [f"z{layer}"]),
        ]
        last, width = f"z{layer}", HIDDEN * directions
    outputs = [value(last, FLOAT, ["time", "batch", width]), value(f"h{layers - 1}", FLOAT, [directions, "batch", 4])]
    initialisers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "test", [value("x", FLOAT, ["time", "batch", 3])], outputs, initialisers)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def draw(time: int, batch: int) -> np.ndarray:
    return np.random.default_rng(time).standard_normal((time, batch, 3)).astype(np.float32)


CASES = [
    ("LSTM", 2, {}),
    ("LSTM", 2, {"direction": "bidirectional"}),
    ("LSTM", 1, {"clip": 0.5}),
    ("GRU", 2, {"linear_before_reset": 1}),
    ("GRU", 1, {"direction": "bidirectional"}),
    ("RNN", 1, {"direction": "reverse"}),
]


@pytest.mark.parametrize(("kind", "layers", "attributes"), CASES)
def test_layers_take_any_number_of_steps(kind: str, layers: int, attributes: dict[str, Any]) -> None:
    data = stacked(kind, layers, **attributes)
    session, imported = onnxruntime.InferenceSession(data), import_onnx_to_torch(data)
    assert imported.signature.outputs[0].shape[:2] == ("time", "batch")
    for time, batch in ((1, 1), (7, 3)):
        given = {"x": draw(time, batch)}
        expected: Any = session.run(None, given)
        for wish, gift in zip(expected, imported.run(given).values(), strict=True):
            np.testing.assert_allclose(gift, wish, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # of PyTorch's own
@pytest.mark.parametrize(("kind", "layers"), [("LSTM", 2), ("GRU", 1)])
def test_layers_are_trained_for_any_number_of_steps(kind: str, layers: int) -> None:
    data = stacked(kind, layers)
    module = import_onnx_to_torch(data).module
    short = import_onnx_to_torch(data, sizes={"time": 3}).module
    for each in (module, short):
        each(torch.from_numpy(draw(3, 2)))[0].sum().backward()
    for (name, mine), (_, other) in zip(module.named_parameters(), short.named_parameters(), strict=True):
        assert mine.grad is not None and other.grad is not None, name
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # of PyTorch's own
def test_a_layer_that_is_scanned_is_exported_again_for_any_number_of_steps() -> None:
    module = import_onnx_to_torch(stacked("GRU", 1)).module
    sizes = {0: torch.export.Dim("time"), 1: torch.export.Dim("batch")}
    program = torch.export.export(module, (torch.from_numpy(draw(3, 2)),), dynamic_shapes=(sizes,))
    other = torch.from_numpy(draw(6, 3))
    with torch.no_grad():
        for wish, gift in zip(module(other), program.module()(other), strict=True):
            torch.testing.assert_close(gift, wish, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("GRU", r"`scan`.*fix the number of steps of its `GRU` or `RNN`"),
        ("LSTM", r"unrolls `LSTM`.*compiled in.*--size time=NUMBER"),
    ],
)
def test_a_free_number_of_steps_is_not_stored_and_the_error_says_what_to_fix(
    kind: str, message: str, tmp_path: Path
) -> None:
    source, folder = tmp_path / "onnx", tmp_path / "torch"
    source.mkdir()
    folder.mkdir()
    (source / "model.onnx").write_bytes(stacked(kind, 1))
    with pytest.raises(ConversionError, match=message):
        convert_onnx_to_torch(source, folder, ConversionSettings())
