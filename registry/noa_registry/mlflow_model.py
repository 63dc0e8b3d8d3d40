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
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from noa.digests import FileDigest, Manifest, sha256_bytes, sha256_file
from noa.errors import IntegrityError, InvalidInputError
from noa.signatures import SIGNATURE_FILE, Signature, TensorSpec
from noa_registry.artifacts import FORMATS_FOLDER

if TYPE_CHECKING:
    import numpy as np

MLMODEL_FILE = "MLmodel"
INPUT_EXAMPLE_FILE = "input_example.safetensors"
LOADED_MARK = "registered_model_meta"
"""Stock MLflow writes this file, a name and a number, into a local model's folder each time it loads it. Nothing reads
it to run or to load a model, so it is left out of the comparison."""
_REQUIREMENTS_FILE = "requirements.txt"
_PYTHON_ENV_FILE = "python_env.yaml"
_MLFLOW_EXAMPLE_FILE = "input_example.json"
_SERVING_EXAMPLE_FILE = "serving_input_example.json"
_ONNX_FILE = "model.onnx"
_ONNX_PACKAGES = ("mlflow", "numpy", "onnx", "onnxruntime")
_NATIVE_PACKAGES = {"torch": ("torch", "safetensors"), "jax": ("jax", "safetensors")}


def write_wrapper(
    folder: Path,
    *,
    uid: str,
    formats: tuple[str, ...],
    native: str,
    signature: Signature,
    input_example: Mapping[str, np.ndarray],
    environment: Mapping[str, str],
    run_id: str | None,
    created_at: datetime,
) -> None:
    """Write MLmodel, requirements and input examples into `folder`, whose formats are in place already."""
    _write_examples(folder, signature, input_example)
    loads_onnx = "onnx" in formats and (folder / FORMATS_FOLDER / "onnx" / _ONNX_FILE).is_file()
    packages = _ONNX_PACKAGES if loads_onnx else ("mlflow", "noa", "numpy", *_NATIVE_PACKAGES.get(native, ()))
    requirements = [_requirement(package, environment) for package in packages]
    (folder / _REQUIREMENTS_FILE).write_text("\n".join(requirements) + "\n")
    python = environment.get("python", platform.python_version())
    _write_yaml(
        folder / _PYTHON_ENV_FILE,
        {"python": python, "build_dependencies": ["pip", "wheel"], "dependencies": [f"-r {_REQUIREMENTS_FILE}"]},
    )
    size = sum(path.stat().st_size for path in (folder / FORMATS_FOLDER).rglob("*") if path.is_file())
    model: dict[str, object] = {
        "flavors": _onnx_flavors(python) if loads_onnx else _noa_flavors(native, python),
        "mlflow_version": version("mlflow"),
        "model_size_bytes": size,
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
    if loads_onnx:
        _link_onnx(folder)


def wrapper_manifest(folder: Path) -> Manifest:
    """Return the manifest of everything in a unit but its formats.

    Raises:
        IntegrityError: there is a link or special file.
    """
    rows: list[dict[str, object]] = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if relative.parts[0] == FORMATS_FOLDER and not path.is_symlink():
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise IntegrityError(f"`{relative}` is a link or special file", where=str(path), file=str(relative))
        if path.is_file():
            rows.append(
                asdict(FileDigest(path=relative.as_posix(), size_bytes=path.stat().st_size, digest=sha256_file(path)))
            )
    return Manifest.from_json(json.dumps(rows))


def verify_wrapper(folder: Path, manifest: Manifest) -> None:
    """Compare the wrapper's files with what was sealed.

    Raises:
        IntegrityError: a file differs, is missing or was added; `facts["file"]` names the first.
    """
    if not folder.is_dir():
        raise IntegrityError("a sealed folder is missing", where=str(folder), file=str(folder))
    found = {file.path: file for file in wrapper_manifest(folder).files if file.path != LOADED_MARK}
    sealed = {file.path: file for file in manifest.files}
    for path in sorted(found.keys() | sealed.keys()):
        if found.get(path) != sealed.get(path):
            change = "was added" if path not in sealed else "is missing" if path not in found else "was changed"
            raise IntegrityError(
                f"sealed files are not what was sealed: `{path}` {change}",
                where=str(folder),
                expected=manifest.digest,
                file=path,
            )


def read_example(folder: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """Return the input example that was sealed with a version, by input name.

    Raises:
        IntegrityError: it is not what was sealed.
    """
    from safetensors.numpy import load

    path = folder / INPUT_EXAMPLE_FILE
    data = path.read_bytes() if path.is_file() else b""
    sealed = {file.path: file.digest for file in manifest.files}
    if sha256_bytes(data) != sealed.get(INPUT_EXAMPLE_FILE):
        raise IntegrityError(f"`{INPUT_EXAMPLE_FILE}` was changed", where=str(folder), file=INPUT_EXAMPLE_FILE)
    return load(data)


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
    tensor: dict[str, object] = {"type": "tensor", "tensor-spec": {"dtype": spec.dtype, "shape": shape}}
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


def _link_onnx(folder: Path) -> None:
    """Give ONNX files a second name beside MLmodel, which MLflow looks for in the folder of the graph."""
    for path in sorted((folder / FORMATS_FOLDER / "onnx").iterdir()):
        if path.name == SIGNATURE_FILE or path.is_dir():
            continue
        link = folder / path.name
        if link.exists():
            raise InvalidInputError(f"`{path.name}` in format `onnx` has a name that MLflow uses", where=str(path))
        try:
            link.hardlink_to(path)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, link)


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
    from safetensors.numpy import save_file

    arrays = {spec.name: np.ascontiguousarray(example[spec.name]) for spec in signature.inputs}
    save_file(arrays, folder / INPUT_EXAMPLE_FILE)
    plain: dict[str, Any] = {name: array.tolist() for name, array in arrays.items()}
    value = plain if len(plain) > 1 else next(iter(plain.values()))
    (folder / _MLFLOW_EXAMPLE_FILE).write_text(json.dumps(value))
    (folder / _SERVING_EXAMPLE_FILE).write_text(json.dumps({"inputs": value}))


def _requirement(package: str, environment: Mapping[str, str]) -> str:
    found = environment.get(package) or _installed(package)
    return f"{package}=={found}" if found else package


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _write_yaml(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(yaml.safe_dump(dict(value), default_flow_style=False, allow_unicode=True))
