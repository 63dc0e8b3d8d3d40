"""Who is measured: noa and every server that pip installs, how each is started, and the protocols that it speaks.

All run one worker, one compute thread, and onnxruntime on the same file. What has a batcher of its own may use it.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson

from benchmarks.serving.environments import PEERS, python_of
from benchmarks.serving.processes import (
    PeerFailedError,
    Server,
    exchange,
    free_port,
    log_tail,
    run_on,
    spawn,
    wait_until,
)
from benchmarks.serving.wire import JSON, Row, Way, http, named_json, oip_binary, oip_json, raw

if TYPE_CHECKING:
    from benchmarks.serving.served_models import ServedModel

NOA, ECHO, LIMIT = "noa", "uvicorn echo", "onnxruntime in process"
_START_TIMEOUT_S = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a peer's command is made from."""

    model: ServedModel
    folder: Path
    python: Path
    port: int
    grpc_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A command with its additions to the environment."""

    command: list[str]
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One server of the comparison. `environment` names a file of `peers/`: what pip installs for it."""

    name: str
    environment: str
    start: Callable[[Site], Started]
    ways: Callable[[ServedModel], tuple[Way, ...]]
    is_freezable: bool = True
    has_grpc: bool = False


def start_peer(
    peer: Peer, model: ServedModel, folder: Path, *, cores: frozenset[int], env: Mapping[str, str] | None = None,
    python: Path | None = None,
) -> Server:  # fmt: skip
    """Start a peer and wait for its first answer; whether answers are right is seen in every burst.

    Raises:
        PeerFailedError: it cannot be installed or does not start.
    """
    site = Site(
        model=model,
        folder=folder,
        python=python or python_of(peer.environment),
        port=free_port(),
        grpc_port=free_port(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    started = peer.start(site)
    log = folder / "server.log"
    variables = {
        "NOA_BENCH_MODEL": str(model.folder.resolve()),
        "NOA_BENCH_PORT": str(site.port),
        "NOA_BENCH_GRPC_PORT": str(site.grpc_port),
        "PYTHONPATH": str(PEERS),
        "HOME": str(folder),  # some leave files there
        "OMP_NUM_THREADS": "1",
        "PATH": f"{site.python.parent}:/usr/local/bin:/usr/bin:/bin",
        **started.env,
        **(env or {}),
    }
    begun = time.monotonic()
    with run_on(cores):
        process = spawn(started.command, env=variables, cwd=folder, log=log)
    server = Server(
        name=peer.name,
        pid=process.pid,
        port=site.port,
        grpc_port=site.grpc_port if peer.has_grpc else None,
        log=log,
        is_freezable=peer.is_freezable,
        reap=process.wait,
    )
    try:
        wait_answering(server, model, peer.ways(model)[0], has_ended=lambda: process.poll() is not None)
    except BaseException:
        server.stop()
        raise
    return replace(server, start_s=time.monotonic() - begun)


def wait_answering(server: Server, model: ServedModel, way: Way, *, has_ended: Callable[[], bool]) -> None:
    """Wait until the server answers with status 200.

    Raises:
        PeerFailedError: it ended or did not in time; with what it said last.
    """
    request = way.encode(model, model.rows[0])
    last = ["it does not listen"]

    def answers() -> bool:
        if has_ended():
            raise PeerFailedError(f"it ended: {log_tail(server.log, 2)}")
        try:
            status, body = exchange(server.port, request, timeout_s=20)
        except OSError:
            return False
        last[0] = f"status {status}: {body[:200].decode(errors='replace')}"
        return status == 200

    if not wait_until(answers, timeout_s=_START_TIMEOUT_S):
        raise PeerFailedError(f"no answer in {_START_TIMEOUT_S:g} s: {last[0]}; {log_tail(server.log)}")


def find_peers(names: tuple[str, ...] | None = None) -> list[Peer]:
    """Return the peers by name (their environment's, or their own); None: all."""
    return [one for one in PEERS_BY_WEIGHT if names is None or one.name in names]


def _uvicorn(target: str) -> Callable[[Site], Started]:
    def start(site: Site) -> Started:
        command = [str(site.python), "-m", "uvicorn", target, "--port", str(site.port), "--no-access-log"]
        return Started(command=[*command, "--log-level", "warning", "--loop", "uvloop", "--http", "httptools"], env={})

    return start


def _bentoml(site: Site) -> Started:
    service = "TokensPeer" if site.model.name == "minilm" else "Peer"
    command = [str(site.python), "-m", "bentoml", "serve", f"bentoml_service:{service}", "--port", str(site.port)]
    env = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(site.folder / "home")}
    return Started(command=[*command, "--host", "127.0.0.1", "--working-dir", str(PEERS)], env=env)


def _triton(site: Site) -> Started:
    """The server that nvidia-pytriton bundles, with its Python backend.

    Its stub is linked against libpython: without the interpreter's own library folder in the path it loads the
    system's, of another version, and dies.
    """
    home = next(site.python.parent.parent.glob("lib/python*/site-packages/pytriton/tritonserver"), None)
    if home is None:
        raise PeerFailedError("nvidia-pytriton has no tritonserver in it")
    packages = home.parent.parent
    version = packages.parent.name.removeprefix("python")
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise PeerFailedError(f"nvidia-pytriton brings no Python backend for Python {version}")
    repository = site.folder / "repository"
    code = repository / site.model.name / "1"
    code.mkdir(parents=True, exist_ok=True)
    for name in ("model.py", "peer_model.py"):
        (code / name).write_bytes((PEERS / name).read_bytes())
    backends = site.folder / "backends"
    (backends / "python").mkdir(parents=True, exist_ok=True)
    for file in (*(home / "backends" / "python").iterdir(), stub):  # the server looks for the stub beside the backend
        (backends / "python" / file.name).unlink(missing_ok=True)
        (backends / "python" / file.name).symlink_to(file)
    (repository / site.model.name / "config.pbtxt").write_text(_triton_config(site.model))
    libraries = f"{Path(sys.base_prefix) / 'lib'}:{packages / 'nvidia_pytriton.libs'}"
    command = [str(home / "bin" / "tritonserver"), "--model-repository", str(repository)]
    command += ["--backend-directory", str(backends), "--http-address", "127.0.0.1"]
    command += ["--http-port", str(site.port), "--grpc-port", str(site.grpc_port), "--allow-metrics", "false"]
    command += ["--grpc-address", "127.0.0.1", "--log-verbose", "0"]
    return Started(command=command, env={"LD_LIBRARY_PATH": libraries, "PYTHONPATH": str(packages)})


def _triton_config(model: ServedModel) -> str:
    def tensors(side: str, specs: object) -> str:
        rows = [
            f'  {{ name: "{one.name}" data_type: TYPE_{_TRITON_TYPES[one.dtype]} dims: [ {_dims(one.shape[1:])} ] }}'
            for one in specs  # type: ignore[attr-defined]
        ]
        return f"{side} [\n" + ",\n".join(rows) + "\n]\n"

    return (
        f'name: "{model.name}"\nbackend: "python"\nmax_batch_size: 64\n'
        + tensors("input", model.signature.inputs)
        + tensors("output", model.signature.outputs)
        + "dynamic_batching { }\ninstance_group [ { count: 1 kind: KIND_CPU } ]\n"
    )


_TRITON_TYPES = {"float32": "FP32", "int64": "INT64"}


def _dims(shape: tuple[int | str, ...]) -> str:
    return ", ".join(str(axis) if isinstance(axis, int) else "-1" for axis in shape)


def _script(name: str, *arguments: str) -> Callable[[Site], Started]:
    def start(site: Site) -> Started:
        filled = [one.format(folder=site.folder) for one in arguments]
        # PyTriton's stub is linked against libpython, and takes the system's if it is not shown the interpreter's own.
        env = {**_QUIET, "LD_LIBRARY_PATH": str(Path(sys.base_prefix) / "lib")}
        return Started(command=[str(site.python), str(PEERS / name), *filled], env=env)

    return start


def _mlserver(site: Site) -> Started:
    settings = {
        "host": "127.0.0.1",
        "http_port": site.port,
        "grpc_port": site.grpc_port,
        "metrics_port": free_port(),
        "parallel_workers": 0,
        "debug": False,
    }
    (site.folder / "settings.json").write_text(json.dumps(settings))
    model = {"name": site.model.name, "implementation": "mlserver_runtime.Runtime"}
    (site.folder / "model-settings.json").write_text(json.dumps(model))
    return Started(command=[str(site.python.parent / "mlserver"), "start", str(site.folder)], env={})


_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    # Ray Serve gives its proxy 5 s to start and counts the time for which it is frozen.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "180",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "180",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "600",
}


