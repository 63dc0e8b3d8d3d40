"""The `mlflow` format: a whole MLflow model that came from outside, run through MLflow's `pyfunc`.

    signature.json     what it takes and gives, from the model's own signature
    allowed.json       who allowed it, and for which model: loading it may run its code
    layout.json        how MLflow wants its inputs: one array, named arrays, or columns of a table
    model/             the folder as it came

This is the only format whose loading may run code of the model, so it refuses without the mark.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from noa.errors import InvalidInputError, SignatureError
from noa.signatures import Signature, TensorSpec
from noa_conversion.batches import sizes_of
from noa_conversion.files import read_json
from noa_registry.outside import AllowedMark

if TYPE_CHECKING:
    import numpy as np

MODEL_FOLDER: Final = "model"
LAYOUT_FILE: Final = "layout.json"
InputLayout: TypeAlias = Literal["array", "tensors", "columns"]


class MlflowRunnable:
    """A pyfunc with the names of its signature. MLflow says nothing about threads, so calls go one after the other."""

    __slots__ = ("_layout", "_lock", "_model", "_where", "signature")

    def __init__(self, model: Any, signature: Signature, layout: InputLayout, where: Path) -> None:
        self.signature = signature
        self._model = model
        self._layout: InputLayout = layout
        self._where = where
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs by name.

        Raises:
            InvalidInputError: the model could not compute, or gave something else than its signature says.
        """
        try:
            with self._lock:
                given = self._model.predict(_arrange(inputs, self.signature, self._layout))
        except Exception as exc:  # the model's own code may raise anything
            raise InvalidInputError(f"the MLflow model could not compute: {exc}", where=str(self._where)) from exc
        outputs = _outputs(given, self.signature.outputs, self._where)
        try:  # an import runs nothing of the model, so this is the first to see what it computes
            self.signature.validate_outputs(outputs, sizes=sizes_of(self.signature, inputs))
        except SignatureError as exc:
            raise InvalidInputError(
                f"the MLflow model gave something else than its signature says: {exc}", where=str(self._where)
            ) from exc
        return outputs


class MlflowAdapter:
    """Loads the `mlflow` format, if somebody allowed it."""

    packages = ("mlflow",)

    @property
    def name(self) -> str:
        """The format's name."""
        return "mlflow"

    def load(self, folder: Path, *, threads: int | None = None) -> MlflowRunnable:
        """Load the model through MLflow, which runs its code.

        Raises:
            InvalidInputError: nobody allowed it, or MLflow cannot load it, e.g. because a package is missing.
        """
        AllowedMark.load(folder)
        signature = Signature.load(folder)
        layout = read_json(folder, LAYOUT_FILE).get("inputs")
        if layout not in ("array", "tensors", "columns"):
            raise InvalidInputError(f"`{LAYOUT_FILE}` does not say how the model takes its inputs", where=str(folder))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # MLflow warns about its own insides when it is imported
                from mlflow import pyfunc

                model = pyfunc.load_model(str(folder / MODEL_FOLDER))
        except Exception as exc:  # the model's own code may raise anything
            raise InvalidInputError(
                f"MLflow cannot load the model: {_first_line(exc)}",
                where=str(folder),
                remedy="Install what its `requirements.txt` names",
            ) from exc
        return MlflowRunnable(model, signature, layout, folder)


ADAPTER = MlflowAdapter()


def _arrange(inputs: Mapping[str, np.ndarray], signature: Signature, layout: InputLayout) -> object:
    if layout == "array":
        return inputs[signature.inputs[0].name]
    if layout == "tensors":
        return {spec.name: inputs[spec.name] for spec in signature.inputs}
    import pandas as pd

    return pd.DataFrame({spec.name: inputs[spec.name] for spec in signature.inputs})


def _outputs(given: Any, specs: tuple[TensorSpec, ...], where: Path) -> dict[str, np.ndarray]:
    """Return what the model gave as named arrays of the promised types."""
    import numpy as np

    values: dict[str, Any]
    if isinstance(given, Mapping) or (hasattr(given, "columns") and len(specs) > 1):
        values = {str(name): given[name] for name in given}
    else:
        values = dict.fromkeys((spec.name for spec in specs[:1]), given)
    try:
        arrays = {spec.name: np.asarray(values[spec.name]).astype(spec.dtype, copy=False) for spec in specs}
    except (KeyError, TypeError, ValueError) as exc:
        raise InvalidInputError(
            "the MLflow model gave something else than its signature says",
            where=str(where),
            expected=", ".join(f"{spec.name}: {spec.describe()}" for spec in specs),
            received=f"{type(given).__name__} ({exc})",
        ) from exc
    for spec in specs:
        if arrays[spec.name].ndim == len(spec.shape) + 1 and arrays[spec.name].shape[-1] == 1:
            arrays[spec.name] = arrays[spec.name].reshape(arrays[spec.name].shape[:-1])  # a table of one column
    return arrays


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
