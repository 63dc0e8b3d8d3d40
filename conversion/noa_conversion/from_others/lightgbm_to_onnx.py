"""LightGBM: a booster's own text file, which holds data only, or a live booster or estimator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from noa.errors import ConversionError, InvalidInputError
from noa.settings import ConversionSettings
from noa_conversion.from_others import boosters_onnx as boosters


def convert_file(path: Path, folder: Path, settings: ConversionSettings) -> dict[str, object]:
    """Write the format `onnx` into an empty folder from a file of `Booster.save_model`; return how it compares.

    Raises:
        InvalidInputError: LightGBM cannot read the file.
        ConversionError: the booster cannot be expressed, or the graph computes something else.
    """
    lightgbm = boosters.import_library("lightgbm", "LightGBM")
    try:
        text = path.read_text(encoding="utf-8")
        if not text.startswith("tree\n"):
            raise ValueError("it does not begin with `tree`")
        booster = lightgbm.Booster(model_str=text)
    except (ValueError, OSError, lightgbm.basic.LightGBMError) as exc:
        raise InvalidInputError(f"LightGBM cannot read the file: {exc}", where=str(path)) from exc
    return _convert(booster, folder, settings)


def convert_lightgbm(model: Any, folder: Path, *, settings: ConversionSettings | None = None) -> dict[str, object]:
    """Write a live booster or fitted estimator as the format `onnx`; return how it compares.

    Raises:
        ConversionError: it cannot be expressed, or the graph computes something else.
        DependencyMissingError: lightgbm or onnxmltools is not installed.
        InvalidInputError: `folder` exists and holds something.
    """
    boosters.import_library("lightgbm", "LightGBM")
    return boosters.convert_live(getattr(model, "booster_", model), folder, settings, _convert)


def _convert(booster: Any, folder: Path, settings: ConversionSettings) -> dict[str, object]:
    convert = boosters.import_onnxmltools("lightgbm").convert_lightgbm
    if booster.params.get("linear_tree") or "\nis_linear=1" in booster.model_to_string():
        raise ConversionError("trees with linear leaves have no form in ONNX", expected="constant leaves")
    proto = boosters.convert_booster(
        "LightGBM",
        lambda model, **options: convert(model, zipmap=False, **options),
        booster,
        int(booster.num_feature()),
        opset=settings.opset,
    )
    is_classifier = boosters.is_classifier(proto)
    return boosters.write_booster(
        proto,
        folder,
        lambda inputs: _predict(booster, is_classifier, inputs),
        library="LightGBM",
        settings=settings,
    )


def _predict(booster: Any, is_classifier: bool, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    answer = np.asarray(booster.predict(inputs[boosters.INPUT])).astype(np.float32)
    if not is_classifier:
        return boosters.predictions(answer)
    shares = np.stack([1 - answer, answer], axis=1) if answer.ndim == 1 else answer
    return {"probabilities": shares, "label": shares.argmax(axis=1).astype(np.int64)}