def _oip_path(model: ServedModel) -> str:
    return f"/v2/models/{model.name}/infer"


def oip_ways(model: ServedModel) -> tuple[Way, ...]:
    """The Open Inference Protocol: raw tensors, and JSON."""
    path = _oip_path(model)
    return (
        Way(encoding="binary", name="OIP binary", encode=functools.partial(oip_binary, path=path)),
        Way(encoding="JSON", name="OIP JSON", encode=functools.partial(oip_json, path=path), marker=_data),
    )


def _data(_: ServedModel) -> str:
    return '"data":'


def noa_ways(model: ServedModel) -> tuple[Way, ...]:
    """Both protocols that noa speaks over HTTP."""
    plain = Way(encoding="JSON", name="plain JSON", encode=named_json(f"/predict/{model.name}", key="inputs"))
    return (*oip_ways(model), plain)


def _fastapi_ways(model: ServedModel) -> tuple[Way, ...]:
    json_way = Way(encoding="JSON", name="JSON", encode=named_json("/json", key="inputs"))
    if len(model.signature.inputs) > 1:
        return (json_way,)
    return (Way(encoding="binary", name="raw bytes", encode=raw("/binary")), json_way)


def _echo_ways(_: ServedModel) -> tuple[Way, ...]:
    return (Way(encoding="binary", name="the same bytes", encode=_echoed),)


