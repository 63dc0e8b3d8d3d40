"""A step in a process of its own, bounded in memory and time: optimisers fold constants, without end if a graph wants.

    python -m noa_conversion.optimise.child    request as JSON on standard input, answer as JSON on standard output

It also keeps to itself what the libraries print and log.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from noa.errors import ConversionError, DependencyMissingError, InvalidInputError, NoaError, SignatureError

if TYPE_CHECKING:
    import numpy as np

_ERRORS: Final[dict[str, type[NoaError]]] = {
    error.__name__: error for error in (ConversionError, InvalidInputError, SignatureError)
}
_SHOWN: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """What a step may use."""

    seconds: float = 900.0
    memory_bytes: int = 16 << 30


def run_step(
    step: str,
    source: Path,
    folder: Path,
    *,
    samples: Mapping[str, np.ndarray] | None = None,
    limits: StepLimits | None = None,
) -> None:
    """Run an optimisation from a folder of the format `onnx` into an empty folder.

    Raises:
        ConversionError: the step changed nothing, cannot be done, or used up its time or memory.
        InvalidInputError: the source is corrupt, or the samples do not fit.
        DependencyMissingError: a library is not installed.
    """
    bounds = limits or StepLimits()
    with tempfile.TemporaryDirectory(prefix="noa-samples-") as scratch:
        request: dict[str, object] = {
            "step": step,
            "source": str(source),
            "folder": str(folder),
            "memory_bytes": bounds.memory_bytes,
        }
        if samples is not None:
            from safetensors.numpy import save_file

            save_file(dict(samples), Path(scratch) / "samples.safetensors")
            request["samples"] = f"{scratch}/samples.safetensors"
        answer = _ask(request, bounds)
    if answer.get("error") == "DependencyMissingError":
        raise DependencyMissingError(answer["package"], extra=answer["extra"], purpose=answer["purpose"])
    if "error" in answer:
        parts = {key: answer.get(key) for key in ("where", "expected", "received", "remedy")}
        raise _ERRORS.get(str(answer["error"]), ConversionError)(answer["what"], **parts)  # pyright: ignore[reportArgumentType]  # texts or None


def _ask(request: Mapping[str, object], limits: StepLimits) -> dict[str, Any]:
    command = [sys.executable, "-m", "noa_conversion.optimise.child"]
    try:
        result = subprocess.run(
            command, input=json.dumps(request).encode(), capture_output=True, timeout=limits.seconds, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise ConversionError(f"`{request['step']}` was not done in {limits.seconds:g} seconds") from exc
    try:
        return cast("dict[str, Any]", json.loads(result.stdout.splitlines()[-1]))
    except (ValueError, IndexError) as exc:
        said = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ConversionError(
            f"`{request['step']}` ended with {result.returncode}",
            expected=f"at most {limits.memory_bytes >> 20} MiB of memory",
            received=said[-1][:_SHOWN] if said else "no answer",
        ) from exc


def _steps() -> Mapping[str, Callable[..., None]]:
    from noa_conversion.optimise import half_onnx, quantise_onnx, simplify_onnx

    return {
        simplify_onnx.STEP: simplify_onnx.simplify,
        half_onnx.FP16: half_onnx.to_fp16,
        half_onnx.BF16: half_onnx.to_bf16_storage,
        quantise_onnx.INT8: quantise_onnx.to_int8_dynamic,
        quantise_onnx.INT8_STATIC: quantise_onnx.to_int8_static,
        quantise_onnx.INT4: quantise_onnx.to_int4_weights,
    }


def _main() -> int:
    request = cast("dict[str, Any]", json.loads(sys.stdin.buffer.read()))
    memory = int(request["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer_to = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no part of the answer
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    answer: dict[str, object] = {}
    try:
        arguments: list[Any] = [Path(request["source"]), Path(request["folder"])]
        if "samples" in request:
            from safetensors.numpy import load_file

            arguments.append(load_file(request["samples"]))
        _steps()[request["step"]](*arguments)
    except DependencyMissingError as exc:
        answer = {**exc.to_dict(), "package": exc.package, "extra": exc.extra, "purpose": exc.purpose}
    except NoaError as exc:
        answer = dict(exc.to_dict())
    except MemoryError:
        answer = {"error": "ConversionError", "what": f"`{request['step']}` needs more memory than it may take"}
    os.write(answer_to, b"\n" + json.dumps(answer).encode())
    return 0


if __name__ == "__main__":
    sys.exit(_main())
