"""PyTriton: a decorated function behind Triton, in a process of its own."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from peer_model import GRPC_PORT_VARIABLE, PORT_VARIABLE, load_model
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

model = load_model()


@batch
def infer(**inputs: np.ndarray) -> dict[str, np.ndarray]:
    return {model.output: model.run(inputs)}


def tensors(rows: list[dict[str, Any]]) -> list[Tensor]:
    return [
        Tensor(name=one["name"], dtype=np.dtype(one["dtype"]).type, shape=tuple(
            axis if isinstance(axis, int) else -1 for axis in one["shape"][1:])) for one in rows
    ]  # fmt: skip


def main() -> None:
    port, grpc_port = int(os.environ[PORT_VARIABLE]), int(os.environ[GRPC_PORT_VARIABLE])
    config = TritonConfig(http_port=port, grpc_port=grpc_port, allow_metrics=False, http_address="127.0.0.1")
    with Triton(config=config) as triton:
        triton.bind(
            model_name=model.name,
            infer_func=infer,
            inputs=tensors(model.inputs),
            outputs=tensors(model.outputs),
            config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()


if __name__ == "__main__":
    main()
