"""From ONNX into a framework: the two importers, loaded when they are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

    from noa_conversion.importers.jax import ImportedJax
    from noa_conversion.importers.torch import ImportedTorch


def import_onnx_to_torch(
    path: Path | str | bytes,
    *,
    bind: Mapping[str, np.ndarray] | None = None,
    sizes: Mapping[str, int] | None = None,
    dynamic: bool = True,
) -> ImportedTorch:
    """Import an ONNX model, from a file or its bytes, as an `fx.GraphModule` with its weights under their own names.

    `bind` gives inputs their values for good: those that decide shapes must be. `sizes` fixes free axes by name;
    without `dynamic` the others have the size 1.

    Raises:
        ConversionError: something in the model cannot be computed in PyTorch; names operator, node, opset and reason.
        DependencyMissingError: PyTorch is not installed.
        InvalidInputError: the file is no ONNX model, or not a safe and consistent one.
    """
    from noa_conversion.formats.torch_format import import_torch

    import_torch()
    from noa_conversion.importers.torch import import_onnx_to_torch as import_model

    return import_model(path, bind=bind, sizes=sizes, dynamic=dynamic)


def import_onnx_to_jax(
    path: Path | str | bytes,
    *,
    bind: Mapping[str, np.ndarray] | None = None,
    sizes: Mapping[str, int] | None = None,
    precision: Literal["64"] | None = None,
) -> ImportedJax:
    """Import an ONNX model, from a file or its bytes, as a pure function and a flat dict of its weights by name.

    `bind` gives inputs their values for good: those that decide shapes must be. `sizes` fixes free axes by name in the
    signature and what is made from it. With `precision="64"` outputs have the
    types of the file; without, 64-bit ones are what the scope around makes of them: 32 bits unless the caller says
    otherwise, in which a whole number that does not fit is marked. In between all 64 bits count.

    Raises:
        ConversionError: something in the model cannot be computed in JAX; names operator, node, opset and reason.
        DependencyMissingError: JAX is not installed.
        InvalidInputError: the file is no ONNX model, or not a safe and consistent one.
    """
    from noa_conversion.importers.jax import import_onnx_to_jax as import_model

    return import_model(path, bind=bind, sizes=sizes, precision=precision)
