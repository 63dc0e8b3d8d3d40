"""What XGBoost and LightGBM have in common: onnxmltools, one matrix of float32, trees in `ai.onnx.ml`.

The graph takes `x` and gives `label` and `probabilities` for a classifier, `prediction` for everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from noa.errors import ConversionError, DependencyMissingError
from noa.settings import ConversionSettings
from noa_conversion.files import staged_folder
from noa_conversion.from_others.proof_onnx import Predict, write_proven

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


def import_library(name: str, title: str) -> Any:
    """Return a booster's own library.

    Raises:
        DependencyMissingError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as exc:
        raise DependencyMissingError(name, extra=name, purpose=f"{title} to ONNX") from exc


def convert_live(
    booster: Any,
    folder: Path,
    settings: ConversionSettings | None,
    convert: Callable[[Any, Path, ConversionSettings], dict[str, object]],
) -> dict[str, object]:
    """Run a conversion into a folder that appears whole or not at all, with the default settings if none are given."""
    chosen = settings or ConversionSettings()  # pyright: ignore[reportCallIssue]  # pydantic fills the defaults
    with staged_folder(folder) as staged:
        return convert(booster, staged, chosen)


def is_classifier(proto: onnx.ModelProto) -> bool:
    """Tell whether onnxmltools wrote a label and shares."""
    return len(proto.graph.output) == 2


def write_booster(
    proto: onnx.ModelProto, folder: Path, predict: Predict, *, library: str, settings: ConversionSettings
) -> dict[str, object]:
    """Give the outputs noa's names, write the format, and return how it compares with the library.

    Raises:
        ConversionError: it computes something else than the library.
    """
    _rename_outputs(proto, ["label", "probabilities"] if is_classifier(proto) else ["prediction"])
    return write_proven(proto, folder, predict=predict, settings=settings, library=library)


def predictions(answer: np.ndarray) -> dict[str, np.ndarray]:
    """Return what a regression gives: a row per sample."""
    return {"prediction": answer.reshape(len(answer), -1)}


def _rename_outputs(proto: onnx.ModelProto, names: list[str]) -> None:
    table = dict(zip([value.name for value in proto.graph.output], names, strict=False))
    for value in proto.graph.output:
        value.name = table.get(value.name, value.name)
        if len(value.type.tensor_type.shape.dim):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"  # it states 1 for labels
    for node in proto.graph.node:
        node.input[:] = [table.get(name, name) for name in node.input]
        node.output[:] = [table.get(name, name) for name in node.output]
