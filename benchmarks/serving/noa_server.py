"""noa in the run: a scratch project with the models in its registry, and its server as it is by default.

Validation, metrics, deadlines and limits are on; nothing is set but the port, the compute threads (one, as for every
server of the run) and, where swaps are measured, how often the registry is asked.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.models import register_folder
from benchmarks.serving.processes import Server, free_port, run_on
from benchmarks.serving.roster import NOA, noa_ways, wait_answering
from noa.settings import EndpointSettings, ServingSettings, Settings
from noa_registry import Registry
from noa_serving import start_server

if TYPE_CHECKING:
    from benchmarks.serving.served_models import ServedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A scratch project; every model has two versions that compute the same, so that a swap changes no answer."""

    settings: Settings
    models: tuple[str, ...]

    def promote(self, name: str, number: int) -> None:
        """Point the alias that the server follows at a version."""
        with Registry.open(self.settings.registry) as registry:
            registry.promote(name, number, reason="bench", actor="bench")


def make_project(root: Path, models: Sequence[ServedModel], **serving: object) -> Project:
    """Register the models below `root` and promote their first versions."""
    table = {"serving": {"port": 0, "threads": 1, **serving}}
    settings = Settings.model_validate(table).resolved(root)
    with Registry.open(settings.registry) as registry, tempfile.TemporaryDirectory() as scratch:
        for model in models:
            for number in (1, 2):
                folder = Path(scratch) / f"{model.name}-{number}"
                _copy(model, folder, note=f"version {number}")
                example = {key: np.concatenate([row[key] for row in model.rows[:2]]) for key in model.rows[0]}
                register_folder(registry, model.name, folder, example=example, params={"number": number})
            registry.promote(model.name, 1, reason="bench", actor="bench")
    return Project(settings=settings, models=tuple(one.name for one in models))


def start_noa(project: Project, model: ServedModel, folder: Path, *, cores: frozenset[int]) -> Server:
    """Start noa's server with one endpoint and wait for its first answer."""
    log = folder / "noa.log"
    settings = project.settings
    begun = time.monotonic()
    with run_on(cores):
        process = start_server(
            settings, endpoints={model.name: EndpointSettings(model=f"{model.name}@champion")}, log_file=log
        )
    try:
        address = process.wait_ready()
        server = Server(
            name=NOA, pid=process.pid, port=address.port, grpc_port=_grpc_port(settings), log=log, end=process.stop
        )
        wait_answering(server, model, noa_ways(model)[0], has_ended=lambda: process.poll() is not None)
    except BaseException:
        process.stop()
        raise
    server.start_s = time.monotonic() - begun
    return server


def grpc_settings() -> dict[str, object]:
    """Return the settings that switch gRPC on, nothing where this noa has none or grpcio is not installed."""
    is_there = "grpc_port" in ServingSettings.model_fields and find_spec("grpc") is not None
    return {"grpc_port": free_port()} if is_there else {}


def _grpc_port(settings: Settings) -> int | None:
    port = settings.serving.model_dump().get("grpc_port")
    return port if isinstance(port, int) and port else None


def _copy(model: ServedModel, folder: Path, *, note: str) -> None:
    import onnx

    folder.mkdir(parents=True)
    proto = onnx.load(str(model.path))
    proto.doc_string = note  # other bytes, the same function
    onnx.save(proto, str(folder / "model.onnx"))
    shutil.copy(model.folder / "signature.json", folder)
