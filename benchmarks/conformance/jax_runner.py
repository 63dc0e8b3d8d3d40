"""The JAX side: import, run under one outer `jax.jit`, outputs as numpy arrays.

The suite declares 64-bit types, so everything runs inside `jax.enable_x64()`: a scope of this thread, not a switch of
the process. Without it JAX would make every int64 an int32, whoever imported the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.conformance.cases import Value
from noa_conversion.importers.jax.importer import import_onnx_to_jax
from noa_conversion.onnx_graph.model import OnnxValue


def run(
    model: bytes, bind: Mapping[str, np.ndarray], inputs: Sequence[Value], outputs: Sequence[OnnxValue]
) -> list[Value]:
    with jax.enable_x64(True):
        imported = import_onnx_to_jax(model, bind=bind)
        results = jax.jit(imported.apply)(imported.params, *inputs)
        listed = list(results) if isinstance(results, tuple) else [results]
        return [_to_numpy(value) for value in listed]


def _to_numpy(value: Any) -> Value:
    if isinstance(value, (list, tuple)):
        return [_to_numpy(item) for item in value]
    return value if value is None else np.asarray(value)
