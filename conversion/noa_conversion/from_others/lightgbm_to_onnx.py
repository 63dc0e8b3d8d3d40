"""LightGBM: a booster's own text file, which holds data only, or a live booster or estimator.

The graph takes `x` and gives `label` and `probabilities` for a classifier, `prediction` for everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from noa.errors import ConversionError, DependencyMissingError, InvalidInputError
from noa.settings import ConversionSettings
from noa_conversion.files import staged_folder
from noa_conversion.from_others.boosters_onnx import INPUT, convert_booster, import_onnxmltools, rename_outputs
from noa_conversion.from_others.proof_onnx import write_proven


def convert_file(path: Path, folder: Path, settings: ConversionSettings) -> dict[str, object]:
    """Write the format `onnx` into an empty folder from a file of `Booster.save_model`; return how it compares.

    Raises:
        InvalidInputError: LightGBM cannot read the file.
        ConversionError: the booster cannot be expressed, or the graph computes something else.
    """
    lightgbm = _import()
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
    _import()
    chosen = settings or ConversionSettings()  # pyright: ignore[reportCallIssue]  # pydantic fills the defaults
    with staged_folder(folder) as staged:
        return _convert(getattr(model, "booster_", model), staged, chosen)


def _convert(booster: Any, folder: Path, settings: ConversionSettings) -> dict[str, object]:
    convert = import_onnxmltools("lightgbm").convert_lightgbm
    if booster.params.get("linear_tree") or "\nis_linear=1" in booster.model_to_string():
        raise ConversionError("trees with linear leaves have no form in ONNX", expected="constant leaves")
    proto = convert_booster(
        "LightGBM",
        lambda model, **options: convert(model, zipmap=False, **options),
        booster,
        int(booster.num_feature()),
        opset=settings.opset,
    )
    is_classifier = len(proto.graph.output) == 2
    rename_outputs(proto, ["label", "probabilities"] if is_classifier else ["prediction"])
    return write_proven(
        proto,
        folder,
        predict=lambda inputs: _predict(booster, is_classifier, inputs),
        settings=settings,
        library="LightGBM",
    )


def _predict(booster: Any, is_classifier: bool, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    answer = np.asarray(booster.predict(inputs[INPUT])).astype(np.float32)
    if not is_classifier:
        return {"prediction": answer.reshape(len(answer), -1)}
    shares = np.stack([1 - answer, answer], axis=1) if answer.ndim == 1 else answer
    return {"probabilities": shares, "label": shares.argmax(axis=1).astype(np.int64)}


def _import() -> Any:
    try:
        import lightgbm
    except ImportError as exc:
        raise DependencyMissingError("lightgbm", extra="lightgbm", purpose="LightGBM to ONNX") from exc
    return lightgbm
