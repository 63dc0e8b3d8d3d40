"""The wrapper: what makes a version's folder an ordinary MLflow model.

Written without importing MLflow (seconds) but exactly as MLflow reads it back; a test compares. With an ONNX format the
model is MLflow's own `onnx` flavor and runs for somebody who has never heard of noa; without one,
`noa_registry.mlflow_loader` loads the native format. A model with one input takes a plain array in MLflow, one with
several a dict of arrays.

Everything outside `formats/` belongs to the wrapper and is sealed too: a changed MLmodel could change what runs.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from noa.digests import FileDigest, Manifest, sha256_bytes
from noa.errors import IntegrityError, InvalidInputError
from noa.signatures import SIGNATURE_FILE, Signature, TensorSpec
from noa.tensor_files import load_tensors, save_tensors
from noa_registry.artifacts import FORMATS_FOLDER, LOADED_MARK

if TYPE_CHECKING:
    import numpy as np

MLMODEL_FILE = "MLmodel"
INPUT_EXAMPLE_FILE = "input_example.safetensors"
_REQUIREMENTS_FILE = "requirements.txt"
_PYTHON_ENV_FILE = "python_env.yaml"
_MLFLOW_EXAMPLE_FILE = "input_example.json"
_SERVING_EXAMPLE_FILE = "serving_input_example.json"
_ONNX_FILE = "model.onnx"
_WRAPPER_FILES = {
    MLMODEL_FILE,
    INPUT_EXAMPLE_FILE,
    LOADED_MARK,
    _REQUIREMENTS_FILE,
    _PYTHON_ENV_FILE,
    _MLFLOW_EXAMPLE_FILE,
    _SERVING_EXAMPLE_FILE,
}
_ONNX_PACKAGES = ("mlflow", "numpy", "onnx", "onnxruntime")
_MLFLOW_DTYPES = {"string": "str", "bfloat16": "float32"}  # where NumPy's name is another, or NumPy has no such dtype
_NATIVE_PACKAGES = {"torch": ("torch", "safetensors"), "jax": ("jax", "safetensors")}


def write_wrapper(
    folder: Path,
    *,
    uid: str,
    formats: Mapping[str, Manifest],
    native: str,
    signature: Signature,
    input_example: Mapping[str, np.ndarray],
    environment: Mapping[str, str],
    run_id: str | None,
    created_at: datetime,
) -> None:
    """Write MLmodel, requirements and input examples of a version with `formats` into `folder`."""
    _write_examples(folder, signature, input_example)
    loads_onnx = _loads_onnx(formats.get("onnx"))
    packages = _ONNX_PACKAGES if loads_onnx else ("mlflow", "noa", "numpy", *_NATIVE_PACKAGES.get(native, ()))
    requirements = [_requirement(package, environment) for package in packages]
    (folder / _REQUIREMENTS_FILE).write_text("\n".join(requirements) + "\n")
    python = environment.get("python", platform.python_version())
    _write_yaml(
        folder / _PYTHON_ENV_FILE,
        {"python": python, "build_dependencies": ["pip", "wheel"], "dependencies": [f"-r {_REQUIREMENTS_FILE}"]},
    )
    model: dict[str, object] = {
        "flavors": _onnx_flavors(python) if loads_onnx else _noa_flavors(native, python),
        "mlflow_version": version("mlflow"),
        "model_size_bytes": sum(manifest.size_bytes for manifest in formats.values()),
        "model_uuid": uid,
        "saved_input_example_info": {
            "artifact_path": _MLFLOW_EXAMPLE_FILE,
            "serving_input_path": _SERVING_EXAMPLE_FILE,
            "type": "ndarray",
        },
        "signature": mlflow_signature(signature),
        "utc_time_created": created_at.strftime("%Y-%m-%d %H:%M:%S.%f"),
    }
    if run_id is not None:
        model["run_id"] = run_id
    _write_yaml(folder / MLMODEL_FILE, model)


def linked_files(onnx: Manifest | None) -> list[FileDigest]:
    """Return the files of the ONNX format that need a second name beside MLmodel: MLflow looks for all of them there.

    Raises:
        InvalidInputError: one of them has a name that MLflow uses.
    """
    if onnx is None or not _loads_onnx(onnx):
        return []
    files = [file for file in onnx.files if file.path != SIGNATURE_FILE and "/" not in file.path]
    taken = next((file.path for file in files if file.path in _WRAPPER_FILES), None)
    if taken is not None:
        raise InvalidInputError(f"`{taken}` in format `onnx` has a name that MLflow uses", received=taken)
    return files


def parse_example(path: Path, file: FileDigest) -> dict[str, np.ndarray]:
    """Return the input example in a file, by input name.

    Raises:
        IntegrityError: it is not what was sealed.
    """
    data = path.read_bytes() if path.is_file() else b""
    if sha256_bytes(data) != file.digest:
        raise IntegrityError(f"`{file.path}` was changed", where=str(path.parent), file=file.path)
    return load_tensors(data)


def mlflow_signature(signature: Signature) -> dict[str, object]:
    """Return the signature as MLflow stores it: JSON texts of tensor specs, free axes as -1."""
    named = len(signature.inputs) > 1
    return {
        "inputs": json.dumps([_mlflow_spec(spec, named=named) for spec in signature.inputs]),
        "outputs": json.dumps([_mlflow_spec(spec, named=True) for spec in signature.outputs]),
        "params": None,
    }


def _mlflow_spec(spec: TensorSpec, *, named: bool) -> dict[str, object]:
    shape = [axis if isinstance(axis, int) else -1 for axis in spec.shape]
    dtype = _MLFLOW_DTYPES.get(spec.dtype, spec.dtype)
    tensor: dict[str, object] = {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}}
    return {"name": spec.name, **tensor} if named else tensor


def _onnx_flavors(python: str) -> dict[str, object]:
    return {
        "onnx": {
            "code": None,
            "data": _ONNX_FILE,
            "onnx_session_options": None,
            "onnx_version": _installed("onnx"),
            "providers": ["CPUExecutionProvider"],  # what the evidence was measured on
        },
        "python_function": {
            "data": _ONNX_FILE,
            "env": {"virtualenv": _PYTHON_ENV_FILE},
            "loader_module": "mlflow.onnx",
            "python_version": python,
        },
    }


def _loads_onnx(onnx: Manifest | None) -> bool:
    return onnx is not None and any(file.path == _ONNX_FILE for file in onnx.files)


def _noa_flavors(native: str, python: str) -> dict[str, object]:
    return {
        "python_function": {
            "data": f"{FORMATS_FOLDER}/{native}",
            "env": {"virtualenv": _PYTHON_ENV_FILE},
            "loader_module": "noa_registry.mlflow_loader",
            "python_version": python,
        }
    }


def _write_examples(folder: Path, signature: Signature, example: Mapping[str, np.ndarray]) -> None:
    import numpy as np

    arrays = {spec.name: np.ascontiguousarray(example[spec.name]) for spec in signature.inputs}
    save_tensors(arrays, folder / INPUT_EXAMPLE_FILE)
    plain: dict[str, Any] = {name: array.tolist() for name, array in arrays.items()}
    value = plain if len(plain) > 1 else next(iter(plain.values()))
    (folder / _MLFLOW_EXAMPLE_FILE).write_text(json.dumps(value))
    (folder / _SERVING_EXAMPLE_FILE).write_text(json.dumps({"inputs": value}))


def _requirement(package: str, environment: Mapping[str, str]) -> str:
    found = environment.get(package) or _installed(package)
    return f"{package}=={found}" if found else package


@cache
def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _write_yaml(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(yaml.safe_dump(dict(value), default_flow_style=False, allow_unicode=True))
