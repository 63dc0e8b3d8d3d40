"""float64 from less precise weights is compared as float32, never more loosely; a failure is told in one line."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from noa.settings import ConversionSettings
from noa.signatures import Signature, TensorSpec
from noa_conversion import TorchModel, convert_folder, describe_failure, measure_equivalence, save_native
from noa_conversion.comparison import tolerance_for
from noa_conversion.stored_precision import least_precise
from noa_registry import Evidence

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 64)),),
    outputs=(TensorSpec(name="logits", dtype="float64", shape=("batch", 10)),),
)
SAMPLES = {"x": np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)}
SETTINGS = ConversionSettings()


class Doubled(torch.nn.Module):
    """Computes in `dtype` and brings the result to float64."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dtype = dtype
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Tanh(), torch.nn.Linear(256, 10)).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x.to(self.dtype)).double()


def _formats(folder: Path, dtype: torch.dtype, signature: Signature = SIGNATURE) -> tuple[Path, Path]:
    native, other = folder / "torch", folder / "onnx"
    save_native(TorchModel(module=Doubled(dtype).eval(), signature=signature), native)
    convert_folder("torch", native, "onnx", other, settings=SETTINGS, samples=None)
    return native, other


def _measure(native: Path, other: Path, samples: dict[str, np.ndarray] = SAMPLES) -> Evidence:
    return measure_equivalence(
        source="torch", source_folder=native, target="onnx", target_folder=other, samples=samples, settings=SETTINGS
    )


def test_float64_that_was_computed_in_float32_is_compared_as_float32(tmp_path: Path) -> None:
    native, other = _formats(tmp_path, torch.float32)
    evidence = _measure(native, other)
    assert evidence.passed is True
    error = float(str(evidence.values["max_abs_error"]))
    assert 1e-8 < error < 1e-5, "it is no more exact than its weights"
    outputs: Any = evidence.values["outputs"]
    assert outputs[0]["tolerance_reason"].startswith("float64 computed from float32")


def test_float64_that_was_computed_in_float64_is_compared_as_float64(tmp_path: Path) -> None:
    signature = replace(SIGNATURE, inputs=(replace(SIGNATURE.inputs[0], dtype="float64"),))
    native, other = _formats(tmp_path, torch.float64, signature)
    samples = {"x": SAMPLES["x"].astype(np.float64)}
    assert _measure(native, other, samples).passed is True
    model = onnx.load(other / "model.onnx")
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float64:
            tensor.CopyFrom(numpy_helper.from_array(array + 1e-7, tensor.name))
    onnx.save(model, other / "model.onnx")
    assert _measure(native, other, samples).passed is False


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float32, "float32"), (torch.float16, "float16"), (torch.bfloat16, "bfloat16")]
)
def test_the_least_precise_floats_are_found_in_every_format(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    native = tmp_path / "torch"
    save_native(TorchModel(module=Doubled(dtype).eval(), signature=SIGNATURE), native)
    assert least_precise(native, SIGNATURE) == name
    kind = getattr(onnx.TensorProto, name.upper().replace("FLOAT32", "FLOAT"))
    weight = onnx.helper.make_tensor("w", kind, [2], [1.0, 2.0])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, [2])
    cast = onnx.helper.make_node("Cast", ["w"], ["y"], to=onnx.TensorProto.DOUBLE)
    (tmp_path / "onnx").mkdir()
    graph = onnx.helper.make_graph([cast], "g", [], [output], [weight])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "onnx" / "model.onnx")
    assert least_precise(tmp_path / "onnx", SIGNATURE) == name


@pytest.mark.parametrize("kept", ["float32", "float16", "bfloat16"])
def test_weights_widen_what_float64_may_differ_by_to_that_of_float32_and_nothing_else(kept: str) -> None:
    float32 = tolerance_for("float32", SETTINGS)
    for dtype in ("float32", "float16", "int64"):
        assert tolerance_for(dtype, SETTINGS, computed_from=kept) == tolerance_for(dtype, SETTINGS)
    widened = tolerance_for("float64", SETTINGS, computed_from=kept)
    assert (widened.absolute, widened.relative) == (float32.absolute, float32.relative)
    assert tolerance_for("float64", SETTINGS, computed_from="float64") == tolerance_for("float64", SETTINGS)


def test_a_failure_is_one_short_line_with_the_worst_output_and_batch(tmp_path: Path) -> None:
    native, other = _formats(tmp_path, torch.float32)
    model = onnx.load(other / "model.onnx")
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    onnx.save(model, other / "model.onnx")
    evidence = _measure(native, other)
    assert not evidence.passed
    text = describe_failure(evidence.values)
    assert text.startswith("output `logits` in a batch of ")
    assert re.search(r"apart, allowed [\d.e-]+ \+ 0\.001·\|x\| \(float64 computed from float32", text)
    assert len(text) < 300 and "{" not in text and "\n" not in text


def test_a_failure_that_is_no_difference_is_told_as_it_is(tmp_path: Path) -> None:
    native, other = _formats(tmp_path, torch.float32)
    wider = tmp_path / "wider"
    shutil.copytree(other, wider)
    evidence = _measure(native, wider, {"x": np.full((3, 64), np.nan, np.float32)})
    assert describe_failure(evidence.values).startswith("nothing was compared: output `logits`")
