"""Outputs of an ONNX graph whose type or rank the file does not say: inferred, and else seen in two small runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from noa.errors import InvalidInputError
from noa.signatures import Signature, TensorSpec
from noa_conversion.formats.onnx_format import runtime_errors
from noa_conversion.imports.examples import make_example
from noa_conversion.onnx_runs import run_session
from noa_conversion.work_limits import work_limit

if TYPE_CHECKING:
    import numpy as np
    import onnx

# Sizes of the free axes in two runs, all different: an output's axis that follows one of them is told by its sizes.
_SIZES = ((3, 5, 7, 11, 13, 17), (4, 6, 8, 12, 14, 18))


def complete_outputs(model: onnx.ModelProto, inputs: tuple[TensorSpec, ...]) -> bool:
    """Write into a graph what its outputs do not say, as far as it can be found out; tell whether anything was written.

    What cannot be found out is left out, for the reader of the signature to refuse by name.
    """
    if not _unsaid(model):
        return False
    _infer(model)
    if _unsaid(model):
        _observe(model, inputs)
    return True


def _unsaid(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return [
        value
        for value in model.graph.output
        if value.type.WhichOneof("value") in (None, "tensor_type")
        and not (value.type.tensor_type.HasField("shape") and value.type.tensor_type.elem_type)
    ]


def _infer(model: onnx.ModelProto) -> None:
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return
    found = {value.name: value for value in inferred.graph.output}
    for value in _unsaid(model):
        if found[value.name].type.WhichOneof("value") == "tensor_type":
            value.CopyFrom(found[value.name])


def _observe(model: onnx.ModelProto, inputs: tuple[TensorSpec, ...]) -> None:
    """Run the graph on two sets of sizes. Where that fails, nothing is said."""
    import onnx

    axes = tuple(dict.fromkeys(axis for spec in inputs for axis in spec.shape if isinstance(axis, str)))
    if len(axes) > len(_SIZES[0]):
        return
    names = [value.name for value in _unsaid(model)]
    first, second = (dict(zip(axes, sizes, strict=False)) for sizes in _SIZES)
    before, after = _run(model, inputs, first, names), _run(model, inputs, second, names)
    for value in _unsaid(model):
        known = before.get(value.name)
        if known is None:
            continue
        tensor = value.type.tensor_type
        tensor.elem_type = onnx.helper.np_dtype_to_tensor_dtype(known.dtype)
        again = after.get(value.name)
        shape = tensor.shape
        del shape.dim[:]
        shape.SetInParent()
        for index, size in enumerate(known.shape):
            dim = shape.dim.add()
            other = again.shape[index] if again is not None and again.ndim == known.ndim else None
            followed = next((axis for axis in axes if (first[axis], second[axis]) == (size, other)), None)
            if followed is not None:
                dim.dim_param = followed
            elif size == other:
                dim.dim_value = size


def _run(
    model: onnx.ModelProto, inputs: tuple[TensorSpec, ...], sizes: Mapping[str, int], names: list[str]
) -> dict[str, np.ndarray]:
    """Return the outputs that are tensors, or nothing where the graph cannot be computed."""
    import numpy as np
    import onnxruntime as ort

    fixed = tuple(
        replace(spec, shape=tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape))
        for spec in inputs
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        example = make_example(Signature(inputs=fixed, outputs=fixed))
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        with work_limit():
            arrays = run_session(session, names, example, where="the graph, run to see what its outputs are")
    except (InvalidInputError, *runtime_errors()):
        return {}
    return {name: array for name, array in zip(names, arrays, strict=True) if isinstance(array, np.ndarray)}
