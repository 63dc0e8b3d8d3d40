"""`onnx-int8`, `onnx-int8-static` and `onnx-int4`: fewer bits, by onnxruntime's own quantisers.

Dynamic int8 measures each activation when it runs; convolutions are left out of it, since onnxruntime computes their
dynamic form at less than half the speed of float32. Static int8 measures the activations once, on real samples, and
covers convolutions too. int4 packs the weights of matrix products in blocks. `Gemm` is split into `MatMul` and `Add`
first: the quantisers of weights pass over it, and exporters write linear layers as `Gemm`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from noa.errors import ConversionError, InvalidInputError
from noa.signatures import Signature
from noa_conversion.batches import batch_axis, take_batch
from noa_conversion.formats.onnx_format import MODEL_FILE
from noa_conversion.optimise.linear_onnx import split_gemms
from noa_conversion.optimise.onnx_files import count_nodes, read_graph, refuse_unchanged, write_graph

if TYPE_CHECKING:
    import numpy as np
    import onnx

INT8: Final = "onnx-int8"
INT8_STATIC: Final = "onnx-int8-static"
INT4: Final = "onnx-int4"
_DYNAMIC_OPERATORS: Final = ("MatMul", "Attention", "LSTM", "EmbedLayerNormalization", "Gather")
_STATIC_OPERATORS: Final = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_QUANTISED: Final = ("MatMulInteger", "DynamicQuantizeMatMul", "QAttention", "DynamicQuantizeLSTM", "QEmbedLayerNorm")
_INT4_BLOCK: Final = 32
"""Weights that share a scale. 32 is the smallest that onnxruntime's kernels are fast for."""
_CALIBRATION_BATCH: Final = 16
_MOST_CALIBRATION_ROWS: Final = 512


def to_int8_dynamic(source: Path, folder: Path) -> None:
    """Quantise weights to int8, and activations when they are computed.

    Raises:
        ConversionError: there is nothing to quantise, or onnxruntime refuses the graph.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = read_graph(source)
    split_gemms(model)
    before = count_nodes(model)
    made = _run(
        model,
        lambda path, result: quantize_dynamic(
            path,
            result,
            op_types_to_quantize=list(_DYNAMIC_OPERATORS),
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        ),
    )
    after = count_nodes(made)
    quantised = sum(after[kind] for kind in _QUANTISED)
    if not quantised:
        raise refuse_unchanged(
            INT8,
            "no matrix product has constant weights, and convolutions are slower in dynamic int8",
            received=_shown(before),
        )
    counts = {"quantised_nodes": quantised, "matrix_products_before": before["MatMul"], "left": after["MatMul"]}
    write_graph(made, source, folder, step=INT8, counts=counts)


def to_int8_static(source: Path, folder: Path, samples: Mapping[str, np.ndarray]) -> None:
    """Quantise weights and activations to int8, with ranges measured on `samples`.

    Raises:
        ConversionError: there is nothing to quantise, or onnxruntime refuses the graph.
        InvalidInputError: the samples do not fit, or there are none.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    signature = Signature.load(source)
    rows = signature.validate(samples)
    if rows < 1:
        raise InvalidInputError("calibration needs at least one sample", received="none")
    model = read_graph(source)
    # onnxruntime 1.32 quantises the bias of a `Gemm` as if `alpha` and `beta` were 1, without a word.
    split_gemms(model, only_scaled=True)
    before = count_nodes(model)
    made = _run(
        model,
        lambda path, result: quantize_static(
            path,
            result,
            _Reader(_batches(signature, samples, rows)),  # pyright: ignore[reportArgumentType]  # only get_next is asked
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_STATIC_OPERATORS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"MatMulConstBOnly": True},
        ),
    )
    quantised = _count_quantised(made)
    if not quantised:
        raise refuse_unchanged(
            INT8_STATIC, "no convolution or matrix product has constant weights", received=_shown(before)
        )
    counts = {
        "quantised_nodes": quantised,
        "candidates_before": sum(before[kind] for kind in _STATIC_OPERATORS),
        "quantize_linear": count_nodes(made)["QuantizeLinear"],
        "dequantize_linear": count_nodes(made)["DequantizeLinear"],
        "calibration_rows": min(rows, _MOST_CALIBRATION_ROWS),
    }
    write_graph(made, source, folder, step=INT8_STATIC, counts=counts)


def to_int4_weights(source: Path, folder: Path) -> None:
    """Pack the weights of matrix products into 4 bits, with a scale per block.

    Raises:
        ConversionError: no matrix product has constant weights, or onnxruntime refuses the graph.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = read_graph(source)
    gemms = split_gemms(model)
    before = count_nodes(model)
    try:
        quantiser = MatMulNBitsQuantizer(model, bits=4, block_size=_INT4_BLOCK, is_symmetric=True)
        quantiser.process()
        made = cast("onnx.ModelProto", cast("Any", quantiser.model).model)
    except Exception as exc:  # the quantiser raises whatever numpy and onnx do
        raise ConversionError(f"onnxruntime cannot pack the weights: {_first_line(exc)}") from exc
    packed = count_nodes(made)["MatMulNBits"]
    if not packed:
        raise refuse_unchanged(INT4, "no matrix product has constant weights", received=_shown(before))
    counts = {"packed_nodes": packed, "of_gemm": gemms, "matrix_products_before": before["MatMul"]}
    write_graph(made, source, folder, step=INT4, counts=counts)


class _Reader:
    """Gives the calibration batches one after the other, as onnxruntime asks for them."""

    def __init__(self, batches: Iterator[dict[str, np.ndarray]]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)

    def __len__(self) -> int:
        raise TypeError("the number of batches is not told")


def _batches(signature: Signature, samples: Mapping[str, np.ndarray], rows: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield real samples in batches of one size, at most so many rows."""
    axis = batch_axis(signature)
    if axis is None:
        yield dict(samples)
        return
    for start in range(0, min(rows, _MOST_CALIBRATION_ROWS), _CALIBRATION_BATCH):
        rolled = dict(samples)
        for spec in signature.inputs:
            if axis in spec.shape:
                rolled[spec.name] = _roll(samples[spec.name], spec.shape.index(axis), start)
        yield take_batch(signature, rolled, batch=min(_CALIBRATION_BATCH, rows), count=rows)


def _roll(array: np.ndarray, axis: int, by: int) -> np.ndarray:
    import numpy as np

    return np.roll(array, -by, axis=axis)


def _run(model: onnx.ModelProto, quantise: Any) -> onnx.ModelProto:
    """Quantise through files: the quantisers read and write paths, and infer shapes beside them."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="noa-quantise-") as scratch:
        path, result = Path(scratch) / "inferred.onnx", Path(scratch) / MODEL_FILE
        try:
            inferred = onnx.shape_inference.infer_shapes(model)
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
            inferred = model
        onnx.save(inferred, path)
        try:
            quantise(path, result)
            return onnx.load(result)
        except Exception as exc:  # the quantisers raise whatever numpy and onnx do
            raise ConversionError(f"onnxruntime cannot quantise the graph: {_first_line(exc)}") from exc


def _count_quantised(model: onnx.ModelProto) -> int:
    """Count the nodes that compute between DequantizeLinear and have quantised weights."""
    dequantised = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return sum(
        node.op_type in _STATIC_OPERATORS and len(node.input) > 1 and {node.input[0], node.input[1]} <= dequantised
        for node in model.graph.node
    )


def _shown(nodes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(nodes.items(), key=lambda item: -item[1])[:6])


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
