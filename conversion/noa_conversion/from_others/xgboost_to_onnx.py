"""XGBoost: a booster's own JSON or UBJSON file, which holds data only, or a live booster or estimator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from noa.errors import ConversionError, InvalidInputError
from noa.settings import ConversionSettings
from noa_conversion.from_others import boosters_onnx as boosters

_CLASSIFIERS: Final = {"binary:logistic", "multi:softprob", "multi:softmax"}


def convert_file(path: Path, folder: Path, settings: ConversionSettings) -> dict[str, object]:
    """Write the format `onnx` into an empty folder from a file of `Booster.save_model`; return how it compares.

    Raises:
        InvalidInputError: XGBoost cannot read the file.
        ConversionError: the booster cannot be expressed, or the graph computes something else.
    """
    xgboost = boosters.import_library("xgboost", "XGBoost")
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
    boosters.import_library("xgboost", "XGBoost")
    booster = model.get_booster() if hasattr(model, "get_booster") else model
    return boosters.convert_live(booster, folder, settings, _convert)


def _convert(booster: Any, folder: Path, settings: ConversionSettings) -> dict[str, object]:
    convert = boosters.import_onnxmltools("xgboost").convert_xgboost
    features = int(booster.num_features())
    objective = _objective(booster)
    named = booster.feature_names
    booster.feature_names = None  # onnxmltools wants f0, f1, ...
    try:
        proto = boosters.convert_booster("XGBoost", convert, booster, features, opset=settings.opset)
    finally:
        booster.feature_names = named
    if boosters.is_classifier(proto) and objective not in _CLASSIFIERS:
        raise ConversionError(
            f"onnxmltools writes the objective `{objective}` as a classifier, which it is not",
            expected=f"one of {sorted(_CLASSIFIERS)}, or a regression",
            received=objective,
        )
    return boosters.write_booster(
        proto,
        folder,
        lambda inputs: _predict(booster, objective, inputs),
        library="XGBoost",
        settings=settings,
    )


def _predict(booster: Any, objective: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    xgboost = boosters.import_library("xgboost", "XGBoost")
    matrix = xgboost.DMatrix(inputs[boosters.INPUT], feature_names=booster.feature_names)
    answer = np.asarray(booster.predict(matrix), np.float32)
    if objective == "binary:logistic":
        return {"probabilities": np.stack([1 - answer, answer], axis=1), "label": (answer > 0.5).astype(np.int64)}
    if objective == "multi:softprob":
        return {"probabilities": answer, "label": answer.argmax(axis=1).astype(np.int64)}
    if objective == "multi:softmax":
        return {"label": answer.astype(np.int64)}
    return boosters.predictions(answer)


def _objective(booster: Any) -> str:
    config = cast("dict[str, Any]", json.loads(booster.save_config()))
    return str(config["learner"]["objective"]["name"])
