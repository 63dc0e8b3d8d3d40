"""Keras 3: a `.keras` file, loaded in safe mode in a process of its own, since Keras chooses its backend at import.

Its configuration is data; a lambda in it would be code, and safe mode refuses it, as it does classes of the user's.
PyTorch is the backend if it is installed, else JAX.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, cast

from noa.errors import ConversionError, DependencyMissingError, InvalidInputError, NoaError
from noa.settings import ConversionSettings

_SECONDS: Final = 900.0
_ERRORS: Final[dict[str, type[NoaError]]] = {error.__name__: error for error in (ConversionError, InvalidInputError)}


def convert_file(path: Path, folder: Path, settings: ConversionSettings) -> dict[str, object]:
    """Write the format `onnx` into an empty folder from a `.keras` file; return how it compares.

    Raises:
        InvalidInputError: Keras cannot read the file, or it holds code.
        ConversionError: the model cannot be expressed, or the graph computes something else.
        DependencyMissingError: neither PyTorch nor JAX is installed.
    """
    backend = next((name for name in ("torch", "jax") if find_spec(name) is not None), None)
    if backend is None:
        raise DependencyMissingError("torch", extra="torch", purpose="Keras to ONNX")
    request = {"path": str(path.absolute()), "folder": str(folder.absolute()), "settings": settings.model_dump()}
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        result = subprocess.run(
            [sys.executable, "-m", "noa_conversion.from_others.keras_file"],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            env=environment,
        )
        answer = cast("dict[str, Any]", json.loads(result.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired as exc:
        raise ConversionError(f"the Keras model was not converted in {_SECONDS:g} seconds", where=str(path)) from exc
    except (ValueError, IndexError) as exc:
        raise ConversionError(f"the process that read the Keras model died of `{path.name}`", where=str(path)) from exc
    if "error" in answer:
        parts = {key: answer.get(key) for key in ("where", "expected", "received", "remedy")}
        raise _ERRORS.get(str(answer["error"]), ConversionError)(answer["what"], **parts)  # pyright: ignore[reportArgumentType]  # texts or None
    return answer


def load_keras(path: Path) -> Any:
    """Load a model in safe mode, without what it was compiled with.

    Raises:
        InvalidInputError: Keras refuses the file; says why.
    """
    import keras

    try:
        return cast("Any", keras).saving.load_model(path, safe_mode=True, compile=False)
    except Exception as exc:  # whatever Keras raises, the file is at fault
        text = " ".join(str(exc).split())
        raise InvalidInputError(
            f"Keras does not load the file in safe mode: {text[:300]}",
            where=str(path),
            expected="a .keras file of Keras's own layers, without lambdas",
        ) from exc


def _main() -> int:
    request = cast("dict[str, Any]", json.loads(sys.stdin.buffer.read()))
    answer_to = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no part of the answer
    try:
        from noa_conversion.from_others.keras_models import convert_loaded

        settings = ConversionSettings.model_validate(request["settings"])
        answer = convert_loaded(load_keras(Path(request["path"])), Path(request["folder"]), settings)
    except NoaError as exc:
        answer = dict[str, object](exc.to_dict())
    os.write(answer_to, b"\n" + json.dumps(answer).encode())
    return 0


if __name__ == "__main__":
    sys.exit(_main())
