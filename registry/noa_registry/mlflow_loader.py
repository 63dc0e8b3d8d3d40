"""Loads a version without an ONNX format in stock MLflow: the `loader_module` of its `python_function` flavor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from noa.errors import SignatureError
from noa.formats import Runnable, find_adapter
from noa.signatures import numpy_dtype

if TYPE_CHECKING:
    import numpy as np


class PyfuncModel:
    """What MLflow calls: takes one array, or arrays by name, and gives arrays by name."""

    def __init__(self, runnable: Runnable) -> None:
        self._runnable = runnable

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        """Compute all outputs. `params` is part of MLflow's interface and takes nothing here.

        Raises:
            SignatureError: the input does not match the model's signature.
        """
        import numpy as np

        signature = self._runnable.signature
        if params:
            raise SignatureError("this model takes no params", received=", ".join(params))
        if isinstance(data, np.ndarray) and len(signature.inputs) == 1:
            data = {signature.inputs[0].name: data}
        if not isinstance(data, dict):
            raise SignatureError(
                "the input is neither an array nor arrays by name",
                expected=", ".join(f"`{spec.name}`" for spec in signature.inputs),
                received=type(data).__name__,
            )
        for spec in signature.inputs:
            array = data.get(spec.name)
            if spec.dtype == "bfloat16" and isinstance(array, np.ndarray) and array.dtype == np.float32:
                data = {**data, spec.name: array.astype(numpy_dtype(spec.dtype))}  # MLflow's signatures say float32
        signature.validate(data)
        return self._runnable.run(data)


def _load_pyfunc(path: str) -> PyfuncModel:  # pyright: ignore[reportUnusedFunction]  # MLflow calls it by this name
    folder = Path(path)
    return PyfuncModel(find_adapter(folder.name).load(folder))
