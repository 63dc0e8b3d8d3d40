"""`onnx-fp16` computes in float16; `onnx-bf16` stores its weights in bfloat16 and computes in float32.

Inputs and outputs keep their types, so that a client cannot tell. float16 comes from onnxruntime's own pass; on a CPU
it saves memory rather than time. bfloat16 has the range of float32: nothing overflows, and the runtime widens the
weights once when it loads.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from noa.errors import ConversionError
from noa_conversion.optimise.onnx_files import (
    count_weights,
    opset_of,
    read_graph,
    refuse_unchanged,
    sort_nodes,
    write_graph,
)

if TYPE_CHECKING:
    import numpy as np
    import onnx

FP16: Final = "onnx-fp16"
BF16: Final = "onnx-bf16"
_SMALLEST_BF16 = 64
"""Elements: below, the Cast node is larger than what it saves."""
_LEAST_OPSET = 13
_MAX_FP16 = 65504.0


def to_fp16(source: Path, folder: Path) -> None:
    """Write a graph that computes in float16 between inputs and outputs of their old types.

    Raises:
        ConversionError: no weight became float16, or a weight is too large for it.
    """
    import onnx
    from onnx import numpy_helper
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = read_graph(source)
    before = count_weights(model, onnx.TensorProto.FLOAT)
    largest = max(
        (
            (_largest(numpy_helper.to_array(tensor)), tensor.name)
            for tensor in model.graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT
        ),
        default=(0.0, ""),
    )
    if largest[0] > _MAX_FP16:
        raise ConversionError(
            f"weight `{largest[1]}` is too large for float16",
            expected=f"at most {_MAX_FP16}",
            received=f"{largest[0]:.6g}",
            remedy="Use `onnx-bf16`, which has the range of float32",
        )
    try:
        half = convert_float_to_float16(model, keep_io_types=True)
    except Exception as exc:  # the pass raises whatever shape inference meets
        raise ConversionError(f"the graph cannot be brought to float16: {str(exc).splitlines()[0][:300]}") from exc
    sort_nodes(half.graph)
    after = count_weights(half, onnx.TensorProto.FLOAT16)
    if not after:
        raise refuse_unchanged(FP16, "no weight became float16", received=f"{before} float32 weights")
    left = count_weights(half, onnx.TensorProto.FLOAT)
    counts = {"float32_weights_before": before, "float16_weights": after, "float32_weights_left": left}
    write_graph(half, source, folder, step=FP16, counts=counts)


def to_bf16_storage(source: Path, folder: Path) -> None:
    """Store the float32 weights as bfloat16 with a Cast behind each.

    Raises:
        ConversionError: there is no weight large enough, or the opset has no bfloat16.
    """
    import onnx

    model = read_graph(source)
    if opset_of(model) < _LEAST_OPSET:
        raise ConversionError(
            "the graph's opset cannot cast from bfloat16", expected=f"opset {_LEAST_OPSET}", received=opset_of(model)
        )
    before = count_weights(model, onnx.TensorProto.FLOAT)
    casts = _narrow_weights(model)
    if not casts:
        raise refuse_unchanged(
            BF16, f"no float32 weight has {_SMALLEST_BF16} elements", received=f"{before} float32 weights"
        )
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    counts = {"float32_weights_before": before, "bfloat16_weights": len(casts)}
    write_graph(model, source, folder, step=BF16, counts=counts)


def _narrow_weights(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Replace the initialisers by bfloat16 ones under their own names plus a suffix; return the Cast nodes."""
    import ml_dtypes
    import numpy as np
    import onnx
    from onnx import numpy_helper

    taken = {tensor.name for tensor in model.graph.initializer} | {value.name for value in model.graph.input}
    fed = {value.name for value in model.graph.input}
    casts: list[onnx.NodeProto] = []
    for tensor in model.graph.initializer:
        size = int(np.prod(list(tensor.dims), dtype=np.int64))
        if tensor.data_type != onnx.TensorProto.FLOAT or size < _SMALLEST_BF16 or tensor.name in fed:
            continue
        name, stored = tensor.name, f"{tensor.name}.bf16"
        if stored in taken:
            continue
        # Rounds to the nearest, ties to even.
        narrow = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
        tensor.CopyFrom(
            onnx.helper.make_tensor(stored, onnx.TensorProto.BFLOAT16, tensor.dims, narrow.tobytes(), raw=True)
        )
        casts.append(onnx.helper.make_node("Cast", [stored], [name], name=f"widen.{name}", to=onnx.TensorProto.FLOAT))
    return casts


def _largest(array: np.ndarray) -> float:
    """Return the largest finite magnitude; an infinity, as masks have it, stays one."""
    import numpy as np

    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
