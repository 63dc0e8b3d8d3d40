"""What XGBoost and LightGBM have in common: onnxmltools, one matrix of float32, trees in `ai.onnx.ml`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from noa.errors import ConversionError, DependencyMissingError

if TYPE_CHECKING:
    import onnx

INPUT: Final = "x"
_MOST_OPSET: Final = 15
"""onnxmltools 1.16 writes nothing newer; trees are operators of `ai.onnx.ml`, which do not depend on it."""


def convert_booster(
    library: str, convert: Callable[..., Any], booster: Any, features: int, *, opset: int
) -> onnx.ModelProto:
    """Run onnxmltools.

    Raises:
        ConversionError: it cannot express the booster.
    """
    from onnxmltools.convert.common.data_types import FloatTensorType

    try:
        return convert(
            booster,
            initial_types=[(INPUT, FloatTensorType([None, features]))],
            target_opset=min(opset, _MOST_OPSET),
        )
    except Exception as exc:  # onnxmltools raises errors of many kinds for what it cannot express
        text = str(exc).strip().splitlines()
        raise ConversionError(
            f"onnxmltools cannot express the {library} model: {text[0][:300] if text else type(exc).__name__}"
        ) from exc


def import_onnxmltools(extra: str) -> Any:
    """Return the module `onnxmltools.convert`.

    Raises:
        DependencyMissingError: it is not installed.
    """
    try:
        import onnxmltools.convert as convert
    except ImportError as exc:
        raise DependencyMissingError(exc.name or "onnxmltools", extra=extra, purpose=f"{extra} to ONNX") from exc
    return convert


def rename_outputs(proto: onnx.ModelProto, names: list[str]) -> None:
    """Give the outputs noa's names, in order."""
    table = dict(zip([value.name for value in proto.graph.output], names, strict=False))
    for value in proto.graph.output:
        value.name = table.get(value.name, value.name)
        if len(value.type.tensor_type.shape.dim):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"  # it states 1 for labels
    for node in proto.graph.node:
        node.input[:] = [table.get(name, name) for name in node.input]
        node.output[:] = [table.get(name, name) for name in node.output]
