"""The values that the PyTorch importer computes on its way through an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from noa_conversion.bisection.imported_values import ImportedValues
from noa_conversion.importers.registry import Handlers
from noa_conversion.importers.torch import handlers
from noa_conversion.importers.torch.dtypes import dtype_of, tagged, to_torch
from noa_conversion.importers.torch.table import HANDLERS

del handlers  # importing it fills the table


class EagerTorch:
    """PyTorch as a target that records nothing: every handler computes at once."""

    @property
    def name(self) -> str:
        """The target's name in errors."""
        return "torch"

    @property
    def handlers(self) -> Handlers:
        """PyTorch's operators, those that the importer uses."""
        return HANDLERS

    def constant(self, array: np.ndarray) -> torch.Tensor:
        """Return known numbers as a tensor."""
        return tagged(to_torch(array, copy=True), array.dtype)

    def shape(self, tensor: torch.Tensor) -> tuple[int, ...]:
        """Return the sizes."""
        return tuple(tensor.shape)

    def dtype(self, tensor: torch.Tensor) -> np.dtype:
        """Return the ONNX type of the elements."""
        return dtype_of(tensor)

    def at_least(self, left: int, right: int) -> bool:
        """Tell whether `left >= right`: every size is a number here."""
        return left >= right

    def from_symbols(self, array: np.ndarray) -> torch.Tensor:
        """Return whole numbers as an int64 tensor; without a trace there are no symbols."""
        return torch.from_numpy(array.astype(np.int64))


class ImportedTorchValues(ImportedValues):
    """Walks the graph in PyTorch."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, EagerTorch(), _to_array)

    def compute(self, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """See `ImportedValues.compute`; nothing is kept for gradients."""
        with torch.no_grad():
            return super().compute(inputs, names)


def _to_array(value: Any) -> np.ndarray | None:
    if not isinstance(value, torch.Tensor):
        return None
    known = value.float() if value.dtype == torch.bfloat16 else value
    return known.detach().cpu().numpy().copy()
