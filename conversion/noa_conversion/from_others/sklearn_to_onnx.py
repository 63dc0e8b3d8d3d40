"""scikit-learn: estimators and pipelines that live in this process, through skl2onnx.

    from noa_conversion.from_others.sklearn_to_onnx import convert_sklearn
    convert_sklearn(pipeline, Path("model"), samples=x_test)

The graph takes one matrix `x`, of texts if the samples are texts and of float32 otherwise, and gives `label` and
`probabilities` for a classifier, `prediction` for a regressor, `transformed` for a transformer, `label` and `scores`
for a detector of outliers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from noa.errors import ConversionError, DependencyMissingError
from noa.settings import ConversionSettings
from noa_conversion.files import staged_folder
from noa_conversion.from_others.proof_onnx import write_proven

if TYPE_CHECKING:
    import onnx

INPUT: Final = "x"
_ML_OPSET: Final = 3
_LOCALE: Final = "C.UTF-8"


def convert_sklearn(
    model: Any,
    folder: Path,
    *,
    samples: np.ndarray | None = None,
    settings: ConversionSettings | None = None,
) -> dict[str, object]:
    """Write a fitted estimator or pipeline as the format `onnx`, and return how it compares with scikit-learn.

    `samples` are real rows, (rows, features), to compare on; without them rows are made up. A model that takes texts
    needs them: (rows,) for a pipeline that begins with a vectorizer, which takes `x` in one column.

    Raises:
        ConversionError: a step has no converter, or the graph computes something else.
        DependencyMissingError: skl2onnx is not installed.
        InvalidInputError: `folder` exists and holds something.
    """
    try:
        import skl2onnx
        from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    except ImportError as exc:
        raise DependencyMissingError(exc.name or "skl2onnx", extra="sklearn", purpose="scikit-learn to ONNX") from exc
    chosen = settings or ConversionSettings()  # pyright: ignore[reportCallIssue]  # pydantic fills the defaults
    given = None if samples is None else np.asarray(samples)
    features = _features(model, given)
    is_text = given is not None and given.dtype.kind in "OU"
    kind = StringTensorType if is_text else FloatTensorType
    try:
        made: object = skl2onnx.to_onnx(
            model,
            initial_types=[(INPUT, cast("Any", kind([None, features])))],
            options={"zipmap": False} if hasattr(model, "predict_proba") else None,
            target_opset={"": chosen.opset, "ai.onnx.ml": _ML_OPSET},
        )
    except Exception as exc:  # skl2onnx raises errors of many kinds for what it cannot express
        raise ConversionError(
            f"skl2onnx cannot express `{type(model).__name__}`: {_first_line(exc)}",
            expected=f"an estimator that it has a converter for, at opset {chosen.opset}",
        ) from exc
    proto = cast("onnx.ModelProto", made)
    _choose_locale(proto)
    names = _rename_outputs(proto, model)
    rows = None
    if given is not None:
        rows = {INPUT: np.ascontiguousarray(given, object if is_text else np.float32).reshape(-1, features)}
    takes_documents = given is not None and given.ndim == 1
    with staged_folder(folder) as staged:
        return write_proven(
            proto,
            staged,
            predict=lambda inputs: _predict(model, names, inputs[INPUT][:, 0] if takes_documents else inputs[INPUT]),
            settings=chosen,
            library="scikit-learn",
            samples=rows,
        )


def _predict(model: Any, names: list[str], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Ask the estimator itself, in the forms that the graph gives."""
    answers: dict[str, np.ndarray] = {}
    for name in names:
        if name == "label":
            labels = np.asarray(model.predict(rows))
            answers[name] = labels.astype(object if labels.dtype.kind in "OU" else np.int64)
        elif name == "probabilities":
            answers[name] = np.asarray(model.predict_proba(rows)).astype(np.float32)
        elif name == "prediction":
            answers[name] = np.asarray(model.predict(rows), np.float32).reshape(len(rows), -1)
        elif name == "transformed":
            found = model.transform(rows)
            answers[name] = np.asarray(found.toarray() if hasattr(found, "toarray") else found).astype(np.float32)
    return answers


def _rename_outputs(proto: onnx.ModelProto, model: Any) -> list[str]:
    """Give the outputs noa's names, in order; those that cannot be compared keep their own."""
    if hasattr(model, "predict_proba"):
        names = ["label", "probabilities"]
    elif hasattr(model, "classes_") or hasattr(model, "labels_"):
        names = ["label", "scores"]
    elif hasattr(model, "predict"):
        names = ["prediction"]
    else:
        names = ["transformed"]
    outputs = [value.name for value in proto.graph.output]
    table = dict(zip(outputs, names, strict=False))
    for value in proto.graph.output:
        value.name = table.get(value.name, value.name)
    for node in proto.graph.node:
        node.input[:] = [table.get(name, name) for name in node.input]
        node.output[:] = [table.get(name, name) for name in node.output]
    return [name for name in names if name in table.values()]


def _features(model: Any, samples: np.ndarray | None) -> int:
    """Return how many columns `x` has: a vectorizer takes one, of whole texts."""
    if samples is not None:
        return samples.shape[1] if samples.ndim > 1 else 1
    features = getattr(model, "n_features_in_", None)
    if features is None:
        raise ConversionError(
            f"`{type(model).__name__}` does not say how many features it takes",
            remedy="Fit it before it is converted; if it takes texts, give some as `samples`",
        )
    return int(features)


def _choose_locale(proto: onnx.ModelProto) -> None:
    """Have onnxruntime change the case of texts by a locale that every system has; its own is often missing."""
    from onnx import helper

    for node in proto.graph.node:
        if node.op_type == "StringNormalizer" and all(entry.name != "locale" for entry in node.attribute):
            node.attribute.append(helper.make_attribute("locale", _LOCALE))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
