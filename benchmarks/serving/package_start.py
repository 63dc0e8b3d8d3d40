"""How long a packaged endpoint takes from the start of its process to its first right answer.

It is started as a container starts it, by `bentoml serve` on its folder, and asked every few milliseconds. The packages
are those of this environment: which others are installed beside them costs nothing, because none is imported.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.serving.bursts import Bench
from benchmarks.serving.noa_server import make_project
from benchmarks.serving.processes import PeerFailedError, Server, free_port, run_on, spawn
from benchmarks.serving.roster import noa_ways, wait_answering
from benchmarks.serving.served_models import ServedModel
from noa.settings import EndpointSettings
from noa_registry import Registry
from noa_serving import Client
from noa_serving.packaging import make_package


def package_start(place: Bench, model: ServedModel, *, rounds: int = 3) -> float:
    """Package the model and return the median time of its starts, seconds; the first warms the disk's cache.

    Raises:
        PeerFailedError: it does not start, or answers wrongly.
    """
    root = place.folder / "packaged"
    project = make_project(root / "project", [model])
    package = root / "package"
    with Registry.open(project.settings.registry) as registry:
        rule = EndpointSettings(model=f"{model.name}@champion")
        make_package(registry, model.name, rule, project.settings.serving).write(package)
    times = [_start(place, model, package, root / f"run{number}") for number in range(rounds + 1)]
    return statistics.median(times[1:])


def _start(place: Bench, model: ServedModel, package: Path, folder: Path) -> float:
    (folder / "tmp").mkdir(parents=True)
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "-m", "bentoml", "serve", str(package), "--host", "127.0.0.1", "--port", str(port)]
    env = {"BENTOML_HOME": str(folder), "TMPDIR": str(folder / "tmp"), "BENTOML_DO_NOT_TRACK": "True"}
    begun = time.monotonic()
    with run_on(place.server_cores):
        process = spawn(command, env=env, cwd=folder, log=log)
    server = Server(name="package", pid=process.pid, port=port, log=log, reap=process.wait)
    try:
        wait_answering(server, model, noa_ways(model)[0], has_ended=lambda: process.poll() is not None)
        taken_s = time.monotonic() - begun
        with Client(f"http://127.0.0.1:{port}") as client:
            found = client.predict(model.name, model.rows[0]).outputs[model.output]
        if not np.allclose(found, model.answers[0], rtol=1e-3, atol=1e-4):
            raise PeerFailedError("a packaged endpoint answers something else")
        return taken_s
    finally:
        server.stop()
