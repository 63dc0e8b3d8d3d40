"""How far a format of reduced precision may be from its source, and why. Part of the evidence that it carries.

The errors of single terms are independent, so that an output is off by a share of the largest value rather than of
itself. The limits are what the arithmetic explains, with room for depth; whether a model is still good enough for its
task is measured on the task (`noa optimize`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from noa.signatures import TensorSpec
from noa_conversion.comparison import Tolerance

Allow: TypeAlias = Callable[[TensorSpec], Tolerance]

_FLOATS: Final[Mapping[str, tuple[float, str]]] = MappingProxyType(
    {
        "onnx-fp16": (1e-2, "float16: 10 bits of mantissa in weights and activations"),
        "onnx-bf16": (5e-2, "bfloat16 weights: 7 bits of mantissa"),
        "onnx-int8": (0.15, "int8: steps of 1/127 of the largest weight and activation"),
        "onnx-int8-static": (0.2, "int8: steps of 1/127 of the largest weight and of the calibrated activations"),
        "onnx-int4": (0.35, "int4: steps of 1/7 of the largest weight in each block"),
    }
)
_DISAGREEMENT: Final[Mapping[str, float]] = MappingProxyType(
    {"onnx-fp16": 0.02, "onnx-bf16": 0.05, "onnx-int8": 0.1, "onnx-int8-static": 0.1, "onnx-int4": 0.2}
)
REDUCED: Final = tuple(_FLOATS)
"""The formats of reduced precision."""


def allowance(format: str) -> Allow:  # our word
    """Return what the outputs of a reduced format may differ by."""
    share, reason = _FLOATS[format]

    def allow(spec: TensorSpec) -> Tolerance:
        if spec.dtype.startswith("float"):
            return Tolerance(absolute=1e-4, relative=0.0, of_largest=share, reason=f"{reason}; of the largest output")
        decisions = _DISAGREEMENT[format]
        text = f"{spec.dtype}: at most {decisions:.0%} of the decisions may change ({reason})"
        return Tolerance(absolute=0.0, relative=0.0, disagreement=decisions, reason=text)

    return allow
