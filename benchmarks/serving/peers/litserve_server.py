"""LitServe: its API class with its own batching, one worker."""

import os
from typing import Any

import litserve
import numpy as np
from peer_model import PORT_VARIABLE, load_model


class Peer(litserve.LitAPI):
    def setup(self, device: str) -> None:
        del device
        self.model = load_model()

    # LitServe makes FastAPI's route of this annotation: without one the body is read as JSON.
    def decode_request(self, request) -> dict[str, np.ndarray]:  # noqa: ANN001
        return {name: np.array(request[name], dtype) for name, dtype in self.model.dtypes.items()}

    def batch(self, inputs: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]}

    def predict(self, x: dict[str, np.ndarray]) -> np.ndarray:
        return self.model.run(x)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return [output[i : i + 1] for i in range(len(output))]

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        return {self.model.output: output.tolist()}


if __name__ == "__main__":
    api = Peer(max_batch_size=64, batch_timeout=0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(os.environ[PORT_VARIABLE]), generate_client_file=False, log_level="warning")
