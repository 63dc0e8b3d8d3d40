"""The optimisations as converters from `onnx` to formats of their own, found through `noa.converters`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from noa.errors import InvalidInputError
from noa.settings import ConversionSettings
from noa_conversion.converters import Convert, Converter
from noa_conversion.optimise.precision_tolerance import allowance

if TYPE_CHECKING:
    import numpy as np

_PACKAGES: Final = ("onnx", "onnxruntime", "ml_dtypes")
SLIM: Final = "onnx-slim"
CALIBRATED: Final = "onnx-int8-static"


def _step(name: str) -> Convert:
    def run(source: Path, folder: Path, settings: ConversionSettings) -> None:
        from noa_conversion.optimise.child import run_step

        del settings  # precision and opset are the step's and the source's
        run_step(name, source, folder)

    return run


def _static(
    source: Path, folder: Path, settings: ConversionSettings, *, samples: Mapping[str, np.ndarray] | None
) -> None:
    from noa_conversion.optimise.child import run_step

    del settings
    if samples is None:
        raise InvalidInputError(
            f"`{CALIBRATED}` measures its ranges on real inputs, and there are none",
            expected="inputs of the version, or a file",
            remedy="Give some with `--input FILE`",
        )
    run_step(CALIBRATED, source, folder, samples=samples)


def _reduced(name: str) -> Converter:
    return Converter(
        source="onnx",
        target=name,
        run=_static if name == CALIBRATED else _step(name),
        packages=_PACKAGES,
        extra="onnx",
        allow=allowance(name),
        wants_samples=name == CALIBRATED,
    )


TO_SLIM = Converter(source="onnx", target=SLIM, run=_step(SLIM), packages=("onnx", "onnxslim"), extra="optimize")
TO_FP16 = _reduced("onnx-fp16")
TO_BF16 = _reduced("onnx-bf16")
TO_INT8 = _reduced("onnx-int8")
TO_INT8_STATIC = _reduced(CALIBRATED)
TO_INT4 = _reduced("onnx-int4")
