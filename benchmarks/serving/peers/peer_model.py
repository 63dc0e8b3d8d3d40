"""A model of the run as every peer loads it: onnxruntime with one thread, and the names from `served.json`.

Runs in the peers' own environments, so it imports nothing but numpy and onnxruntime.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

MODEL_VARIABLE = "NOA_BENCH_MODEL"
PORT_VARIABLE = "NOA_BENCH_PORT"
GRPC_PORT_VARIABLE = "NOA_BENCH_GRPC_PORT"
DELAY_VARIABLE = "NOA_BENCH_DELAY_S"
"""The tests of the harness slow a server down by this much, to see that it measures slower."""


class PeerModel:
    """`run` computes the one output from inputs by name."""

    def __init__(self, folder: Path) -> None:
        served = json.loads((folder / "served.json").read_text())
        self.name: str = served["name"]
        self.inputs: list[dict[str, Any]] = served["inputs"]
        self.outputs: list[dict[str, Any]] = served["outputs"]
        self.output: str = self.outputs[0]["name"]
        self.dtypes = {one["name"]: np.dtype(one["dtype"]) for one in self.inputs}
        self.first = self.inputs[0]["name"]
        self.tail = tuple(axis for axis in self.inputs[0]["shape"] if isinstance(axis, int))
        self._delay_s = float(os.environ.get(DELAY_VARIABLE, "0"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        if self._delay_s:
            time.sleep(self._delay_s)
        return self._session.run(None, inputs)[0]

    def run_bytes(self, body: bytes) -> bytes:
        """Compute from the bytes of the only input."""
        return self.run({self.first: np.frombuffer(body, self.dtypes[self.first]).reshape(-1, *self.tail)}).tobytes()

    def run_lists(self, table: dict[str, Any]) -> np.ndarray:
        """Compute from lists by name."""
        return self.run({name: np.array(table[name], dtype) for name, dtype in self.dtypes.items()})


def load_model() -> PeerModel:
    """Load the model that the environment names."""
    return PeerModel(Path(os.environ[MODEL_VARIABLE]))
