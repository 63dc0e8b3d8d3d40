"""The model of Triton's Python backend (it must be called `model.py`): one onnxruntime call per batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from peer_model import load_model


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        del args
        self.model = load_model()

    def execute(self, requests: list[Any]) -> list[Any]:
        names = list(self.model.dtypes)
        rows = [[pb_utils.get_input_tensor_by_name(one, name).as_numpy() for name in names] for one in requests]
        inputs = {name: np.concatenate([row[i] for row in rows]) for i, name in enumerate(names)}
        output = self.model.run(inputs)
        answers, start = [], 0
        for row in rows:
            end = start + row[0].shape[0]
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor(self.model.output, output[start:end])]))
            start = end
        return answers
