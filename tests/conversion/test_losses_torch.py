"""Losses of classifiers in PyTorch: with weights of classes in the file, exported again, and with ignored labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from graph_kit import FLOAT, INT64, model, value
from onnx import helper

from noa_conversion import import_onnx_to_torch, load_format, save_native

WEIGHTS = np.asarray([0.5, 1.0, 2.0, 4.0], np.float32)


@pytest.mark.torch
@pytest.mark.parametrize("is_parameter", [True, False])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("kind", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_a_weighted_loss_is_imported_and_exported_again(
    kind: str, reduction: str, is_parameter: bool, tmp_path: Path
) -> None:
    node = helper.make_node(kind, ["x", "t", "w"], ["y"], reduction=reduction, ignore_index=2)
    inputs = [value("x", FLOAT, ["batch", 4]), value("t", INT64, ["batch"])]
    inputs += [] if is_parameter else [value("w", FLOAT, [4])]
    output = value("y", FLOAT, ["batch"] if reduction == "none" else [])
    data = model([node], inputs, [output], {"w": WEIGHTS} if is_parameter else {}).SerializeToString()
    feed = {"x": np.log([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.25] * 4]).astype(np.float32)}
    feed |= {"t": np.asarray([0, 2, 3])} | ({} if is_parameter else {"w": WEIGHTS})
    (expected,) = onnxruntime.InferenceSession(data).run(None, feed)
    imported = import_onnx_to_torch(data)
    np.testing.assert_allclose(imported.run(feed)["y"], np.asarray(expected), rtol=1e-5)
    save_native(imported.to_model(), tmp_path / "torch")
    np.testing.assert_allclose(load_format("torch", tmp_path / "torch").run(feed)["y"], np.asarray(expected), rtol=1e-5)


@pytest.mark.torch
def test_a_batch_without_rows_is_computed() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    data = model([node], [value("x", FLOAT, ["batch", 4])], [value("y", FLOAT, ["batch", 1])], {"w": WEIGHTS[:, None]})
    assert import_onnx_to_torch(data.SerializeToString()).module(torch.zeros(0, 4)).shape == (0, 1)
