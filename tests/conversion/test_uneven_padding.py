"""`auto_pad` with holes in the window: padding as the ONNX standard writes it, which the runtimes do not all follow."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from graph_kit import FLOAT, model, value
from onnx import helper

from noa_conversion import import_onnx_to_torch
from noa_conversion.importers.jax import import_onnx_to_jax


def pool(kind: str, size: int, **attributes: Any) -> bytes:
    node = helper.make_node(kind, ["x"], ["y"], **attributes)
    proto = model([node], [value("x", FLOAT, [1, 1, size])], [value("y", FLOAT, ["n", "c", "w"])])
    return proto.SerializeToString()


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool", "LpPool"])
def test_a_pooling_with_holes_is_padded_as_the_standard_says(kind: str, auto_pad: str) -> None:
    """`(output - 1) * stride + (kernel - 1) * dilation + 1 - input`, the odd one after (UPPER) or before (LOWER).

    onnxruntime forgets the dilation here; with the same padding written out it agrees. `onnx.reference` contradicts
    itself between the three operators.
    """
    for size, stride, kernel, dilation in ((7, 1, 3, 2), (8, 2, 3, 2), (7, 3, 3, 3), (8, 1, 2, 2), (7, 2, 3, 1)):
        count = -(-size // stride)
        total = max((count - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        less, more = total // 2, total - total // 2
        pads = [less, more] if auto_pad == "SAME_UPPER" else [more, less]
        shared = {"kernel_shape": [kernel], "strides": [stride], "dilations": [dilation]}
        if max(pads) >= kernel:
            continue  # onnxruntime takes no such padding, so it has nothing to compare with
        x = np.random.default_rng(size).standard_normal((1, 1, size)).astype(np.float32)
        (expected,) = onnxruntime.InferenceSession(pool(kind, size, pads=pads, **shared)).run(None, {"x": x})
        data = pool(kind, size, auto_pad=auto_pad, **shared)
        in_torch = import_onnx_to_torch(data).module(torch.from_numpy(x)).numpy()
        for given in (in_torch, import_onnx_to_jax(data).run({"x": x})["y"]):
            np.testing.assert_allclose(given, np.asarray(expected), rtol=1e-5, atol=1e-6)
