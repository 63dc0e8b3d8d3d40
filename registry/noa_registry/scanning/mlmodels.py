"""`MLmodel`: what MLflow would import, run or open to load a folder."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final, cast

import yaml

from noa_registry.scanning.blobs import Blob, MalformedError
from noa_registry.scanning.pickle_names import is_harmful
from noa_registry.scanning.state import ScanState

_MOST_EVENTS = 100_000
_MOST_DEEP = 32
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
NATIVE_LOADERS: Final = frozenset({"mlflow.onnx", "mlflow.pytorch", "noa_registry.mlflow_loader"})
"""Loaders of flavors whose files noa reads itself, without MLflow, and the loader that noa writes into its own."""
_FLAVOR_LOADERS: Final = frozenset(
    f"mlflow.{name}"
    for name in (
        *("catboost", "diviner", "h2o", "johnsnowlabs", "keras", "langchain", "lightgbm", "llama_index", "openai"),
        *(
            "paddle",
            "pmdarima",
            "prophet",
            "pyfunc.loaders.code_model",
            "pyfunc.model",
            "sentence_transformers",
            "shap",
            "sklearn",
            "spacy",
        ),
        *("spark", "statsmodels", "tensorflow", "transformers", "xgboost"),
    )
)
_PATH_KEYS: Final = frozenset(
    (
        *("data", "model_data", "pickled_model", "model_path", "model_code_path", "code", "python_model", "path"),
        *("model_config_path", "artifact_path", "loader_path", "model_binary", "data_path", "extra_files"),
    )
)


def is_mlmodel(head: bytes) -> bool:
    """Tell whether a text is an MLmodel file."""
    return re.search(rb"(?m)^flavors[ \t]*:", head) is not None


def inspect_mlmodel(scan: ScanState, blob: Blob, file: str) -> None:
    """Look through an MLmodel file.

    Raises:
        MalformedError: it is too large, no YAML, or built to grow when it is read.
    """
    model = read_mlmodel(blob, scan.limits.text_bytes)
    flavors = model.get("flavors")
    if not isinstance(flavors, dict):
        raise MalformedError("is an MLmodel file without flavors")
    for flavor, entry in cast("dict[object, object]", flavors).items():
        if not isinstance(entry, dict):
            raise MalformedError(f"is an MLmodel file whose flavor {str(flavor)!a} is no table")
        _inspect_flavor(scan, file, str(flavor), cast("dict[str, object]", entry))
    if model.get("model_code_path"):
        scan.code(file, "is of a model that is a script, which runs when the model is loaded (`model_code_path`)")


def read_mlmodel(blob: Blob, limit: int) -> dict[str, Any]:
    """Parse an MLmodel file without building what is not there.

    Raises:
        MalformedError: it is too large, no YAML, nested too deeply, or refers to itself.
    """
    if blob.size > limit:
        raise MalformedError(f"is an MLmodel file of {blob.size} bytes, over {limit}")
    text = blob.read(0, blob.size)
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        deep = 0
        for count, event in enumerate(yaml.parse(text, Loader=loader)):
            deep += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or count > _MOST_EVENTS or deep > _MOST_DEEP:
                raise MalformedError("is an MLmodel file that grows when it is read (aliases, depth or length)")
        model: object = yaml.load(text, Loader=loader)  # a safe loader: it makes plain values only
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        raise MalformedError(f"is an MLmodel file that is no YAML: {str(exc).splitlines()[0][:100]}") from exc
    if not isinstance(model, dict):
        raise MalformedError("is an MLmodel file that is no table")
    return cast("dict[str, Any]", model)


def _inspect_flavor(scan: ScanState, file: str, flavor: str, entry: Mapping[str, object]) -> None:
    loader = entry.get("loader_module")
    if loader is not None:
        _inspect_loader(scan, file, str(loader))
    for key, value in _walk(entry, 0):
        if key in ("code", "model_code_path") and value:
            scan.code(file, f"has Python files put on the path and run when flavor `{flavor}` is loaded (`{key}`)")
        if key in ("python_model", "cloudpickle_version", "python_model_config") and value:
            scan.code(file, f"is of a pickled Python object (`{key}` of flavor `{flavor}`)")
        if key == "pickle_module_name" and value not in (None, "mlflow.pytorch.pickle_module"):
            scan.code(file, f"imports {str(value)!a} to unpickle (`{key}` of flavor `{flavor}`)")
        if key in _PATH_KEYS and isinstance(value, str):
            # MLflow writes where the script was, and opens its name in the folder (pyfunc/model.py, 3.17).
            is_script = flavor == "python_function" and key == "model_code_path"
            _check_path(flavor, key, posixpath.basename(value) if is_script else value)


def _inspect_loader(scan: ScanState, file: str, loader: str) -> None:
    if not _MODULE.fullmatch(loader) or is_harmful(loader, ""):
        raise MalformedError(f"is an MLmodel file whose loader module is {loader!a}")
    if loader in NATIVE_LOADERS:
        return
    if loader in _FLAVOR_LOADERS:
        scan.code(file, f"is loaded by `{loader}`, which may run code of the folder")
    else:
        scan.code(file, f"is loaded by the foreign module `{loader}`, which MLflow would import and call")


def _walk(value: object, deep: int) -> Iterator[tuple[str, object]]:
    if deep > _MOST_DEEP:
        return
    if isinstance(value, Mapping):
        for key, inner in cast("Mapping[object, object]", value).items():
            yield str(key), inner
            yield from _walk(inner, deep + 1)
    elif isinstance(value, list):
        for inner in cast("list[object]", value):
            yield from _walk(inner, deep + 1)


def _check_path(flavor: str, key: str, value: str) -> None:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or "\\" in value or "\0" in value or "://" in value:
        raise MalformedError(f"is an MLmodel file whose flavor `{flavor}` leads out of the folder: {key} {value!a}")
