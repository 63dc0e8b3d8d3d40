"""XGBoost: a booster's own JSON or UBJSON file, which holds data only, or a live booster or estimator.

The graph takes `x` and gives `label` and `probabilities` for a classifier, `prediction` for everything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from noa.errors import ConversionError, DependencyMissingError, InvalidInputError
from noa.settings import ConversionSettings
from noa_conversion.files import staged_folder
from noa_conversion.from_others.boosters_onnx import INPUT, convert_booster, import_onnxmltools, rename_outputs
from noa_conversion.from_others.proof_onnx import write_proven

_CLASSIFIERS: Final = {"binary:logistic", "multi:softprob", "multi:softmax"}


def convert_file(path: Path, folder: Path, settings: ConversionSettings) -> dict[str, object]:
    """Write the format `onnx` into an empty folder from a file of `Booster.save_model`; return how it compares.

    Raises:
        InvalidInputError: XGBoost cannot read the file.
        ConversionError: the booster cannot be expressed, or the graph computes something else.
    """
    xgboost = _import()
    try:
        booster = xgboost.Booster(model_file=str(path))
    except Exception as exc:  # whatever XGBoost raises, the file is at fault
        text = str(exc).strip().splitlines()
        what = text[-1][:200] if text else type(exc).__name__
        raise InvalidInputError(f"XGBoost cannot read the file: {what}", where=str(path)) from exc
    return _convert(booster, folder, settings)


def convert_xgboost(model: Any, folder: Path, *, settings: ConversionSettings | None = None) -> dict[str, object]:
    """Write a live booster or fitted estimator as the format `onnx`; return how it compares.

    Raises:
        ConversionError: it cannot be expressed, or the graph computes something else.
        DependencyMissingError: xgboost or onnxmltools is not installed.
        InvalidInputError: `folder` exists and holds something.
    """
    _import()
    booster = model.get_booster() if hasattr(model, "get_booster") else model
    chosen = settings or ConversionSettings()  # pyright: ignore[reportCallIssue]  # pydantic fills the defaults
    with staged_folder(folder) as staged:
        return _convert(booster, staged, chosen)


def _convert(booster: Any, folder: Path, settings: ConversionSettings) -> dict[str, object]:
    convert = import_onnxmltools("xgboost").convert_xgboost
    features = int(booster.num_features())
    objective = _objective(booster)
    named = booster.feature_names
    booster.feature_names = None  # onnxmltools wants f0, f1, ...
    try:
        proto = convert_booster("XGBoost", convert, booster, features, opset=settings.opset)
    finally:
        booster.feature_names = named
    is_classifier = len(proto.graph.output) == 2
    if is_classifier and objective not in _CLASSIFIERS:
        raise ConversionError(
            f"onnxmltools writes the objective `{objective}` as a classifier, which it is not",
            expected=f"one of {sorted(_CLASSIFIERS)}, or a regression",
            received=objective,
        )
    rename_outputs(proto, ["label", "probabilities"] if is_classifier else ["prediction"])
    return write_proven(
        proto,
        folder,
        predict=lambda inputs: _predict(booster, objective, inputs),
        settings=settings,
        library="XGBoost",
    )


def _predict(booster: Any, objective: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    matrix = _import().DMatrix(inputs[INPUT], feature_names=booster.feature_names)
    answer = np.asarray(booster.predict(matrix), np.float32)
    if objective == "binary:logistic":
        return {"probabilities": np.stack([1 - answer, answer], axis=1), "label": (answer > 0.5).astype(np.int64)}
    if objective == "multi:softprob":
        return {"probabilities": answer, "label": answer.argmax(axis=1).astype(np.int64)}
    if objective == "multi:softmax":
        return {"label": answer.astype(np.int64)}
    return {"prediction": answer.reshape(len(answer), -1)}


def _objective(booster: Any) -> str:
    config = cast("dict[str, Any]", json.loads(booster.save_config()))
    return str(config["learner"]["objective"]["name"])


def _import() -> Any:
    try:
        import xgboost
    except ImportError as exc:
        raise DependencyMissingError("xgboost", extra="xgboost", purpose="XGBoost to ONNX") from exc
    return xgboost
