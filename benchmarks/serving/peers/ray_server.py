"""Ray Serve: one replica of a deployment that reads JSON."""

from __future__ import annotations

import os
import signal
from typing import Any

import ray
from peer_model import PORT_VARIABLE, load_model
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Peer:
    def __init__(self) -> None:
        self.model = load_model()

    async def __call__(self, request: Request) -> dict[str, Any]:
        return {self.model.output: self.model.run_lists(await request.json()).tolist()}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ[PORT_VARIABLE])})
    serve.run(Peer.bind(), route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
