"""Equivalence evidence: what passes, what fails, and what it says about the worst input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from noa.digests import build_manifest
from noa.errors import InvalidInputError, SignatureError
from noa.settings import ConversionSettings
from noa.signatures import DType, Signature, TensorSpec
from noa_conversion import load_format, measure_equivalence
from noa_conversion.comparison import compare_output, largest_finite, scaled_to, tolerance_for
from noa_registry import Evidence
from noa_registry.evidence import decode_golden

SCORES = TensorSpec(name="scores", dtype="float32", shape=("batch", 3))


def _measure(zoo: Any, backend: str, name: str, target: Path, samples: dict[str, np.ndarray]) -> Evidence:
    return measure_equivalence(
        source=backend,
        source_folder=zoo.folder(backend, name, backend),
        target="onnx",
        target_folder=target,
        samples=samples,
        settings=zoo.settings,
    )


@pytest.mark.parametrize(
    ("backend", "name"), [("torch", "image"), ("torch", "rows"), ("jax", "image"), ("jax", "tokens")]
)
def test_a_faithful_conversion_passes(backend: str, name: str, zoo: Any) -> None:
    source, target = zoo.folder(backend, name, backend), zoo.folder(backend, name, "onnx")
    samples = zoo.draw_inputs(Signature.load(source), 40)
    evidence = _measure(zoo, backend, name, target, samples)
    assert evidence.passed is True
    assert evidence.digest == build_manifest(target).digest
    assert evidence.values["source_digest"] == build_manifest(source).digest
    assert evidence.values["batches"] == [1, 7, 40]
    assert evidence.values["problem"] is None
    assert 0 <= float(str(evidence.values["max_abs_error"])) < 1e-4
    json.dumps(dict(evidence.values), allow_nan=False)


def test_a_few_samples_are_repeated_to_fill_the_odd_batch(zoo: Any) -> None:
    target = zoo.folder("torch", "rows", "onnx")
    evidence = _measure(zoo, "torch", "rows", target, zoo.draw_inputs(Signature.load(target), 1))
    assert evidence.passed is True
    assert evidence.values["batches"] == [1, 7]


def test_at_most_256_samples_are_run(zoo: Any) -> None:
    target = zoo.folder("torch", "rows", "onnx")
    evidence = _measure(zoo, "torch", "rows", target, zoo.draw_inputs(Signature.load(target), 300))
    assert evidence.values["batches"] == [1, 7, 256]


def test_tampered_weights_fail_and_name_the_worst_input(zoo: Any, tmp_path: Path) -> None:
    folder = _edit(zoo, tmp_path, _tamper_embedding)
    samples = zoo.draw_inputs(Signature.load(folder), 12)
    samples["kind"][:] = 0
    samples["kind"][5, 1] = 3  # the only sample that reads the tampered row
    evidence = _measure(zoo, "torch", "rows", folder, samples)
    assert evidence.passed is False
    assert evidence.values["worst_sample"] == 5
    assert "more than the tolerance" in str(evidence.values["problem"])
    assert float(str(evidence.values["max_abs_error"])) > 1e-2


def test_samples_that_give_no_number_are_no_evidence(zoo: Any) -> None:
    target = zoo.folder("torch", "image", "onnx")
    samples = {name: np.full_like(x, np.nan) for name, x in zoo.draw_inputs(Signature.load(target), 3).items()}
    evidence = _measure(zoo, "torch", "image", target, samples)
    assert evidence.passed is False
    assert "nothing was compared" in str(evidence.values["problem"])


def test_nan_in_the_target_only_fails(zoo: Any, tmp_path: Path) -> None:
    folder = _edit(zoo, tmp_path, _poison)
    evidence = _measure(zoo, "torch", "rows", folder, zoo.draw_inputs(Signature.load(folder), 8))
    assert evidence.passed is False
    assert "NaN" in str(evidence.values["problem"])
    json.dumps(dict(evidence.values), allow_nan=False)


def test_a_target_with_another_signature_fails_without_raising(zoo: Any) -> None:
    target = zoo.folder("torch", "image", "onnx")
    evidence = _measure(zoo, "torch", "rows", target, zoo.draw_inputs(zoo.torch_model("rows").signature, 8))
    assert evidence.passed is False
    assert "signatures differ" in str(evidence.values["problem"])


def test_a_target_that_cannot_compute_fails_without_raising(zoo: Any, tmp_path: Path) -> None:
    def fix_batch(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray([1, 6], np.int64), "one_row"))
        for node in model.graph.node:
            node.input[:] = ["forced" if name == "numbers" else name for name in node.input]
        node = onnx.helper.make_node("Reshape", ["numbers", "one_row"], ["forced"])
        model.graph.node.insert(0, node)

    folder = _edit(zoo, tmp_path, fix_batch)
    evidence = _measure(zoo, "torch", "rows", folder, zoo.draw_inputs(Signature.load(folder), 8))
    assert evidence.passed is False
    assert "could not compute a batch of 7" in str(evidence.values["problem"])


def test_samples_that_do_not_fit_are_the_callers_error(zoo: Any) -> None:
    target = zoo.folder("torch", "rows", "onnx")
    samples = zoo.draw_inputs(Signature.load(target), 4)
    with pytest.raises(SignatureError, match="kind"):
        _measure(zoo, "torch", "rows", target, {**samples, "kind": samples["kind"].astype(np.int64)})
    with pytest.raises(InvalidInputError, match="at least one sample"):
        _measure(zoo, "torch", "rows", target, {name: value[:0] for name, value in samples.items()})


def test_infinities_and_nans_in_the_same_places_are_equal() -> None:
    values = np.array([[np.nan, np.inf, 1.0], [-np.inf, 2.0, 3.0]], np.float32)
    difference = _compare(values, values.copy())
    assert difference.passed
    assert difference.max_abs_error == 0
    assert not _compare(values, np.where(np.isinf(values), -values, values)).passed
    assert not _compare(values, np.where(np.isnan(values), 0, values).astype(np.float32)).passed


def test_the_tolerance_is_absolute_plus_relative_to_the_native_value() -> None:
    native = np.array([[0.0, 1.0, 1000.0]], np.float32)
    settings = ConversionSettings()
    step = np.array([[settings.absolute_tolerance, 0.001, 1.0]], np.float32)
    assert _compare(native, native + step * np.float32(0.99)).passed
    for index in range(3):
        other = native.copy()
        other[0, index] += step[0, index] * 1.2
        assert not _compare(native, other).passed


@pytest.mark.parametrize("factor", [1e-2, 1e-7, 1e-20])
def test_small_outputs_are_compared_by_their_own_size(factor: float) -> None:
    native = np.array([[0.5, 1.0, -0.25]], np.float32) * np.float32(factor)
    for wrong in (-native, native[:, ::-1], native * np.float32(1.01), np.zeros_like(native)):
        assert not _compare(native, np.ascontiguousarray(wrong)).passed
    rounded = native * np.float32(1 + 1e-6) + np.float32(1e-5 * factor)
    difference = _compare(native, rounded)
    assert difference.passed and difference.tolerance.absolute == pytest.approx(1e-4 * factor)
    assert "largest value" in difference.tolerance.reason


def test_a_row_that_cancels_is_judged_by_the_largest_value_of_all_runs() -> None:
    spec, settings = TensorSpec(name="logits", dtype="float32", shape=("batch", 3)), ConversionSettings()
    native = np.array([[1e-6, -1e-6, 0]], np.float32)
    other = native + np.float32(5e-6)
    assert compare_output(spec, native, other, batch=1, settings=settings, largest=1.0).passed
    assert not compare_output(spec, native, other, batch=1, settings=settings).passed


@pytest.mark.parametrize(("dtype", "absolute"), [("float16", 1e-2), ("float64", 1e-8)])
def test_the_absolute_part_of_every_dtype_is_scaled(dtype: str, absolute: float) -> None:
    spec = TensorSpec(name="scores", dtype=cast("DType", dtype), shape=("batch",))
    native = np.array([0.25, 0.0], dtype)
    found = compare_output(spec, native, native.copy(), batch=2, settings=ConversionSettings())
    assert found.passed and found.tolerance.absolute == pytest.approx(absolute / 4)


def test_numbers_that_a_framework_flushes_to_zero_are_zero() -> None:
    native = np.array([[1e-39, 0.0, -1e-39]], np.float32)
    assert _compare(native, np.zeros_like(native)).passed


def test_another_largest_score_is_a_difference_where_the_two_are_further_apart_than_the_tolerance() -> None:
    native = np.array([[1000.0, 998.5, 0.0], [1000.0, 999.5, 0.0]], np.float32)
    other = np.array([[999.2, 999.3, 0.0], [999.7, 999.8, 0.0]], np.float32)  # each within 1e-3 of its value
    difference = _compare(native, other)
    assert not difference.passed and difference.worst_sample == 0
    assert difference.problem is not None and "in 1 of 2 rows another score is the largest" in difference.problem
    assert _compare(native[1:], other[1:]).passed


def test_integers_are_exact() -> None:
    spec = TensorSpec(name="choice", dtype="int64", shape=("batch",))
    native = np.array([1, 2, 2**62], np.int64)
    assert compare_output(spec, native, native.copy(), batch=3, settings=ConversionSettings()).passed
    difference = compare_output(spec, native, native + np.array([0, 0, 1]), batch=3, settings=ConversionSettings())
    assert not difference.passed
    assert difference.worst_sample == 2


def test_half_precision_is_wider_and_double_is_narrower() -> None:
    settings = ConversionSettings()
    widths = [tolerance_for(dtype, settings).absolute for dtype in ("float16", "float32", "float64", "int32", "bool")]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == 0
    assert all(tolerance_for(dtype, settings).reason for dtype in ("float16", "float32", "float64", "int32"))


def test_argmax_agreement_is_reported_for_scores() -> None:
    native = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]], np.float32)
    other = native.copy()
    other[3] = [0, 5, 0]
    assert _compare(native, other).argmax_agreement == 0.75
    assert _compare(native, other).worst_sample == 3


def test_one_column_proves_no_agreement_of_classes() -> None:
    native, other = np.array([[1.0], [2.0]], np.float32), np.array([[9.0], [-9.0]], np.float32)
    assert _compare(native, other).argmax_agreement is None


@pytest.mark.parametrize(
    "other", [np.zeros((2, 3), np.float64), np.zeros((2, 4), np.float32), np.zeros((3,), np.float32)]
)
def test_another_dtype_or_shape_fails(other: np.ndarray) -> None:
    difference = _compare(np.zeros((2, 3), np.float32), other)
    assert not difference.passed
    assert "differ" in str(difference.problem)
    json.dumps(difference.to_dict(), allow_nan=False)


def _compare(native: np.ndarray, other: np.ndarray) -> Any:
    return compare_output(SCORES, native, other, batch=native.shape[0], settings=ConversionSettings())


def _edit(zoo: Any, tmp_path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    folder = zoo.copy(zoo.folder("torch", "rows", "onnx"), tmp_path / "edited")
    model = onnx.load(folder / "model.onnx")
    change(model)
    onnx.save(model, folder / "model.onnx")
    return folder


def _tamper_embedding(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "kinds.weight")
    table = numpy_helper.to_array(tensor).copy()
    table[3] += 1
    tensor.CopyFrom(numpy_helper.from_array(table, tensor.name))


def _poison(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "out.bias")
    tensor.CopyFrom(numpy_helper.from_array(np.full(3, np.nan, np.float32), tensor.name))


def test_equivalence_keeps_what_the_source_answered_as_golden_requests(zoo: Any) -> None:
    source, target = zoo.folder("torch", "rows", "torch"), zoo.folder("torch", "rows", "onnx")
    samples = zoo.draw_inputs(Signature.load(source), 40)
    evidence = _measure(zoo, "torch", "rows", target, samples)
    (attachment,) = evidence.attachments
    golden = decode_golden(attachment.content, evidence)
    assert golden.source == "torch"
    native = load_format("torch", source)
    batches: list[int] = []
    for request in golden.requests:
        batches.append(native.signature.validate(request.inputs))
        answers = native.run(request.inputs)
        for name, expected in request.outputs.items():
            np.testing.assert_allclose(answers[name], expected, rtol=1e-6)
            largest = largest_finite(*(one.outputs[name] for one in golden.requests))
            wanted = scaled_to(tolerance_for(expected.dtype.name, zoo.settings), largest)
            assert (golden.allowed[name].absolute, golden.allowed[name].relative) == (wanted.absolute, wanted.relative)
    assert batches == [1, 7, 40]


def test_formats_that_differ_leave_no_golden_requests(zoo: Any, tmp_path: Path) -> None:
    folder = _edit(zoo, tmp_path, _poison)
    evidence = _measure(zoo, "torch", "rows", folder, zoo.draw_inputs(Signature.load(folder), 8))
    assert evidence.passed is False
    assert evidence.attachments == ()
    assert "golden" not in evidence.values