def _echoed(model: ServedModel, row: Row) -> bytes:
    """Send the answer itself: what comes back is checked like any other answer."""
    index = next(i for i, one in enumerate(model.rows) if one is row)
    return raw("/")(model, {"x": np.asarray(model.answers[index])})


def _bentoml_ways(model: ServedModel) -> tuple[Way, ...]:
    batched = named_json("/predict_batched") if len(model.signature.inputs) == 1 else _stacked
    return (
        Way(encoding="JSON", name="JSON", encode=named_json("/predict"), marker=_root),
        Way(encoding="JSON", name="JSON, batched", encode=batched, marker=_root),
    )


def _stacked(_: ServedModel, row: Row) -> bytes:
    stacked = np.stack([row["tokens"], row["mask"]], axis=1)
    return http("/predict_batched", orjson.dumps({"stacked": stacked}, option=orjson.OPT_SERIALIZE_NUMPY), JSON)


def _root(_: ServedModel) -> str:
    return ""


def _json_at(path: str, key: str | None = None) -> Callable[[ServedModel], tuple[Way, ...]]:
    return lambda _: (Way(encoding="JSON", name="JSON", encode=named_json(path, key=key)),)


def _oip_json_only(model: ServedModel) -> tuple[Way, ...]:
    return (oip_ways(model)[1],)


FASTAPI = Peer(
    name="FastAPI + onnxruntime", environment="fastapi", start=_uvicorn("fastapi_app:app"), ways=_fastapi_ways
)
ECHO_PEER = Peer(name=ECHO, environment="fastapi", start=_uvicorn("fastapi_app:echo"), ways=_echo_ways)
BENTOML = Peer(name="BentoML", environment="bentoml", start=_bentoml, ways=_bentoml_ways)
TRITON = Peer(name="Triton", environment="triton", start=_triton, ways=oip_ways, has_grpc=True)
PYTRITON = Peer(
    name="PyTriton", environment="triton", start=_script("pytriton_server.py"), ways=oip_ways, has_grpc=True
)
MLSERVER = Peer(name="MLServer", environment="mlserver", start=_mlserver, ways=_oip_json_only, has_grpc=True)
MLFLOW = Peer(
    name="mlflow models serve",
    environment="mlflow",
    start=_script("mlflow_model.py", "{folder}/model"),
    ways=_json_at("/invocations", "inputs"),
)
LITSERVE = Peer(name="LitServe", environment="litserve", start=_script("litserve_server.py"), ways=_json_at("/predict"))
RAY = Peer(name="Ray Serve", environment="ray", start=_script("ray_server.py"), ways=_json_at("/"))

PEERS_BY_WEIGHT = (FASTAPI, BENTOML, TRITON, PYTRITON, MLSERVER, MLFLOW, LITSERVE, RAY)
"""All whole servers, the lightest installation first."""
