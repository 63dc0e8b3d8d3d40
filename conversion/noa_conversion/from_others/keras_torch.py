"""A Keras model on PyTorch as a plain module: it is one, and its layers want to be told that nobody trains."""

from __future__ import annotations

from typing import Any

import torch


def as_module(model: Any) -> torch.nn.Module:
    """Return a module whose `forward` takes the inputs one by one and gives tensors, in inference mode."""

    class Inference(torch.nn.Module):
        """Calls the Keras model with `training=False`."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> Any:
            found = self.model(inputs[0] if len(inputs) == 1 else list(inputs), training=False)
            return tuple(found) if isinstance(found, (list, tuple)) else found

    return Inference().cpu().eval()
