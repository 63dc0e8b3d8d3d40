"""What may stand around the formats of an imported version: only what noa itself writes.

noa runs nothing of it, but stock MLflow reads `MLmodel` and imports the module that it names, and its tools install
what `requirements.txt` lists. A wrapper that would do more than run the model is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import yaml

from noa.errors import IntegrityError
from noa_registry.mlflow_model import INPUT_EXAMPLE_FILE, MLMODEL_FILE

_REQUIREMENTS: Final = "requirements.txt"
_TEXTS: Final = frozenset({"python_env.yaml", "input_example.json", "serving_input_example.json", _REQUIREMENTS})
_KNOWN: Final = _TEXTS | {MLMODEL_FILE, INPUT_EXAMPLE_FILE}
_LOADERS: Final = frozenset({"mlflow.onnx", "noa_registry.mlflow_loader"})
_FLAVORS: Final = frozenset({"onnx", "python_function"})
_MOST_TEXT: Final = 1 << 20
_REQUIREMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(==[A-Za-z0-9][A-Za-z0-9.+!_-]*)?")
_PYTHON_ENV: Final = {"build_dependencies": ["pip", "wheel"], "dependencies": [f"-r {_REQUIREMENTS}"]}


def check_wrapper(folder: Path, *, where: str) -> None:
    """Refuse a wrapper that noa would not have written. Second names of ONNX files are not in `folder`.

    Raises:
        IntegrityError: names the file and what in it is foreign.
    """
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    foreign = sorted(found - _KNOWN)
    if foreign or MLMODEL_FILE not in found:
        raise _refuse(where, foreign[0] if foreign else MLMODEL_FILE, "is foreign" if foreign else "is missing")
    model = _read_yaml(folder / MLMODEL_FILE, where)
    flavors = model.get("flavors")
    if not isinstance(flavors, Mapping) or not flavors or not flavors.keys() <= _FLAVORS:
        raise _refuse(where, MLMODEL_FILE, f"has the flavors {flavors!s:.80}")
    for flavor, value in cast("Mapping[str, Mapping[str, Any]]", flavors).items():
        if value.get("code") is not None or (
            flavor == "python_function" and value.get("loader_module") not in _LOADERS
        ):
            raise _refuse(where, MLMODEL_FILE, f"names code to run: {value!s:.120}")
    if model.get("model_code_path") is not None or model.get("resources") is not None:
        raise _refuse(where, MLMODEL_FILE, "names code to run")
    if _REQUIREMENTS in found:
        for line in _read_text(folder / _REQUIREMENTS, where).splitlines():
            if not _REQUIREMENT.fullmatch(line):
                raise _refuse(where, _REQUIREMENTS, f"has the line {line[:80]!r}")
    if "python_env.yaml" in found:
        python = _read_yaml(folder / "python_env.yaml", where)
        if {key: python.get(key) for key in _PYTHON_ENV} != _PYTHON_ENV or len(python) != len(_PYTHON_ENV) + 1:
            raise _refuse(where, "python_env.yaml", f"has {python!s:.120}")


def _read_yaml(path: Path, where: str) -> dict[str, Any]:
    try:
        value: object = yaml.safe_load(_read_text(path, where))
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        raise _refuse(where, path.name, "is no YAML") from exc
    if not isinstance(value, dict):
        raise _refuse(where, path.name, "is no table")
    return cast("dict[str, Any]", value)


def _read_text(path: Path, where: str) -> str:
    if path.stat().st_size > _MOST_TEXT:
        raise _refuse(where, path.name, f"has {path.stat().st_size} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise _refuse(where, path.name, "is no text") from exc


def _refuse(where: str, file: str, what: str) -> IntegrityError:
    return IntegrityError(
        f"`{file}` of the archive {what}, which noa does not write",
        where=where,
        remedy="Import the model itself (ONNX or safetensors) instead, if you trust where it is from",
        file=file,
    )
