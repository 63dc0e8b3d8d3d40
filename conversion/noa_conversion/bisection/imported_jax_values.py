"""The values that the JAX importer computes on its way through an ONNX graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from noa_conversion.bisection.imported_values import ImportedValues
from noa_conversion.importers.jax.target import TARGET


class ImportedJaxValues(ImportedValues):
    """Walks the graph in JAX."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, TARGET, _to_array, scope=lambda: jax.enable_x64(True))


def _to_array(value: Any) -> np.ndarray | None:
    return np.asarray(value) if isinstance(value, jax.Array) else None
