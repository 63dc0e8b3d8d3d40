"""A step in a process of its own, bounded in memory and time: optimisers fold constants, without end if a graph wants.

    python -m noa_conversion.optimise.child    request as JSON on standard input, answer as JSON on standard output

It also keeps to itself what the libraries print and log.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noa.errors import ConversionError
from noa_conversion.child_process import answer, ask

if TYPE_CHECKING:
    import numpy as np


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
        }
        if samples is not None:
            from noa.tensor_files import save_tensors

            save_tensors(samples, Path(scratch) / "samples.safetensors")
            request["samples"] = f"{scratch}/samples.safetensors"
        ask(
            "noa_conversion.optimise.child",
            request,
            seconds=bounds.seconds,
            memory_bytes=bounds.memory_bytes,
            failure=ConversionError,
            what=f"`{step}` was not done",
        )


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


def _run(request: dict[str, Any]) -> dict[str, object]:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    arguments: list[Any] = [Path(request["source"]), Path(request["folder"])]
    if "samples" in request:
        from noa.tensor_files import load_tensors

        arguments.append(load_tensors(Path(request["samples"]).read_bytes()))
    _steps()[request["step"]](*arguments)
    return {}


if __name__ == "__main__":
    sys.exit(answer(_run, failure=ConversionError, too_large="the step needs more memory than it may take"))
