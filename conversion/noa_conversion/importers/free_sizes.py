"""What a refusal tells a user to fix: a size may be computed from free axes, and only axes have names."""

from __future__ import annotations

import re
from typing import Any

# What symbolic sizes of PyTorch and JAX call on the way, no axis.
_FUNCTIONS = frozenset(
    {"CeilDiv", "CeilToInt", "CleanDiv", "FloatTrueDiv", "FloorDiv", "FloorToInt", "IntTrueDiv", "Max", "Min", "Mod"}
    | {"Piecewise", "RoundToInt", "ToFloat", "TruncToInt", "ceiling", "floor", "floordiv", "max", "min", "mod"}
)


def fixing(size: Any) -> str:
    """Return the remedy for a size that must be known: `sizes` with the axes that it is computed from.

    `size` is a name, or an expression of names as the target writes it.
    """
    names = list(dict.fromkeys(re.findall(r"[^\W\d]\w*", str(size))))
    axes = [name for name in names if name not in _FUNCTIONS]
    if not axes:
        return "Give the inputs of the file fixed sizes"
    given = ", ".join(f"'{axis}': NUMBER" for axis in axes)
    options = " ".join(f"--size {axis}=NUMBER" for axis in axes)
    return f"Fix {'it' if str(size) in axes else 'what it is computed from'}: sizes={{{given}}}, or `{options}`"
