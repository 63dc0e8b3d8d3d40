"""A process of its own for what touches the model with a framework: bounded in memory and time, and killed with us.

    python -m noa_conversion.imports.child    request as JSON on standard input, answer as JSON on standard output

Preparing and trying a graph runs no code of the file, but a graph may still ask for endless work or memory. Here that
ends with the child. An answer is either the signature or an error of noa's.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from noa.errors import (
    ConversionError,
    DependencyMissingError,
    InvalidInputError,
    NoaError,
    SignatureError,
    StorageError,
)
from noa.signatures import Signature
from noa_conversion.imports.kept_signature import Prepared, kept_signature

EXAMPLE_FILE: Final = "example.safetensors"
_MOST_ANSWER_BYTES = 16 << 20
_SHOWN = 300
_ERRORS: Final = (ConversionError, InvalidInputError, SignatureError, StorageError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLimits:
    """What the child may use."""

    seconds: float = 600.0
    memory_bytes: int = 12 << 30
    """Address space: PyTorch alone reserves several GiB of it without using them."""


def run_child(request: Mapping[str, object], limits: ChildLimits) -> Signature:
    """Prepare a format in a child process and return its signature; the child writes folder and example.

    Raises:
        InvalidInputError, ConversionError: as `onnx_import.prepare` and `torch_import.prepare`; or the child used up
            its time or memory, or died.
    """
    command = [sys.executable, "-m", "noa_conversion.imports.child"]
    table = {**request, "memory_bytes": limits.memory_bytes, "seconds": limits.seconds}
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "MLFLOW_DISABLE_TELEMETRY": "true"}
    try:
        result = subprocess.run(
            command,
            input=json.dumps(table).encode(),
            capture_output=True,
            timeout=limits.seconds,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as exc:
        raise InvalidInputError(
            f"the model could not be prepared in {limits.seconds:g} seconds", remedy="It may ask for endless work"
        ) from exc
    try:
        answer = cast("dict[str, Any]", json.loads(result.stdout[-_MOST_ANSWER_BYTES:].splitlines()[-1]))
    except (ValueError, IndexError) as exc:
        said = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise InvalidInputError(
            f"the model could not be prepared: the process that read it ended with {result.returncode}",
            expected=f"at most {limits.memory_bytes >> 20} MiB of memory",
            received=said[-1][:_SHOWN] if said else "no answer",
        ) from exc
    if "signature" in answer:
        return Signature.from_dict(answer["signature"])
    raise _rebuilt(cast("dict[str, str]", answer))


def prepare(request: Mapping[str, Any]) -> Signature:
    """Do what a request says, in this process."""
    source, folder = Path(request["source"]), Path(request["folder"])
    if request["kind"] == "onnx":
        from noa_conversion.formats.onnx_format import require_onnx

        require_onnx("importing an ONNX model")  # deeper down it is an `ImportError` that names no extra
        from noa_conversion.imports.onnx_import import prepare as prepare_onnx

        prepared = prepare_onnx(source, folder)
    else:
        from noa_conversion.imports.torch_import import prepare as prepare_torch

        prepared = Prepared(signature=prepare_torch(source, folder))
    return _try_out(request, prepared, folder)


def _try_out(request: Mapping[str, Any], prepared: Prepared, folder: Path) -> Signature:
    """Run the prepared format, keep the inputs it ran on, and return the signature that it keeps."""
    import numpy as np
    from safetensors.numpy import save_file

    from noa.formats import find_adapter
    from noa_conversion.imports.examples import make_example, read_example

    given = request.get("example")
    signature = prepared.signature
    example = read_example(Path(given), signature) if given else make_example(signature)
    model = find_adapter(str(request["kind"])).load(folder)
    try:
        outputs = model.run(example)
    except InvalidInputError as exc:
        if given:
            raise
        raise InvalidInputError(
            f"the model cannot compute made-up inputs: {exc.what}",
            remedy="Give real ones with --example FILE (.npz, .safetensors or .json)",
        ) from exc
    kept = kept_signature(model, prepared, example, outputs)
    kept.save(folder)
    arrays = {name: np.ascontiguousarray(array) for name, array in example.items()}
    save_file(arrays, Path(request["example_target"]))
    return kept


def _rebuilt(answer: Mapping[str, str]) -> NoaError:
    """Return the error that the child reported."""
    if answer.get("error") == "DependencyMissingError":
        return DependencyMissingError(answer["package"], extra=answer["extra"], purpose=answer["purpose"])
    kinds: dict[str, type[NoaError]] = {each.__name__: each for each in _ERRORS}
    parts = {key: answer.get(key) for key in ("where", "expected", "received", "remedy")}
    return kinds.get(str(answer.get("error")), InvalidInputError)(str(answer.get("what")), **parts)  # pyright: ignore[reportArgumentType]  # texts or None


def _die_with_parent() -> None:
    """End when the parent ends, however it does (Linux)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _main() -> int:
    _die_with_parent()
    request = cast("dict[str, Any]", json.loads(sys.stdin.buffer.read()))
    memory = int(request["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer_to = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no part of the answer
    try:
        answer: dict[str, object] = {"signature": prepare(request).to_dict()}
    except DependencyMissingError as exc:
        answer = {**exc.to_dict(), "package": exc.package, "extra": exc.extra, "purpose": exc.purpose}
    except NoaError as exc:
        answer = dict(exc.to_dict())
    except MemoryError:
        answer = {"error": "InvalidInputError", "what": "the model needs more memory than an import may take"}
    os.write(answer_to, b"\n" + json.dumps(answer).encode())
    return 0


if __name__ == "__main__":
    sys.exit(_main())
