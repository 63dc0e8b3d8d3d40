"""Which initialisers of a file are weights of the module, and of what kind.

Floats are parameters under their original names. Statistics of a batch normalisation are buffers. A float that is a
setting rather than a weight (an exponent, a bound, a tiny number that keeps a divisor from zero) enters the graph as a
number and is kept as a parameter that is not trained: its gradient would be wrong to follow, or not a number at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from noa_conversion.importers.torch.dtypes import is_float8, is_held, to_torch, torch_dtype_of
from noa_conversion.importers.torch.target import CONSTANTS
from noa_conversion.onnx_graph.demand import demanded_initialisers
from noa_conversion.onnx_graph.dtypes import is_float
from noa_conversion.onnx_graph.model import OnnxGraph, OnnxModel
from noa_conversion.onnx_graph.names import attribute_paths

_STATISTICS = {"BatchNormalization": (3, 4)}
# Inputs that are settings where they hold one number.
_SETTINGS: Mapping[str, tuple[int, ...]] = {"Pow": (1,), "Clip": (1, 2), "Pad": (2,), "OneHot": (2,), "Where": (1, 2)}
_TINY = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWeights:
    """The float initialisers by name: their attribute paths, tensors, and which of them the graph takes as tensors."""

    paths: Mapping[str, str]
    tensors: Mapping[str, torch.Tensor]
    traced: frozenset[str]


def weights_of(model: OnnxModel) -> ModelWeights:
    """Make the weights of a model. Arrays are copied, for the file's memory cannot be written to."""
    arrays = {name: array for name, array in model.graph.all_initialisers().items() if _is_weight(array)}
    paths = attribute_paths(arrays, reserved=_reserved())
    uses = _uses(model.graph)
    numbers = demanded_initialisers(model)
    traced = frozenset(
        name for name, array in arrays.items() if name not in numbers and not _is_setting(array, uses.get(name, []))
    )
    statistics = {name for name in arrays if (found := uses.get(name)) and all(_is_statistic(use) for use in found)}
    tensors: dict[str, torch.Tensor] = {}
    for name, array in arrays.items():
        tensor = to_torch(array, copy=True)
        is_trained = name in traced and not is_float8(tensor.dtype)
        tensors[name] = tensor if name in statistics else torch.nn.Parameter(tensor, requires_grad=is_trained)
    return ModelWeights(paths=paths, tensors=tensors, traced=traced)


def _is_weight(array: np.ndarray) -> bool:
    return is_float(array.dtype) and not is_held(array.dtype) and torch_dtype_of(array.dtype) is not None


def _uses(graph: OnnxGraph) -> dict[str, list[tuple[str, int]]]:
    """Return for each name which operators take it, and at which place."""
    found: dict[str, list[tuple[str, int]]] = {}
    for inner in graph.walk():
        for node in inner.nodes:
            for place, name in enumerate(node.inputs):
                found.setdefault(name, []).append((node.kind, place))
        for value in inner.outputs:
            found.setdefault(value.name, []).append(("", 0))
    return found


def _is_statistic(use: tuple[str, int]) -> bool:
    kind, place = use
    return place in _STATISTICS.get(kind, ())


def _is_setting(array: np.ndarray, uses: list[tuple[str, int]]) -> bool:
    if array.size != 1 or not uses:
        return False
    is_tiny = 0.0 < float(array.reshape(())) <= _TINY and array.ndim == 0
    return all(place in _SETTINGS.get(kind, ()) or (is_tiny and kind in ("Add", "Max")) for kind, place in uses)


def _reserved() -> Iterator[str]:
    yield CONSTANTS
    yield from dir(torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph()))
