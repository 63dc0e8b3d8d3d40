"""A small TFLite file written by hand: one layer, relu(x W' + b), or an operator that nobody converts."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
import tflite


def dense_model(
    weight: np.ndarray, bias: np.ndarray, *, operator: int = tflite.BuiltinOperator.FULLY_CONNECTED
) -> bytes:
    """Return the bytes of a model that takes `x` (1, in) and gives `y` (1, out)."""
    builder = flatbuffers.Builder(4096)
    arrays = [b"", weight.astype("<f4").tobytes(), bias.astype("<f4").tobytes()]
    buffers = [_buffer(builder, data) for data in arrays]
    tensors = [
        _tensor(builder, "x", (1, weight.shape[1]), 0),
        _tensor(builder, "w", weight.shape, 1),
        _tensor(builder, "b", bias.shape, 2),
        _tensor(builder, "y", (1, weight.shape[0]), 0),
    ]
    tflite.FullyConnectedOptionsStart(builder)
    tflite.FullyConnectedOptionsAddFusedActivationFunction(builder, tflite.ActivationFunctionType.RELU)
    options = tflite.FullyConnectedOptionsEnd(builder)
    inputs, outputs = _ints(builder, [0, 1, 2]), _ints(builder, [3])
    tflite.OperatorStart(builder)
    tflite.OperatorAddOpcodeIndex(builder, 0)
    tflite.OperatorAddInputs(builder, inputs)
    tflite.OperatorAddOutputs(builder, outputs)
    tflite.OperatorAddBuiltinOptionsType(builder, tflite.BuiltinOptions.FullyConnectedOptions)
    tflite.OperatorAddBuiltinOptions(builder, options)
    step = tflite.OperatorEnd(builder)
    tensor_list, steps = _offsets(builder, tensors), _offsets(builder, [step])
    graph_inputs, graph_outputs = _ints(builder, [0]), _ints(builder, [3])
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, tensor_list)
    tflite.SubGraphAddInputs(builder, graph_inputs)
    tflite.SubGraphAddOutputs(builder, graph_outputs)
    tflite.SubGraphAddOperators(builder, steps)
    graph = tflite.SubGraphEnd(builder)
    tflite.OperatorCodeStart(builder)
    tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, min(operator, 127))
    tflite.OperatorCodeAddBuiltinCode(builder, operator)
    tflite.OperatorCodeAddVersion(builder, 1)
    code = tflite.OperatorCodeEnd(builder)
    codes, graphs, all_buffers = _offsets(builder, [code]), _offsets(builder, [graph]), _offsets(builder, buffers)
    tflite.ModelStart(builder)
    tflite.ModelAddVersion(builder, 3)
    tflite.ModelAddOperatorCodes(builder, codes)
    tflite.ModelAddSubgraphs(builder, graphs)
    tflite.ModelAddBuffers(builder, all_buffers)
    builder.Finish(tflite.ModelEnd(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _buffer(builder: Any, data: bytes) -> int:
    stored = builder.CreateByteVector(data) if data else None
    tflite.BufferStart(builder)
    if stored is not None:
        tflite.BufferAddData(builder, stored)
    return tflite.BufferEnd(builder)


def _tensor(builder: Any, name: str, shape: tuple[int, ...], buffer: int) -> int:
    label, sizes = builder.CreateString(name), _ints(builder, list(shape))
    tflite.TensorStart(builder)
    tflite.TensorAddShape(builder, sizes)
    tflite.TensorAddType(builder, tflite.TensorType.FLOAT32)
    tflite.TensorAddBuffer(builder, buffer)
    tflite.TensorAddName(builder, label)
    return tflite.TensorEnd(builder)


def _ints(builder: Any, values: list[int]) -> int:
    return builder.CreateNumpyVector(np.asarray(values, np.int32))


def _offsets(builder: Any, values: list[int]) -> int:
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependUOffsetTRelative(value)
    return builder.EndVector()
