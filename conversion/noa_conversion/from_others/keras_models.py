"""Keras 3 models that live in this process, through the exporter of their backend: PyTorch's, or noa's own for JAX.

from noa_conversion.from_others.keras_models import convert_keras
convert_keras(model, Path("model"))
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from noa.errors import ConversionError, DependencyMissingError
from noa.settings import ConversionSettings
from noa.signatures import DType, Signature, TensorSpec
from noa_conversion.files import staged_folder
from noa_conversion.from_others.proof_onnx import BATCH, prove
from noa_conversion.models import JaxModel, TorchModel


def convert_keras(model: Any, folder: Path, *, settings: ConversionSettings | None = None) -> dict[str, object]:
    """Write a built Keras model as the format `onnx`, and return how it compares with Keras.

    Raises:
        ConversionError: its backend is TensorFlow, a shape is not known, or the graph computes something else.
        DependencyMissingError: keras is not installed.
        InvalidInputError: `folder` exists and holds something.
    """
    with staged_folder(folder) as staged:
        chosen = settings or ConversionSettings()  # pyright: ignore[reportCallIssue]  # pydantic fills the defaults
        return convert_loaded(model, staged, chosen)


def convert_loaded(model: Any, folder: Path, settings: ConversionSettings) -> dict[str, object]:
    """Do the same into an empty folder."""
    try:
        import keras
    except ImportError as exc:
        raise DependencyMissingError("keras", extra="keras", purpose="Keras to ONNX") from exc
    backend = cast("Any", keras).backend.backend()
    signature = _signature(model)
    if backend == "torch":
        from noa_conversion.exporters.torch_to_onnx import export as export_torch
        from noa_conversion.from_others.keras_torch import as_module

        export_torch(TorchModel(module=as_module(model), signature=signature), folder, settings)
    elif backend == "jax":
        from noa_conversion.exporters.jax_to_onnx import export as export_jax
        from noa_conversion.from_others.keras_jax import as_function

        apply, params = as_function(model)
        export_jax(JaxModel(apply=apply, params=params, signature=signature), folder, settings)
    else:
        raise ConversionError(
            f"a Keras model on the backend `{backend}` has no way to ONNX here",
            expected="`torch` or `jax`",
            received=backend,
            remedy="Save it as .keras and convert the file: it is loaded on another backend",
        )
    names = [spec.name for spec in signature.inputs]
    outputs = [spec.name for spec in signature.outputs]

    def predict(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = [inputs[name] for name in names]
        found = model.predict(given if len(given) > 1 else given[0], verbose=0)
        answers = found if isinstance(found, (list, tuple)) else [found]
        return dict(zip(outputs, (np.asarray(answer) for answer in answers), strict=True))

    return prove(folder, predict, settings=settings, library=f"Keras on {backend}")


def _signature(model: Any) -> Signature:
    inputs, outputs = list(model.inputs), list(model.outputs)
    if not inputs or not outputs:
        raise ConversionError("the Keras model is not built", remedy="Call it once, or give it an Input layer")
    taken: set[str] = set()
    return Signature(
        inputs=tuple(_spec(tensor, f"input_{index}", taken) for index, tensor in enumerate(inputs)),
        outputs=tuple(_spec(tensor, f"output_{index}", taken, is_output=True) for index, tensor in enumerate(outputs)),
    )


def _spec(tensor: Any, fallback: str, taken: set[str], *, is_output: bool = False) -> TensorSpec:
    name = fallback if is_output or not str(tensor.name).isidentifier() or tensor.name in taken else str(tensor.name)
    taken.add(name)
    axes: list[int | str] = []
    for index, size in enumerate(tensor.shape):
        if size is None and index and is_output:
            raise ConversionError(
                f"an output of the Keras model has a free axis besides the batch: {tuple(tensor.shape)}",
                remedy="Give the Input layers fixed sizes besides the batch",
            )
        axes.append(int(size) if size is not None else BATCH if index == 0 else f"{name}_{index}")
    dtype = str(tensor.dtype)
    return TensorSpec(name=name, dtype=cast("DType", dtype), shape=tuple(axes))
