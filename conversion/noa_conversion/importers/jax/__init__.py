"""ONNX as a pure JAX function and its weights. JAX is imported when a function here is called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from noa.settings import ConversionSettings

if TYPE_CHECKING:
    from noa_conversion.importers.jax.importer import ImportedJax

__all__ = ["ImportedJax", "convert_onnx_to_jax", "import_onnx_to_jax"]


def import_onnx_to_jax(
    path: Path | str | bytes,
    *,
    bind: Mapping[str, Any] | None = None,
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
    from noa_conversion.formats.jax_format import import_jax

    import_jax()
    from noa_conversion.importers.jax.importer import import_onnx_to_jax as import_model

    return import_model(path, bind=bind, sizes=sizes, precision=precision)


def convert_onnx_to_jax(source: Path, folder: Path, settings: ConversionSettings) -> None:
    """Write the `jax` format into an empty folder from a folder of the format `onnx`.

    Whole numbers of 64 bits stay what they are in its signature: see `noa_conversion.formats.jax_format`.

    Raises:
        ConversionError: something in the model cannot be computed or exported in JAX; names it.
        DependencyMissingError: JAX is not installed.
        InvalidInputError: the source is no ONNX model, or not a safe and consistent one.
    """
    del settings
    from noa_conversion.formats.jax_format import save
    from noa_conversion.formats.onnx_format import MODEL_FILE

    imported = import_onnx_to_jax(source / MODEL_FILE)
    save(imported.to_model(), folder, declared=imported.signature)
